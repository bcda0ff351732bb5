"""``kithkin compare``."""

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from kithkin.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

    from kithkin.sheets import Panel


def compare(
    target: Path = typer.Argument(..., help="The clean picture."),
    degraded: Path = typer.Option(None, "--input", "-i", help="The degraded picture; else --sigma makes one."),
    sigma: float = typer.Option(
        None,
        min=0,
        max=255,
        help="Noise level on the 0-255 scale: added to the target as the protocol `gaussian` does; with --input, what "
        "methods are told.",
    ),
    method: list[str] = typer.Option(
        ["denoise"],
        "--method",
        "-m",
        help="A name from `kithkin models`, a checkpoint, bm3d, nlm, or an .onnx or TorchScript file; may be repeated.",
    ),
    crop: list[str] = typer.Option(
        [], "--crop", help="X,Y,W,H in pixels; may be repeated. Without it, the two places where methods differ most."
    ),
    out: Path = typer.Option(None, "--out", "-o", help="The sheet to write; an existing file is replaced."),
    protocol: str = typer.Option("rgb-uint8", "--psnr", help="Of the values: rgb-uint8, rgb, y-matlab, y-unrounded."),
    zoom: str = typer.Option("nearest", "--zoom", help="How crops are enlarged: nearest or lanczos."),
    tile: str = typer.Option("off", "--tile", help="For networks: `off`, `auto`, or a side in pixels."),
    device: str = typer.Option(None, "--device", help="Such as cpu or cuda; the GPU is taken where there is one."),
    as_json: bool = typer.Option(False, "--json", help="Print PSNR, seconds and crops as JSON."),
) -> None:
    """Draw a sheet of crops: the input, what each method makes of it, and the target, with their PSNR.

    kithkin compare photo.png --sigma 25 -m denoise -m bm3d -o sheet.png
    kithkin compare clean.png --input rainy.png -m derain.onnx --crop 40,80,96,64 -o sheet.jpg
    """
    from kithkin.cli._device import choose_device
    from kithkin.methods import open_method
    from kithkin.sheets import Panel, check_crops, choose_crops, draw_sheet, parse_crop, restored_panels

    if out is None and not as_json:
        raise InputError("compare: expected --out (a sheet to write) or --json, got neither")
    given = [parse_crop(text) for text in crop]
    side = int(tile) if tile.isdecimal() else tile
    place = choose_device(device)
    methods = [open_method(spec, device=place, tile=side, note=_note) for spec in method]
    clean, bad = _pictures(target, degraded, sigma)
    check_crops(given, clean.shape[:2])
    panels = restored_panels(methods, bad, clean, protocol=protocol, sigma=sigma, picture=target.name)
    crops = given or choose_crops([panel.image for panel in panels[1:]], clean)
    if out is not None:
        caption = f"{'' if sigma is None else f'sigma {sigma:g}, '}PSNR {protocol} of the whole picture"
        shown = [*panels, Panel("target", clean)]
        _write(draw_sheet(Panel(target.name, clean), shown, crops, caption=caption, zoom=zoom), out)
    source = str(degraded) if degraded else None
    about = {"target": str(target), "input": source, "sigma": sigma, "protocol": protocol, "crops": crops}
    _print(panels, about, as_json)


def _pictures(target: Path, degraded: Path | None, sigma: float | None) -> tuple["np.ndarray", "np.ndarray"]:
    """(clean, degraded), (H, W, 3) float32."""
    from kithkin.data import benchmark_noise
    from kithkin.images import read_picture

    clean = read_picture(target).pixels
    if degraded is not None:
        return clean, read_picture(degraded).pixels
    if sigma is None:
        raise InputError("compare: expected --input (a degraded picture) or --sigma (noise to add), got neither")
    return clean, benchmark_noise(clean, sigma)


def _write(sheet: "Image", out: Path) -> None:
    import numpy as np

    from kithkin.images import Picture, write_picture

    write_picture(Picture(np.asarray(sheet, dtype=np.float32) / 255), out, overwrite=True)


def _print(panels: "list[Panel]", about: dict[str, Any], as_json: bool) -> None:
    rows: list[dict[str, Any]] = [
        {
            "method": p.name,
            "psnr": p.psnr if p.psnr is not None and math.isfinite(p.psnr) else None,
            "seconds": p.seconds,
        }
        for p in panels
    ]
    if as_json:
        typer.echo(json.dumps({**about, "rows": rows}, indent=1))
        return
    for row in rows:
        value = "equal pictures" if row["psnr"] is None else f"{row['psnr']:.2f} dB"
        typer.echo(f"{row['method']}: {value} ({about['protocol']})")


def _note(sentence: str) -> None:
    typer.echo(f"kithkin: {sentence}", err=True)
