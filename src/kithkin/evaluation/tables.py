"""The paper's tables, with what was measured beside what was published."""

import csv
import io
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import model_validator

from kithkin.errors import InputError
from kithkin.evaluation.rows import Report
from kithkin.methods import Method, ModelMethod
from kithkin.packaged import Section, packaged, read_as, toml_files
from kithkin.zoo import regrouped

MEAN = "mean"
INPUT = "input"
Value = float | None


class Column(Section):
    """One column.

    Attributes:
        dataset: what the paper calls it, or ``"mean"``: the unweighted mean over the sets before it.
        card: its name in the catalog (`kithkin data list`), where that is not ``dataset`` in small letters.
        condition: which rows of an evaluation, such as ``"sigma 25"``.
        h: hash rounds, in a table over k and h.
        metric: psnr (dB) or ssim.
        protocol: under which the column's values are made.
    """

    dataset: str
    card: str = ""
    condition: str = "pairs"
    h: int | None = None
    metric: Literal["psnr", "ssim"]
    protocol: str

    @property
    def heading(self) -> str:
        """Such as "GoPro PSNR", "CBSD68 sigma 25 PSNR" or "SIDD h = 2 PSNR"."""
        condition = "" if self.condition == "pairs" else f" {self.condition}"
        rounds = "" if self.h is None else f" h = {self.h}"
        return f"{self.dataset}{condition}{rounds} {self.metric.upper()}"


class Group(Section):
    """Published rows from one source: each a method's name, then a value a column; "" where none was published."""

    title: str
    source: str
    rows: tuple[tuple[str | float, ...], ...]

    def values(self) -> dict[str, tuple[Value, ...]]:
        """Method -> its values, None where none was published."""
        return {str(name): tuple(None if v == "" else float(v) for v in values) for name, *values in self.rows}


class PublishedTable(Section):
    """A table of published values.

    Attributes:
        title: of the table.
        task: whose models are measured beside it.
        note: what a reader of the numbers has to know.
        baseline: the method that the gap is counted from.
        k: of a table over k and h, whose columns name an h: every method has a row for each of these, and so has the
            baseline, ``"KiT, k = 4"``.
        columns, groups: see ``Column``, ``Group``.
    """

    title: str
    task: str
    note: str
    baseline: str
    k: tuple[int, ...] = ()
    columns: tuple[Column, ...]
    groups: tuple[Group, ...]

    @model_validator(mode="after")
    def _rows_fit_the_columns(self) -> "PublishedTable":
        for group in self.groups:
            for row in group.rows:
                numbers = all(value == "" or isinstance(value, float) for value in row[1:])
                if len(row) != len(self.columns) + 1 or not isinstance(row[0], str) or not numbers:
                    raise ValueError(f'expected a name and {len(self.columns)} values (numbers or ""), got {list(row)}')
        if any((column.h is None) == bool(self.k) for column in self.columns):
            raise ValueError("k goes with an h in every column, and h with a k")
        for name in [row_at(self.baseline, k) for k in self.k] or [self.baseline]:
            if not any(name in group.values() for group in self.groups):
                raise ValueError(f"no row is called {name}, the baseline")
        return self

    def published(self, method: str) -> tuple[Value, ...]:
        """The values of a method."""
        return next(group.values()[method] for group in self.groups if method in group.values())


@dataclass(frozen=True)
class FilledTable:
    """A published table with measured rows under it.

    Attributes:
        table: what was published.
        measured: method -> a value a column, None where the data were not there.
        counts: data set -> pictures that were measured.
        expected: data set -> pictures that the whole set has, where that is known; several numbers where copies differ.
    """

    table: PublishedTable
    measured: Mapping[str, tuple[Value, ...]]
    counts: Mapping[str, int]
    expected: Mapping[str, tuple[int, ...]]

    def gaps(self) -> dict[str, tuple[Value, ...]]:
        """Method -> measured minus the baseline's value, PSNR columns alone (in dB)."""
        return {
            name: tuple(
                v - b if v is not None and b is not None and column.metric == "psnr" else None
                for v, b, column in zip(values, self._baseline(name), self.table.columns, strict=True)
            )
            for name, values in self.measured.items()
            if name != INPUT
        }

    def _baseline(self, name: str) -> tuple[Value, ...]:
        """What a measured row is compared with: of a table over k and h the row of the same k."""
        rows = (row_at(self.table.baseline, k) for k in self.table.k if name.endswith(row_at("", k)))
        return self.table.published(next(rows, self.table.baseline))

    def remarks(self) -> list[str]:
        """What limits the measured rows: sets that are missing or not whole."""
        names = dict.fromkeys(column.dataset for column in self.table.columns if column.dataset != MEAN)
        missing = [name for name in names if name not in self.counts]
        sentences = [f"Not measured, for lack of data: {', '.join(missing)}."] if missing else []
        for name, count in self.counts.items():
            whole = self.expected.get(name)
            if whole and count not in whole:
                of = " or ".join(map(str, whole))
                sentences.append(f"{name}: {count} of {of} pictures, so not comparable with the published values.")
        return sentences

    def rows(self) -> list[tuple[str, str, tuple[str, ...]]]:
        """(group, method, cells) in order, cells as they are printed."""
        out = [
            (group.title, name, self._cells(values))
            for group in self.table.groups
            for name, values in group.values().items()
        ]
        for name, values in self.measured.items():
            out.append(("measured", name, self._cells(values)))
        for name, values in self.gaps().items():
            out.append(("gap", f"{name} − {self.table.baseline}, dB", self._cells(values, sign="+")))
        return out

    def to_markdown(self) -> str:
        """A Markdown table with its sources, protocols and remarks."""
        head = ["method", *(column.heading for column in self.table.columns)]
        lines = [f"**{self.table.title}**", "", _line(head), _line(["---"] * len(head))]
        for group, name, cells in self.rows():
            lines.append(_line([f"**{name}**" if group == "measured" else name, *cells]))
        lines += ["", *self.footnotes()]
        return "\n".join(lines) + "\n"

    def footnotes(self) -> list[str]:
        """The note, the protocols, the sources and the remarks, a sentence a line."""
        protocols = ", ".join(dict.fromkeys(f"`{column.protocol}`" for column in self.table.columns))
        sources = [f"{group.title}: {group.source}." for group in self.table.groups]
        note = " ".join(self.table.note.split())
        return [note, f"Measured under protocol {protocols}.", *sources, *self.remarks()]

    def to_csv(self) -> str:
        """Comma-separated values: group, method, then the columns; empty where there is no value."""
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["group", "method", *(column.heading for column in self.table.columns)])
        writer.writerows([group, name, *cells] for group, name, cells in self.rows())
        return file.getvalue()

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "title": self.table.title,
            "baseline": self.table.baseline,
            "columns": [column.model_dump() for column in self.table.columns],
            "published": [
                {"title": group.title, "source": group.source, "rows": group.values()} for group in self.table.groups
            ],
            "measured": dict(self.measured),
            "gap_db": self.gaps(),
            "pictures": dict(self.counts),
            "footnotes": self.footnotes(),
        }

    def _cells(self, values: Iterable[Value], sign: str = "") -> tuple[str, ...]:
        pairs = zip(values, self.table.columns, strict=True)
        return tuple("" if v is None else f"{v:{sign}.{2 if c.metric == 'psnr' else 3}f}" for v, c in pairs)


