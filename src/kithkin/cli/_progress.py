"""Progress of training and evaluation on the terminal."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from kithkin.cli._command import in_options


class TimeLeftColumn(TimeRemainingColumn):
    """The task's field ``left`` where it has one, else what follows from the steps so far."""

    def render(self, task: Task) -> Text:
        return Text(task.fields["left"]) if "left" in task.fields else super().render(task)


def progress_bar(*more: TextColumn, quiet: bool = False) -> Progress:
    """A bar with ETA on the error stream; nothing if that is no terminal, or on request."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeLeftColumn(), *more)
    return Progress(*columns, console=console, disable=quiet or not console.is_terminal)


@contextmanager
def counting(label: str, *, quiet: bool = False) -> Iterator[Callable[[int, int], None]]:
    """A bar for work that says how many parts of how many are done."""
    with progress_bar(quiet=quiet) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


class TrainingProgress:
    """The bar of a run on a terminal; its log as lines in a pipe, or as JSON on request."""

    def __init__(self, *, as_json: bool, quiet: bool = False) -> None:
        self._json = as_json
        self._bar = progress_bar(TextColumn("{task.fields[note]}"), quiet=as_json or quiet)
        self._task = self._bar.add_task("train", total=None, note="")

    def __enter__(self) -> "TrainingProgress":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def report(self, row: dict[str, Any]) -> None:
        """Take a row of the log, or the place in the run after a step."""
        if "steps" in row:
            self._bar.update(self._task, completed=row["step"], total=row["steps"])
            return
        if "note" in row:
            self._bar.console.print(in_options(row["note"]), highlight=False, markup=False)
            return
        if self._json:
            typer.echo(json.dumps(row))
            return
        if "loss" in row:
            note = f"loss {row['loss']:.4f}, {row['crops_per_s']:.0f} crops/s"
            self._bar.update(self._task, note=note)
        else:
            note = "PSNR " + ", ".join(f"{name} {value:.2f} dB" for name, value in row["psnr"].items())
        if not sys.stderr.isatty():
            typer.echo(f"step {row['step']}: {note}", err=True)
        elif "psnr" in row:
            self._bar.console.print(f"step {row['step']}: {note}", highlight=False)
