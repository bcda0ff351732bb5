"""The training loop (Sec. 4.1)."""

import json
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from kithkin.checkpoint import save_model
from kithkin.config import RunConfig
from kithkin.data import Pairs, Photos, open_folders
from kithkin.data.sampling import Batch
from kithkin.errors import CheckpointError, ImageError, InputError
from kithkin.storage import name_of
from kithkin.training.batches import open_batches, prefetched
from kithkin.training.distributed import Ranks, joined
from kithkin.training.plot import plot_curves
from kithkin.training.precision import explain, settled, warn_of_slowness
from kithkin.training.resume import precision_of_run, take_over
from kithkin.training.state import TrainState
from kithkin.training.step import TrainingStep
from kithkin.training.validation import validate
from kithkin.zoo import load_model

LOG_EVERY = 50

Report = Callable[[dict[str, Any]], None]


def train(
    config: RunConfig,
    out: str | Path,
    *,
    init: str | Path | None = None,
    resume: bool = False,
    minutes: float | None = None,
    device: str = "cpu",
    report: Report | None = None,
) -> Path | None:
    """Train a network: AdamW or Muon on Eq. 11, linear warm-up and cosine, checkpoints, validation, a log, a plot.

    A resumed run equals an uninterrupted one bit for bit on one machine: batches, noise and hash rotations are
    functions of the seed and the step. Under torchrun the processes share every batch, and their number may change
    when a run is resumed.

    Args:
        config: the complete run, with its folders.
        out: the run's folder: ``step-…`` checkpoints, ``log.jsonl``, ``curves.png`` and at the end
            ``<name>.safetensors`` in float16.
        init: a checkpoint or a shipped model whose weights a new run starts from, of the same network or one that
            grows into it (``kithkin.growth.grow``).
        resume: continue from the last checkpoint in ``out``, if there is one.
        minutes: stop after this long, with a checkpoint.
        device: of the network; ``"cuda"`` is the GPU of this process.
        report: called with every row of the log, with ``{"step": …, "steps": …}`` after every step, and with
            ``{"note": …}`` for remarks; with several processes, only the first calls it.

    Returns:
        The finished weights, or None where the run was stopped before its end (time-box, SIGINT or SIGTERM).

    Raises:
        InputError: the folder already holds a run, or one of another configuration, or the data don't fit, or the
            processes can't share a batch evenly.
        CheckpointError: the last checkpoint is damaged, or one or the log can't be written.
        KithkinError: the loss is no longer finite. The last checkpoint is one of before.
        ImageError: a photograph can't be read. As with unfit data, there is a checkpoint of the step before.
    """
    with joined(device, config.distributed) as ranks:
        return _train(config, Path(out), ranks, init, resume, minutes, report)


def _train(
    config: RunConfig,
    out: Path,
    ranks: Ranks,
    init: str | Path | None,
    resume: bool,
    minutes: float | None,
    report: Report | None,
) -> Path | None:
    begun_in = ranks.first(lambda: precision_of_run(out) if resume else None)
    # Its precision alone: each process may have its own folders.
    precision = ranks.first(lambda: settled(config, ranks.device, begun_in=begun_in).precision)
    config = config.model_copy(update={"precision": precision})
    dataset, data_notes = open_batches(config.data, ranks.device)
    _check_shares(config, ranks, len(dataset))
    steps, _ = config.schedule.in_steps(len(dataset))
    state = TrainState.create(config, ranks, len(dataset))
    if init is not None:
        state.start_from(load_model(init))
    notes = take_over(state, out, config, resume, begun_with=init)
    if state.step > steps:
        longer = "epochs" if config.schedule.epochs else "steps"
        raise InputError(
            f"train: {out} is at step {state.step}, beyond the {steps} of this run; raise schedule.{longer}"
        )
    watched = _validation_data(config)
    run = _Run(config, out, state, report)
    precision_note = explain(config, ranks.device, begun_in=begun_in)
    if report is None:
        warn_of_slowness(config, ranks.device, precision_note)
    for note in [precision_note, *notes, *data_notes]:
        run.report({"note": note})
    deadline = time.monotonic() + minutes * 60 if minutes is not None else float("inf")
    saved_at = time.monotonic()
    # Closed in this order: signals last, so that none cuts off the final checkpoint.
    with (
        _interruptible(ranks) as interrupted,
        prefetched(dataset, config, state.step, steps, ranks) as batches,
        _saved_when_data_fail(state, config, out, ranks),
    ):
        for parts in batches:
            run.step(state, parts)
            if state.step % config.validation.every == 0 or state.step == steps:
                state.finite_losses()
                run.watch(state, watched)
                run.restart_clock()
            stop, due = ranks.any_of(
                interrupted() or time.monotonic() > deadline,
                time.monotonic() - saved_at > config.schedule.checkpoint_seconds,
            )
            if stop or due or state.step == steps:
                state.save(out, config)
                saved_at = time.monotonic()
                run.restart_clock()
            if stop:
                break
    final = _export(state, config, out) if state.step == steps else None
    if ranks.rank == 0 and (why_not := plot_curves(out / "log.jsonl", out / "curves.png")):
        run.report({"note": why_not})
    return final


