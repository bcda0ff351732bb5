"""Folders of pictures as lists of uint8 arrays."""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kithkin.data.catalog import Card
from kithkin.data.pairing import Pairing, guess_original, pair_originals, pair_sides, pictures, sides
from kithkin.errors import InputError
from kithkin.images import read_picture

if TYPE_CHECKING:
    from kithkin.config import DataConfig


class Photos:
    """Clean photographs.

    Args:
        folders: searched recursively.
        cache_gb: decoded pictures kept, in GB of uint8.

    Raises:
        InputError: a folder is missing or holds no picture.
    """

    def __init__(self, folders: Sequence[Path], *, cache_gb: float = 0) -> None:
        found = [(path, path.relative_to(folder)) for folder in folders for path in pictures(folder)]
        self.paths = [path for path, _ in found]
        self.names = [name.as_posix() for _, name in found]
        self._pixels = _Cache(cache_gb)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[np.ndarray, ...]:
        """(clean,), uint8 (H, W, 3)."""
        return (self._pixels.read(self.paths[index]),)


class Pairs:
    """Degraded pictures and what they should be, matched by file name.

    Args:
        folders: each holds ``input`` and ``target`` (or ``input_crops`` and ``target_crops``; endings may differ), or
            a data set as its authors give it out, such as SIDD's scene folders.
        cache_gb: decoded pictures kept, in GB of uint8.
        card: the data set that all folders are of; None recognises it by its names.
        part: of a data set whose authors give lists of its parts.

    Raises:
        InputError: a folder has not these two, or a picture has no partner.
    """

    def __init__(
        self, folders: Sequence[Path], *, cache_gb: float = 0, card: Card | None = None, part: str | None = None
    ) -> None:
        found = [_pairs(folder, card, part).checked(folder) for folder in folders]
        self.paths = [pair for pairing in found for pair in pairing.pairs]
        self.names = [name for pairing in found for name in pairing.names]
        self._pixels = _Cache(cache_gb)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[np.ndarray, ...]:
        """(input, target), uint8 (H, W, 3) of one size."""
        source, target = self.paths[index]
        pair = self._pixels.read(source), self._pixels.read(target)
        if pair[0].shape != pair[1].shape:
            raise InputError(f"{source} is {_size(pair[0])} but its target {target} is {_size(pair[1])}")
        return pair


def open_folders(config: "DataConfig") -> Photos | Pairs:
    """The data set of a run."""
    if not config.folders:
        raise InputError("the run names no training data; give a folder with --data")
    kind = Photos if config.kind == "photos" else Pairs
    return kind(config.folders, cache_gb=config.cache_gb)


class _Cache:
    """Decoded pictures, kept until the budget is full. Safe under threads."""

    def __init__(self, gigabytes: float) -> None:
        self._left = int(gigabytes * 1e9)
        self._kept: dict[Path, np.ndarray] = {}
        self._lock = threading.Lock()

    def read(self, path: Path) -> np.ndarray:
        if path in self._kept:
            return self._kept[path]
        pixels = np.rint(read_picture(path).pixels * 255).astype(np.uint8)
        with self._lock:
            if path not in self._kept and pixels.nbytes <= self._left:
                self._kept[path] = pixels
                self._left -= pixels.nbytes
        return pixels


def _pairs(folder: Path, card: Card | None, part: str | None) -> Pairing:
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder")
    if found := sides(folder):
        return pair_sides(*found)
    original = card.original if card and card.original else guess_original(folder)
    if original is None and any(folder.glob("*.lmdb")):
        raise InputError(
            f"{folder} holds LMDB databases, and training reads folders; make them with "
            f"`kithkin data prepare pairs {folder} --out FOLDER`"
        )
    if original is None:
        raise InputError(f"{folder} has no folder input or input_crops; a folder of pairs holds input and target")
    return pair_originals(folder, original, part)


def _size(pixels: np.ndarray) -> str:
    return f"{pixels.shape[1]}×{pixels.shape[0]}"
