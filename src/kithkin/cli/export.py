"""``kithkin export``."""

import json
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

EPILOG = """\
Example: `kithkin export denoise --to onnx -o denoise.onnx`, and then `kithkin eval FOLDER -m denoise.onnx`.
"""


class Format(StrEnum):
    """What a network is exported to."""

    ONNX = "onnx"
    TORCH = "torch"


Model = Annotated[str, typer.Argument(metavar="MODEL", help="A name from `kithkin models`, or a checkpoint's path.")]
To = Annotated[
    Format,
    typer.Option("--to", help="onnx (opset 20, for onnxruntime and others), or torch: a program of torch.export."),
]
Out = Annotated[
    Path | None,
    typer.Option("--out", "-o", help="The file; without it, MODEL.onnx or MODEL.pt2 here.", show_default=False),
]
Half = Annotated[bool, typer.Option("--half", help="Store the numbers in float16: half the file. Only with --to onnx.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the file if it exists.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def export(
    to: To,
    model: Model = "denoise",
    out: Out = None,
    half: Half = False,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Write a network as one file that runs without kithkin, and compare its results with PyTorch's.

    The file takes pictures of any height and width (torch: above 64 pixels); the hash rotations are fixed in it. It
    takes a minute or two.
    """
    from kithkin.errors import InputError
    from kithkin.export import FORMATS, check_parity, export_onnx, export_torch
    from kithkin.images._picture import shown
    from kithkin.zoo import load_model

    if half and to is Format.TORCH:
        raise InputError("export: --half is for --to onnx; leave it out")
    target = out or Path(f"{Path(model).stem}{FORMATS[to]}")
    if target.suffix.lower() != FORMATS[to]:
        raise InputError(f"export: {shown(target)} does not end in {FORMATS[to]}; choose another name")
    if target.exists() and not overwrite:
        raise InputError(f"export: {shown(target)} exists already; choose another name, or allow --overwrite")
    _check_place(target)
    network = load_model(model)
    # On the error stream, so that what is printed stays what it was.
    typer.echo(f"kithkin: tracing {shown(model)}, which takes a minute or two", err=True)
    if to is Format.ONNX:
        export_onnx(network, target, half=half)
    else:
        export_torch(network, target)
    typer.echo(f"kithkin: wrote {shown(target)}; now it is compared with PyTorch", err=True)
    rows = [asdict(row) for row in check_parity(network, target)]
    if as_json:
        typer.echo(json.dumps({"file": str(target), "bytes": target.stat().st_size, "parity": rows}, indent=1))
        return
    typer.echo(f"{shown(target)}  {target.stat().st_size / 1e6:.1f} MB")
    typer.echo("height x width   largest difference   PSNR to PyTorch")
    for row in rows:
        size = f"{row['height']} x {row['width']}"
        typer.echo(f"{size:<14}   {row['max_difference']:<18.2g}   {row['psnr']:.1f} dB")


def _check_place(target: Path) -> None:
    """Raise InputError where the file can't be written, before minutes are spent on it."""
    from kithkin.errors import InputError
    from kithkin.images._picture import shown
    from kithkin.restore_plan import unwritable

    if reason := unwritable(target):
        raise InputError(f"export: {shown(target)}: can't be written: {reason}")
