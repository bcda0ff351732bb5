"""Results of an evaluation: rows, means, and the CSV file from which an interrupted evaluation continues."""

import csv
import io
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kithkin.errors import InputError
from kithkin.evaluation.protocols import Protocol
from kithkin.files import replacing

MEASURED = ("psnr_input", "psnr", "ssim_input", "ssim")


@dataclass(frozen=True)
class Row:
    """One picture under one condition.

    Attributes:
        image: its file name.
        condition: ``"sigma 25"``, a key of ``kithkin.data.degrade.NOISES``, or ``"pairs"``.
        psnr_input, psnr: dB, before and after; None where there is no target.
        ssim_input, ssim: before and after; None where there is no target.
        seconds: for the method.
        megapixels: of the picture.
    """

    image: str
    condition: str
    psnr_input: float | None
    psnr: float | None
    ssim_input: float | None
    ssim: float | None
    seconds: float
    megapixels: float


@dataclass(frozen=True)
class Report:
    """All rows of one method on one data set.

    Attributes:
        method: its name.
        dataset: name of the data set or of its folder.
        protocol: how the values were made.
        rows: one a picture and condition.
    """

    method: str
    dataset: str
    protocol: Protocol
    rows: tuple[Row, ...]

    def means(self) -> dict[str, dict[str, float | None]]:
        """Condition -> column -> mean over its pictures (None without targets); ``images`` is their number."""
        table: dict[str, dict[str, float | None]] = {}
        for condition in dict.fromkeys(row.condition for row in self.rows):
            rows = [row for row in self.rows if row.condition == condition]
            pixels = sum(row.megapixels for row in rows)
            table[condition] = {
                **{name: _mean(getattr(row, name) for row in rows) for name in MEASURED},
                "images": len(rows),
                "seconds_per_megapixel": sum(row.seconds for row in rows) / pixels,
            }
        return table

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: the protocol, the means, every row; None for the PSNR of equal pictures."""
        rows = [_finite(asdict(row)) for row in self.rows]
        means = {condition: _finite(mean) for condition, mean in self.means().items()}
        return {
            "method": self.method,
            "dataset": self.dataset,
            "protocol": asdict(self.protocol),
            "means": means,
            "images": rows,
        }


class Measurer(NamedTuple):
    """Whose rows these are. Rows of another data set, protocol, method or other weights are never mixed in.

    Attributes:
        dataset, protocol, method: their names.
        source: tells two data sets of one name apart, by where they lie.
        identity: tells two methods of one name apart, such as a checkpoint before and after more training.
    """

    dataset: str
    source: str
    protocol: str
    method: str
    identity: str


class ScoreFile:
    """A CSV file with a line for every picture, written as the evaluation goes on. Several methods and data sets may
    share it. A line that was cut off is measured again.

    Args:
        path: is created where it is missing.

    Raises:
        InputError: the file is something else, or it can't be read or written.
    """

    HEADER = (*Measurer._fields, *(field.name for field in fields(Row)))

    def __init__(self, path: Path) -> None:
        self.path = path
        self._rows: dict[tuple[str, ...], Row] = {}
        try:
            text = path.read_text(encoding="utf-8") if path.exists() else ""
        except UnicodeDecodeError as error:
            raise InputError(f"{path} is not a file of scores that kithkin wrote; name another one") from error
        except OSError as error:
            raise _unusable(path, error) from error
        whole = text[: text.rfind("\n") + 1]
        lines = list(csv.reader(whole.splitlines()))
        if text and (not lines or tuple(lines[0]) != self.HEADER):
            raise InputError(f"{path} is not a file of scores that kithkin wrote; name another one")
        for line in lines[1:]:
            self._keep(line)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if whole != text or not text:  # cut the broken line off, or begin
                with replacing(path) as part:
                    part.write_text(whole or ",".join(self.HEADER) + "\n", encoding="utf-8")
            path.open("a").close()  # what can't be written later is refused before anything is measured
        except OSError as error:
            raise _unusable(path, error) from error

    def find(self, measurer: Measurer, image: str, condition: str) -> Row | None:
        """The row that is there already."""
        return self._rows.get((*measurer, image, condition))

    def append(self, measurer: Measurer, row: Row) -> None:
        """Add a row; it is in the file when this returns."""
        values = ["" if value is None else value for value in asdict(row).values()]
        try:
            with self.path.open("a", encoding="utf-8", newline="") as file:
                csv.writer(file, lineterminator="\n").writerow([*measurer, *values])
        except OSError as error:
            raise _unusable(self.path, error) from error
        self._rows[(*measurer, row.image, row.condition)] = row

    def _keep(self, line: list[str]) -> None:
        width = len(Measurer._fields)
        try:
            image, condition, *numbers = line[width:]
            before, after, ssim_before, ssim_after = (float(x) if x else None for x in numbers[:-2])
            seconds, megapixels = map(float, numbers[-2:])
            row = Row(image, condition, before, after, ssim_before, ssim_after, seconds, megapixels)
        except (ValueError, TypeError) as error:
            raise InputError(f"{self.path}: {','.join(line)!r} is not a row of scores; name another file") from error
        self._rows[(*line[:width], image, condition)] = row


def _unusable(path: Path, error: OSError) -> InputError:
    return InputError(f"{path} can't be the file of scores ({error.strerror or error}); name another file for `csv`")


def means_table(reports: Iterable[Report], form: str) -> str:
    """The means as ``"markdown"`` or ``"csv"``: a line a data set, condition and method; empty without a target."""
    head = ["data set", "condition", "method", "PSNR in", "PSNR", "SSIM in", "SSIM", "pictures", "s/MP", "protocol"]
    lines = []
    for report in reports:
        for condition, m in report.means().items():
            decibels, parts = ([m["psnr_input"], m["psnr"]], [m["ssim_input"], m["ssim"]])
            numbers = ["" if v is None else f"{v:.{n}f}" for n, pair in ((2, decibels), (4, parts)) for v in pair]
            rest = [str(m["images"]), f"{m['seconds_per_megapixel']:.2f}", report.protocol.name]
            lines.append([report.dataset, condition, report.method, *numbers, *rest])
    if form == "markdown":
        return "".join("| " + " | ".join(line) + " |\n" for line in [head, ["---"] * len(head), *lines])
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows([head, *lines])
    return file.getvalue()


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    """JSON has no infinity."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
