"""Resume a run: check that it is the same one, and find where to continue."""

import json
from pathlib import Path
from typing import Any

from kithkin.config import RunConfig, parse_config
from kithkin.errors import InputError
from kithkin.files import write_whole
from kithkin.training.state import TrainState, checkpoints, read_run

# What may differ when a run is resumed: where it ends, what is watched, which processes and kernels do it, and how much
# of the pictures a step sees (crops that grow while training goes on); not what is learned.
# The cosine follows the new end from here on.
FREE_SECTIONS = {"validation", "name", "distributed", "backend"}
FREE_KEYS = {
    "schedule": {"steps", "epochs", "accumulate", "checkpoint_seconds", "batch_size"},
    "data": {"crop", "cache_gb", "workers"},
}


def take_over(
    state: TrainState, out: Path, config: RunConfig, resume: bool, begun_with: str | Path | None
) -> list[str]:
    """Go on with the run that is found in a folder; sentences for its owner.

    Raises:
        InputError: the folder can't be one of a run, or holds another.
        CheckpointError: the checkpoint is damaged.
    """
    checkpoint = state.ranks.first(lambda: _last_checkpoint(out, config, resume))
    if checkpoint is None:
        return []
    now = state.items
    state.load(checkpoint)
    state.ranks.first(lambda: _forget_after(out / "log.jsonl", state.step))
    notes = []
    if begun_with is not None:
        notes.append(f"{out} goes on from its step {state.step}; `init` {begun_with} is for its beginning alone")
    if state.items not in (now, 0):
        notes.append(f"{out} saw {state.items} pictures up to step {state.step} and goes on with {now}: another order")
    state.items = now
    return notes


def _last_checkpoint(out: Path, config: RunConfig, resume: bool) -> Path | None:
    """Where the run goes on; None where it begins, in a folder that is ready for it."""
    saved = checkpoints(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"train: {out} can't be the folder of a run ({reason}); choose another `out`") from error
    if not saved:
        log, weights = out / "log.jsonl", out / f"{config.name}.safetensors"
        if weights.exists() or (log.exists() and not resume):
            raise InputError(f"{out} holds the log or the weights of a run; choose another `out`, or move them away")
        log.unlink(missing_ok=True)  # of a run that ended before its first checkpoint
        return None
    if not resume:
        raise InputError(f"{out} holds a run at {saved[-1].name}; add `resume` to go on, or choose another `out`")
    done = parse_config(read_run(saved[-1])["config"], source=str(saved[-1]))  # keys that came later get their defaults
    before, now = (_binding(run.model_dump(mode="json")) for run in (done, config))
    changed = [key for key in now if now[key] != before.get(key)]
    if changed:
        raise InputError(f"{out} holds a run with another {', '.join(changed)}; choose another `out`")
    return saved[-1]


def precision_of_run(out: Path) -> str | None:
    """The precision of the run in a folder; None where it holds no checkpoint."""
    saved = checkpoints(out)
    return read_run(saved[-1])["config"].get("precision") if saved else None


def _binding(run: dict[str, Any]) -> dict[str, Any]:
    """The values of a configuration that a resumed run must share, by dotted key."""
    kept: dict[str, Any] = {}
    for section, values in run.items():
        if section in FREE_SECTIONS:
            continue
        pairs = values.items() if isinstance(values, dict) else [("", values)]
        free = FREE_KEYS.get(section, set())
        if run["schedule"]["epochs"]:
            free = free - {"batch_size"}  # it is what an epoch's steps are counted by
        kept |= {f"{section}.{key}".rstrip("."): value for key, value in pairs if key not in free}
    return kept


def _forget_after(log: Path, step: int) -> None:
    """Drop the rows that were logged after the checkpoint: they are going to be logged again."""
    if log.exists():
        whole = log.read_text(encoding="utf-8").rpartition("\n")[0].splitlines()  # the last may have been cut off
        rows = [row for row in whole if json.loads(row)["step"] <= step]
        write_whole(log, "".join(row + "\n" for row in rows))
