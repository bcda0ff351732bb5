"""``kithkin neighbors``."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kithkin.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

EPILOG = """\
Examples:

`kithkin neighbors photo.jpg --at 120,80 --at 300,200 -o found.png` draws the neighbours of two pixels' patches.

`kithkin neighbors photo.jpg --buckets --stage encoder1 -o buckets.png` draws the hash buckets alone.
"""


class Rounds(StrEnum):
    """How the hash rounds are shown."""

    TOGETHER = "together"
    SEPARATE = "separate"


Picture = Annotated[Path, typer.Argument(metavar="IN", help="A picture.", readable=False)]
At = Annotated[
    list[str] | None,
    typer.Option(
        metavar="X,Y",
        help="A pixel, from the upper left corner; the patch that it lies in is asked about. May be repeated.",
        show_default=False,
    ),
]
Out = Annotated[
    Path | None,
    typer.Option("--out", "-o", help="Where the drawing goes; its ending names the format.", show_default=False),
]
Model = Annotated[str, typer.Option("--model", "-m", help="A name from `kithkin models`, or a checkpoint's path.")]
Stage = Annotated[str, typer.Option(help="encoder0, encoder1, … or decoder0, …; the higher, the larger the patches.")]
Block = Annotated[int, typer.Option(help="In the stage, from 0.")]
HowRounds = Annotated[
    Rounds | None,
    typer.Option(
        "--rounds",
        help="All hash rounds in one panel, or a panel of each; separate with --buckets, else together.",
        show_default=False,
    ),
]
Buckets = Annotated[bool, typer.Option("--buckets", help="Lay the hash buckets over the picture, a colour each.")]
Device = Annotated[
    str | None,
    typer.Option(help="Such as cpu or cuda; without it, the GPU where there is one.", show_default=False),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a drawing that exists.")]
AsJson = Annotated[
    bool,
    typer.Option(
        "--json", help="Print the boxes as JSON (x, y, width, height); with --buckets, the maps of these too."
    ),
]


def neighbors(
    path: Picture,
    at: At = None,
    out: Out = None,
    model: Model = "denoise",
    stage: Stage = "encoder0",
    block: Block = 0,
    rounds: HowRounds = None,
    buckets: Buckets = False,
    device: Device = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Show which patches meet in the network (Fig. 7 of the paper).

    The patches of a chunk are framed in one colour, those that it looks back to in dashes. The picture goes through the
    network whole. Give a noisy picture to a network that removes noise: its neighbours are those that it restores with.
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
    points = [_point(text) for text in at or []]
    picture = read_picture(path)
    network = load_model(model, device=choose_device(device))
    found = find_neighbors(network, picture, points, stage=stage, block=block)
    if out is not None:
        drawing = draw_neighbors(picture, found, rounds=None if rounds is None else rounds.value, buckets=buckets)
        _write(drawing, out, path, overwrite)
    if as_json:
        typer.echo(json.dumps(found.to_dict(buckets=buckets)))
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
