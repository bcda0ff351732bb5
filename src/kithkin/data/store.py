"""Photographs decoded once into one memory, from which the crops of a batch are gathered together on its device."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from kithkin.data.folders import Mixed, Pairs, Photos
from kithkin.data.members import Member, Place, read_members
from kithkin.data.transfer import Numbers
from kithkin.errors import ImageError, InputError
from kithkin.images import measure_picture
from kithkin.storage import is_url

Picture = np.ndarray | tuple[np.ndarray, ...]

# How a crop of side e + 1 lies in its picture after ``numpy.rot90`` by 0 to 3 quarter turns: the row and the column of
# its first pixel, as multiples of e, and by how much they change from row to row and from column to column of the crop.
_TURNS = np.array(
    [
        [[0, 1, 0], [0, 0, 1]],
        [[0, 0, 1], [1, -1, 0]],
        [[1, -1, 0], [1, 0, -1]],
        [[1, 0, -1], [0, 1, 0]],
    ]
)


class Cuts(NamedTuple):
    """Where the pixels of crops lie in a store: at ``first + i down + j right`` in row i and column j.

    Attributes:
        first: a (B,) int64 for each side of a picture: (clean,) or (input, target).
        down, right: (B,) int64.
        size: side of the crops.
        cut_short: whether some crops end before that; what follows them is anything.
    """

    first: tuple[Numbers, ...]
    down: Numbers
    right: Numbers
    size: int
    cut_short: bool = False


class PhotoStore:
    """Photographs, or pairs, to train on that are in memory: a data set for ``sample_batch`` and ``train``'s loop.

    Args:
        pictures: what an epoch goes through: photographs, each a uint8 array (H, W, 3), or (input, target) pairs of
            them, of one size.
        mixed: pairs that are mixed in with photographs.
        names: what errors call the pictures and then the mixed ones; their numbers otherwise.
        counts: how many of ``pictures`` each folder of a run has, in order, to draw them by ``data.weights``.
        device: in whose memory the pixels are kept, three bytes each; the crops are gathered there.

    Raises:
        InputError: there is no picture, or an array is something else, or the sides of a pair differ in size.
    """

    def __init__(
        self,
        pictures: Sequence[Picture],
        *,
        mixed: Sequence[Picture] = (),
        names: Sequence[object] | None = None,
        counts: tuple[int, ...] | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        items = [_sides_of(picture, i) for i, picture in enumerate([*pictures, *mixed])]
        if not pictures:
            raise InputError("PhotoStore: there is no picture; give at least one")
        self._count, self.n_mixed = len(pictures), len(mixed)
        self.counts = (len(pictures),) if counts is None else counts
        self.paths: Sequence[object] = range(len(items)) if names is None else names
        self.n_sides = max(map(len, items))
        self.sizes = np.array([sides[0].shape[:2] for sides in items], np.int64)
        arrays = [side for sides in items for side in sides]
        starts = iter(np.cumsum([0] + [x.shape[0] * x.shape[1] for x in arrays]).tolist())
        # Both sides of a photograph among pairs are the photograph.
        starts_of_sides = [[next(starts) for _ in sides] for sides in items]
        self._starts = np.array([(x * self.n_sides)[: self.n_sides] for x in starts_of_sides], np.int64)
        self._pixels = torch.empty(next(starts), 3, dtype=torch.uint8, device=device)
        place = 0
        for array in arrays:
            pixels = torch.from_numpy(np.ascontiguousarray(array).reshape(-1, 3))
            self._pixels[place : place + len(pixels)] = pixels
            place += len(pixels)

    def __len__(self) -> int:
        """Pictures of an epoch, without the mixed ones."""
        return self._count

    @property
    def device(self) -> torch.device:
        """Where the pixels are."""
        return self._pixels.device

    def cuts(
        self,
        items: np.ndarray,
        corners: np.ndarray,
        turns: np.ndarray,
        flips: np.ndarray,
        size: int,
        extents: np.ndarray | None = None,
    ) -> Cuts:
        """Where the pixels of crops lie that are cut, turned and flipped as ``numpy.rot90`` and then ``[:, ::-1]`` do.

        Args:
            items: (B,) numbers of their pictures.
            corners: (B, 2) top and left of the square that is cut out.
            turns: (B,) quarter turns.
            flips: (B,) bool.
            size: side of the crops.
            extents: (B,) side of the squares, where these are smaller; the crop begins with its own.
        """
        width = self.sizes[items, 1]
        places = _TURNS[turns]  # (B, 2, 3)
        last = np.full((len(items), 1), size - 1) if extents is None else extents[:, None] - 1
        start = corners + places[..., 0] * last + np.where(flips[:, None], places[..., 2] * last, 0)
        right = np.where(flips[:, None], -places[..., 2], places[..., 2])
        down = places[..., 1]
        first = self._starts[items] + (start[:, 0] * width + start[:, 1])[:, None]
        return Cuts(
            tuple(np.ascontiguousarray(x) for x in first.T),
            down[:, 0] * width + down[:, 1],
            right[:, 0] * width + right[:, 1],
            size,
            extents is not None,
        )

    def gather(self, cuts: Cuts) -> tuple[Tensor, ...]:
        """The crops, each side uint8 (B, S, S, 3), from cuts whose arrays have been moved to the store's device."""
        steps = torch.arange(cuts.size, device=self.device)
        inside = cuts.down.view(-1, 1, 1) * steps.view(-1, 1) + cuts.right.view(-1, 1, 1) * steps
        places = [inside + first.view(-1, 1, 1) for first in cuts.first]
        if cuts.cut_short:
            places = [x.clamp_(0, len(self._pixels) - 1) for x in places]
        return tuple(self._pixels.index_select(0, x.flatten()).view(*x.shape, 3) for x in places)


