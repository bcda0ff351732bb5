"""What the commands that restore many pictures print: outcomes, the time left, the totals."""

import json
import re
import sys
import time
from collections import Counter
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from kithkin.cli._command import say

if TYPE_CHECKING:
    from kithkin.estimate import Estimate
    from kithkin.restore_plan import Outcome

LONG = 60.0
"""Seconds from which on a batch is long: how long is said before it begins."""
NAMED_NOTES = 3
"""Pictures for which one note is printed; the others are counted."""
_FIRST_LINE, _NEXT_LINES = 15.0, 60.0  # seconds until the time left is said where there is no terminal


class Reporter:
    """Tells what became of each input, as a line or as JSON, and counts.

    Args:
        as_json: print one JSON object an input.
        model: the name of what restores them.
        skips: how many skipped inputs are named one by one; None for all. The others are counted.
    """

    def __init__(self, *, as_json: bool, model: str, skips: int | None = None) -> None:
        self.counts: Counter[str] = Counter()
        self._json, self._model, self._skips = as_json, model, skips
        self._said: set[str] = set()
        self._notes: Counter[str] = Counter()
        self._examples: dict[str, str] = {}
        # While a bar is shown, sys.stdout leads to its stream, above it: right only where that is the same terminal.
        self._stream = None if sys.stdout.isatty() else sys.stdout

    def warn(self, sentence: str) -> None:
        """Print a note about all pictures before the work; it is not repeated with each."""
        say(sentence)
        self._said.add(sentence)

    def tell(self, outcome: "Outcome") -> None:
        """Print what became of one input; not by typer's echo, which would write across the bar."""
        from kithkin.messages import shown

        self.counts[outcome.status] += 1
        hidden = outcome.status == "skipped" and self._skips is not None and self.counts["skipped"] > self._skips
        if not hidden:
            for note in outcome.notes:
                self._tell_note(shown(outcome.source), note)
            # A folder that can't be written to is one reason for all its files.
            if outcome.reason is not None and outcome.reason not in self._said:
                say(outcome.reason)
                self._said.add(outcome.reason)
        if self._json:
            print(json.dumps(_row(outcome, self._model)), file=self._stream, flush=True)
        elif outcome.status == "written":
            line = f"{shown(outcome.source)} -> {shown(outcome.target or outcome.source)}"
            print(line, file=self._stream, flush=True)

    def _tell_note(self, source: str, note: str) -> None:
        """Print a note for the first few pictures; notes that differ in numbers alone are one."""
        if note in self._said:
            return
        kind = re.sub(r"\d+", "0", note)
        self._notes[kind] += 1
        self._examples.setdefault(kind, note)
        if self._notes[kind] <= NAMED_NOTES:
            say(f"{source}: {note}")

    def tell_repeated(self) -> None:
        """Count the pictures whose notes were not printed, since other pictures had the same."""
        for kind, count in self._notes.items():
            if count > NAMED_NOTES:
                say(f"{count - NAMED_NOTES} more files alike: {self._examples[kind]}")

    def tell_foreign(self, foreign: Sequence["Outcome"]) -> None:
        """Name pictures in formats that kithkin does not read: in one line, or each as JSON."""
        from kithkin.restore_inputs import foreign_summary

        self.counts["skipped"] += len(foreign)
        if self._json:
            for outcome in foreign:
                print(json.dumps(_row(outcome, self._model)), file=self._stream, flush=True)
        if summary := foreign_summary(outcome.source for outcome in foreign):
            say(summary)

    def exit_code(self, *, strict: bool) -> int:
        """0, or 1 where an input failed, or, if `strict`, was skipped."""
        return int(bool(self.counts["failed"] or (strict and self.counts["skipped"])))


def _row(outcome: "Outcome", model: str) -> dict[str, Any]:
    return {
        "input": str(outcome.source),
        "output": None if outcome.target is None else str(outcome.target),
        "compare": None if outcome.compare is None else str(outcome.compare),
        "status": outcome.status,
        "reason": outcome.reason,
        "notes": list(outcome.notes),
        "seconds": round(outcome.seconds, 3),
        "model": model,
        "precision": outcome.precision,
    }


class BatchProgress:
    """The time left: in a bar on a terminal, in a line now and then elsewhere.

    Args:
        pixels: of each picture, in order; 0 for one that takes no time.
        estimate: of the seconds of a picture; it learns from each.
        settled: inputs that are done before the first picture.
        names: of the pictures.

    Attributes:
        done: pictures that are finished, so the index of the one at hand.
    """

    def __init__(
        self, pixels: Sequence[int], estimate: "Estimate", settled: int = 0, names: Sequence[str] = ()
    ) -> None:
        self._pixels, self._estimate, self._names = list(pixels), estimate, names
        self._settled, self.done, self._learned = settled, 0, 0
        from kithkin.cli._progress import progress_bar

        self._bar = progress_bar()
        self._task = self._bar.add_task("restore", total=settled + len(self._pixels), completed=settled, left="")
        self._started = time.monotonic()
        self._due = self._started + _FIRST_LINE

    def __enter__(self) -> "BatchProgress":
        self._bar.start()
        self._started = time.monotonic()
        self._due = self._started + _FIRST_LINE
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def advance(self, fraction: float) -> None:
        """Take the finished part of the picture at hand, in [0, 1]."""
        self._show(fraction, description=escape(self._names[self.done]))

    def finish(self, seconds: float) -> None:
        """Take a picture's end, and the seconds that it took; 0 if it was skipped."""
        pixels = self._pixels[self.done]
        if pixels and seconds > 0:
            self._estimate.observe(pixels, seconds)
            self._learned += 1
        self.done += 1
        self._started = time.monotonic()
        self._show(0.0)

    def _left(self, fraction: float) -> float:
        """Seconds until the end. The first tiles of the first picture correct the guess for all."""
        waiting = [self._estimate.seconds(pixels) for pixels in self._pixels[self.done :] if pixels]
        if not fraction or not waiting:
            return sum(waiting)
        spent = time.monotonic() - self._started
        whole = spent / fraction
        rest = sum(waiting[1:])
        return whole - spent + (rest if self._learned else rest * whole / waiting[0])

    def _show(self, fraction: float, **fields: Any) -> None:
        known = self._learned or fraction
        left = f"{duration(self._left(fraction))} left" if known and self.done < len(self._pixels) else ""
        done = self._settled + self.done
        self._bar.update(self._task, completed=done + fraction, left=left, **fields)
        if self._bar.disable and left and time.monotonic() >= self._due:
            self._due = time.monotonic() + _NEXT_LINES
            say(f"{done} of {self._settled + len(self._pixels)} done, {left}")


def duration(seconds: float) -> str:
    """A time in words, rounded as an estimate: ``about 40 s``, ``about 2 h 10 min``."""
    if seconds < 90:
        return f"about {max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"about {minutes} min"
    return (
        f"about {minutes // 60} h {minutes % 60 // 10 * 10} min" if minutes < 600 else f"about {round(minutes / 60)} h"
    )


def say_before(pixels: Sequence[int], estimate: "Estimate") -> None:
    """Say how long a batch is going to take, where that is long."""
    wanted = [n for n in pixels if n]
    seconds = sum(map(estimate.seconds, wanted))
    if seconds >= LONG:
        pictures = "1 picture" if len(wanted) == 1 else f"{len(wanted):,} pictures"
        say(f"{pictures}, {sum(wanted) / 1e6:,.0f} megapixels: {duration(seconds)}")
