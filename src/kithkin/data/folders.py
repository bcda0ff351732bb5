"""Folders of pictures as lists of uint8 arrays."""

import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kithkin.config import DataConfig
from kithkin.errors import InputError
from kithkin.images import find_pictures, read_picture

INPUT_NAMES = ("input", "input_crops")
TARGET_NAMES = ("target", "target_crops")


class Photos:
    """Clean photographs.

    Args:
        folders: searched recursively.
        cache_gb: decoded pictures kept, in GB of uint8.

    Raises:
        InputError: a folder is missing or holds no picture.
    """

    def __init__(self, folders: Sequence[Path], *, cache_gb: float = 0) -> None:
        self.paths = [path for folder in folders for path in _pictures(folder)]
        self._pixels = _Cache(cache_gb)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[np.ndarray, ...]:
        """(clean,), uint8 (H, W, 3)."""
        return (self._pixels.read(self.paths[index]),)


class Pairs:
    """Degraded pictures and what they should be, matched by file name.

    Args:
        folders: each holds ``input`` and ``target`` (or ``input_crops`` and ``target_crops``); endings may differ.
        cache_gb: decoded pictures kept, in GB of uint8.

    Raises:
        InputError: a folder has not these two, or a picture has no partner.
    """

    def __init__(self, folders: Sequence[Path], *, cache_gb: float = 0) -> None:
        self.paths = [pair for folder in folders for pair in _pairs(folder)]
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


def open_folders(config: DataConfig) -> Photos | Pairs:
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


def _pictures(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder")
    paths = find_pictures(folder)
    if not paths:
        raise InputError(f"{folder} holds no picture")
    return paths


def _pairs(folder: Path) -> list[tuple[Path, Path]]:
    sides = []
    for names in (INPUT_NAMES, TARGET_NAMES):
        found = [folder / name for name in names if (folder / name).is_dir()]
        if not found:
            raise InputError(f"{folder} has no folder {' or '.join(names)}; a folder of pairs holds input and target")
        side: dict[Path, Path] = {}
        for path in _pictures(found[0]):
            other = side.setdefault(path.relative_to(found[0]).with_suffix(""), path)
            if other is not path:
                raise InputError(f"{other} and {path} differ in their endings alone; keep one of them")
        sides.append(side)
    inputs, targets = sides
    alone = sorted(str(name) for name in inputs.keys() ^ targets.keys())
    if alone:
        listed = ", ".join(alone[:3]) + ("…" if len(alone) > 3 else "")
        raise InputError(f"{folder}: {len(alone)} pictures have no partner of the same name: {listed}")
    return [(inputs[name], targets[name]) for name in sorted(inputs)]


def _size(pixels: np.ndarray) -> str:
    return f"{pixels.shape[1]}×{pixels.shape[0]}"
