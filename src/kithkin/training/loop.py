"""The training loop (Sec. 4.1)."""

import json
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from kithkin.checkpoint import save_model
from kithkin.config import RunConfig, parse_config
from kithkin.data import Batch, Crops, Pairs, Photos, degrade_crops, draw_crops, open_folders
from kithkin.data.ahead import drawn_ahead
from kithkin.data.storage import name_of
from kithkin.errors import ImageError, InputError
from kithkin.losses import restoration_loss
from kithkin.training.plot import plot_curves
from kithkin.training.schedule import learning_rate
from kithkin.training.state import TrainState, checkpoints, read_run
from kithkin.training.validation import validate
from kithkin.zoo import load_model

LOG_EVERY = 50
CHECKPOINT_SECONDS = 300

# What may differ when a run is resumed: where it ends and what is watched, not what was done. The cosine follows the
# new end from here on.
FREE_SECTIONS = {"validation", "name"}
FREE_KEYS = {"schedule": {"steps", "epochs"}, "data": {"cache_gb", "workers"}}

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
    """Train a network: AdamW on Eq. 11, linear warm-up and cosine, checkpoints, validation, a log, a plot.

    A resumed run equals an uninterrupted one bit for bit on one machine: batches, noise and hash rotations are
    functions of the seed and the step.

    Args:
        config: the complete run, with its folders.
        out: the run's folder: ``step-…`` checkpoints, ``log.jsonl``, ``curves.png`` and at the end
            ``<name>.safetensors`` in float16.
        init: a checkpoint or a shipped model whose weights a new run starts from; they must be of the same network.
        resume: go on from the last checkpoint in ``out`` where there is one.
        minutes: stop after this long, with a checkpoint.
        device: of the network.
        report: called with every row of the log, with ``{"step": …, "steps": …}`` after every step, and with
            ``{"note": …}`` where there is something to say.

    Returns:
        The finished weights, or None where the run was stopped before its end (time-box, SIGINT or SIGTERM).

    Raises:
        InputError: the folder already holds a run, or one of another configuration, or the data don't fit.
        CheckpointError: the last checkpoint is damaged, or can't be written.
        ImageError: a photograph can't be read. As with unfit data, there is a checkpoint of the step before.
    """
    out = Path(out)
    dataset = open_folders(config.data)
    steps, warmup = config.schedule.in_steps(len(dataset))
    state = TrainState.create(config, device)
    if init is not None:
        state.start_from(load_model(init))
    _take_over(state, out, config, resume)
    if state.step > steps:
        raise InputError(f"train: {out} is at step {state.step}, beyond the {steps} of this run; raise schedule.steps")
    watched = _validation_data(config)
    run = _Run(config, out, device, steps, warmup, report or (lambda row: None))
    deadline = time.monotonic() + minutes * 60 if minutes is not None else float("inf")
    saved_at = time.monotonic()
    # Closed in this order: signals last, so that none cuts off the final checkpoint.
    with (
        _interruptible() as interrupted,
        _prefetched(dataset, config, state.step, steps, device) as batches,
        _kept(state, config, out),
    ):
        for batch in batches:
            run.step(state, batch)
            if state.step % config.validation.every == 0 or state.step == steps:
                run.watch(state, watched)
                run.restart_clock()
            stop = interrupted() or time.monotonic() > deadline
            if stop or state.step == steps or time.monotonic() - saved_at > CHECKPOINT_SECONDS:
                state.save(out, config)
                saved_at = time.monotonic()
                run.restart_clock()
            if stop:
                break
    final = _export(state, config, out) if state.step == steps else None
    if why_not := plot_curves(out / "log.jsonl", out / "curves.png"):
        run.report({"note": why_not})
    return final


def _export(state: TrainState, config: RunConfig, out: Path) -> Path:
    final = out / f"{config.name}.safetensors"
    metadata = {"run": _without_paths(config), "step": state.step, "seconds": round(state.seconds)}
    save_model(state.average, final, dtype=torch.float16, metadata=metadata)
    return final


def _without_paths(config: RunConfig) -> dict[str, Any]:
    """The run as plain values, folders by their names alone: weights are passed on, where they were trained is not."""
    run = config.model_dump(mode="json")
    run["data"]["folders"] = [name_of(folder) for folder in run["data"]["folders"]]
    if run["validation"]["folder"] is not None:
        run["validation"]["folder"] = name_of(run["validation"]["folder"])
    return run


