"""``kithkin eval``."""

from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from kithkin.evaluation import Report, Row


def evaluate(
    folder: Path = typer.Argument(..., help="Clean pictures, or a folder with `input` and `target`."),
    model: str = typer.Option("denoise", "--model", "-m", help="A name from `kithkin models`, or a checkpoint."),
    protocol: str = typer.Option(
        None, "--protocol", "-p", help="gaussian (clean pictures), rgb, float or rain (pairs); chosen by the folder."
    ),
    sigma: list[float] = typer.Option(
        [15.0, 25.0, 50.0], "--sigma", help="Noise level on the 0-255 scale, for clean pictures; may be repeated."
    ),
    tile: str = typer.Option("off", "--tile", help="`off`, as published values are made; `auto`; or a side in pixels."),
    limit: int = typer.Option(None, "--limit", min=1, help="Take this many pictures, the first by name."),
    device: str = typer.Option(None, "--device", help="Such as cpu or cuda; the GPU is taken where there is one."),
    per_image: bool = typer.Option(False, "--per-image", help="Show a row for every picture too."),
    as_json: bool = typer.Option(False, "--json", help="Print protocol, means and every picture's values as JSON."),
) -> None:
    """Measure a model by PSNR and SSIM under a named protocol.

    kithkin eval CBSD68 --sigma 25
    kithkin eval pairs --model run/mine.safetensors --protocol rain
    """
    import json

    from kithkin.cli._device import choose_device
    from kithkin.cli._progress import progress_bar
    from kithkin.evaluation import evaluate as run
    from kithkin.zoo import load_model

    network = load_model(model, device=choose_device(device))
    side = int(tile) if tile.isdecimal() else tile
    with progress_bar(quiet=as_json) as bar:
        task = bar.add_task("eval", total=None)

        def step(row: "Row", total: int) -> None:
            bar.update(task, advance=1, total=total)

        report = run(network, folder, protocol, sigmas=tuple(sigma), tile=side, limit=limit, report=step)
    if as_json:
        typer.echo(json.dumps({"model": model, "folder": folder.name, "tile": tile, **report.to_dict()}, indent=1))
    else:
        _print(report, model, folder, per_image)


def _print(report: "Report", model: str, folder: Path, per_image: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    title = f"{model} on {folder.name}: {report.protocol.summary}"
    table = Table("condition", "PSNR in", "PSNR", "SSIM in", "SSIM", "pictures", "s/MP", title=title)
    for condition, m in report.means().items():
        values = [f"{m['psnr_input']:.2f}", f"{m['psnr']:.2f}", f"{m['ssim_input']:.4f}", f"{m['ssim']:.4f}"]
        table.add_row(condition, *values, str(m["images"]), f"{m['seconds_per_megapixel']:.2f}")
    if per_image:
        rows = Table("picture", "condition", "PSNR in", "PSNR", "SSIM in", "SSIM")
        for r in report.rows:
            values = [f"{r.psnr_input:.2f}", f"{r.psnr:.2f}", f"{r.ssim_input:.4f}", f"{r.ssim:.4f}"]
            rows.add_row(r.image, r.condition, *values)
        console.print(rows)
    console.print(table)
    console.print(f"PSNR {report.protocol.psnr}, SSIM {report.protocol.window}", highlight=False)
