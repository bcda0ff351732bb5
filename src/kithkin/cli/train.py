"""``kithkin train``."""

from pathlib import Path
from typing import Any

import typer

from kithkin.cli._options import DEVICE, RECIPE, flag


def train(
    recipe: str = RECIPE,
    data: list[str] = typer.Option(
        [],
        "--data",
        "-d",
        metavar="FOLDER",
        help="Photographs to train on: a folder, a folder with `input` and `target`, or tar shards "
        "(`'photos-{0000..0007}.tar'`), as a path or URL; may be repeated.",
    ),
    out: Path = typer.Option(
        ..., "--out", "-o", metavar="FOLDER", help="Folder of the run: checkpoints, log, curves and weights."
    ),
    validation: str = typer.Option(
        None, "--validation", metavar="FOLDER", help="Pictures to measure on while training, given as for --data."
    ),
    changes: list[str] = typer.Option(
        [],
        "--set",
        metavar="KEY=VALUE",
        help="Change a key of the recipe, such as `schedule.steps=1000`; may be repeated.",
    ),
    init: str = typer.Option(
        None,
        "--init",
        metavar="MODEL",
        help="Start from these weights, of this network or a smaller one.",
    ),
    resume: bool = flag("--resume", "Continue from the last checkpoint in --out."),
    minutes: float = typer.Option(
        None, "--minutes", min=0, metavar="MINUTES", help="Stop with a checkpoint after this long."
    ),
    device: str = DEVICE,
    as_json: bool = flag("--json", "Print each row of the log as JSON."),
) -> None:
    """Train a network from a recipe.

    Ctrl-C stops after the current step, with a checkpoint. The same command with --resume continues exactly there.

        kithkin train denoise-gaussian-tiny --data photos --validation held-out --out runs/denoise

    For several GPUs or machines, use torchrun (docs/how-to/train-distributed.md):

        torchrun --standalone --nproc-per-node 8 -m kithkin train gopro --data GoPro/train --out runs/gopro --resume
    """
    from kithkin.cli._device import choose_device
    from kithkin.config import load_config
    from kithkin.training import train as run

    settings: dict[str, Any] = dict(parse_change(change) for change in changes)
    if data:
        settings["data.folders"] = data
    if validation:
        settings["validation.folder"] = validation
    config = load_config(recipe, settings)
    from kithkin.cli._progress import TrainingProgress
    from kithkin.training.distributed import launched_rank

    is_first = launched_rank() == 0
    with TrainingProgress(as_json=as_json, quiet=not is_first) as progress:
        weights = run(
            config,
            out,
            init=init,
            resume=resume,
            minutes=minutes,
            device=choose_device(device),
            report=progress.report,
        )
    if is_first:
        typer.echo(
            f"{weights}" if weights else f"stopped before the end; continue with --resume --out {out}", err=as_json
        )


def parse_change(change: str) -> tuple[str, Any]:
    """``KEY=VALUE`` -> key and value: a TOML value, or else the text itself."""
    import tomllib

    key, equals, text = change.partition("=")
    if not equals:
        raise typer.BadParameter(f"{change!r} is not KEY=VALUE", param_hint="--set")
    try:
        return key.strip(), tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return key.strip(), text.strip()
