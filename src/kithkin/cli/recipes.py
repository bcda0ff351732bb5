"""``kithkin recipes``."""

import typer

recipes = typer.Typer(help="The training recipes that come with kithkin.", invoke_without_command=True)


@recipes.callback()
def _list(context: typer.Context) -> None:
    """The training recipes that come with kithkin; `kithkin recipes show NAME` prints one to start from."""
    if context.invoked_subcommand:
        return
    from rich.console import Console
    from rich.table import Table

    from kithkin.config import list_recipes, load_config

    table = Table("recipe", "task", "data", "length", "batch", "crop")
    for name in list_recipes():
        run = load_config(name)
        length = f"{run.schedule.epochs} epochs" if run.schedule.epochs else f"{run.schedule.steps} steps"
        table.add_row(name, run.task, run.data.kind, length, str(run.schedule.batch_size), f"{run.data.crop}²")
    Console().print(table)


@recipes.command("show")
def show(name: str = typer.Argument(..., help="A name from `kithkin recipes`.")) -> None:
    """Print a recipe as TOML: save it, change it, and give its path to `kithkin train`."""
    from kithkin.config import list_recipes
    from kithkin.errors import InputError

    found = list_recipes()
    if name not in found:
        raise InputError(f"no recipe is called {name!r}; there are {', '.join(found)}")
    typer.echo(found[name].read_text(encoding="utf-8"), nl=False)
