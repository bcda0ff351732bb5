"""The patches that a pixel's patch meets in a block of a network, as boxes in the picture."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from kithkin.containers import check_values, open_image
from kithkin.errors import InputError, KithkinError
from kithkin.images import Picture, read_picture
from kithkin.layers import KNNLocalAttention, KNNTransformerBlock
from kithkin.model import KiT
from kithkin.ops import PatchGroups
from kithkin.ops.grouping import hash_patches
from kithkin.restoration import _evaluating, _pass, out_of_memory

Viewable = str | os.PathLike[str] | Tensor | np.ndarray | Image.Image | Picture


class Box(NamedTuple):
    """A patch in pixels of the picture, from its upper left corner.

    It reaches beyond the picture, or lies beyond it, where the network sees the extended picture.
    """

    x: int
    y: int
    width: int
    height: int


@dataclass(frozen=True)
class Round:
    """What a patch attends to in one hash round.

    Attributes:
        chunk: the patches of its chunk, itself among them, in the order of their hashes.
        look_back: the patches of the chunk before it; none where no hashing is run.
        bucket: the hash value of the patch; None where no hashing is run.
    """

    chunk: tuple[Box, ...]
    look_back: tuple[Box, ...]
    bucket: int | None


@dataclass(frozen=True)
class Query:
    """A pixel that was asked about, the patch that it lies in, and what that patch attends to, round by round."""

    point: tuple[int, int]
    box: Box
    rounds: tuple[Round, ...]


@dataclass(frozen=True, eq=False)
class Neighbors:
    """What ``find_neighbors`` found.

    Attributes:
        size: (width, height) of the picture in pixels.
        stage, block: where in the network.
        k: patches in a chunk.
        patch_side: of a patch, in pixels of the picture: the map's patch size times the stage's stride.
        queries: one a point.
        buckets: (h, rows, columns) int64, the hash value of every patch in every round; None where no hashing is run,
            because the map has at most 2k patches and every patch sees every other.
    """

    size: tuple[int, int]
    stage: str
    block: int
    k: int
    patch_side: int
    queries: tuple[Query, ...]
    buckets: np.ndarray | None

    def to_dict(self, *, buckets: bool = False) -> dict[str, Any]:
        """Plain values for JSON: points as [x, y], boxes as [x, y, width, height]; the bucket maps on request."""
        values: dict[str, Any] = {
            "size": list(self.size),
            "stage": self.stage,
            "block": self.block,
            "k": self.k,
            "patch_side": self.patch_side,
            "queries": [
                {
                    "point": list(query.point),
                    "box": list(query.box),
                    "rounds": [
                        {
                            "chunk": [list(box) for box in found.chunk],
                            "look_back": [list(box) for box in found.look_back],
                            "bucket": found.bucket,
                        }
                        for found in query.rounds
                    ],
                }
                for query in self.queries
            ],
        }
        if buckets:
            values["buckets"] = None if self.buckets is None else self.buckets.tolist()
        return values


class Recording(NamedTuple):
    """What a block hashed, (1, N, P, C), and the groups that it made of it."""

    hashed: Tensor
    groups: PatchGroups


def find_neighbors(
    model: KiT,
    image: Viewable,
    points: Sequence[tuple[int, int]],
    *,
    stage: str = "encoder0",
    block: int = 0,
) -> Neighbors:
    """Find the patches that the patches at these pixels attend to, in one block of a network.

    The picture goes through the network once and whole, as with ``restore(..., tile="off")``; in tiles, a patch finds
    its neighbours within its tile. The model is left as it was.

    Args:
        model: the network, on the device where it shall run.
        image: a path, or one picture of a type that ``kithkin.restore`` takes. What the network was made for: a
            noisy picture for one that removes noise.
        points: (x, y) in pixels from the upper left corner, from 0.
        stage: ``"encoder0"``, ``"encoder1"``, … or ``"decoder0"``, …; the same number means the same map size, so
            ``"decoder0"`` is the last stage.
        block: in the stage, from 0.

    Returns:
        The boxes. Where the network takes the best of the found candidates alone (``n_pairs``), these are all of them.

    Raises:
        InputError: no such stage or block; a stage whose patches see themselves alone; a point outside the picture; an
            image that is not one of the above, or a batch of several.
        ImageError: the file can't be read.
        KithkinError: the memory does not suffice.
    """
    attention, stride = _attention(model, stage, block)
    planes = one_picture("find_neighbors", image)
    height, width = planes.shape[1:]
    points = [_checked(point, width, height) for point in points]
    with recorded_groups(attention) as recordings:
        pass_whole("find_neighbors", model, planes)
    recording = recordings[0]
    # The map, which the network extends to a multiple of its stride, and its last patches, which the layer completes.
    mapped = (-(-side // model.config.stride) * model.config.stride // stride for side in (height, width))
    rows, columns = (-(-side // attention.patch_size) for side in mapped)
    grid = _Grid(rows, columns, attention.patch_size * stride)
    buckets = _buckets(attention, recording, grid)
    queries = tuple(_query(point, recording.groups, grid, buckets) for point in points)
    return Neighbors((width, height), stage, block, recording.groups.k, grid.side, queries, buckets)


def pass_whole(who: str, model: KiT, planes: Tensor) -> None:
    """Run the network over a whole picture (3, H, W), for what is recorded on the way; raises KithkinError, in the name
    of ``who``, where the memory does not suffice."""
    try:
        with _evaluating(model):
            _pass(model, planes)
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        height, width = planes.shape[-2:]
        raise KithkinError(
            f"{who}: not enough memory for {width} x {height} at once; crop the picture or scale it down"
        ) from error


def stage_names(model: KiT) -> tuple[str, ...]:
    """The stages of a network in the order in which they run; their blocks count from 0."""
    numbers = range(model.config.n_stages)
    return (*(f"encoder{i}" for i in numbers), "bottleneck", *(f"decoder{i}" for i in reversed(numbers)))


@contextmanager
def recorded_groups(*attentions: KNNLocalAttention) -> Iterator[list[Recording]]:
    """Keep what these layers hash, and the groups that they make of it, in the order in which they do."""
    found: list[Recording] = []

    def recording(attention: KNNLocalAttention) -> Any:
        def group(hashed: Tensor) -> PatchGroups:
            groups = KNNLocalAttention.group(attention, hashed)
            found.append(Recording(hashed.detach(), groups))
            return groups

        return group

    try:
        for attention in attentions:
            attention.group = recording(attention)  # type: ignore[method-assign]
        yield found
    finally:
        for attention in attentions:
            vars(attention).pop("group", None)


def one_picture(who: str, image: Viewable) -> Tensor:
    """(3, H, W), or (1, H, W) for gray, of one picture or its path; floats on the CPU, not clamped."""
    if isinstance(image, str | os.PathLike):
        image = read_picture(image)
    planes = open_image(image)[0]
    if len(planes) != 1:
        raise InputError(f"{who}: expected one picture, got a batch of {len(planes)}; pass them one by one")
    check_values(planes)
    return planes[0]


def _attention(model: KiT, stage: str, block: int) -> tuple[KNNLocalAttention, int]:
    """The attention layer of a block, and the picture's pixels that a pixel of its map stands for along each side."""
    names = stage_names(model)
    if stage not in names:
        raise InputError(f"find_neighbors: no stage is called {stage!r}; there are {', '.join(names)}")
    if stage == "bottleneck" or model.config.k == 1:
        who = "the bottleneck" if stage == "bottleneck" else "this network"
        raise InputError(
            f"find_neighbors: in {who} k = 1: a patch attends to itself alone, so there are no neighbours to find; "
            + ("take an encoder or a decoder stage" if model.config.k > 1 else "take a network with k > 1")
        )
    if isinstance(block, bool) or not isinstance(block, int) or not 0 <= block < model.config.depth:
        raise InputError(
            f"find_neighbors: {stage} has the blocks 0 to {model.config.depth - 1}, got {block!r}; name one of these"
        )
    side, level = stage[:7], int(stage[7:])
    layers: Any = (model.encoder if side == "encoder" else model.decoder)[level]
    chosen: KNNTransformerBlock = layers[block]
    return chosen.attention, model.config.stem_stride * 2**level


