"""``kithkin recipes``."""

import typer

recipes = typer.Typer(help="List the training recipes that come with kithkin.", invoke_without_command=True)


@recipes.callback()
def _list(context: typer.Context) -> None:
    """List the training recipes that come with kithkin. `kithkin recipes show NAME` prints one to start from."""
    if context.invoked_subcommand:
        return
    from rich.console import Console
    from rich.table import Column, Table

    from kithkin.config import list_recipes, load_config

    table = Table(Column("recipe", no_wrap=True), "task", "data", "length", "crops")
    for name in list_recipes():
        run = load_config(name)
        length = f"{run.schedule.epochs} epochs" if run.schedule.epochs else f"{run.schedule.steps} steps"
        table.add_row(name, run.task, run.data.kind, length, f"{run.schedule.batch_size} × {run.data.crop}²")
    Console().print(table)


@recipes.command("show")
def show(name: str = typer.Argument(..., metavar="NAME", help="A name from `kithkin recipes`.")) -> None:
    """Print a recipe as TOML. Save it, change it, and give its path to `kithkin train`."""
    from kithkin.config import list_recipes
    from kithkin.errors import InputError
    from kithkin.names import current_name

    known, name = list_recipes(), current_name(name)
    if name not in known:
        raise InputError(f"no recipe is called {name!r}; there are {', '.join(known)}")
    typer.echo(known[name].read_text(encoding="utf-8"), nl=False)
