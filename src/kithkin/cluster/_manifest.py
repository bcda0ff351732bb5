"""The list of what became of every input, as CSV or Parquet: complete, or not there."""

import contextlib
import csv
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from kithkin.errors import ImageError, InputError
from kithkin.files import replacing
from kithkin.messages import missing_extra, os_reason, shown
from kithkin.restore_files import Outcome
from kithkin.storage import check_reachable, is_url, local_path, suffix_of, write_bytes

COLUMNS = ("input", "output", "status", "seconds", "error", "model", "precision")
_ROWS = 1000


class Manifest:
    """A table with a row an input: input, output, status (written, skipped, failed), seconds,
    error, model, precision (of what was written in this run, else empty).

    Rows go to a hidden temporary file; at the end of the ``with`` block it takes the manifest's
    name, in place of the one of an earlier run. Where the block is left by an exception, it is
    removed.

    Args:
        place: a path or URL that ends in .csv or .parquet.
        model: the name of what restores the pictures, with a k or h that is not its own.

    Raises:
        InputError: another ending, a package is missing, or the place can't be written to.
    """

    def __init__(self, place: str, *, model: str) -> None:
        self.place, self._model = local_path(place), model
        kind = suffix_of(self.place)
        if kind not in (".csv", ".parquet"):
            raise InputError(f"cluster: manifest must end in .csv or .parquet, got {shown(place)}")
        if is_url(self.place):
            check_reachable(self.place)
        self._rows: list[tuple[str, str, str, float, str, str, str]] = []
        try:
            with contextlib.ExitStack() as stack:
                self._temporary = stack.enter_context(_scratch() if is_url(self.place) else _in_folder(self.place))
                self._table: _Csv | _Parquet = (_Csv if kind == ".csv" else _Parquet)(self._temporary)
                self._files = stack.pop_all()
        except OSError as error:
            raise InputError(f"cluster: the manifest {shown(place)} can't be written: {os_reason(error)}") from error

    def __enter__(self) -> "Manifest":
        return self

    def add(self, outcome: Outcome) -> None:
        """Append a row."""
        target = "" if outcome.target is None else str(outcome.target)
        error = outcome.reason or "" if outcome.status == "failed" else ""
        seconds = round(outcome.seconds, 4)
        made = (self._model, outcome.precision or "")
        self._rows.append((str(outcome.source), target, outcome.status, seconds, error, *made))
        if len(self._rows) >= _ROWS:
            self._flush()

    def _flush(self) -> None:
        self._table.write(self._rows)
        self._rows = []

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            with contextlib.suppress(OSError):
                self._table.close()
            self._files.__exit__(kind, error, trace)
            return
        try:
            with self._files:
                self._flush()
                self._table.close()
                if is_url(self.place):
                    write_bytes(self.place, self._temporary.read_bytes())
        except (OSError, ImageError) as failure:
            raise InputError(f"cluster: the manifest {shown(self.place)} can't be written: {failure}") from failure


@contextlib.contextmanager
def _in_folder(place: str) -> Iterator[Path]:
    """A temporary file that becomes the one of a path."""
    os.makedirs(os.path.dirname(os.path.abspath(place)), exist_ok=True)
    with replacing(place) as part:
        yield part


@contextlib.contextmanager
def _scratch() -> Iterator[Path]:
    """A temporary file that is copied to a URL."""
    with tempfile.TemporaryDirectory(prefix="kithkin-") as folder:
        yield Path(folder, "manifest")


class _Csv:
    def __init__(self, path: Path) -> None:
        self._file = open(path, "w", newline="", encoding="utf-8", errors="surrogateescape")  # noqa: SIM115
        self._writer = csv.writer(self._file)
        self._writer.writerow(COLUMNS)

    def write(self, rows: list[Any]) -> None:
        self._writer.writerows([[_without_halves(v) if isinstance(v, str) else v for v in row] for row in rows])

    def close(self) -> None:
        self._file.close()


def _without_halves(text: str) -> str:
    """Text without lone surrogates that stand for no byte of a name: no file can hold them."""
    return re.sub("[\ud800-\udc7f\udd00-\udfff]", "?", text)


class _Parquet:
    def __init__(self, path: Path) -> None:
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError as error:
            raise InputError(missing_extra("cluster: a manifest in Parquet", "pyarrow", "cluster")) from error
        kinds = [pyarrow.float64() if name == "seconds" else pyarrow.string() for name in COLUMNS]
        self._schema = pyarrow.schema(list(zip(COLUMNS, kinds, strict=True)))
        self._pyarrow = pyarrow
        self._writer = pyarrow.parquet.ParquetWriter(path, self._schema)

    def write(self, rows: list[Any]) -> None:
        if rows:
            # Null for what is empty, as in CSV. Of a name that is no text, the bytes that don't fit are replaced.
            named = [
                [(v.encode(errors="replace").decode() or None) if isinstance(v, str) else v for v in row]
                for row in rows
            ]
            table = [dict(zip(COLUMNS, row, strict=True)) for row in named]
            self._writer.write_table(self._pyarrow.Table.from_pylist(table, self._schema))

    def close(self) -> None:
        self._writer.close()
