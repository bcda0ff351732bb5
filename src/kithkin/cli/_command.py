"""The class of the verbs that take files."""

import mimetypes
import os

import typer
from typer.core import TyperCommand

_UsageError = typer.BadParameter.__bases__[0]  # of the click that this version of Typer brings or uses


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
                f"{named} is taken for an option; behind -- it is a file: {ctx.command_path} -- {named}", ctx=ctx
            ) from error


def _end(args: list[str]) -> int:
    return args.index("--") if "--" in args else len(args)


def _is_file(arg: str) -> bool:
    kind = mimetypes.guess_type(arg)[0] or ""
    return arg.startswith("-") and len(arg) > 1 and (os.path.lexists(arg) or kind.startswith("image/"))
