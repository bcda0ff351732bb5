"""``kithkin data``."""

from pathlib import Path

import typer

data = typer.Typer(help="The field's data sets: what they are, whether yours is complete, crops to train on.")


@data.command("list")
def list_sets(as_json: bool = typer.Option(False, "--json", help="Print the cards as JSON.")) -> None:
    """The data sets that kithkin knows, with their licences and where to get them; nothing is downloaded."""
    import json

    from kithkin.data import list_cards

    cards = list_cards().values()
    if as_json:
        typer.echo(json.dumps([card.model_dump() for card in cards], indent=1))
        return
    from rich.console import Console
    from rich.table import Column, Table

    table = Table("name", Column("what, how many, licence, from", overflow="fold"), show_lines=True)
    for card in cards:
        counts = [f"{' or '.join(f'{n:,}' for n in part.counts)} to {name}" for name, part in card.parts.items()]
        how = [card.task or "any task", card.kind, *counts, f"protocol {card.protocol}"]
        table.add_row(card.name, "\n".join((card.title, ", ".join(how), card.licence, card.url)))
    Console().print(table)


@data.command("check")
def check(
    name: str = typer.Argument(..., help="A name from `kithkin data list`."),
    folder: Path = typer.Argument(..., help="Where the data set lies, or a folder around it."),
    part: str = typer.Option(None, "--part", help="train or test; if none: what the folder's name says, or test."),
    quick: bool = typer.Option(False, "--quick", help="Names, numbers and headers alone; decode nothing."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """Say what a data set's folder holds, lacks, holds twice or damaged; exit code 1 where it is not as it should be.

    kithkin data check gopro Datasets
    kithkin data check sidd SIDD_Medium_Srgb --quick
    """
    import json

    from kithkin.cli._progress import progress_bar
    from kithkin.data import check_dataset

    with progress_bar(quiet=as_json) as bar:
        task = bar.add_task("check", total=None)

        def step(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        report = check_dataset(name, folder, part=part, quick=quick, report=step)
    if as_json:
        typer.echo(json.dumps(report.to_dict(), indent=1))
    else:
        typer.echo(f"{report.dataset} in {report.folder}: {report.layout or 'not recognised'}")
        for finding in report.findings:
            typer.echo(f"  {finding.level:8}{finding.text}")
        typer.echo("usable" if report.usable else "not usable as it is")
    raise typer.Exit(0 if report.usable else 1)


@data.command("prepare")
def prepare(
    name: str = typer.Argument(..., help="A name from `kithkin data list`; pairs or photos for your own."),
    folder: Path = typer.Argument(..., help="Where the data set lies, or a folder around it."),
    out: Path = typer.Option(..., "--out", "-o", help="Folder for the crops."),
    crop: int = typer.Option(None, "--crop", min=1, help="Side of a crop in pixels; if none: 512."),
    overlap: int = typer.Option(
        None, "--overlap", min=0, help="Of neighbours, in pixels; if none: 128 for SIDD, half a crop at most, else 256."
    ),
    part: str = typer.Option(None, "--part", help="Such as train, which is taken if none is given."),
    jobs: int = typer.Option(None, "--jobs", "-j", min=1, help="Processes; if none: one for each CPU."),
) -> None:
    """Cut a training set into crops, once; a run that was stopped goes on where it was.

    kithkin data prepare sidd SIDD_Medium_Srgb --out sidd-crops
    kithkin train sidd --data sidd-crops --out runs/sidd
    """
    from kithkin.cli._progress import progress_bar
    from kithkin.data import CutOptions, cut_crops

    options = CutOptions(crop=crop, overlap=overlap, part=part, jobs=jobs)
    with progress_bar() as bar:
        task = bar.add_task("cut", total=None)

        def step(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        report = cut_crops(name, folder, out, options, report=step)
    for line in report.failed:
        typer.echo(f"kithkin: {line}", err=True)
    earlier = f" ({report.skipped:,} were cut before)" if report.skipped else ""
    typer.echo(f"{report.crops:,} crops of {report.samples:,} pictures{earlier} in {out}")
    if report.failed:
        typer.echo(f"{len(report.failed):,} pictures gave none; mend them and run this again", err=True)
        raise typer.Exit(1)


@data.command("pack")
def pack(
    folders: list[Path] = typer.Argument(..., help="Folders of photographs, searched recursively."),
    out: Path = typer.Option(..., "--out", "-o", help="Folder for the parts."),
    part_mb: float = typer.Option(28.0, "--part-mb", help="Largest size of a part, in MB."),
    parts: int = typer.Option(None, "--parts", min=1, help="How many parts at most; if none: as many as it takes."),
    crop: int = typer.Option(None, "--crop", min=1, help="Cut crops of this side, in pixels; if none: whole files."),
    quality: int = typer.Option(92, "--quality", min=1, max=100, help="Of the JPEG that crops are stored as."),
    seed: int = typer.Option(0, "--seed", help="Of the order in which photographs are dealt to the parts."),
    exclude: Path = typer.Option(
        None, "--exclude", metavar="LIST", help="Text file of photographs to leave out: FOLDER/FILE, one a line."
    ),
) -> None:
    """Pack photographs into tar shards of a given size, to train on another machine.

    kithkin data pack photos --out pack --part-mb 28 --crop 448
    kithkin train denoise-tiny --data 'pack/part-{000..003}.tar' --out runs/packed
    """
    from kithkin.cli._progress import progress_bar
    from kithkin.data import PackOptions, pack_photos

    names = frozenset() if exclude is None else _names_in(exclude)
    options = PackOptions(part_mb=part_mb, parts=parts, crop=crop, quality=quality, seed=seed, exclude=names)
    with progress_bar() as bar:
        task = bar.add_task("pack", total=None)

        def step(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        report = pack_photos(folders, out, options, report=step)
    for line in report.failed:
        typer.echo(f"kithkin: {line}", err=True)
    typer.echo(f"{report.pictures:,} pictures in {len(report.parts):,} parts in {out}")
    if exclude is not None:
        typer.echo(f"Left out: {report.excluded:,} photographs that {exclude} names")
    if report.small:
        typer.echo(f"Left out: {report.small:,} photographs smaller than a crop")
    if report.left_out:
        typer.echo(f"Left out: {report.left_out:,} pictures for which the parts had no room")
    if report.failed:
        typer.echo(f"Left out: {len(report.failed):,} files that can't be read", err=True)
        raise typer.Exit(1)


def _names_in(path: Path) -> frozenset[str]:
    """The names of a list, one a line; of a table, its first column."""
    from kithkin.errors import InputError

    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"pack: {path} can't be read as a list of names ({error}); give a text file") from error
    return frozenset(line.partition("\t")[0].strip() for line in lines if line.strip())


@data.command("index")
def index(
    shards: str = typer.Argument(..., help="Path or URL of tar shards, such as `'photos-{000000..000007}.tar'`."),
) -> None:
    """Write an index beside every tar shard, so that a run need not look through them: what counts far away.

    kithkin data index 's3://bucket/photos-{000000..000127}.tar'
    """
    from kithkin.data import write_indexes

    write_indexes(shards, lambda path, count: typer.echo(f"{path}: {count:,} pictures"))
