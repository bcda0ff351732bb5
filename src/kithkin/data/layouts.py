"""Recognise the layout of a data set on disk, and open it."""

from pathlib import Path
from typing import Literal, NamedTuple

from kithkin.data.catalog import Card, find_card
from kithkin.data.dnd import DndCrops
from kithkin.data.folders import Pairs, Photos
from kithkin.data.lmdb_pairs import LmdbPairs, has_databases
from kithkin.data.pairing import INPUT_NAMES, TARGET_NAMES, find_original, guess_original
from kithkin.data.samples import FileSamples, Samples
from kithkin.data.sidd import KEYS, SiddBlocks
from kithkin.errors import InputError
from kithkin.images import find_pictures

Layout = Literal["pairs", "lmdb", "blocks", "dnd", "originals", "photos"]

IN_WORDS: dict[str, str] = {
    "pairs": "folders of inputs and targets",
    "lmdb": "two LMDB databases",
    "blocks": "SIDD's .mat files",
    "dnd": "DND's .mat files",
    "originals": "pairs named as their authors name them",
    "photos": "pictures",
}
_FITS: dict[str, tuple[Layout, ...]] = {
    "pairs": ("pairs", "lmdb", "originals"),
    "photos": ("photos",),
    "blocks": ("blocks", "pairs", "lmdb"),
    "noisy-only": ("dnd",),
}


class Place(NamedTuple):
    """Where a data set was found: the folder, its layout, and which part of the set it is taken for."""

    folder: Path
    layout: Layout
    part: str | None


def open_samples(folder: str | Path, dataset: str | None = None, *, part: str | None = None) -> Samples:
    """A data set, to be read a sample at a time; one is in memory at once.

    Args:
        folder: of the set, or a folder that it lies in as its card says (``Datasets`` with ``test/GoPro`` in it).
        dataset: a name from ``list_cards``; None recognises input and target folders, LMDB pairs, SIDD's and DND's
            .mat files and the authors' own naming of pairs, and takes everything else for clean pictures.
        part: ``"train"`` or ``"test"`` of a named set; None takes the first there is, test before train.

    Raises:
        InputError: no such folder or set, the folder holds something else, or the set is incomplete.
    """
    folder = Path(folder)
    card = find_card(dataset) if dataset else None
    place = locate(folder, card, part)
    if place.layout == "lmdb":
        return LmdbPairs(place.folder)
    if place.layout == "blocks":
        return SiddBlocks(place.folder)
    if place.layout == "dnd":
        return DndCrops(place.folder)
    if place.layout == "photos":
        return FileSamples(Photos([place.folder]), place.folder)
    return FileSamples(Pairs([place.folder], card=card, part=place.part), place.folder)


def locate(folder: Path, card: Card | None, part: str | None = None) -> Place:
    """Find a set in a folder, or in the folders within it where its card says that it may lie.

    Raises:
        InputError: nothing there fits the card, or the card has no such part.
    """
    if card is None:
        return _anything(folder)
    if part is not None and part not in card.parts:
        raise InputError(f"{card.name} has no part {part!r}; it has {', '.join(card.parts) or 'none'}")
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder")
    place = find_within(folder, card, part)
    if place:
        return place
    parts = [part] if part else list(card.parts)
    layout = recognise(folder, card)
    if layout not in _FITS[card.kind]:
        raise InputError(_misfit(folder, layout, card))
    inferred = next((name for name in reversed(folder.absolute().parts) if name in parts), None)
    return Place(folder, layout, inferred or next(iter(parts), None))


def find_within(folder: Path, card: Card, part: str | None = None) -> Place | None:
    """A set in one of the folders where its card says that it may lie, or in one of the set's own name."""
    named = [path.name for path in folder.iterdir() if path.name.casefold() == card.name]
    for name in [part] if part else card.parts:
        for within in (*card.parts[name].folders, *named):
            if (folder / within).is_dir() and (layout := recognise(folder / within, card)) in _FITS[card.kind]:
                return Place(folder / within, layout, name)
    return None


def recognise(folder: Path, card: Card | None = None) -> Layout | None:
    """The layout of a folder, of one card's files where one is given; None where nothing is known.

    Half of a pair counts as the pair's layout, so that opening it says what is missing.
    """
    if any((folder / name).is_dir() for name in (*INPUT_NAMES, *TARGET_NAMES[:2])):
        return "pairs"
    if has_databases(folder):
        return "lmdb"
    if any((folder / f"{key}.mat").exists() for key in KEYS):
        return "blocks"
    if (folder / "info.mat").exists() or (folder / "images_srgb").is_dir():
        return "dnd"
    if (card is None or card.original) and find_original(folder, (card,) if card else ()):
        return "originals"
    return "photos" if find_pictures(folder) else None


def _anything(folder: Path) -> Place:
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder")
    layout = recognise(folder)
    if layout is None:
        raise InputError(
            f"{folder} holds no picture and nothing else that kithkin reads; `kithkin data list` shows what"
        )
    if layout == "originals":
        guess_original(folder)  # raises where it is more than one part
    return Place(folder, layout, None)


def _misfit(folder: Path, layout: Layout | None, card: Card) -> str:
    content = IN_WORDS[layout] if layout else "nothing that kithkin reads"
    remedy = f"get it from {card.url}" if layout is None else "give the folder of the set itself, or another name"
    if card.kind == "photos" and layout == "pairs":
        remedy = "give the folder with the clean pictures alone, such as its target"
    expected = "; ".join(card.layouts)
    return f"{folder} holds {content}, but {card.name} ({card.title}) is expected as {expected}; {remedy}"
