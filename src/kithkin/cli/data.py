"""``kithkin data``."""

from pathlib import Path

import typer

from kithkin.cli._command import say
from kithkin.cli._options import AS_JSON, flag

data = typer.Typer(help="Data sets: list them, check yours, cut crops, pack shards.")


@data.command("list")
def list_sets(as_json: bool = flag("--json", "Print the cards as JSON.")) -> None:
    """List the data sets that kithkin knows, with their licences and where to get them. Downloads nothing."""
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
    name: str = typer.Argument(..., metavar="NAME", help="A name from `kithkin data list`."),
    folder: Path = typer.Argument(..., metavar="FOLDER", help="Folder of the data set, or one around it."),
    part: str = typer.Option(
        None, "--part", metavar="PART", help="train or test. Default: what the folder's name says, or test."
    ),
    quick: bool = flag("--quick", "Check names, numbers and headers, without decoding."),
    as_json: bool = AS_JSON,
) -> None:
    """Check a data set for files that are missing, damaged or duplicated. The exit code is 1 if it is not usable.

    kithkin data check gopro Datasets
    kithkin data check sidd SIDD_Medium_Srgb --quick
    """
    import json

    from kithkin.cli._progress import counting
    from kithkin.data import check_dataset

    with counting("check", quiet=as_json) as step:
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
    name: str = typer.Argument(
        ..., metavar="NAME", help="A name from `kithkin data list`, or pairs or photos for your own."
    ),
    folder: Path = typer.Argument(..., metavar="FOLDER", help="Folder of the data set, or one around it."),
    out: Path = typer.Option(..., "--out", "-o", metavar="FOLDER", help="Folder for the crops."),
    crop: int = typer.Option(None, "--crop", metavar="PIXELS", min=1, help="Width and height of a crop. Default: 512."),
    overlap: int = typer.Option(
        None,
        "--overlap",
        metavar="PIXELS",
        min=0,
        help="Pixels that neighbouring crops share. Default: 128 for SIDD, else 256, and half a crop at most.",
    ),
    part: str = typer.Option(None, "--part", metavar="PART", help="Part of the set. Default: train."),
    jobs: int = typer.Option(
        None, "--jobs", "-j", min=1, metavar="N", help="Number of processes. Default: one for each CPU."
    ),
) -> None:
    """Cut a training set into crops. After a stop, the same command continues.

    kithkin data prepare sidd SIDD_Medium_Srgb --out sidd-crops
    kithkin train sidd --data sidd-crops --out runs/sidd
    """
    from kithkin.cli._progress import counting
    from kithkin.data import CutOptions, cut_crops

    options = CutOptions(crop=crop, overlap=overlap, part=part, jobs=jobs)
    with counting("cut") as step:
        report = cut_crops(name, folder, out, options, report=step)
    for line in report.failed:
        say(line)
    earlier = f" ({report.skipped:,} were cut before)" if report.skipped else ""
    typer.echo(f"{report.crops:,} crops of {report.samples:,} pictures{earlier} in {out}")
    if report.failed:
        typer.echo(f"{len(report.failed):,} pictures gave none; mend them and run this again", err=True)
        raise typer.Exit(1)


@data.command("pack")
def pack(
    folders: list[Path] = typer.Argument(..., metavar="FOLDER", help="Folders of photographs, at any depth."),
    out: Path = typer.Option(..., "--out", "-o", metavar="FOLDER", help="Folder for the shards."),
    part_mb: float = typer.Option(28.0, "--part-mb", metavar="MB", help="Largest size of a shard."),
    parts: int = typer.Option(
        None, "--parts", min=1, metavar="N", help="Largest number of shards. Default: as many as needed."
    ),
    crop: int = typer.Option(
        None, "--crop", metavar="PIXELS", min=1, help="Cut squares of this width. Default: whole files."
    ),
    quality: int = typer.Option(92, "--quality", min=1, max=100, metavar="1..100", help="JPEG quality of the crops."),
    seed: int = typer.Option(0, "--seed", metavar="N", help="Seed of the random order of photographs."),
    exclude: Path = typer.Option(
        None,
        "--exclude",
        metavar="FILE",
        help="Text file that names photographs to leave out: FOLDER/FILE on each line.",
    ),
) -> None:
    """Pack photographs into tar shards of a given size, to train on another machine.

    kithkin data pack photos --out pack --part-mb 28 --crop 448
    kithkin train denoise-gaussian-tiny --data 'pack/part-{000..003}.tar' --out runs/packed
    """
    from kithkin.cli._progress import counting
    from kithkin.data import PackOptions, pack_photos
    from kithkin.data.left_out import read_names

    names = frozenset() if exclude is None else read_names(exclude)
    options = PackOptions(part_mb=part_mb, parts=parts, crop=crop, quality=quality, seed=seed, exclude=names)
    with counting("pack") as step:
        report = pack_photos(folders, out, options, report=step)
    for line in report.failed:
        say(line)
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


@data.command("index")
def index(
    shards: str = typer.Argument(
        ..., metavar="SHARDS", help="Path or URL of tar shards, such as `'photos-{000000..000007}.tar'`."
    ),
) -> None:
    """Write an index beside each tar shard, so that training opens distant shards faster.

    kithkin data index 's3://bucket/photos-{000000..000127}.tar'
    """
    from kithkin.data import write_indexes

    write_indexes(shards, lambda path, count: typer.echo(f"{path}: {count:,} pictures"))
