"""``kithkin ablate``."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from kithkin.errors import InputError

if TYPE_CHECKING:
    from kithkin.ablation import Ablation

ablate = typer.Typer(help="Ablations: k and h on fixed weights, or training runs that differ in a few keys.")


@ablate.command("network")
def network(
    folder: Path = typer.Argument(..., help="Pictures, as `kithkin eval` takes them."),
    model: str = typer.Option("denoise", "--model", "-m", help="A name from `kithkin models`, or a checkpoint."),
    k: str = typer.Option("1,2,4,8,16", "--k", help="Patches in a chunk, separated by commas."),
    hashes: str = typer.Option("1,2,4,8,16", "--hashes", help="Hash rounds h, separated by commas."),
    protocol: str = typer.Option(None, "--protocol", "-p", help="As in `kithkin eval`."),
    sigma: list[float] = typer.Option([25.0], "--sigma", help="Noise level on the 0-255 scale, for clean pictures."),
    limit: int = typer.Option(None, "--limit", min=1, help="Take this many pictures, the first by name."),
    csv: Path = typer.Option(None, "--csv", help="Gets a line a picture; a cut-off ablation goes on from it."),
    out: Path = typer.Option(None, "--out", "-o", help="Folder for the grid as Markdown, CSV, JSON and a heat map."),
    device: str = typer.Option(None, "--device", help="Such as cpu or cuda; the GPU is taken where there is one."),
) -> None:
    """The paper's Table 4 on fixed weights: no parameter depends on k and h, so each can be set at test time.

    kithkin ablate network CBSD68 --limit 8 --out grid
    """
    from kithkin.ablation import vary_network
    from kithkin.cli._device import choose_device
    from kithkin.cli._progress import progress_bar
    from kithkin.zoo import load_model

    _make_folder(out)
    network = load_model(model, device=choose_device(device))
    with progress_bar() as bar:
        task = bar.add_task("settings", total=None)
        result = vary_network(
            network,
            folder,
            ks=_numbers("--k", k),
            n_hashes=_numbers("--hashes", hashes),
            csv=csv,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
            protocol=protocol,
            sigmas=tuple(sigma),
            limit=limit,
        )
    _give(result, out, "ablation")


@ablate.command("train")
def train(
    recipe: str = typer.Argument(..., help="A name from `kithkin recipes`, or the path of a TOML file."),
    vary: list[str] = typer.Option(
        ...,
        "--vary",
        metavar="KEY=A,B",
        help="A key of the recipe and its values; may be repeated.",
    ),
    data: list[str] = typer.Option(
        [], "--data", "-d", metavar="FOLDER", help="Training data; may be given several times."
    ),
    validation: str = typer.Option(
        ..., "--validation", metavar="FOLDER", help="Pictures that the runs are compared on."
    ),
    out: Path = typer.Option(..., "--out", "-o", help="Gets a folder a run, and the result."),
    changes: list[str] = typer.Option(
        [], "--set", metavar="KEY=VALUE", help="Change a key of the recipe, for all runs."
    ),
    init: str = typer.Option(
        None, "--init", help="Start every run from these weights: a model's name, or a checkpoint."
    ),
    minutes: float = typer.Option(
        None, "--minutes", min=0, help="Stop each run after this long; called again, it goes on."
    ),
    device: str = typer.Option(None, "--device", help="Such as cpu or cuda; the GPU is taken where there is one."),
) -> None:
    """Train a network for every combination of some keys, and compare: Tables 4 and 5, and other choices.

    kithkin ablate train denoise-tiny --vary model.share_query_key=false,true --vary seed=0,1 --set schedule.steps=2000 --data photos --validation held-out --out table5
    """  # noqa: E501 - one command
    from kithkin.ablation import mean_over_seeds, vary_recipe
    from kithkin.cli._device import choose_device
    from kithkin.cli._progress import TrainingProgress
    from kithkin.cli.train import parse_change
    from kithkin.config import load_config

    laid_over: dict[str, Any] = dict(parse_change(change) for change in changes)
    laid_over |= {"data.folders": data} if data else {}
    config = load_config(recipe, {**laid_over, "validation.folder": validation})
    variations = dict(_values(option) for option in vary)
    _make_folder(out)
    with TrainingProgress(as_json=False) as progress:
        result = vary_recipe(
            config,
            variations,
            out,
            init=init,
            device=choose_device(device),
            minutes=minutes,
            report=progress.report,
        )
    if "seed" in result.keys:
        _give(result, out, "runs", quiet=True)
        result = mean_over_seeds(result)
    _give(result, out, "ablation")


def _give(result: "Ablation", out: Path | None, name: str, quiet: bool = False) -> None:
    """Print the grid, and write it in every form."""
    import json

    from kithkin.files import write_whole

    if out:
        write_whole(out / f"{name}.md", result.to_markdown())
        write_whole(out / f"{name}.csv", result.to_csv())
        write_whole(out / f"{name}.json", json.dumps(result.to_dict(), indent=1) + "\n")
        if len(result.keys) == 2 and result.cells:
            from kithkin.ablation import draw_heat_map

            draw_heat_map(result, out / f"{name}.png")
    if not quiet:
        typer.echo(result.to_markdown(), nl=False)


def _make_folder(out: Path | None) -> None:
    """Before anything is measured, so that hours of it are not lost on a folder that can't be one."""
    try:
        if out:
            out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"ablate: {out} can't be the folder of the result ({reason}); choose another --out") from error


def _numbers(option: str, text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is not whole numbers separated by commas", param_hint=option) from error


def _values(option: str) -> tuple[str, list[Any]]:
    from kithkin.cli.train import parse_change

    key, equals, values = option.partition("=")
    if not equals or not values:
        raise typer.BadParameter(f"{option!r} is not KEY=A,B", param_hint="--vary")
    return key.strip(), [parse_change(f"value={value}")[1] for value in values.split(",")]
