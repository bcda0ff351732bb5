"""Tiles of a picture at work, for the page: near where somebody looks first."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from kithkin.images import Picture, encode_picture
from kithkin.tiles import Tile

_QUALITY = 92


@dataclass(eq=False)
class Preview:
    """Tiles that are restored, in the order in which they were. The worker adds them while requests fetch them.

    Attributes:
        place: the pixel (x, y) around which tiles are restored first.
        tiles: the finished ones, before they are blended with their neighbours.
        files: a JPEG file of each, the restoration in full.
    """

    place: tuple[int, int]
    tiles: list[Tile] = field(default_factory=list)
    files: list[bytes] = field(default_factory=list)

    def choose(self, waiting: Sequence[Tile]) -> Tile:
        """The tile nearest to the place; of several that are as near, that whose middle is."""
        x, y = self.place

        def distance(tile: Tile) -> tuple[float, float]:
            beside = max(tile.left - x, 0, x - tile.left - tile.width)
            above = max(tile.top - y, 0, y - tile.top - tile.height)
            middle = (tile.left + tile.width / 2 - x) ** 2 + (tile.top + tile.height / 2 - y) ** 2
            return beside**2 + above**2, middle

        return min(waiting, key=distance)

    def add(self, picture: Picture, tile: Tile, piece: Tensor) -> None:
        """Take a tile (1 or 3, h, w) of a picture, whose colours it has."""
        pixels = np.ascontiguousarray(piece.expand(3, -1, -1).permute(1, 2, 0).numpy())
        shown = Picture(pixels, gray=picture.gray, icc=picture.icc)
        self.files.append(encode_picture(shown, "tile.jpg", quality=_QUALITY))
        self.tiles.append(tile)