def _checked(point: Any, width: int, height: int) -> tuple[int, int]:
    try:
        x, y = (int(value) for value in point)
        whole = (x, y) == tuple(point)
    except (TypeError, ValueError, OverflowError):
        whole = False
    if not whole:
        raise InputError(f"find_neighbors: a point is (x, y) in whole pixels, got {point!r}")
    if not (0 <= x < width and 0 <= y < height):
        raise InputError(
            f"find_neighbors: the point {x},{y} is outside the picture, which is {width} x {height} pixels large; "
            f"x goes from 0 to {width - 1} and y from 0 to {height - 1}"
        )
    return x, y


class _Grid(NamedTuple):
    """The patches of a map: how many, and their side in pixels of the picture."""

    rows: int
    columns: int
    side: int

    def at(self, point: tuple[int, int]) -> int:
        return point[1] // self.side * self.columns + point[0] // self.side

    def box(self, index: int) -> Box:
        row, column = divmod(index, self.columns)
        return Box(column * self.side, row * self.side, self.side, self.side)


def _buckets(attention: KNNLocalAttention, recording: Recording, grid: _Grid) -> np.ndarray | None:
    if not recording.groups.look_back:
        return None
    hashes = hash_patches(
        recording.hashed,
        k=attention.k,
        n_hashes=attention.n_hashes,
        n_buckets=attention.n_buckets,
        rotations=attention.rotations,
        features=attention.hash_features,
    )
    return hashes[0].view(-1, grid.rows, grid.columns).cpu().numpy()


def _query(point: tuple[int, int], groups: PatchGroups, grid: _Grid, buckets: np.ndarray | None) -> Query:
    own = grid.at(point)
    box = grid.box(own)
    chunks = groups.chunks()[0].cpu()
    rounds = []
    for j, chunk_of_round in enumerate(chunks):
        number = int(torch.nonzero(chunk_of_round == own)[0, 0])
        before = chunk_of_round[number - 1].tolist() if groups.look_back else []
        rounds.append(
            Round(
                chunk=tuple(grid.box(i) for i in chunk_of_round[number].tolist() if i >= 0),
                look_back=tuple(grid.box(i) for i in before if i >= 0),
                bucket=None if buckets is None else int(buckets[j, box.y // grid.side, box.x // grid.side]),
            )
        )
    return Query(point, box, tuple(rounds))
