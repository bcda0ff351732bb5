"""Published data sets: what they are, where they come from, and their layouts on disk.

The cards are in ``cards.toml``. ``kithkin.data.layouts`` finds and opens a set.
"""

import tomllib
from functools import cache
from typing import Any, Literal

from pydantic import Field, ValidationError

from kithkin.errors import InputError
from kithkin.packaged import Section, packaged


class Original(Section):
    """How the authors of a set name its pairs. Paths are within the set, with ``/`` and without the ending.

    Attributes:
        input: regular expression of the whole path of a degraded picture.
        target: its partner's path, with the expression's groups.
        name: of the sample, likewise.
        lists: part -> a file with the part's paths, where the authors split the set by lists.
    """

    input: str
    target: str
    name: str
    lists: dict[str, str] = Field({})


class Part(Section):
    """A part of a set.

    Attributes:
        counts: how many pictures, pairs or blocks it has; more than one number where copies differ.
        folders: where it may lie within the folder that a user names.
    """

    counts: tuple[int, ...]
    folders: tuple[str, ...] = ()


class Card(Section):
    """What is known about a data set.

    Attributes:
        name: what ``kithkin data`` and ``kithkin.data.open_samples`` take.
        title: in full.
        task: denoise, denoise-gaussian, derain or deblur; None where it is not of one task.
        kind: ``"photos"`` are clean pictures; ``"pairs"`` input and target; ``"blocks"`` pairs within two arrays;
            ``"noisy-only"`` has no public target.
        url: where to get it.
        licence: as its source states it; "see source" where that was not looked up.
        protocol: how it is measured, a name from `docs/reference/evaluation.md`.
        layouts: in words.
        parts: "train" and "test"; none where any number is right.
        original: the naming rule of the authors' own files, where it is not input and target.
        crop, overlap: of training crops, in pixels.
    """

    name: str
    title: str
    task: Literal["denoise", "denoise-gaussian", "derain", "deblur"] | None = None
    kind: Literal["photos", "pairs", "blocks", "noisy-only"]
    url: str
    licence: str
    protocol: Literal["gaussian", "rgb", "float", "rain", "realblur", "dnd"]
    layouts: tuple[str, ...]
    parts: dict[str, Part] = Field({})
    original: Original | None = None
    crop: int = 512
    overlap: int = 256


@cache
def list_cards() -> dict[str, Card]:
    """The data sets that kithkin knows: name -> card."""
    path = packaged("data/catalog/cards.toml")
    try:
        values: dict[str, dict[str, Any]] = tomllib.loads(path.read_text(encoding="utf-8"))
        return {name: Card.model_validate({"name": name, **card}) for name, card in values.items()}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, ValidationError) as error:
        raise InputError(f"{path} is not a catalog of data sets: {error}") from error


def find_card(name: str) -> Card:
    """The card of a data set.

    Raises:
        InputError: there is no such set.
    """
    card = list_cards().get(name.lower())
    if card is None:
        raise InputError(f"no data set is called {name!r}; there are {', '.join(list_cards())}")
    return card
