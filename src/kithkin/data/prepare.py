"""Cut training crops once, so that a run need not decode a whole photograph for each of them."""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from kithkin.data.ahead import drawn_ahead
from kithkin.data.catalog import Card, find_card
from kithkin.data.layouts import locate, open_samples
from kithkin.data.samples import Samples
from kithkin.errors import InputError, KithkinError
from kithkin.files import path_below, write_whole
from kithkin.images import SUFFIXES, Picture, write_picture

JOURNAL = "crops.jsonl"


@dataclass(frozen=True)
class CutOptions:
    """How crops are cut.

    Attributes:
        crop: side of a crop in pixels; None takes the data set's own.
        overlap: of neighbours, in pixels; None takes the data set's own.
        part: of the data set; None takes "train" where there is one.
        jobs: processes; 1 cuts in this one, None takes one for each CPU.
    """

    crop: int | None = None
    overlap: int | None = None
    part: str | None = None
    jobs: int | None = None


@dataclass(frozen=True)
class CutReport:
    """What was cut.

    Attributes:
        crops: there are now, of each side.
        samples: pictures or pairs that they come from.
        skipped: samples that an earlier run had cut.
        failed: what went wrong, a line for each sample that gave no crops.
    """

    crops: int
    samples: int
    skipped: int
    failed: tuple[str, ...]


def cut_crops(
    name: str,
    folder: str | Path,
    out: str | Path,
    options: CutOptions | None = None,
    *,
    report: Callable[[int, int], None] | None = None,
) -> CutReport:
    """Cut a data set into crops: ``input_crops`` and ``target_crops``, or ``crops`` of clean photographs.

    The last crop of a row or column is moved back so that it ends with the picture; a side shorter than a crop is kept
    whole. Each file appears complete or not at all, and a journal says which samples are done: a run that was killed,
    started again, cuts what is missing. With more than one job, a script that calls this needs
    ``if __name__ == "__main__":``, as everything does that starts processes.

    Args:
        name: from ``kithkin.data.list_cards``.
        folder: as in ``kithkin.data.open_samples``.
        out: the folder for the crops.
        options: sizes, part and processes.
        report: called with how many samples are done and how many there are.

    Raises:
        InputError: the set is not for training or not complete, a value is out of range, or ``out`` holds crops that
            were cut otherwise, or can't be written.
    """
    options = options or CutOptions()
    card = find_card(name)
    cutter = _plan(card, folder, Path(out), options)
    samples = cutter.open()
    _check_samples(samples, card, cutter.part)
    for sample in samples.names:
        path_below(cutter.out, _stem(sample))  # before anything is written
    done = _start_journal(cutter)
    missing = [i for i, sample in enumerate(samples.names) if not cutter.is_cut(sample, done.get(sample))]
    counts = {sample: done[sample]["crops"] for sample in samples.names if sample in done}
    failed = []
    skipped = len(samples) - len(missing)
    with (cutter.out / JOURNAL).open("a", encoding="utf-8") as journal:
        for finished, (sample, row, error) in enumerate(_cut_all(cutter, samples, missing, options.jobs), skipped + 1):
            if error is None:
                counts[sample] = row["crops"]
                journal.write(json.dumps({"sample": sample, **row}) + "\n")
                journal.flush()
            else:
                counts.pop(sample, None)
                failed.append(error)
            if report:
                report(finished, len(samples))
    return CutReport(sum(counts.values()), len(samples), skipped, tuple(failed))


