"""The patches that a pixel's patch meets in a block of a network, as boxes in the picture."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor

from kithkin.containers import check_values, open_image
from kithkin.errors import InputError, KithkinError
from kithkin.images import Picture, read_picture
from kithkin.layers import AttentionBlock, KNNLocalAttention, Recording
from kithkin.model import KiT
from kithkin.neighbors._weights import weights_of
from kithkin.ops import PatchGroups
from kithkin.ops.grouping import hash_patches
from kithkin.restorers import Network, out_of_memory

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
        weights: how much each patch of ``chunk`` counts, and then of ``look_back``: Eq. (10), the mean of the heads, a
            sum of 1 over all rounds. Empty where they are not known.
    """

    chunk: tuple[Box, ...]
    look_back: tuple[Box, ...]
    bucket: int | None
    weights: tuple[float, ...] = ()


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
        """Plain values for JSON: points as [x, y], boxes as [x, y, width, height], weights with four decimals;
        the bucket maps on request."""
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
                            "chunk": [list(box) for box in one_round.chunk],
                            "look_back": [list(box) for box in one_round.look_back],
                            "bucket": one_round.bucket,
                            "weights": [round(weight, 4) for weight in one_round.weights],
                        }
                        for one_round in query.rounds
                    ],
                }
                for query in self.queries
            ],
        }
        if buckets:
            values["buckets"] = None if self.buckets is None else self.buckets.tolist()
        return values


def find_neighbors(
    model: KiT,
    image: Viewable,
    points: Sequence[tuple[int, int]],
    *,
    stage: str | None = None,
    block: int | None = None,
) -> Neighbors:
    """Find the patches that the patches at these pixels attend to, in one block of a network.

    The picture goes through the network once and whole, as with ``restore(..., tile="off", precision="float32")``; in
    tiles, a patch finds its neighbours within its tile. The model is left as it was.

    Args:
        model: the network, on the device where it shall run.
        image: a path, or one picture of a type that ``kithkin.restore`` takes. What the network was made for: a
            noisy picture for one that removes noise.
        points: (x, y) in pixels from the upper left corner, from 0.
        stage: ``"encoder0"``, ``"encoder1"``, … or ``"decoder0"``, …; the same number means the same map size, so
            ``"decoder0"`` is the last stage. None takes the first where patches see others.
        block: in the stage, from 0. None takes the first where patches see others.

    Returns:
        The boxes.

    Raises:
        InputError: no such stage or block; a stage whose patches see only themselves; a point outside the picture; an
            image that is not one of the above, or a batch of several.
        ImageError: the file can't be read.
        KithkinError: the memory does not suffice.
    """
    stage, block, attention, stride = _place(model, stage, block)
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
    listed, weights = weights_of(attention, recording, [grid.at(point) for point in points])
    queries = tuple(
        _query(point, recording.groups, grid, buckets, [*zip(row.tolist(), parts.tolist(), strict=True)])
        for point, row, parts in zip(points, listed, weights, strict=True)
    )
    return Neighbors((width, height), stage, block, recording.groups.k, grid.side, queries, buckets)


def pass_whole(who: str, model: KiT, planes: Tensor) -> None:
    """Run the network over a whole picture (3, H, W), for what is recorded on the way; raises KithkinError, in the name
    of ``who``, where the memory does not suffice."""
    try:
        Network(model)(planes.expand(3, -1, -1).float())
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
    """Keep what these layers record, in the order in which they do."""
    recordings: list[Recording] = []
    try:
        for attention in attentions:
            attention.recorder = recordings.append
        yield recordings
    finally:
        for attention in attentions:
            attention.recorder = None


def one_picture(who: str, image: Viewable) -> Tensor:
    """(3, H, W), or (1, H, W) for gray, of one picture or its path; floats on the CPU, not clamped."""
    if isinstance(image, str | os.PathLike):
        image = read_picture(image)
    planes = open_image(image)[0]
    if len(planes) != 1:
        raise InputError(f"{who}: expected one picture, got a batch of {len(planes)}; pass them one by one")
    check_values(planes)
    return planes[0]


def no_neighbors(who: str, model: KiT) -> InputError:
    """The refusal of a network in which no patch attends to another."""
    why = "k = 1: a patch attends only to itself" if model.config.k == 1 else "no block has k-NN attention"
    return InputError(
        f"{who}: in this network {why}, so there are no neighbours; take a network with k > 1, such as denoise-gaussian"
    )


def _place(model: KiT, stage: str | None, block: int | None) -> tuple[str, int, KNNLocalAttention, int]:
    """The first of ``attention_places`` that was asked for."""
    names, places = stage_names(model), attention_places(model)
    if not places:
        raise no_neighbors("find_neighbors", model)
    if stage is None:
        stage = places[0][0]
    if stage not in names:
        raise InputError(f"find_neighbors: no stage is called {stage!r}; there are {', '.join(names)}")
    here = {number: place for place in places for name, number in [place[:2]] if name == stage}
    if not here:
        others = ", ".join(dict.fromkeys(name for name, *_ in places))
        who = f"the {stage}" if stage == "bottleneck" else stage
        raise InputError(
            f"find_neighbors: in {who} no patch attends to others, so there are no neighbours to find; take one of "
            f"{others}"
        )
    if block is None:
        block = min(here)
    if isinstance(block, bool) or block not in here:
        raise InputError(
            f"find_neighbors: {stage} has neighbours in the blocks {', '.join(map(str, here))}, got {block!r}; name "
            "one of these"
        )
    return here[block]


def attention_places(model: KiT) -> list[tuple[str, int, KNNLocalAttention, int]]:
    """Stage, block, layer and stride of every attention layer whose patches see others, in the order in which they
    run."""
    stages = [(f"encoder{i}", i, blocks) for i, blocks in enumerate(model.encoder)]
    stages.append(("bottleneck", model.config.n_stages, model.bottleneck))
    stages += [(f"decoder{i}", i, blocks) for i, blocks in reversed([*enumerate(model.decoder)])]
    return [
        (stage, number, block.attention, model.config.stem_stride * 2**level)
        for stage, level, blocks in stages
        for number, block in enumerate(blocks.children())
        if isinstance(block, AttentionBlock) and block.attention.k > 1
    ]


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
    hashes = hash_patches(recording.hashed, **attention.grouping)
    return hashes[0].view(-1, grid.rows, grid.columns).cpu().numpy()


def _query(
    point: tuple[int, int],
    groups: PatchGroups,
    grid: _Grid,
    buckets: np.ndarray | None,
    candidates: list[tuple[int, float]],
) -> Query:
    """What the patch at a point attends to: ``candidates`` and their weights, as ``weights_of`` lists them."""
    box = grid.box(grid.at(point))
    count = len(candidates) // groups.n_hashes
    rounds = []
    for j in range(groups.n_hashes):
        places = candidates[j * count : (j + 1) * count]
        own, before = (
            [(i, weight) for i, weight in part if i >= 0] for part in (places[: groups.k], places[groups.k :])
        )
        rounds.append(
            Round(
                chunk=tuple(grid.box(i) for i, _ in own),
                look_back=tuple(grid.box(i) for i, _ in before),
                bucket=None if buckets is None else int(buckets[j, box.y // grid.side, box.x // grid.side]),
                weights=tuple(weight for _, weight in (*own, *before)),
            )
        )
    return Query(point, box, tuple(rounds))
