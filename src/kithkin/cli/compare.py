"""``kithkin compare``."""

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from kithkin.cli._command import say
from kithkin.cli._options import DEVICE, flag, tile_side
from kithkin.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

    from kithkin.sheets import Panel


def compare(
    target: Path = typer.Argument(..., metavar="TARGET", help="The clean picture."),
    degraded: Path = typer.Option(
        None,
        "--input",
        "-i",
        metavar="FILE",
        help="The degraded picture. Without it, --sigma adds noise to the target.",
    ),
    sigma: float = typer.Option(
        None,
        "--sigma",
        metavar="0..255",
        min=0,
        max=255,
        help="Noise level: added to the target, or with --input told to the models.",
    ),
    model: list[str] = typer.Option(
        [],
        "--model",
        "-m",
        metavar="MODEL",
        help="What to compare; may be repeated: a name from `kithkin models`, a checkpoint, bm3d, nlm, an .onnx or "
        "TorchScript file. Default: denoise.",
    ),
    crop: list[str] = typer.Option(
        [],
        "--crop",
        metavar="X,Y,W,H",
        help="A place to enlarge, in pixels; may be repeated. Default: the two where the results differ most.",
    ),
    out: Path = typer.Option(
        None, "--out", "-o", metavar="FILE", help="The sheet to write. A file that exists is replaced."
    ),
    protocol: str = typer.Option(
        "rgb-uint8", "--psnr", metavar="NAME", help="How to measure: rgb-uint8, rgb, y-matlab or y-unrounded."
    ),
    zoom: str = typer.Option("nearest", "--zoom", metavar="nearest|lanczos", help="How to enlarge crops."),
    tile: str = typer.Option("off", "--tile", metavar="auto|N|off", help="Tiles, as in `kithkin restore`."),
    device: str = DEVICE,
    as_json: bool = flag("--json", "Print PSNR, seconds and crops as JSON."),
) -> None:
    """Draw a sheet of crops: the input, each model's result and the target, with their PSNR.

    kithkin compare photo.png --sigma 25 -m denoise -m bm3d -o sheet.png
    kithkin compare clean.png --input rainy.png -m derain.onnx --crop 40,80,96,64 -o sheet.jpg
    """
    from kithkin.cli._device import choose_device
    from kithkin.methods import open_method
    from kithkin.sheets import Panel, check_crops, choose_crops, draw_sheet, parse_crop, restored_panels

    if out is None and not as_json:
        raise InputError("compare: expected --out (a sheet to write) or --json, got neither")
    chosen = [parse_crop(text) for text in crop]
    side = tile_side(tile)
    place = choose_device(device)
    methods = [open_method(spec, device=place, tile=side, note=say) for spec in model or ["denoise"]]
    clean, degraded_pixels = _pictures(target, degraded, sigma)
    check_crops(chosen, clean.shape[:2])
    panels = restored_panels(methods, degraded_pixels, clean, protocol=protocol, sigma=sigma, picture=target.name)
    crops = chosen or choose_crops([panel.image for panel in panels[1:]], clean)
    if out is not None:
        caption = f"{'' if sigma is None else f'sigma {sigma:g}, '}PSNR {protocol} of the whole picture"
        shown = [*panels, Panel("target", clean)]
        _write(draw_sheet(Panel(target.name, clean), shown, crops, caption=caption, zoom=zoom), out)
    source = str(degraded) if degraded else None
    about = {"target": str(target), "input": source, "sigma": sigma, "protocol": protocol, "crops": crops}
    _print(panels, about, as_json)


def _pictures(target: Path, degraded: Path | None, sigma: float | None) -> tuple["np.ndarray", "np.ndarray"]:
    """(clean, degraded), (H, W, 3) float32."""
    from kithkin.data.degrade import benchmark_noise
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
