"""Check a data set on disk: report everything that is wrong at once, and what to do."""

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from kithkin.data.catalog import Card, find_card
from kithkin.data.dnd import BOXES, IMAGES, image_file, open_image, read_boxes
from kithkin.data.layouts import IN_WORDS, Place, locate
from kithkin.data.lmdb_pairs import find_databases, list_keys, listed_keys, read_entry
from kithkin.data.pairing import Pairing, guess_original, pair_originals, pair_sides, pictures, sides
from kithkin.data.sidd import KEYS, SHAPE, block_header, read_through
from kithkin.errors import ImageError, InputError, KithkinError
from kithkin.images import decode_picture

_SHOWN = 5


@dataclass(frozen=True)
class Finding:
    """One thing that was found: ``"ok"``, a ``"note"`` to know of, or a ``"problem"`` that spoils the set."""

    level: Literal["ok", "note", "problem"]
    text: str


@dataclass
class CheckReport:
    """What a check found.

    Attributes:
        dataset: the card's name.
        folder: where the set was found.
        layout: how it lies there, in words; None where nothing was recognised.
        part: "train" or "test"; None where the set has no parts.
        count: samples found.
        expected: how many there should be; empty where any number is right.
        findings: in the order of the check.
    """

    dataset: str
    folder: Path
    layout: str | None = None
    part: str | None = None
    count: int = 0
    expected: tuple[int, ...] = ()
    findings: list[Finding] = field(default_factory=list)

    @property
    def usable(self) -> bool:
        """Whether nothing spoils the set."""
        return all(finding.level != "problem" for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        values = asdict(self) | {"folder": str(self.folder), "expected": list(self.expected)}
        findings = values.pop("findings")
        return {**values, "usable": self.usable, "findings": findings}

    def ok(self, text: str) -> None:
        """Add what is right."""
        self.findings.append(Finding("ok", text))

    def note(self, text: str) -> None:
        """Add what is good to know."""
        self.findings.append(Finding("note", text))

    def problem(self, text: str) -> None:
        """Add what spoils the set."""
        self.findings.append(Finding("problem", text))


Progress = Callable[[int, int], None]


def check_dataset(
    name: str,
    folder: str | Path,
    *,
    part: str | None = None,
    quick: bool = False,
    report: Progress | None = None,
) -> CheckReport:
    """Look at a data set on disk: what is there, missing, without a partner, double, of unequal size or damaged.

    Args:
        name: from ``kithkin.data.list_cards``.
        folder: as in ``kithkin.data.open_samples``.
        part: "train" or "test".
        quick: look at names, numbers and headers alone; otherwise every file is read and decoded to its end.
        report: called with how many files are done and how many there are.

    Returns:
        The findings; ``usable`` says whether any of them spoils the set.

    Raises:
        InputError: there is no such set or no such folder.
    """
    card, folder = find_card(name), Path(folder)
    result = CheckReport(card.name, folder, part=part)
    if not folder.is_dir() or (part is not None and part not in card.parts):
        locate(folder, card, part)  # raises, with the reason
    try:
        place = locate(folder, card, part)
        result.folder, result.layout, result.part = place.folder, IN_WORDS[place.layout], place.part
        _CHECKS[place.layout](result, card, place, None if quick else report or (lambda done, total: None))
    except KithkinError as error:
        result.problem(str(error))
    return result


class _Looked(NamedTuple):
    """What reading one file gave: its size in pixels, the sum of its bytes, or why it can't be read."""

    size: tuple[int, int] | None
    digest: str
    error: str | None


def _look(path: Path) -> _Looked:
    try:
        data = path.read_bytes()
        height, width = decode_picture(data, path).pixels.shape[:2]
    except (OSError, ImageError) as error:
        return _Looked(None, "", str(error))
    return _Looked((width, height), hashlib.sha256(data).hexdigest(), None)


def _look_at_entry(place: tuple[Path, str]) -> _Looked:
    try:
        pixels = read_entry(*place)
    except KithkinError as error:
        return _Looked(None, "", str(error))
    return _Looked((pixels.shape[1], pixels.shape[0]), hashlib.sha256(pixels.tobytes()).hexdigest(), None)


def _all(look: Callable[[Any], _Looked], things: Sequence[Any], report: Progress) -> list[_Looked]:
    results = []
    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        for done, looked in enumerate(pool.map(look, things), 1):
            results.append(looked)
            report(done, len(things))
    return results


def _files(result: CheckReport, card: Card, place: Place, report: Progress | None) -> None:
    """Pairs as files, in two folders or as their authors name them."""
    folders = sides(place.folder)
    if folders:
        pairing = pair_sides(*folders)
    else:
        original = card.original or guess_original(place.folder)
        assert original is not None  # or the layout would be another
        pairing = pair_originals(place.folder, original, place.part)
        if "blur_gamma" in {path.name for path in place.folder.glob("*/blur_gamma")}:
            result.note("blur_gamma is not read: published values are of blur")
    _pairing_findings(result, place.folder, pairing)
    crops = folders is not None and folders[0].name == "input_crops" and place.part == "train"
    _count(result, card, place, len(pairing.pairs), "pairs", any_number=crops)
    if report:
        looked = _all(_look, [path for pair in pairing.pairs for path in pair], report)
        _pair_findings(result, pairing.names, looked, spoil=place.part == "test")


def _pairing_findings(result: CheckReport, folder: Path, pairing: Pairing) -> None:
    if pairing.alone:
        names = _some([str(path.relative_to(folder)) for path in pairing.alone])
        result.problem(f"{len(pairing.alone)} files have no partner of the same name: {names}; add it or remove them")
    for path, first in pairing.doubles[:_SHOWN]:
        result.problem(f"{path} and {first} differ in their endings alone; keep one of them")
    if pairing.unlisted:
        names = _some(list(pairing.unlisted))
        result.problem(f"{len(pairing.unlisted)} pairs of the list are not there: {names}; unpack the set again")


def _photos(result: CheckReport, card: Card, place: Place, report: Progress | None) -> None:
    paths = pictures(place.folder)
    names = [path.relative_to(place.folder).as_posix() for path in paths]
    stems: dict[str, str] = {}
    for name in names:
        first = stems.setdefault(name.rpartition(".")[0], name)
        if first != name:
            add = result.problem if card.parts else result.note
            add(f"{name} and {first} in {place.folder} differ in their endings alone; keep one of them")
    _count(result, card, place, len(paths), "pictures")
    if report:
        looked = _all(_look, paths, report)
        _errors(result, looked)
        _doubles(result, names, looked, spoil=bool(card.parts))


def _lmdb(result: CheckReport, card: Card, place: Place, report: Progress | None) -> None:
    databases = find_databases(place.folder)
    keys = [list_keys(database) for database in databases]
    for database, own, other in zip(databases, keys, keys[::-1], strict=True):
        if alone := sorted(set(own) - set(other)):
            result.problem(
                f"{len(alone)} keys of {database} have no partner: {_some(alone)}; make both databases again"
            )
        listed = listed_keys(database)
        if listed is None:
            result.note(f"{database} has no meta_info.txt; its own keys are taken")
        elif listed != sorted(own):
            result.problem(f"{database}: meta_info.txt names {len(listed)} keys, it holds {len(own)}; make it again")
    common = sorted(set(keys[0]) & set(keys[1]))
    _count(result, card, place, len(common), "pairs", any_number=place.part == "train" and "crops" in databases[0].name)
    if report:
        looked = _all(_look_at_entry, [(database, key) for key in common for database in databases], report)
        _pair_findings(result, common, looked, spoil=place.part == "test")


def _blocks(result: CheckReport, card: Card, place: Place, report: Progress | None) -> None:
    shapes = []
    for done, key in enumerate(KEYS, 1):
        path = place.folder / f"{key}.mat"
        try:
            shapes.append(block_header(path, key).shape)
            if report:
                read_through(path, key)
                report(done, len(KEYS))
            result.ok(f"{path.name}: uint8 {shapes[-1]}")
        except InputError as error:
            result.problem(str(error))
    if len(shapes) == 2 and shapes[0] != shapes[1]:
        result.problem(f"{KEYS[0]} is {shapes[0]} but {KEYS[1]} is {shapes[1]}; download both again")
    if shapes and shapes[0] != SHAPE:
        result.note(f"the blocks are {shapes[0]}, SIDD's are {SHAPE}")
    if len(shapes) == 2:
        _count(result, card, place, shapes[0][0] * shapes[0][1], "blocks")


def _dnd(result: CheckReport, card: Card, place: Place, report: Progress | None) -> None:
    try:
        boxes = read_boxes(place.folder / "info.mat")
        if [len(corners) for corners in boxes] == [BOXES] * IMAGES:
            result.ok(f"info.mat: {IMAGES} pictures with {BOXES} boxes each")
    except InputError as error:
        result.problem(str(error))
        return
    count = 0
    for i, corners in enumerate(boxes):
        path = image_file(place.folder, i)
        try:
            with open_image(path) as noisy:
                width, height = noisy.shape[1:]
                low, high = (float(noisy[:].min()), float(noisy[:].max())) if report else (0.0, 1.0)
            if corners.min() < 1 or corners[:, 2].max() > height or corners[:, 3].max() > width:
                result.problem(f"{path} is {width}×{height}, but a box of info.mat lies outside; download both again")
            elif not (low >= 0 and high <= 1):
                result.problem(f"{path} reaches from {low:g} to {high:g}, expected [0, 1]; download it again")
            else:
                count += len(corners)
        except InputError as error:
            result.problem(str(error))
        if report:
            report(i + 1, len(boxes))
    _count(result, card, place, count, "crops")


_CHECKS: dict[str, Callable[[CheckReport, Card, Place, Progress | None], None]] = {
    "pairs": _files,
    "originals": _files,
    "lmdb": _lmdb,
    "blocks": _blocks,
    "dnd": _dnd,
    "photos": _photos,
}


def _count(result: CheckReport, card: Card, place: Place, count: int, what: str, *, any_number: bool = False) -> None:
    result.count = count
    result.expected = () if any_number or place.part is None else card.parts[place.part].counts
    if not result.expected:
        result.ok(f"{count:,} {what}")
        return
    expected = " or ".join(f"{n:,}" for n in result.expected)
    if count in result.expected:
        result.ok(f"{count:,} {what}, as the {place.part} part has")
        return
    remedy = f"unpack it again, or get it from {card.url}"
    if count > max(result.expected):
        remedy = "remove what does not belong to it"
    elif card.name not in ("pairs", "photos"):
        remedy += "; to use these files as they are, name the set " + ("photos" if card.kind == "photos" else "pairs")
    result.problem(f"{count:,} {what}, the {place.part} part of {card.name} has {expected}; {remedy}")


def _pair_findings(result: CheckReport, names: list[str], looked: list[_Looked], *, spoil: bool) -> None:
    """What reading pairs gave; ``looked`` holds input and target of each in turn."""
    _errors(result, looked)
    inputs, targets = looked[::2], looked[1::2]
    rows = [(n, a, b) for n, a, b in zip(names, inputs, targets, strict=True) if a.size and b.size]
    unequal = [f"{n} ({_size(a)}, target {_size(b)})" for n, a, b in rows if a.size != b.size]
    if unequal:
        result.problem(
            f"{len(unequal)} pairs are of unequal size: {_some(unequal)}; one of the two was cropped or scaled"
        )
    same = [n for n, a, b in rows if a.digest == b.digest]
    if same:
        result.problem(f"{len(same)} inputs are their own targets, byte for byte: {_some(same)}; get the inputs again")
    _doubles(result, names, inputs, spoil=spoil)


def _errors(result: CheckReport, looked: list[_Looked]) -> None:
    errors = [file.error for file in looked if file.error]
    for error in errors[:_SHOWN]:
        result.problem(error)
    if len(errors) > _SHOWN:
        result.problem(f"{len(errors) - _SHOWN} more files can't be read")
    if looked and not errors:
        result.ok(f"{len(looked):,} files read to the end")


def _doubles(result: CheckReport, names: list[str], looked: list[_Looked], *, spoil: bool) -> None:
    """Files with the same bytes; a training set may hold some, in a test set they count twice."""
    first: dict[str, str] = {}
    doubles = []
    for name, file in zip(names, looked, strict=True):
        if file.digest and (other := first.setdefault(file.digest, name)) != name:
            doubles.append(f"{name} = {other}")
    if doubles:
        add = result.problem if spoil else result.note
        add(f"{len(doubles)} files are there twice, byte for byte: {_some(doubles)}; remove one of each")


def _size(looked: _Looked) -> str:
    return "×".join(str(side) for side in looked.size or ())


def _some(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
