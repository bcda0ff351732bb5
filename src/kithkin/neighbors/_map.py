"""What every patch attends to in every block of a network, and how much each of them counts, from one pass."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kithkin.errors import InputError
from kithkin.layers import KNNLocalAttention
from kithkin.model import KiT
from kithkin.neighbors._find import (
    Recording,
    Viewable,
    _attention,
    one_picture,
    pass_whole,
    recorded_groups,
    stage_names,
)
from kithkin.ops.reference import candidates_of_each_patch, pairwise_weights


@dataclass(frozen=True, eq=False)
class BlockMap:
    """Which patches meet in one block. Patch ``i`` lies in row ``i // columns`` and column ``i % columns``.

    Attributes:
        stage, block: where in the network.
        patch_side: of a patch, in pixels of the picture.
        rows, columns: of patches; the last ones may reach beyond the picture, which the network extends.
        rounds: hash rounds h; 1 where no hashing is run, because the map has at most 2k patches.
        k: patches in a chunk.
        candidates: (N, h·2k) int64, what each patch attends to: round by round first the k patches of its chunk, then
            the k of the chunk before it; -1 where a place is empty. Where no hashing is run, (N, N).
        weights: float32 as ``candidates``, Eq. (10): how much each counts, a sum of 1 a row; the mean of the heads.
    """

    stage: str
    block: int
    patch_side: int
    rows: int
    columns: int
    rounds: int
    k: int
    candidates: np.ndarray
    weights: np.ndarray

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; weights with four decimals."""
        numbers = {name: getattr(self, name) for name in ("patch_side", "rows", "columns", "rounds", "k")}
        return {
            "stage": self.stage,
            "block": self.block,
            **numbers,
            "candidates": self.candidates.tolist(),
            "weights": self.weights.astype(np.float64).round(4).tolist(),
        }


def map_neighbors(model: KiT, image: Viewable) -> tuple[BlockMap, ...]:
    """Find what all patches attend to in all blocks but the bottleneck's, where a patch attends to itself alone.

    The picture goes through the network once and whole. The model is left as it was. Memory and the result grow with
    the number of pixels: a picture of 256 x 256 is a good size.

    Args:
        model: the network, on the device where it shall run.
        image: a path, or one picture of a type that ``kithkin.restore`` takes.

    Returns:
        One map a block, in the order in which the blocks run. Where the network takes the best of the found candidates
        alone (``n_pairs``), the maps hold all of them.

    Raises:
        InputError: the network has k = 1; an image that is not one of the above, or a batch of several.
        ImageError: the file can't be read.
        KithkinError: the memory does not suffice.
    """
    if model.config.k == 1:
        raise InputError(
            "map_neighbors: in this network k = 1: a patch attends to itself alone, so there are no neighbours; "
            "take a network with k > 1"
        )
    planes = one_picture("map_neighbors", image)
    width = planes.shape[2]
    places = [
        (stage, block, *_attention(model, stage, block))
        for stage in stage_names(model)
        if stage != "bottleneck"
        for block in range(model.config.depth)
    ]
    attentions = [attention for *_, attention, _ in places]
    with recorded_groups(*attentions) as recordings, _recorded_pairs(attentions) as pairs:
        pass_whole("map_neighbors", model, planes)
    maps = []
    for (stage, block, attention, stride), recording, pair in zip(places, recordings, pairs, strict=True):
        columns = -(-(-(-width // model.config.stride) * model.config.stride // stride) // attention.patch_size)
        maps.append(_map(attention, recording, pair, (stage, block, attention.patch_size * stride, columns)))
    return tuple(maps)


@contextmanager
def _recorded_pairs(attentions: list[KNNLocalAttention]) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Keep the queries and keys, (1, N, P, C), that these layers make, in the order in which they do."""
    found: list[tuple[Tensor, Tensor]] = []

    def recording(attention: KNNLocalAttention) -> Any:
        def project(patches: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            query, key, value = KNNLocalAttention._project(attention, patches)
            found.append((query, key))
            return query, key, value

        return project

    try:
        for attention in attentions:
            attention._project = recording(attention)  # type: ignore[method-assign]
        yield found
    finally:
        for attention in attentions:
            vars(attention).pop("_project", None)


def _map(
    attention: KNNLocalAttention, recording: Recording, pair: tuple[Tensor, Tensor], place: tuple[str, int, int, int]
) -> BlockMap:
    stage, block, side, columns = place
    groups = recording.groups
    listed = candidates_of_each_patch(groups)[0]
    # (heads, N, P, C / heads)
    query, key = (x[0].unflatten(-1, (attention.n_heads, -1)).movedim(-2, 0) for x in pair)
    weights = torch.stack(
        [
            pairwise_weights(q, k[listed.clamp(min=0)], listed >= 0, weighting=attention.weighting)
            for q, k in zip(query, key, strict=True)
        ]
    ).mean(0)
    return BlockMap(
        stage,
        block,
        side,
        groups.n_patches // columns,
        columns,
        groups.n_hashes,
        groups.k,
        listed.cpu().numpy(),
        weights.float().cpu().numpy(),
    )
