"""How a picture is cut into tiles, and the sizes that are allowed; needs no PyTorch.

``kithkin.restorers.Tiled`` restores the tiles and blends them where they overlap.
"""

from typing import NamedTuple

CPU_TILE, CUDA_TILE = 768, 1024
"""Sides in pixels of tiles on a CPU and on a GPU, unless another is asked for."""
SMALLEST_TILE = 64
"""Side in pixels below which a tile shows a network too little, and saves no memory worth it."""
OVERLAP = 32
"""Pixels that neighbouring tiles share at least, unless another number is asked for."""


class Tile(NamedTuple):
    """A rectangle of a picture, in pixels."""

    left: int
    top: int
    width: int
    height: int


class Cuts(NamedTuple):
    """Where one axis is cut: tiles of `size` pixels from each of `starts`; the last may reach beyond the picture."""

    size: int
    starts: tuple[int, ...]

    def end(self, index: int) -> int:
        """Where a tile ends; 0 before the first one."""
        return self.starts[index] + self.size if index >= 0 else 0


def cuts(length: int, side: int, overlap: int, stride: int, *, exact: bool = False) -> Cuts:
    """Cut an axis into as few tiles of at most `side` pixels as possible, all of one size and spread evenly.

    Size and starts are multiples of `stride`, so that every tile meets the model's grid as the whole picture does.

    Args:
        length: of the axis, in pixels.
        side: of the largest tile; where the stride is large, a tile has at least two strides.
        overlap: pixels that neighbours share at least; rounded up to the stride, and at most half of `side` before.
        stride: of the model.
        exact: tiles are no smaller than `side` where there are several, and share more instead.
    """
    whole = _ceil(length, stride)
    overlap = _ceil(min(overlap, side // 2), stride)
    side = max(side // stride * stride, overlap + stride)
    if whole <= side:
        return Cuts(whole, (0,))
    count = -(-(whole - overlap) // (side - overlap))
    size = side if exact else _ceil(-(-(whole + (count - 1) * overlap) // count), stride)
    steps = (whole - size) // stride
    gaps = count - 1
    # The i-th start is i / gaps of the way, rounded to the stride, in whole numbers.
    return Cuts(size, tuple(stride * ((2 * i * steps + gaps) // (2 * gaps)) for i in range(count)))


def _ceil(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
