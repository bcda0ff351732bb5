"""``kithkin restore``."""

from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from kithkin.errors import InputError, KithkinError

if TYPE_CHECKING:
    from kithkin.cli._batch import Reporter
    from kithkin.model import KiT
    from kithkin.restore_options import RestoreOptions
    from kithkin.restore_plan import Plan

EPILOG = """\
Examples:

`kithkin restore photo.jpg` writes photo-restored.jpg beside it.

`kithkin restore trip scan.png --out done --compare` restores the pictures of a folder, and a file, into done.

`kithkin restore s3://archive/scans --out s3://archive/done --cluster auto` restores a whole archive with many workers.
"""


class Ending(StrEnum):
    """The formats that results are written in."""

    PNG = "png"
    JPG = "jpg"
    WEBP = "webp"
    TIFF = "tiff"
    BMP = "bmp"


# Text, not paths: a URL would lose one of its slashes.
Paths = Annotated[
    list[str],
    typer.Argument(
        metavar="IN",
        help="Pictures (PNG, JPEG, WebP, TIFF, BMP), and folders of them at any depth; with --cluster also as URLs.",
    ),
]
Out = Annotated[
    str | None,
    typer.Option(
        "--out",
        "-o",
        metavar="PATH",
        help="A folder for the results, or a file name where IN is one file. Without it, photo.jpg gives "
        "photo-restored.jpg beside it, and the folder trip gives trip-restored.",
        show_default=False,
    ),
]
Model = Annotated[str, typer.Option("--model", "-m", help="A name from `kithkin models`, or a checkpoint's path.")]
Tile = Annotated[
    str,
    typer.Option(
        metavar="auto|N|off",
        help="Restore large pictures in tiles: auto takes sides of at most 768 pixels (1024 on a GPU), a number sets "
        "the side (64 or more; smaller needs less memory), off restores each picture in one pass.",
    ),
]
Overlap = Annotated[int, typer.Option(metavar="PIXELS", help="What neighbouring tiles share, to blend them.")]
Strength = Annotated[float, typer.Option(metavar="0..1", help="1 is fully restored, 0 the input, 0.5 half of both.")]
Ensemble = Annotated[
    int,
    typer.Option(
        metavar="1|2|4|8", help="Passes over turned and mirrored copies, averaged: better, and that much slower."
    ),
]
UniformBlur = Annotated[
    str | None,
    typer.Option(
        metavar="light|stored",
        help="With --model deblur, where the whole picture is blurred alike, as by a hand that shook: find that blur "
        "and undo it. Far better where it holds, else left out. light for a camera's pictures, stored for test sets.",
        show_default=False,
    ),
]
Sigma = Annotated[
    float | None,
    # Programs of others ask for it, so whoever gives it is told; the help does not offer it.
    typer.Option(metavar="0..255", hidden=True, show_default=False),
]
Device = Annotated[
    str | None,
    typer.Option(help="Such as cpu or cuda; without it, the GPU where there is one.", show_default=False),
]
Backend = Annotated[
    str | None,
    typer.Option(
        help="How attention is computed, a name from `kithkin doctor`; without it, the fastest that works.",
        show_default=False,
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace results that exist; else they are skipped.")]
Format = Annotated[
    Ending | None,
    typer.Option("--format", help="Format of the results; without it, that of each input.", show_default=False),
]
Quality = Annotated[
    int | None,
    typer.Option(
        metavar="1..100",
        help="Of JPEG results, 95 without it; WebP results become lossy with it. Other formats lose nothing.",
        show_default=False,
    ),
]
Compare = Annotated[bool, typer.Option("--compare", help="Also write NAME-compare.png: before and after.")]
Cluster = Annotated[
    str | None,
    typer.Option(
        metavar="auto|ADDRESS",
        help="Restore with the workers of a Ray cluster (extra `cluster`); auto joins one, or starts one here.",
        show_default=False,
        rich_help_panel="Many workers",
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        help="How many; without it, one a GPU, or one a CPU.", show_default=False, rich_help_panel="Many workers"
    ),
]
Batch = Annotated[
    int,
    typer.Option(
        help="Small pictures of equal size that a worker restores at once: quicker, but roundings differ from 1.",
        rich_help_panel="Many workers",
    ),
]
ManifestFile = Annotated[
    str | None,
    typer.Option(
        "--manifest",
        metavar="FILE",
        help="Where to list every input with its output, status, seconds and error: a path or URL ending in .csv or "
        ".parquet; without it, kithkin-manifest.csv in --out, or here.",
        show_default=False,
        rich_help_panel="Many workers",
    ),
]
Strict = Annotated[
    bool, typer.Option("--strict", help="Exit with 1 also where a picture was skipped, not only where one failed.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object a file, instead of `in -> out`.")]


def restore(
    paths: Paths,
    out: Out = None,
    model: Model = "denoise-real",
    tile: Tile = "auto",
    overlap: Overlap = 32,
    strength: Strength = 1.0,
    ensemble: Ensemble = 1,
    uniform_blur: UniformBlur = None,
    sigma: Sigma = None,
    device: Device = None,
    backend: Backend = None,
    overwrite: Overwrite = False,
    ending: Format = None,
    quality: Quality = None,
    compare: Compare = False,
    strict: Strict = False,
    as_json: AsJson = False,
    cluster: Cluster = None,
    workers: Workers = None,
    batch: Batch = 1,
    manifest: ManifestFile = None,
) -> None:
    """Restore pictures: remove their noise, or what else the model was trained for.

    The inputs are never changed. Bit depth, transparency, colour profile and EXIF (except in TIFF) are kept.

    A file that fails is named with the reason, and the others go on. Exit code: 0, 1 where a file failed, 2 for a
    wrong command, 130 after Ctrl-C.
    """
    with _exit_codes():
        from kithkin.cli._batch import Reporter
        from kithkin.restore_options import RestoreOptions
        from kithkin.restore_plan import plan_files

        # What is wrong is said before PyTorch is loaded, which takes seconds.
        _check(paths, out, {"sigma": sigma, "cluster": cluster, "compare": compare}, (workers, manifest, batch))
        options = RestoreOptions(
            tile=_side(tile),
            overlap=overlap,
            strength=strength,
            ensemble=ensemble,
            uniform_blur=uniform_blur,
            quality=quality,
            overwrite=overwrite,
        )
        if uniform_blur is not None:
            _check_deblurs(model)
        if cluster is not None:
            from kithkin.cli._cluster import restore_with

            pool = {"address": cluster, "workers": workers, "device": device, "backend": backend, "batch": batch}
            places = {"sources": paths, "out": out, "ending": ending, "manifest": manifest}
            reporter = restore_with(pool, model, places, options, as_json)
        else:
            plan = plan_files(paths, out=out, ending=ending, compare=compare, overwrite=overwrite)
            reporter = Reporter(as_json=as_json)
            _run(_network(model, device, backend), plan, options, reporter)
    if code := reporter.exit_code(strict=strict):
        raise typer.Exit(code)


@contextmanager
def _exit_codes() -> Iterator[None]:
    """Turn what keeps the command from running into one line and exit code 2, and Ctrl-C into 130."""
    try:
        yield
    except KithkinError as error:
        typer.echo(f"kithkin: {error}", err=True)
        raise typer.Exit(2) from error
    except KeyboardInterrupt as error:
        typer.echo("kithkin: stopped; what was written so far is complete", err=True)
        raise typer.Exit(130) from error


def _check(
    paths: list[str], out: str | None, given: dict[str, object], of_cluster: tuple[int | None, str | None, int]
) -> None:
    """Raise InputError for options that no model takes, or that don't go together."""
    if given["sigma"] is not None:
        raise InputError("--sigma: the model is blind: it finds the noise level itself and takes no hint; leave it out")
    if given["cluster"] is not None:
        if given["compare"]:
            raise InputError("--cluster writes results alone, so that one that exists is complete; leave --compare out")
        return
    workers, manifest, batch = of_cluster
    options = {"--workers": workers is not None, "--manifest": manifest is not None, "--batch": batch != 1}
    refused = [name for name, set_ in options.items() if set_] + [p for p in (*paths, out or "") if "://" in p]
    if refused:
        raise InputError(f"restore: {', '.join(refused)}: only with --cluster; add --cluster auto, or leave it out")


def _check_deblurs(name: str) -> None:
    """Raise InputError where a shipped model is for something else than blur."""
    from kithkin.zoo import find_model

    card = find_model(name)
    if card is not None and card.task != "deblur":
        raise InputError(f"--uniform-blur: {card.name} is for {card.task}; add --model deblur, or leave it out")


def _side(tile: str) -> str | int:
    return int(tile) if tile.removeprefix("-").isdecimal() else tile


def _network(name: str, device: str | None, backend: str | None) -> "KiT":
    from kithkin.cli._device import choose_device
    from kithkin.ops import available_backends
    from kithkin.zoo import load_model

    device = choose_device(device)
    if backend is not None:
        reasons = available_backends(device)
        if backend not in reasons:
            raise InputError(f"--backend: there is no {backend!r}; there are {', '.join(reasons)}")
        if reasons[backend] is not None:
            raise InputError(f"--backend {backend}: {reasons[backend]}; leave it out, or take another")
    return load_model(name, device=device).set_backend(backend)


def _run(network: "KiT", plan: "Plan", options: "RestoreOptions", reporter: "Reporter") -> None:
    """Restore, and report each file as soon as it is known."""
    from kithkin.cli._batch import BatchProgress, say_before
    from kithkin.images._picture import shown
    from kithkin.restore_files import estimate_for, look_ahead, restore_files

    plan, pixels = look_ahead(plan, options)
    total = len(plan.settled) + len(plan.jobs)
    for outcome in plan.settled:
        reporter.tell(outcome)
    estimate = estimate_for(network, sum(pixels), options)
    say_before(pixels, estimate)
    with BatchProgress(pixels, estimate, len(plan.settled)) as progress:

        def advance(part: float) -> None:
            progress.advance(part, shown(plan.jobs[progress.done].source))

        for outcome in restore_files(network, plan.jobs, options=options, progress=advance):
            reporter.tell(outcome)
            progress.finish(outcome.seconds if outcome.status == "written" else 0.0)
    reporter.tell_repeated()
    reporter.tell_foreign(plan.foreign)
    if reporter.counts["failed"] and total > 1:
        typer.echo(f"kithkin: {reporter.counts['failed']} of {total} failed: the reasons are above", err=True)
