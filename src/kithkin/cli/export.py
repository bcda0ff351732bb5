"""``kithkin export``."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Literal

import typer

from kithkin.cli._command import say
from kithkin.cli._options import AS_JSON, flag

EPILOG = """\
Examples:

`kithkin export denoise --to onnx -o denoise.onnx`, and then `kithkin eval FOLDER -m denoise.onnx`.

`kithkin export denoise --to darktable` writes the model for darktable, and versions.json beside it.
"""


def export(
    model: str = typer.Argument(
        "denoise",
        metavar="MODEL",
        help="A name from `kithkin models`, or a checkpoint's path. NAME\\[k=8,h=2] sets another k or h.",
    ),
    to: Literal["onnx", "torch", "darktable"] = typer.Option(
        ...,
        "--to",
        metavar="onnx|torch|darktable",
        help="onnx for onnxruntime and others (opset 20), torch for a program of torch.export, darktable for the "
        "neural restore of darktable 5.6.",
    ),
    out: Path = typer.Option(
        None,
        "--out",
        "-o",
        metavar="FILE",
        help="The file to write. Default: MODEL.onnx, MODEL.pt2 or, for darktable, a .dtmodel file here.",
    ),
    half: bool = flag("--half", "Store numbers in float16, which halves the file. Not with --to torch."),
    overwrite: bool = flag("--overwrite", "Replace a file that exists."),
    as_json: bool = AS_JSON,
) -> None:
    """Write a network as one file that runs without kithkin, and compare its results with PyTorch's.

    The file takes pictures of any height and width; the hash rotations are fixed
    in it. It takes about half a minute.
    """
    from kithkin import __version__
    from kithkin.errors import InputError
    from kithkin.export import FORMATS, check_parity, export_darktable, export_onnx, export_torch
    from kithkin.messages import shown
    from kithkin.zoo import find_model, grouping_text, load_model, split_grouping

    if half and to == "torch":
        raise InputError("export: --half is not for --to torch; leave it out")
    plain, grouping = split_grouping(model)
    card = find_model(plain)
    name = Path(plain).stem
    if to == "darktable":  # whose ids begin with the task
        name = f"denoise-kithkin-{(card.name if card else name).removeprefix('denoise-')}"
    target = out or Path(f"{name}{grouping_text(grouping)}{FORMATS[to]}")
    if target.suffix.lower() != FORMATS[to]:
        raise InputError(f"export: {shown(target)} does not end in {FORMATS[to]}; choose another name")
    if target.exists() and not overwrite:
        raise InputError(f"export: {shown(target)} exists already; choose another name, or allow --overwrite")
    _check_place(target)
    network = load_model(model)
    # On the error stream, so that what is printed stays what it was.
    say(f"tracing {shown(model)}, which takes about half a minute")
    if to == "onnx":
        export_onnx(network, target, half=half)
    elif to == "darktable":
        version = ".".join(__version__.split(".")[:2])
        export_darktable(network, target, version=version, card=card, half=half)
    else:
        export_torch(network, target)
    say(f"wrote {shown(target)}; now it is compared with PyTorch")
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
    """Raise InputError where the file can't be written, before time is spent on it."""
    from kithkin.errors import InputError
    from kithkin.messages import shown
    from kithkin.restore_plan import unwritable

    if reason := unwritable(target):
        raise InputError(f"export: {shown(target)}: can't be written: {reason}")