def _check_shares(config: RunConfig, ranks: Ranks, n_items: int) -> None:
    """Raise InputError where the processes would not train as one would."""
    batch, parts = config.schedule.batch_size, config.schedule.accumulate
    if batch % (ranks.world_size * parts):
        raise InputError(
            f"train: a batch of {batch} crops doesn't split evenly over {ranks.world_size} processes with "
            f"{parts} parts each; change schedule.batch_size or schedule.accumulate, or start another number"
        )
    if len(counts := set(ranks.gather(n_items))) > 1:
        raise InputError(f"train: the processes see {sorted(counts)} pictures; give all of them the same folders")


def _export(state: TrainState, config: RunConfig, out: Path) -> Path:
    final = out / f"{config.name}.safetensors"
    metadata = {"run": _without_paths(config), "step": state.step, "seconds": round(state.seconds)}
    average = state.ranks.whole(state.average)
    state.ranks.first(lambda: save_model(average, final, dtype=torch.float16, metadata=metadata))
    return final


def _without_paths(config: RunConfig) -> dict[str, Any]:
    """The run as plain values, folders by their names alone: weights are passed on, where they were trained is not."""
    run = config.model_dump(mode="json")
    for key in ("folders", "pairs"):
        run["data"][key] = [name_of(folder) for folder in run["data"][key]]
    for section, key in (("data", "exclude"), ("validation", "folder")):
        if run[section][key] is not None:
            run[section][key] = name_of(run[section][key])
    return run


class _Run:
    """What stays the same from step to step, and the log."""

    def __init__(self, config: RunConfig, out: Path, state: TrainState, report: Report | None) -> None:
        self.config, self.out, self.ranks = config, out, state.ranks
        self.report: Report = report if report and self.ranks.rank == 0 else lambda row: None
        self.training = TrainingStep(config, state=state, note=lambda text: self.report({"note": text}))
        self.crops, self.seconds = 0, 0.0
        self.since = time.monotonic()

    def restart_clock(self) -> None:
        """Leave out what passed since the last step: it was no training."""
        self.since = time.monotonic()

    def _stop_clock(self, state: TrainState) -> None:
        now = time.monotonic()
        self.seconds += now - self.since
        state.seconds += now - self.since
        self.since = now

    def step(self, state: TrainState, parts: list[Batch]) -> None:
        """One step of the optimiser on the parts of this process's share of a batch, all of one size."""
        self.training.run(parts)
        self.crops += self.config.schedule.batch_size
        self._stop_clock(state)
        self.report({"step": state.step, "steps": self.training.steps})
        if state.step % LOG_EVERY == 0 or state.step == self.training.steps:
            self._log_losses(state)

    def _log_losses(self, state: TrainState) -> None:
        loss = state.finite_losses().mean().item()
        self._stop_clock(state)
        rate = self.crops / self.seconds
        row = {"step": state.step, "loss": loss, "lr": self.training.lr, "crops_per_s": rate, "seconds": state.seconds}
        self.log({name: float(f"{value:.6g}") if name != "step" else value for name, value in row.items()})
        state.losses, self.crops, self.seconds = [], 0, 0.0

    def watch(self, state: TrainState, watched: Photos | Pairs | None) -> None:
        if watched is None:
            return
        average = self.ranks.whole(state.average)
        average.redraw_rotations()
        scores = validate(average, watched, self.config, self.ranks)
        self.log({"step": state.step, "psnr": {name: round(value, 4) for name, value in scores.items()}})

    def log(self, row: dict[str, Any]) -> None:
        if self.ranks.rank > 0:
            return
        try:
            with (self.out / "log.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:
            raise CheckpointError(f"{self.out}: the log can't be written ({error.strerror or error})") from error
        self.report(row)


def _validation_data(config: RunConfig) -> Photos | Pairs | None:
    if config.validation.folder is None:
        return None
    folders = {"folders": (config.validation.folder,), "exclude": None, "workers": 0}
    return open_folders(config.data.model_copy(update=folders))


@contextmanager
def _saved_when_data_fail(state: TrainState, config: RunConfig, out: Path, ranks: Ranks) -> Iterator[None]:
    """Where the data fail, keep what was done up to then. Of several processes the others know nothing of it and can't
    help to write a checkpoint: their run goes on from the last one."""
    first = state.step
    try:
        yield
    except (ImageError, InputError) as error:
        if state.step == first or ranks.kind is not None:
            raise
        state.save(out, config)
        raise type(error)(f"{error} (the run is kept at step {state.step}; then go on with `resume`)") from error


@contextmanager
def _interruptible(ranks: Ranks) -> Iterator[Callable[[], bool]]:
    """Turn SIGINT and SIGTERM into a request to stop after the step; a second one stops a process on its own at once.

    One of several goes on to the common checkpoint: a scheduler signals torchrun and its processes, and torchrun passes
    the signal on. torchrun itself ends those that take too long.
    """
    asked = False
    before: dict[int, Any] = {}

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked = True
        if ranks.kind is None:
            signal.signal(number, before[number])

    try:
        for number in (int(signal.SIGINT), int(signal.SIGTERM)):
            before[number] = signal.signal(number, ask)
    except ValueError:  # not in the main thread: signals are not ours to take
        pass
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
