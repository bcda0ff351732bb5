"""Options that several commands have, and what their values mean.

Every option names its flag and a metavar: an upper-case noun, ``a|b`` for a choice, ``1..9`` for a
range.
"""

from typing import Any

import typer


def flag(name: str, help: str, **more: Any) -> Any:
    """An option that is given or not. Without a metavar, Typer would show <bool> as its value."""
    return typer.Option(False, name, metavar="", help=help, **more)


AS_JSON = flag("--json", "Print JSON.")
BACKEND = typer.Option(
    None,
    "--backend",
    metavar="NAME",
    help="How to compute attention: a name from `kithkin doctor`. Default: the fastest that works.",
)
CSV = typer.Option(
    None, "--csv", metavar="FILE", help="Write a line for each picture, and continue from it after a stop."
)
DEVICE = typer.Option(
    None,
    "--device",
    metavar="DEVICE",
    help="Device to compute on, such as cpu or cuda. Default: the GPU, if there is one.",
)
LIMIT = typer.Option(None, "--limit", metavar="N", min=1, help="Measure only the first N pictures, by name.")
RECIPE = typer.Argument(..., metavar="RECIPE", help="A name from `kithkin recipes`, or the path of a TOML file.")


def tile_side(text: str) -> str | int:
    """The value of --tile: a number of pixels, or the word as it is."""
    return int(text) if text.removeprefix("-").isdecimal() else text
