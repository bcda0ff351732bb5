"""``kithkin neighbors``."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import typer

from kithkin.cli._options import DEVICE, flag
from kithkin.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

EPILOG = """\
Examples:

`kithkin neighbors photo.jpg --at 120,80 --at 300,200 -o found.png` draws the neighbours of two patches.

`kithkin neighbors photo.jpg --buckets --stage encoder1 -o buckets.png` draws only the hash buckets.
"""


def neighbors(
    path: Path = typer.Argument(..., metavar="IN", help="The picture.", readable=False),
    at: list[str] = typer.Option(
        [],
        "--at",
        metavar="X,Y",
        help="A pixel, counted from the upper left corner. Its patch is drawn with its neighbours. May be repeated.",
    ),
    out: Path = typer.Option(
        None, "--out", "-o", metavar="FILE", help="The drawing to write. The ending chooses the format."
    ),
    model: str = typer.Option(
        "denoise-gaussian",
        "--model",
        "-m",
        metavar="MODEL",
        help="A name from `kithkin models`, or a checkpoint's path. NAME\\[k=8,h=2] sets another k or h. `denoise` "
        "has no attention.",
    ),
    stage: str = typer.Option(
        None,
        "--stage",
        metavar="STAGE",
        help="encoder0, encoder1, … or decoder0, …: the higher, the larger the patches.",
    ),
    block: int = typer.Option(None, "--block", metavar="N", help="Block of the stage, from 0."),
    rounds: Literal["together", "separate"] = typer.Option(
        None,
        "--rounds",
        metavar="together|separate",
        help="All hash rounds in one panel, or a panel for each. Default: together, and separate with --buckets.",
    ),
    buckets: bool = flag("--buckets", "Colour the hash buckets."),
    device: str = DEVICE,
    overwrite: bool = flag("--overwrite", "Replace a drawing that exists."),
    as_json: bool = flag(
        "--json", "Print boxes (x, y, width, height) and weights as JSON; with --buckets, the buckets too."
    ),
) -> None:
    """Show which patches meet in the network (Fig. 7 of the paper).

    Patches of one chunk have frames of one colour. The patches that the chunk
    looks back to have dashed frames. The thicker the frame, the more the patch
    counts. The weights are printed below, in percent.

    Use a picture that the model is meant for, such as a noisy one for a model that removes noise.
    """
    import json

    from kithkin.cli._device import choose_device
    from kithkin.images import read_picture
    from kithkin.neighbors import draw_neighbors, find_neighbors
    from kithkin.zoo import load_model

    if out is None and not as_json:
        raise InputError("neighbors: name the drawing with -o OUT.png, or ask for --json")
    if not at and not buckets:
        raise InputError("neighbors: name a pixel with --at X,Y, or ask for --buckets")
    points = [_point(text) for text in at]
    picture = read_picture(path)
    network = load_model(model, device=choose_device(device))
    result = find_neighbors(network, picture, points, stage=stage, block=block)
    if out is not None:
        drawing = draw_neighbors(picture, result, rounds=rounds, buckets=buckets)
        _write(drawing, out, path, overwrite)
    if as_json:
        typer.echo(json.dumps(result.to_dict(buckets=buckets)))
    else:
        typer.echo(f"{path} -> {out}")


def _point(text: str) -> tuple[int, int]:
    parts = text.split(",")
    if len(parts) != 2 or not all(part.strip().removeprefix("-").isdecimal() for part in parts):
        raise InputError(f"neighbors: --at takes X,Y in whole pixels, such as 120,80, got {text!r}")
    return int(parts[0]), int(parts[1])


def _write(drawing: "Image", out: Path, source: Path, overwrite: bool) -> None:
    import os

    import numpy as np

    from kithkin.images import Picture as Pixels, write_picture

    if os.path.realpath(out) == os.path.realpath(source):
        raise InputError(f"neighbors: {out} would replace its own input; choose another place for the drawing")
    levels = np.asarray(drawing, dtype=np.float32) / np.float32(255)
    write_picture(Pixels(levels), out, overwrite=overwrite)
