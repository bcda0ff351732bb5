"""What commands share: the class of those that take files, and messages to the user."""

import mimetypes
import os
import re
import sys

import typer
from typer.core import TyperCommand

_UsageError = typer.BadParameter.__bases__[0]  # of the click that this version of Typer brings or uses


def in_options(message: object) -> str:
    """A message of the library, whose arguments are options here: ``--out`` for "`out`"."""
    named = re.sub(r"^(restore|cluster): (\w+) must ", r"\1: `\2` must ", str(message))
    return re.sub("`([a-z_]+)`", lambda match: "--" + match[1].replace("_", "-"), named)


def say(message: object) -> None:
    """Print a message for the user on the error stream. Not by typer's echo: it would write across a bar."""
    print(f"kithkin: {in_options(message)}", file=sys.stderr, flush=True)


class FileCommand(TyperCommand):
    """A command that says what to do where a file's name begins with a dash."""

    def parse_args(self, ctx, args):  # type: ignore[no-untyped-def]  # click's classes have no fixed place
        """As the base class; a wrong option that is a file gives a hint."""
        given = list(args)
        try:
            return super().parse_args(ctx, args)
        except _UsageError as error:
            named = next((arg for arg in given[: _end(given)] if _is_file(arg)), None)
            if named is None:
                raise
            raise typer.BadParameter(
                f"{named} looks like an option; after -- it is a file: {ctx.command_path} -- {named}", ctx=ctx
            ) from error


def _end(args: list[str]) -> int:
    return args.index("--") if "--" in args else len(args)


def _is_file(arg: str) -> bool:
    kind = mimetypes.guess_type(arg)[0] or ""
    return arg.startswith("-") and len(arg) > 1 and (os.path.lexists(arg) or kind.startswith("image/"))
