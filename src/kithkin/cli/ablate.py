"""``kithkin ablate``."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from kithkin.cli._options import CSV, DEVICE, LIMIT, RECIPE
from kithkin.errors import InputError

if TYPE_CHECKING:
    from kithkin.ablation import Ablation

ablate = typer.Typer(help="Ablations: other k and h for finished weights, or training runs that differ in a few keys.")


@ablate.command("network")
def network(
    folder: Path = typer.Argument(..., metavar="FOLDER", help="Pictures, as for `kithkin eval`."),
    model: str = typer.Option(
        "denoise-gaussian", "--model", "-m", help="A name from `kithkin models`, or a checkpoint."
    ),
    k: str = typer.Option(
        "1,2,4,8,16", "--k", metavar="N,N", help="Numbers of patches in a chunk, separated by commas."
    ),
    hashes: str = typer.Option(
        "1,2,4,8,16", "--hashes", metavar="N,N", help="Numbers of hash rounds, separated by commas."
    ),
    protocol: str = typer.Option(
        None, "--protocol", "-p", metavar="NAME", help="How to measure, as in `kithkin eval`."
    ),
    sigma: list[float] = typer.Option(
        [25.0], "--sigma", metavar="0..255", help="Noise level for clean pictures; may be repeated."
    ),
    limit: int = LIMIT,
    csv: Path = CSV,
    out: Path = typer.Option(
        None, "--out", "-o", metavar="FOLDER", help="Folder for the results: Markdown, CSV, JSON and a heat map."
    ),
    device: str = DEVICE,
) -> None:
    """Measure finished weights with other k and h, as in the paper's Table 4. No weight depends on them.

    kithkin ablate network CBSD68 --limit 8 --out grid
    """
    from kithkin.ablation import vary_network
    from kithkin.cli._device import choose_device
    from kithkin.cli._progress import counting
    from kithkin.zoo import load_model

    _make_folder(out)
    network = load_model(model, device=choose_device(device))
    with counting("settings") as step:
        result = vary_network(
            network,
            folder,
            ks=_numbers("--k", k),
            n_hashes=_numbers("--hashes", hashes),
            csv=csv,
            progress=step,
            protocol=protocol,
            sigmas=tuple(sigma),
            limit=limit,
        )
    _output(result, out, "ablation")


@ablate.command("train")
def train(
    recipe: str = RECIPE,
    vary: list[str] = typer.Option(
        ...,
        "--vary",
        metavar="KEY=A,B",
        help="A key of the recipe with the values to try; may be repeated.",
    ),
    data: list[str] = typer.Option([], "--data", "-d", metavar="FOLDER", help="Training data; may be repeated."),
    validation: str = typer.Option(..., "--validation", metavar="FOLDER", help="Pictures to compare the runs on."),
    out: Path = typer.Option(..., "--out", "-o", metavar="FOLDER", help="Folder for the runs and the result."),
    changes: list[str] = typer.Option(
        [], "--set", metavar="KEY=VALUE", help="Change a key of the recipe in all runs; may be repeated."
    ),
    init: str = typer.Option(
        None, "--init", metavar="MODEL", help="Start every run from these weights: a model's name, or a checkpoint."
    ),
    minutes: float = typer.Option(
        None,
        "--minutes",
        min=0,
        metavar="MINUTES",
        help="Stop each run after this long. The same command continues it.",
    ),
    device: str = DEVICE,
) -> None:
    """Train a network for each combination of some keys of a recipe, and compare them.

        kithkin ablate train denoise-gaussian-tiny --vary model.share_query_key=false,true --vary seed=0,1 \\
            --set schedule.steps=2000 --data photos --validation held-out --out table5
    """
    from kithkin.ablation import mean_over_seeds, vary_recipe
    from kithkin.cli._device import choose_device
    from kithkin.cli._progress import TrainingProgress
    from kithkin.cli.train import parse_change
    from kithkin.config import load_config

    settings: dict[str, Any] = dict(parse_change(change) for change in changes)
    settings |= {"data.folders": data} if data else {}
    config = load_config(recipe, {**settings, "validation.folder": validation})
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
        _output(result, out, "runs", quiet=True)
        result = mean_over_seeds(result)
    _output(result, out, "ablation")


def _output(result: "Ablation", out: Path | None, name: str, quiet: bool = False) -> None:
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
    """Called before anything is measured, so that no hours are lost on an impossible folder."""
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
