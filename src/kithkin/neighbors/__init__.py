"""Which patches a patch meets in a network, found and drawn (Fig. 7)."""

from kithkin.neighbors._draw import ROUNDS, draw_neighbors
from kithkin.neighbors._find import (
    Box,
    Neighbors,
    Query,
    Round,
    attention_places,
    find_neighbors,
    recorded_groups,
    stage_names,
)
from kithkin.neighbors._map import BlockMap, map_neighbors

__all__ = [
    "ROUNDS",
    "BlockMap",
    "Box",
    "Neighbors",
    "Query",
    "Round",
    "attention_places",
    "draw_neighbors",
    "find_neighbors",
    "map_neighbors",
    "recorded_groups",
    "stage_names",
]
