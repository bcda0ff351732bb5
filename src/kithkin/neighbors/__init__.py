"""Which patches a patch meets in a network, found and drawn (Fig. 7)."""

from kithkin.neighbors._draw import ROUNDS, draw_neighbors
from kithkin.neighbors._find import Box, Neighbors, Query, Round, find_neighbors, recorded_groups, stage_names

__all__ = [
    "ROUNDS",
    "Box",
    "Neighbors",
    "Query",
    "Round",
    "draw_neighbors",
    "find_neighbors",
    "recorded_groups",
    "stage_names",
]
