"""Samples for evaluation, read one at a time, whatever the layout on disk."""

import hashlib
from pathlib import Path
from types import ModuleType
from typing import Literal, NamedTuple, Protocol, TypeAlias

import numpy as np

from kithkin.data.folders import Pairs, Photos
from kithkin.errors import InputError
from kithkin.messages import missing_extra

Kind: TypeAlias = Literal["photos", "pairs", "inputs"]
PHOTOS: Kind = "photos"
PAIRS: Kind = "pairs"
INPUTS: Kind = "inputs"


class Sample(NamedTuple):
    """A picture to restore, what it should become, or both.

    Attributes:
        name: unique within its data set.
        input: the degraded picture, uint8 (H, W, 3), or float32 in [0, 1] where the source holds floats; None where the
            data set is clean pictures.
        target: the clean picture, likewise; None where it is not public.
    """

    name: str
    input: np.ndarray | None
    target: np.ndarray | None


class Samples(Protocol):
    """A data set that is read a sample at a time.

    Attributes:
        title: name of its folder.
        kind: ``"photos"`` have no input, ``"pairs"`` both, ``"inputs"`` no target.
        names: of the samples, in order.
        source: tells sets of one title apart, see ``source_of``.
    """

    title: str
    kind: Kind
    source: str
    names: list[str]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...


class FileSamples:
    """Picture files as samples.

    Args:
        dataset: pairs, or clean photographs.
        folder: theirs.
    """

    def __init__(self, dataset: Pairs | Photos, folder: Path) -> None:
        self._dataset, self.title, self.source = dataset, folder.absolute().name, source_of(folder)
        self.kind = PAIRS if isinstance(dataset, Pairs) else PHOTOS
        self.names = dataset.names

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Sample:
        """Input (of pairs) and target, uint8 (H, W, 3)."""
        sides = self._dataset[index]
        return Sample(self.names[index], sides[0] if len(sides) == 2 else None, sides[-1])


def source_of(folder: Path) -> str:
    """A short digest of where a folder lies, so that scores of two folders of one name are not mixed up."""
    return hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:8]


def need(module: str, what: str) -> ModuleType:
    """A module of the extra ``data``.

    Raises:
        InputError: it is not installed; with the line that installs it.
    """
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(missing_extra(what, module, "data")) from error
