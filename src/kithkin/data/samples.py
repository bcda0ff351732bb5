"""Data sets to evaluate on, one picture in memory at a time."""

from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from kithkin.data.folders import INPUT_NAMES, Pairs, Photos


class Sample(NamedTuple):
    """One picture: uint8 (H, W, 3), or float32 in [0, 1] where the source is floating.

    Attributes:
        name: of its file.
        input: degraded; None in a set of clean pictures.
        target: what it should be; None where that is not public.
    """

    name: str
    input: np.ndarray | None
    target: np.ndarray | None


class Samples(Protocol):
    """A data set. ``kind`` is ``"photos"`` (no input), ``"pairs"`` or ``"inputs"`` (no target)."""

    title: str
    kind: str
    names: list[str]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...


class _Folder:
    def __init__(self, folder: Path, kind: str) -> None:
        self.title, self.kind = folder.resolve().name, kind
        self._pictures = Pairs([folder]) if kind == "pairs" else Photos([folder])
        self.names = [(path[0] if isinstance(path, tuple) else path).name for path in self._pictures.paths]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Sample:
        sides = self._pictures[index]
        return Sample(self.names[index], sides[0] if len(sides) == 2 else None, sides[-1])


def open_samples(folder: Path, dataset: str | None = None) -> Samples:
    """The pictures of a folder: pairs where it holds ``input`` and ``target``, else clean pictures."""
    pairs = any((folder / name).is_dir() for name in INPUT_NAMES)
    return _Folder(folder, "pairs" if pairs else "photos")
