"""``kithkin train``."""

from pathlib import Path
from typing import Any

import typer


def train(
    recipe: str = typer.Argument(..., help="A name from `kithkin recipes`, or the path of a TOML file."),
    data: list[str] = typer.Option(
        [],
        "--data",
        "-d",
        metavar="FOLDER",
        help="Folder of photographs, or with `input` and `target`, or tar shards (`'photos-{0000..0007}.tar'`); "
        "a path or a URL; may be given several times.",
    ),
    out: Path = typer.Option(..., "--out", "-o", help="Folder of the run: checkpoints, log, curves, weights."),
    validation: str = typer.Option(
        None, "--validation", metavar="FOLDER", help="Folder (or as --data) to validate on while training."
    ),
    changes: list[str] = typer.Option(
        [], "--set", metavar="KEY=VALUE", help="Change a key of the recipe, such as `schedule.steps=1000`."
    ),
    init: str = typer.Option(
        None,
        "--init",
        help="Start from weights of this or a smaller network: a model, or a checkpoint.",
    ),
    resume: bool = typer.Option(False, "--resume", help="Go on from the last checkpoint in --out."),
    minutes: float = typer.Option(None, "--minutes", min=0, help="Stop with a checkpoint after this long."),
    device: str = typer.Option(None, "--device", help="Such as cpu or cuda; the GPU is taken where there is one."),
    as_json: bool = typer.Option(False, "--json", help="Print every row of the log as a line of JSON."),
) -> None:
    """Train a network from a recipe.

    Ctrl-C stops after the step, with a checkpoint; the same command with --resume goes on as if nothing had happened.

        kithkin train denoise-tiny --data photos --validation held-out --out runs/denoise

    With several GPUs or machines, the same under torchrun (docs/train-distributed.md):

        torchrun --standalone --nproc-per-node 8 -m kithkin train gopro --data GoPro/train --out runs/gopro --resume
    """
    from kithkin.cli._device import choose_device
    from kithkin.config import load_config
    from kithkin.training import train as run

    laid_over: dict[str, Any] = dict(parse_change(change) for change in changes)
    if data:
        laid_over["data.folders"] = data
    if validation:
        laid_over["validation.folder"] = validation
    config = load_config(recipe, laid_over)
    from kithkin.cli._progress import TrainingProgress
    from kithkin.training.distributed import launched_rank

    speaks = launched_rank() == 0
    with TrainingProgress(as_json=as_json, quiet=not speaks) as progress:
        weights = run(
            config,
            out,
            init=init,
            resume=resume,
            minutes=minutes,
            device=choose_device(device),
            report=progress.report,
        )
    if speaks:
        typer.echo(f"{weights}" if weights else f"stopped before the end; go on with --resume --out {out}", err=as_json)


def parse_change(change: str) -> tuple[str, Any]:
    """``KEY=VALUE`` -> key and value: a TOML value, or else the text itself."""
    import tomllib

    key, found, text = change.partition("=")
    if not found:
        raise typer.BadParameter(f"{change!r} is not KEY=VALUE", param_hint="--set")
    try:
        return key.strip(), tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return key.strip(), text.strip()
