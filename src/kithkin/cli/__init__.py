"""The command ``kithkin``: one file a verb. Heavy imports stand inside the verbs, so ``--help`` is quick."""

import sys
import warnings

import typer

from kithkin.cli._command import FileCommand
from kithkin.cli._memory import keep_freed_memory
from kithkin.cli.ablate import ablate
from kithkin.cli.compare import compare
from kithkin.cli.data import data
from kithkin.cli.doctor import doctor
from kithkin.cli.evaluate import evaluate
from kithkin.cli.export import EPILOG as EXPORT_EPILOG, export
from kithkin.cli.models import models
from kithkin.cli.neighbors import EPILOG as NEIGHBORS_EPILOG, neighbors
from kithkin.cli.recipes import recipes
from kithkin.cli.restore import EPILOG as RESTORE_EPILOG, restore
from kithkin.cli.serve import EPILOG as SERVE_EPILOG, serve
from kithkin.cli.train import train
from kithkin.errors import KithkinError

app = typer.Typer(
    name="kithkin",
    help="Restore photographs with KiT, the k-NN Image Transformer: remove noise, rain and blur, train, compare.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(value: bool) -> None:
    if value:
        from kithkin import __version__

        typer.echo(f"kithkin {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    keep_freed_memory()


app.command("restore", cls=FileCommand, epilog=RESTORE_EPILOG)(restore)
app.command("eval", cls=FileCommand)(evaluate)
app.command("neighbors", cls=FileCommand, epilog=NEIGHBORS_EPILOG)(neighbors)
app.command("compare", cls=FileCommand)(compare)
app.command("serve", epilog=SERVE_EPILOG)(serve)
app.command("train")(train)
app.add_typer(ablate, name="ablate")
app.command("export", epilog=EXPORT_EPILOG)(export)
app.add_typer(models, name="models")
app.add_typer(recipes, name="recipes")
app.add_typer(data, name="data")
app.command("doctor")(doctor)


def main() -> None:
    """Run the command line; an expected error is one line and exit code 1."""
    # Pillow's remarks on damaged files, beside our own notes and errors.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    try:
        app()
    except KithkinError as error:
        typer.echo(f"kithkin: {error}", err=True)
        sys.exit(1)