class _Run:
    """What stays the same from step to step, and the log."""

    def __init__(self, config: RunConfig, out: Path, device: str, steps: int, warmup: int, report: Report) -> None:
        self.config, self.out, self.device = config, out, device
        self.steps, self.warmup, self.report = steps, warmup, report
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

    def step(self, state: TrainState, batch: Batch) -> None:
        schedule, optimizer = self.config.schedule, self.config.optimizer
        lr = learning_rate(state.step, steps=self.steps, warmup=self.warmup, lr=schedule.lr, final_lr=schedule.final_lr)
        for group in state.optimizer.param_groups:
            group["lr"] = lr
        rotations = torch.Generator(self.device).manual_seed(self.config.seed * 1_000_003 + state.step + 1)
        state.model.train()
        state.model.redraw_rotations(rotations)
        half = self.config.precision == "bfloat16"
        with torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=half):
            restored = state.model(batch.degraded)
        loss = restoration_loss(
            restored.float(),
            batch.target,
            edge_weight=self.config.loss.edge_weight,
            epsilon=self.config.loss.epsilon,
        )
        state.optimizer.zero_grad()
        loss.backward()
        if optimizer.grad_clip:
            torch.nn.utils.clip_grad_norm_(state.model.parameters(), optimizer.grad_clip)
        state.optimizer.step()
        state.step += 1
        state.update_average(optimizer.ema_decay)
        state.losses.append(loss.detach())
        self.crops += len(batch.target)
        self._stop_clock(state)
        self.report({"step": state.step, "steps": self.steps})
        if state.step % LOG_EVERY == 0 or state.step == self.steps:
            self._log_losses(state, lr)

    def _log_losses(self, state: TrainState, lr: float) -> None:
        loss = torch.stack([x.cpu() for x in state.losses]).mean().item()  # waits for the device
        self._stop_clock(state)
        rate = self.crops / self.seconds
        row = {"step": state.step, "loss": loss, "lr": lr, "crops_per_s": rate, "seconds": state.seconds}
        self.log({name: float(f"{value:.6g}") if name != "step" else value for name, value in row.items()})
        state.losses, self.crops, self.seconds = [], 0, 0.0

    def watch(self, state: TrainState, watched: Photos | Pairs | None) -> None:
        if watched is None:
            return
        state.average.redraw_rotations()
        scores = validate(state.average, watched, self.config, self.device)
        self.log({"step": state.step, "psnr": {name: round(value, 4) for name, value in scores.items()}})

    def log(self, row: dict[str, Any]) -> None:
        with (self.out / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        self.report(row)


def _take_over(state: TrainState, out: Path, config: RunConfig, resume: bool) -> None:
    found = checkpoints(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"train: {out} can't be the folder of a run ({reason}); choose another --out") from error
    if not found:
        (out / "log.jsonl").unlink(missing_ok=True)
        return
    if not resume:
        raise InputError(f"{out} holds a run at {found[-1].name}; add --resume to go on, or choose another --out")
    done = parse_config(read_run(found[-1])["config"], source=str(found[-1]))  # keys that came later get their defaults
    before, now = (_binding(run.model_dump(mode="json")) for run in (done, config))
    changed = [key for key in now if now[key] != before.get(key)]
    if changed:
        raise InputError(f"{out} holds a run with another {', '.join(changed)}; choose another --out")
    state.load(found[-1])
    _forget_after(out / "log.jsonl", state.step)


def _binding(run: dict[str, Any]) -> dict[str, Any]:
    """The values of a configuration that a resumed run must share, by dotted key."""
    kept: dict[str, Any] = {}
    for section, values in run.items():
        if section in FREE_SECTIONS:
            continue
        pairs = values.items() if isinstance(values, dict) else [("", values)]
        free = FREE_KEYS.get(section, set())
        kept |= {f"{section}.{key}".rstrip("."): value for key, value in pairs if key not in free}
    return kept


def _forget_after(log: Path, step: int) -> None:
    """Drop the rows that were logged after the checkpoint: they are going to be logged again."""
    if log.exists():
        whole = log.read_text(encoding="utf-8").rpartition("\n")[0].splitlines()  # the last may have been cut off
        rows = [row for row in whole if json.loads(row)["step"] <= step]
        log.write_text("".join(row + "\n" for row in rows), encoding="utf-8")


def _validation_data(config: RunConfig) -> Photos | Pairs | None:
    if config.validation.folder is None:
        return None
    folders = {"folders": (config.validation.folder,), "workers": 0}
    return open_folders(config.data.model_copy(update=folders))


@contextmanager
def _prefetched(
    dataset: Photos | Pairs, config: RunConfig, first: int, steps: int, device: str
) -> Iterator[Iterator[Batch]]:
    """The batches of the steps from ``first`` on; their files are read a few steps ahead."""
    draw = partial(_draw, dataset, config)
    with drawn_ahead(draw, range(first, steps), config.data.workers) as crops:
        yield (degrade_crops(drawn, config.data, device) for drawn in crops)


def _draw(dataset: Photos | Pairs, config: RunConfig, step: int) -> Crops:
    size = config.schedule.batch_size
    return draw_crops(dataset, config.data, batch_size=size, seed=config.seed, step=step)


@contextmanager
def _kept(state: TrainState, config: RunConfig, out: Path) -> Iterator[None]:
    """Where the data fail, keep what was done up to then."""
    first = state.step
    try:
        yield
    except (ImageError, InputError) as error:
        if state.step == first:
            raise
        kept = state.save(out, config)
        raise type(error)(f"{error} (the run is kept at {kept.name}; then go on with --resume)") from error


@contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Turn SIGINT and SIGTERM into a request to stop after the step; a second one stops at once."""
    asked = False
    before: dict[int, Any] = {}

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked = True
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