def _plan(card: Card, folder: str | Path, out: Path, options: CutOptions) -> "_Cutter":
    crop = card.crop if options.crop is None else options.crop
    overlap = min(card.overlap, crop // 2) if options.overlap is None else options.overlap
    if crop < 1 or not 0 <= overlap < crop:
        raise InputError(
            f"prepare: a crop has at least 1 pixel and overlap lies in [0, crop), got {crop} and {overlap}"
        )
    part = _part(card, options.part)
    source = locate(Path(folder), card, part).folder.resolve()
    if out.resolve().is_relative_to(source):
        raise InputError(f"prepare: {out} lies within the pictures, {source}; give a folder outside of it as `out`")
    return _Cutter(str(folder), card.name, part, out, crop, overlap)


def _part(card: Card, part: str | None) -> str | None:
    if card.kind in ("blocks", "noisy-only") or (card.parts and "train" not in card.parts):
        kind = "pairs" if card.kind != "photos" else "photos"
        raise InputError(
            f"prepare: {card.name} is there to measure with, and crops are to train on; "
            f"for pictures of your own the name is {kind}"
        )
    if part == "test":
        raise InputError(f"prepare: the test part of {card.name} is there to measure with; leave `part` out")
    return part or ("train" if card.parts else None)


def _check_samples(samples: Samples, card: Card, part: str | None) -> None:
    counts = {name: p.counts for name, p in card.parts.items()}
    if len(samples) in counts.get("test", ()) and len(samples) not in counts.get(part or "", ()):
        raise InputError(
            f"prepare: {len(samples):,} is the number of {card.name}'s test pictures, and crops are to train on; "
            "give the folder of the training part"
        )
    seen: dict[str, str] = {}
    for name in samples.names:
        other = seen.setdefault(_stem(name), name)
        if other != name:
            raise InputError(f"prepare: {name} and {other} differ in their endings alone; keep one of them")


def _stem(name: str) -> str:
    path = Path(name)
    return path.with_suffix("").as_posix() if path.suffix.lower() in SUFFIXES else name


def starts(length: int, crop: int, overlap: int) -> list[int]:
    """Where crops of a side begin: every ``crop - overlap`` pixels, the last one so that it ends with the side."""
    if length <= crop:
        return [0]
    return [*range(0, length - crop, crop - overlap), length - crop]


@dataclass(frozen=True)
class _Cutter:
    """What a process needs to cut samples: where they are, where the crops go, and how they are cut."""

    folder: str
    dataset: str
    part: str | None
    out: Path
    crop: int
    overlap: int

    def crops(self, sample: str, height: int, width: int) -> list[tuple[str, int, int]]:
        """(file name, top, left) of every crop of a picture."""
        tops, lefts = (starts(side, self.crop, self.overlap) for side in (height, width))
        return [(f"{_stem(sample)}-{top:05}-{left:05}.png", top, left) for top in tops for left in lefts]

    def is_cut(self, sample: str, row: dict[str, Any] | None) -> bool:
        """Whether the journal says that a sample is done, and its files are there."""
        if row is None:
            return False
        files = [file for file, _, _ in self.crops(sample, *row["size"])]
        return all(path_below(self.out / side, file).is_file() for side in row["sides"] for file in files)

    def open(self) -> Samples:
        """The data set, opened in the process that reads it."""
        return open_samples(self.folder, self.dataset, part=self.part)

    def cut(self, samples: Samples, index: int) -> dict[str, Any]:
        """Cut one sample; the row of the journal that says so."""
        name, degraded, target = samples[index]
        assert target is not None
        sides = {"crops": target} if degraded is None else {"input_crops": degraded, "target_crops": target}
        height, width = target.shape[:2]
        names = self.crops(name, height, width)
        for folder, pixels in sides.items():
            for file, top, left in names:
                path = path_below(self.out / folder, file)
                path.parent.mkdir(parents=True, exist_ok=True)
                piece = pixels[top : top + self.crop, left : left + self.crop]
                write_picture(Picture(piece.astype(np.float32) / np.float32(255)), path, overwrite=True)
        return {"crops": len(names), "size": [height, width], "sides": list(sides)}

    def attempt(self, samples: Samples, index: int) -> tuple[dict[str, Any], str | None]:
        """(row, None), or (nothing, what went wrong)."""
        try:
            return self.cut(samples, index), None
        except KithkinError as error:
            return {}, str(error)


def _cut_all(
    cutter: _Cutter, samples: Samples, missing: list[int], jobs: int | None
) -> Iterator[tuple[str, dict[str, Any], str | None]]:
    """(sample, row, error) of every missing sample, in order."""
    jobs = min(os.cpu_count() or 1 if jobs is None else jobs, len(missing))
    if jobs <= 1:
        for index in missing:
            yield samples.names[index], *cutter.attempt(samples, index)
        return
    killed = (
        "prepare: a process was killed, most likely because the memory was full; "
        "run it again with fewer `jobs`: what is cut stays"
    )
    with drawn_ahead(partial(_attempt, cutter), missing, jobs, killed) as outcomes:
        for index, outcome in zip(missing, outcomes, strict=True):
            yield samples.names[index], *outcome


def _attempt(cutter: _Cutter, index: int) -> tuple[dict[str, Any], str | None]:
    return cutter.attempt(_opened(cutter), index)


@cache
def _opened(cutter: _Cutter) -> Samples:
    """The data set, opened once in each process."""
    return cutter.open()


def _start_journal(cutter: _Cutter) -> dict[str, dict[str, Any]]:
    """What an earlier run has cut: sample -> row. A journal is begun where there is none."""
    out = cutter.out
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"prepare: {out} can't be the folder of crops ({reason}); give another `out`") from error
    settings = {key: getattr(cutter, key) for key in ("dataset", "part", "crop", "overlap")}
    path = out / JOURNAL
    if not path.exists():
        if any((out / name).exists() for name in ("input_crops", "target_crops", "crops")):
            raise InputError(f"prepare: {out} holds crops that it did not cut; give another folder as `out`")
        _write_journal(path, [settings])
        return {}
    rows = [row for line in path.read_text(encoding="utf-8").splitlines() if (row := _parsed(line))]
    if not rows or rows[0] != settings:
        raise InputError(
            f"prepare: {out} was cut with {rows[0] if rows else 'nothing'}, not {settings}; give another `out`"
        )
    for part in out.rglob(".kithkin-*.part"):
        part.unlink(missing_ok=True)
    # A line that a kill cut short is left out, and what comes after must begin on a line of its own.
    _write_journal(path, rows)
    return {row["sample"]: row for row in rows[1:]}


def _write_journal(path: Path, rows: list[dict[str, Any]]) -> None:
    write_whole(path, "".join(json.dumps(row) + "\n" for row in rows))


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except json.JSONDecodeError:
        return None
    return row if isinstance(row, dict) else None
