"""Which file belongs to which: pairs by equal names in two folders, or by the naming rule of a data set's originals."""

import re
from dataclasses import dataclass
from pathlib import Path

from kithkin.data.catalog import Card, Original, list_cards
from kithkin.errors import InputError
from kithkin.images import find_pictures

INPUT_NAMES = ("input", "input_crops")
TARGET_NAMES = ("target", "target_crops", "gt", "gt_crops")


@dataclass(frozen=True)
class Pairing:
    """The pairs of a folder, in order of name, and what spoils them.

    Attributes:
        names: of the pairs.
        pairs: (input, target).
        alone: files without a partner.
        doubles: files that differ in their endings alone, so that one name means two of them.
        unlisted: names that the list of the part asks for and that are not there.
    """

    names: list[str]
    pairs: list[tuple[Path, Path]]
    alone: list[Path]
    doubles: list[tuple[Path, Path]]
    unlisted: tuple[str, ...] = ()

    def checked(self, folder: Path) -> "Pairing":
        """The same; raises InputError unless every file has exactly one partner."""
        if self.doubles:
            first, second = self.doubles[0]
            raise InputError(f"{second} and {first} differ in their endings alone; keep one of them")
        if self.alone or self.unlisted:
            names = [str(path.relative_to(folder)) for path in self.alone] or list(self.unlisted)
            listed = ", ".join(names[:3]) + ("…" if len(names) > 3 else "")
            raise InputError(f"{folder}: {len(names)} pictures have no partner of the same name: {listed}")
        return self


def sides(folder: Path) -> tuple[Path, Path] | None:
    """The folders of inputs and of targets; None where there is neither.

    Raises:
        InputError: one of the two is missing.
    """
    folders = [
        next((folder / n for n in names if (folder / n).is_dir()), None) for names in (INPUT_NAMES, TARGET_NAMES)
    ]
    if folders[0] is None and not any((folder / name).is_dir() for name in TARGET_NAMES[:2]):
        return None
    for side, names in zip(folders, (INPUT_NAMES, TARGET_NAMES), strict=True):
        if side is None:
            listed = " or ".join(names[:2])
            raise InputError(f"{folder} has no folder {listed}; a folder of pairs holds input and target")
    assert folders[0] is not None
    assert folders[1] is not None
    return folders[0], folders[1]


def pair_sides(source: Path, target: Path) -> Pairing:
    """The pairs of two folders, by path and name within them; endings may differ."""
    doubles: list[tuple[Path, Path]] = []
    stems = [_by_stem(folder, pictures(folder), doubles) for folder in (source, target)]
    inputs, targets = stems
    alone = [
        *(inputs[s] for s in sorted(inputs.keys() - targets)),
        *(targets[s] for s in sorted(targets.keys() - inputs)),
    ]
    common = sorted(inputs.keys() & targets)
    names = [inputs[stem].relative_to(source).as_posix() for stem in common]
    return Pairing(names, [(inputs[stem], targets[stem]) for stem in common], alone, doubles)


def pair_originals(folder: Path, original: Original, part: str | None = None) -> Pairing:
    """The pairs that a data set's own naming rule makes of a folder; files that it says nothing about are left out.

    Args:
        folder: searched recursively.
        original: the rule.
        part: keep the pairs that the list of this part names, where the set has lists.

    Raises:
        InputError: the list is not there.
    """
    doubles: list[tuple[Path, Path]] = []
    stems = _by_stem(folder, pictures(folder), doubles)
    names, pairs, alone, kept = [], [], [], _listed(folder, original, part)
    missing = set(kept or ())
    for stem, path in stems.items():
        match = re.fullmatch(original.input, stem.as_posix())
        if match is None:
            continue
        name = match.expand(original.name)
        if kept is not None and name not in kept:
            continue
        missing.discard(name)
        partner = stems.get(Path(match.expand(original.target)))
        if partner is None:
            alone.append(path)
        else:
            names.append(name + path.suffix)
            pairs.append((path, partner))
    return Pairing(names, pairs, alone, doubles, tuple(sorted(missing)))


def guess_original(folder: Path) -> Original | None:
    """The naming rule, of any data set, that makes pairs of a folder; None where none does.

    Raises:
        InputError: the folder holds training and test pictures together, which nobody wants as one.
    """
    card = find_original(folder)
    if card is None or card.original is None:
        return None
    if card.original.lists or all((folder / part).is_dir() for part in ("train", "test")):
        raise InputError(
            f"{folder} holds the training and the test part of {card.title} together; give the folder of one of them, "
            "or name the data set (`kithkin data list`)"
        )
    return card.original


def find_original(folder: Path, cards: tuple[Card, ...] = ()) -> Card | None:
    """The card whose naming rule makes at least one pair of this folder; any card's, unless ``cards`` are given."""
    stems = {path.relative_to(folder).with_suffix("").as_posix() for path in find_pictures(folder)}
    for card in cards or tuple(list_cards().values()):
        if card.original is None:
            continue
        rule = re.compile(card.original.input)
        matches = (rule.fullmatch(stem) for stem in stems)
        if any(match and match.expand(card.original.target) in stems for match in matches):
            return card
    return None


def pictures(folder: Path) -> list[Path]:
    """The pictures of a folder, sorted; raises InputError where there is no folder or no picture."""
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder")
    paths = find_pictures(folder)
    if not paths:
        shard = next(iter(sorted(folder.glob("*.tar"))), None)
        raise InputError(f"{folder} holds no picture{f'; name its shards, such as {shard}' if shard else ''}")
    return paths


def _by_stem(folder: Path, paths: list[Path], doubles: list[tuple[Path, Path]]) -> dict[Path, Path]:
    stems: dict[Path, Path] = {}
    for path in paths:
        first = stems.setdefault(path.relative_to(folder).with_suffix(""), path)
        if first is not path:
            doubles.append((path, first))
    return stems


def _listed(folder: Path, original: Original, part: str | None) -> set[str] | None:
    """The names in the list file of a part, which lies in the folder or beside it; None where the set has no lists."""
    if part not in original.lists:
        return None
    file = original.lists[part]
    path = next((place / file for place in (folder, folder.absolute().parent) if (place / file).is_file()), None)
    if path is None:
        raise InputError(
            f"{folder}: {file} says which pictures are the {part} part, and it is neither here nor beside this folder; "
            "put it there (it comes with the data set)"
        )
    rule = re.compile(original.input)
    words = [word for line in path.read_text(encoding="utf-8").splitlines() for word in line.split()]
    matches = (rule.fullmatch(Path(word).with_suffix("").as_posix()) for word in words)
    # The list's paths begin with the name of the data set's folder, which may be called something else here.
    return {match.expand(original.name) for match in matches if match}
