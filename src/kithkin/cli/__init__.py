"""The command ``kithkin``, a file a verb; verbs import what is heavy inside, for a quick --help."""

import io
import shutil
import sys
import warnings

import typer

from kithkin.cli import (
    ablate,
    compare,
    data,
    doctor,
    evaluate,
    export,
    models,
    neighbors,
    recipes,
    restore,
    serve,
    train,
)
from kithkin.cli._command import FileCommand, say
from kithkin.cli._memory import keep_freed_memory
from kithkin.cli._options import flag
from kithkin.errors import KithkinError
from kithkin.names import RenamedWarning

_FORMAT = warnings.formatwarning

_BOXES = 72  # columns that help in boxes needs: in fewer, it would cut off the options' names

app = typer.Typer(
    name="kithkin",
    help="Restore photographs: remove noise, rain and blur. Train and compare networks.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich" if shutil.get_terminal_size().columns >= _BOXES else None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(value: bool) -> None:
    if value:
        for name, found in doctor.about().items():
            typer.echo(f"{name} {found}")
        raise typer.Exit


@app.callback()
def _begin(
    version: bool = flag(
        "--version",
        "Print the versions of kithkin and PyTorch, the CPU and which kernels serve it.",
        callback=_version,
        is_eager=True,
    ),
) -> None:
    keep_freed_memory()


app.command("restore", cls=FileCommand, epilog=restore.EPILOG)(restore.restore)
app.command("eval", cls=FileCommand)(evaluate.evaluate)
app.command("neighbors", cls=FileCommand, epilog=neighbors.EPILOG)(neighbors.neighbors)
app.command("compare", cls=FileCommand)(compare.compare)
app.command("serve", epilog=serve.EPILOG)(serve.serve)
app.command("train")(train.train)
app.add_typer(ablate.ablate, name="ablate")
app.command("export", epilog=export.EPILOG)(export.export)
app.add_typer(models.models, name="models")
app.add_typer(recipes.recipes, name="recipes")
app.add_typer(data.data, name="data")
app.command("doctor")(doctor.doctor)


def _format_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """An old name is a note for the user, who has no use for the place in the code."""
    if issubclass(category, RenamedWarning):
        return f"kithkin: {message}\n"
    return _FORMAT(message, category, filename, lineno, line)


def main() -> None:
    """Run the command line; an expected error is one line and exit code 1."""
    # Pillow's remarks on damaged files, beside our own notes and errors.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    warnings.formatwarning = _format_warning
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal without … or × shows ?
    try:
        app()
    except KithkinError as error:
        say(error)
        sys.exit(1)