def list_tables() -> dict[str, Path]:
    """The tables that come with the package: name -> file."""
    return toml_files(packaged("tables"))


def load_table(name: str | Path) -> PublishedTable:
    """A table by its name (``"1"`` to ``"5"`` of the paper, ``"gaussian"``), or a TOML file of the same form.

    Raises:
        InputError: there is no such table, or the file is not one.
    """
    path = list_tables().get(str(name), Path(name))
    if not path.is_file():
        raise InputError(f"no table is called {name}; there are {', '.join(list_tables())}")
    return read_as(PublishedTable, path, "a table")


def row_at(method: str, k: int) -> str:
    """A method's row in a table over k and h."""
    return f"{method}, k = {k}"


def over_k_and_h(table: PublishedTable, methods: Iterable[Method]) -> list[Method]:
    """Methods as a table needs them: over k and h, every network with each of its k and h and a name that says so.

    Raises:
        InputError: a method is none of our networks, and the table is over k and h.
    """
    if not table.k:
        return list(methods)
    expanded: list[Method] = []
    rounds = dict.fromkeys(column.h for column in table.columns if column.h is not None)
    for method in methods:
        if not isinstance(method, ModelMethod):
            raise InputError(f"{table.title}: {method.name} has no k and h; name one of our networks")
        for k, h in itertools.product(table.k, rounds):
            network = regrouped(method.model, k=k, n_hashes=h)
            expanded.append(replace(method, model=network, name=_at(method.name, k, h)))
    return expanded


def _at(method: str, k: int, h: int) -> str:
    return f"{method}[k={k},h={h}]"


def fill_table(
    table: PublishedTable,
    reports: Mapping[str, Sequence[Report]],
    expected: Mapping[str, tuple[int, ...]] | None = None,
) -> FilledTable:
    """Put measured values beside the published ones.

    Args:
        table: from ``load_table``.
        reports: data set (as the columns call it) -> the evaluations on it, one a method; of a table over k and h, of
            the methods that ``over_k_and_h`` gives.
        expected: data set -> pictures that the whole set has; several numbers where copies differ.

    Returns:
        The table, the degraded pictures' own values first. A value is None where its data set was not evaluated under
        the column's protocol; a mean is None unless every set before it has a value.
    """
    methods = dict.fromkeys(report.method for of_set in reports.values() for report in of_set)
    measured = {INPUT: _values(table, None, reports)} if methods else {}
    if table.k:
        first = _at("", table.k[0], table.columns[0].h or 0)
        bases = [method.removesuffix(first) for method in methods if method.endswith(first)]
        measured |= {row_at(base, k): _values(table, base, reports, k) for base in bases for k in table.k}
    else:
        measured |= {method: _values(table, method, reports) for method in methods if method != INPUT}
    counts = {
        name: min(int(mean["images"] or 0) for mean in of_set[0].means().values())
        for name, of_set in reports.items()
        if of_set and of_set[0].rows
    }
    return FilledTable(table, measured, counts, expected or {})


def _values(
    table: PublishedTable, method: str | None, reports: Mapping[str, Sequence[Report]], k: int | None = None
) -> tuple[Value, ...]:
    """A method's value a column, of a table over k and h at this k; None stands for the pictures as they came."""
    values: list[Value] = []
    for column in table.columns:
        if column.dataset == MEAN:
            before = [v for v, c in zip(values, table.columns, strict=False) if c.metric == column.metric]
            known = [v for v in before if v is not None]
            values.append(math.fsum(known) / len(known) if known and len(known) == len(before) else None)
            continue
        name = method if method is None or k is None or column.h is None else _at(method, k, column.h)
        report = next((r for r in reports.get(column.dataset, ()) if name in (None, r.method)), None)
        fits = report is not None and report.protocol.name == column.protocol
        means = report.means() if report is not None and fits else {}
        metric = f"{column.metric}_input" if method is None else column.metric
        values.append(means.get(column.condition, {}).get(metric))
    return tuple(values)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
