"""``kithkin models``."""

import typer

from kithkin.cli._options import AS_JSON, flag

models = typer.Typer(help="List the models that come with kithkin.", invoke_without_command=True)


@models.callback()
def _list(context: typer.Context) -> None:
    """List the models that come with kithkin. `show NAME` prints a model card, `cost` the size of networks."""
    if context.invoked_subcommand:
        return
    from rich.console import Console
    from rich.table import Column, Table

    from kithkin.zoo import list_models

    table = Table(Column("model", no_wrap=True), "task", "MB", Column("what it does", overflow="fold"))
    for name, card in list_models().items():
        size = f"{card.path.stat().st_size / 1e6:.1f}" if card.path.is_file() else "missing"
        table.add_row(name, card.task + (" (default)" if card.default else ""), size, card.summary)
    Console().print(table)


@models.command("show")
def show(
    name: str = typer.Argument(..., metavar="NAME", help="A name or task from `kithkin models`."),
    as_json: bool = flag("--json", "Print the card as JSON."),
) -> None:
    """Print a model card: training, data and their licences, measurements, limits."""
    from kithkin.errors import InputError
    from kithkin.zoo import find_model, list_models

    card = find_model(name)
    if card is None:
        raise InputError(f"no model is called {name!r}; there are {', '.join(list_models())}")
    if as_json:
        typer.echo(card.model_dump_json(indent=1))
        return
    from rich.console import Console
    from rich.table import Table

    console = Console()
    console.print(f"[bold]{card.name}[/bold]  {card.summary}", highlight=False)
    facts = Table(show_header=False, box=None)
    for key in ("task", "recipe", "commit", "steps", "crops", "hours", "machine", "licence", "limits", "sha256"):
        facts.add_row(key, str(getattr(card, key)))
    console.print(facts)
    sources = Table("trained on", "photographs", "licence")
    for source in card.sources:
        sources.add_row(source.name, str(source.count), source.licence)
    console.print(sources)
    measured = Table("measured on", "condition", "value", "protocol")
    for m in card.measured:
        measured.add_row(m.dataset, m.condition, f"{m.value:g} {m.unit}", m.protocol)
    console.print(measured)


@models.command("cost")
def cost(
    names: list[str] = typer.Argument(
        None, metavar="NAME", help="Sizes (tiny, small, base, paper), models or checkpoints. Default: all sizes."
    ),
    side: int = typer.Option(256, "--side", metavar="PIXELS", min=1, help="Width and height of the picture."),
    as_json: bool = AS_JSON,
) -> None:
    """Count parameters and multiply-accumulates (MACs), including hashing."""
    import json

    from kithkin.model import KiT, count_macs, count_parameters
    from kithkin.model_config import SIZES, KiTConfig
    from kithkin.zoo import load_model

    rows: list[tuple[str, int, int]] = []
    for name in names or list(SIZES):
        config = KiTConfig.named(name) if name in SIZES else load_model(name).config
        rows.append((name, count_parameters(KiT(config)), count_macs(config, (side, side))))
    if as_json:
        keys = ("name", "parameters", "macs")
        typer.echo(json.dumps([{**dict(zip(keys, row, strict=True)), "side": side} for row in rows], indent=1))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("network", "parameters", f"MACs at {side}²", "kFLOP a pixel")
    for name, parameters, macs in rows:
        table.add_row(name, f"{parameters / 1e6:.2f} M", f"{macs / 1e9:.2f} G", f"{2 * macs / side**2 / 1e3:.0f}")
    Console().print(table)