def store_on(device: str | torch.device, dataset: Photos | Pairs | Mixed, cache_gb: float) -> PhotoStore | str:
    """The pictures of a data set, decoded into the memory of a device; or why they aren't: they need more than
    ``cache_gb`` of it or than two fifths of what a GPU has free, or they lie behind URLs."""
    parts = [dataset.photos, dataset.pairs] if isinstance(dataset, Mixed) else [dataset]
    paths = [path for part in parts for path in part.paths]
    places = [
        x for path in paths for x in (path if isinstance(path, tuple) and not isinstance(path, Member) else (path,))
    ]
    if any(isinstance(place, Member) and is_url(place.file) for place in places):
        return "they lie behind URLs"
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        gigabytes = sum(3 * width * height for width, height in pool.map(_measured, places)) / 1e9
        if gigabytes > cache_gb:
            return f"decoded they take {gigabytes:.1f} GB, and data.cache_gb allows {cache_gb:g}"
        if torch.device(device).type == "cuda" and gigabytes > 0.4e-9 * torch.cuda.mem_get_info(device)[0]:
            return f"decoded they take {gigabytes:.1f} GB, more than two fifths of what the GPU has free"
        decoded = [list(pool.map(part.__getitem__, range(len(part)))) for part in parts]
    mixed = decoded[1] if len(decoded) > 1 else ()
    return PhotoStore(decoded[0], mixed=mixed, names=dataset.paths, counts=dataset.counts, device=device)


def _measured(place: Place) -> tuple[int, int]:
    if isinstance(place, Member):
        return measure_picture(read_members([place])[place], str(place))
    try:
        return measure_picture(place.read_bytes(), place)
    except OSError as error:
        raise ImageError(f"{place}: can't be read: {error.strerror or error}; check that the disk is there") from error


def _sides_of(picture: Picture, number: int) -> tuple[np.ndarray, ...]:
    sides = picture if isinstance(picture, tuple) else (picture,)
    for side in sides:
        if side.dtype != np.uint8 or side.ndim != 3 or side.shape[2] != 3 or side.shape != sides[0].shape:
            raise InputError(
                "PhotoStore: a picture is a uint8 array (H, W, 3) or a pair of them of one size, got "
                f"{' and '.join(f'{x.dtype} {x.shape}' for x in sides)} as number {number}"
            )
    return sides
