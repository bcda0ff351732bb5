"""What every patch attends to in every block of a network, and how much each of them counts, from one pass."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from kithkin.layers import KNNLocalAttention, Recording
from kithkin.model import KiT
from kithkin.neighbors._find import Viewable, attention_places, no_neighbors, one_picture, pass_whole, recorded_groups
from kithkin.neighbors._weights import weights_of


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
    """Find what all patches attend to in all blocks but the bottleneck's, where a patch attends only to itself.

    The picture goes through the network once and whole. The model is left as it was. Memory and the result grow with
    the number of pixels: a picture of 256 x 256 is a good size.

    Args:
        model: the network, on the device where it shall run.
        image: a path, or one picture of a type that ``kithkin.restore`` takes.

    Returns:
        One map a block, in the order in which the blocks run.

    Raises:
        InputError: the network has k = 1; an image that is not one of the above, or a batch of several.
        ImageError: the file can't be read.
        KithkinError: the memory does not suffice.
    """
    if not attention_places(model):
        raise no_neighbors("map_neighbors", model)
    planes = one_picture("map_neighbors", image)
    width = planes.shape[2]
    places = attention_places(model)
    attentions = [attention for *_, attention, _ in places]
    with recorded_groups(*attentions) as recordings:
        pass_whole("map_neighbors", model, planes)
    maps = []
    for (stage, block, attention, stride), recording in zip(places, recordings, strict=True):
        columns = -(-(-(-width // model.config.stride) * model.config.stride // stride) // attention.patch_size)
        maps.append(_map(attention, recording, (stage, block, attention.patch_size * stride, columns)))
    return tuple(maps)


def _map(attention: KNNLocalAttention, recording: Recording, place: tuple[str, int, int, int]) -> BlockMap:
    stage, block, side, columns = place
    groups = recording.groups
    listed, weights = weights_of(attention, recording)
    return BlockMap(
        stage,
        block,
        side,
        groups.n_patches // columns,
        columns,
        groups.n_hashes,
        groups.k,
        listed.numpy(),
        weights.numpy(),
    )
