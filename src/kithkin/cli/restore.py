"""``kithkin restore``."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import typer

from kithkin.cli._command import say
from kithkin.cli._options import BACKEND, DEVICE, flag, tile_side
from kithkin.errors import InputError, KithkinError

if TYPE_CHECKING:
    from kithkin.cli._batch import BatchProgress, Reporter
    from kithkin.restore_options import RestoreOptions
    from kithkin.restore_plan import Plan
    from kithkin.zoo import OpenedModel

EPILOG = """\
Examples:

`kithkin restore photo.jpg` writes photo-restored.jpg beside it.

`kithkin restore trip scan.png --out done --compare` restores a folder and a file into the folder done.

`kithkin restore s3://archive/scans --out s3://archive/done --cluster auto` restores an archive with many workers.
"""


WORKERS = "Many workers"  # the part of the help


def restore(
    paths: list[str] = typer.Argument(  # Text, not paths: a URL would lose one of its slashes.
        ...,
        metavar="IN",
        help="Pictures (PNG, JPEG, WebP, TIFF, BMP; with the extra `photo` HEIC, AVIF, camera raw), or "
        "folders of them, at any depth. With --cluster also URLs.",
    ),
    out: str = typer.Option(
        None,
        "--out",
        "-o",
        metavar="PATH",
        help="Folder for the results, or a file name if IN is one file. Default: photo-restored.jpg beside "
        "photo.jpg, and trip-restored beside the folder trip.",
    ),
    model: str = typer.Option(
        "denoise",
        "--model",
        "-m",
        metavar="MODEL",
        help="denoise (camera noise, film grain), derain or deblur; another name from `kithkin models`; bm3d, nlm; "
        "or a checkpoint, .onnx or TorchScript file.",
    ),
    tile: str = typer.Option(
        "auto",
        "--tile",
        metavar="auto|N|off",
        help="Width of tiles for large pictures, from 64; smaller ones need less memory. auto: 768 (1024 on a GPU). "
        "off: each picture in one pass.",
    ),
    overlap: int = typer.Option(
        32, "--overlap", metavar="PIXELS", help="Pixels that neighbouring tiles share, where they are blended."
    ),
    strength: float = typer.Option(
        1.0, "--strength", metavar="0..1", help="How much to restore: 1 fully, 0 not at all, 0.5 half."
    ),
    preset: str = typer.Option(
        None,
        "--preset",
        metavar="strong|natural|keep-grain",
        help="strong: all noise goes. natural: some texture stays. keep-grain: half of the grain stays. "
        "Default: natural for denoise-small and denoise-tiny, else strong.",
    ),
    luma: float = typer.Option(
        None, "--luma", metavar="0..1", help="How much of the grain (luminance) to remove. Default: by --preset."
    ),
    chroma: float = typer.Option(
        None, "--chroma", metavar="0..1", help="How much of the colour speckle to remove. Default: by --preset."
    ),
    detail: float = typer.Option(
        None,
        "--detail",
        metavar="0..1",
        help="How much fine texture to bring back that went with the noise. Default: by --preset.",
    ),
    ensemble: int = typer.Option(
        1,
        "--ensemble",
        metavar="1|2|4|8",
        help="Average this many passes over turned and mirrored copies: better, and that much slower.",
    ),
    uniform_blur: str = typer.Option(
        None,
        "--uniform-blur",
        metavar="light|stored",
        help="With --model deblur: estimate one blur for the whole picture, as from a shaking hand, and undo it. "
        "light for photographs, stored for test sets.",
    ),
    precision: str = typer.Option(
        "auto",
        "--precision",
        metavar="auto|float32|bfloat16",
        help="Number format of the network. auto: bfloat16 if the device is fast with it and the model loses nothing "
        "visible, else float32.",
    ),
    # Other programs ask for it, so whoever gives it is told; the help does not offer it.
    sigma: float = typer.Option(None, "--sigma", metavar="0..255", hidden=True),
    device: str = DEVICE,
    backend: str = BACKEND,
    overwrite: bool = flag("--overwrite", "Replace results that exist. Without it, they are skipped."),
    ending: Literal["png", "jpg", "webp", "tiff", "bmp", "heic", "avif"] = typer.Option(
        None,
        "--format",
        metavar="png|jpg|webp|tiff|bmp|heic|avif",
        help="Format of the results. Default: that of each input, and TIFF for camera raw.",
    ),
    quality: int = typer.Option(
        None,
        "--quality",
        metavar="1..100",
        help="Quality of JPEG, HEIC and AVIF results, 95 by default. Makes WebP results lossy. Other formats lose "
        "nothing.",
    ),
    compare: bool = flag("--compare", "Also write NAME-compare.png: before and after, side by side."),
    strict: bool = flag("--strict", "Exit with 1 also if a picture was skipped."),
    as_json: bool = flag("--json", "Print one JSON object for each file, instead of `in -> out`."),
    cluster: str = typer.Option(
        None,
        "--cluster",
        metavar="auto|ADDRESS",
        help="Restore with the workers of a Ray cluster (extra `cluster`). auto joins one, or starts one here.",
        rich_help_panel=WORKERS,
    ),
    workers: int = typer.Option(
        None,
        "--workers",
        metavar="N",
        help="Number of workers. Default: one for each GPU, or for each CPU if there is none.",
        rich_help_panel=WORKERS,
    ),
    batch: int = typer.Option(
        1,
        "--batch",
        metavar="N",
        help="Restore up to N small pictures of equal size at once: quicker, but rounded differently.",
        rich_help_panel=WORKERS,
    ),
    manifest: str = typer.Option(
        None,
        "--manifest",
        metavar="FILE",
        help="List every input with its output, status, seconds, error, model and precision in this file or URL, "
        ".csv or .parquet. Default: kithkin-manifest.csv in --out, or here.",
        rich_help_panel=WORKERS,
    ),
) -> None:
    """Restore photographs: remove noise or, with another --model, rain or blur.

    Your files are never changed. Results keep bit depth, transparency, colour profile and metadata.

    If a file fails, the reason is printed and the others continue. Exit codes: 0,
    1 if a file failed, 2 for a wrong command, 130 after Ctrl-C.
    """
    with _exit_codes():
        from kithkin.cli._batch import Reporter
        from kithkin.restore_options import RestoreOptions
        from kithkin.restore_plan import plan_files

        # What is wrong is said before PyTorch is loaded, which takes seconds.
        if sigma is not None:
            raise InputError("--sigma: the models find the noise level themselves; leave it out")
        cluster_only = {"--workers": workers is not None, "--manifest": manifest is not None, "--batch": batch != 1}
        cluster_only |= {place: "://" in place for place in (*paths, out or "")}
        _check_cluster(cluster is not None, compare, cluster_only)
        options = RestoreOptions(
            tile=tile_side(tile),
            overlap=overlap,
            strength=strength,
            preset=preset,
            luma=luma,
            chroma=chroma,
            detail=detail,
            ensemble=ensemble,
            uniform_blur=uniform_blur,
            precision=precision,
            quality=quality,
            overwrite=overwrite,
        )
        if cluster is not None:
            options = _for_model(model, options)
            from kithkin.cli._cluster import restore_with

            pool = {"address": cluster, "workers": workers, "device": device, "backend": backend, "batch": batch}
            places = {"sources": paths, "out": out, "ending": ending}
            reporter = restore_with(pool, model, places, manifest, options, as_json)
        else:
            plan = plan_files(paths, out=out, ending=ending, compare=compare, overwrite=overwrite)
            options = _for_model(model, options)  # loads PyTorch, so it comes after the plan
            opened = _open(model, device, backend)
            from kithkin.restore_files import look_ahead, restore_files

            reporter = Reporter(as_json=as_json, model=opened.name)
            plan, pixels = look_ahead(plan, options)
            with _reported(plan, pixels, opened, options, reporter) as progress:
                for outcome in restore_files(opened.network, plan.jobs, options=options, progress=progress.advance):
                    reporter.tell(outcome)
                    progress.finish(outcome.seconds if outcome.status == "written" else 0.0)
    if code := reporter.exit_code(strict=strict):
        raise typer.Exit(code)


@contextmanager
def _exit_codes() -> Iterator[None]:
    """Turn what keeps the command from running into one line and exit code 2, and Ctrl-C into 130."""
    try:
        yield
    except KithkinError as error:
        say(error)
        raise typer.Exit(2) from error
    except KeyboardInterrupt as error:
        say("stopped; what was written so far is complete")
        raise typer.Exit(130) from error


def _check_cluster(cluster: bool, compare: bool, cluster_only: dict[str, bool]) -> None:
    """Raise InputError for options and URLs that go only with --cluster, or not with it."""
    if cluster and compare:
        raise InputError("--cluster writes results alone, so that one that exists is complete; leave --compare out")
    refused = [name for name, given in cluster_only.items() if given]
    if refused and not cluster:
        raise InputError(f"restore: {', '.join(refused)}: only with --cluster; add --cluster auto, or leave it out")


def _for_model(name: str, options: "RestoreOptions") -> "RestoreOptions":
    """The options with the preset of a shipped model; InputError where it is for something else than they are."""
    from kithkin.zoo import find_model, split_grouping

    card = find_model(split_grouping(name)[0])
    return options if card is None else options.for_model(card.name, card.task)


def _open(name: str, device: str | None, backend: str | None) -> "OpenedModel[Any]":
    from kithkin.cli._device import choose_device
    from kithkin.methods import open_restorer
    from kithkin.model import KiT
    from kithkin.ops import available_backends

    device = choose_device(device)
    if backend is not None:
        reasons = available_backends(device)
        if backend not in reasons:
            raise InputError(f"--backend: there is no {backend!r}; there are {', '.join(reasons)}")
        if reasons[backend] is not None:
            raise InputError(f"--backend {backend}: {reasons[backend]}; leave it out, or take another")
    opened = open_restorer(name, device=device, note=say)
    if isinstance(opened.network, KiT):
        opened.network.set_backend(backend)
    elif backend is not None:
        raise InputError(f"--backend: {opened.name} has no attention of kithkin's; leave it out")
    if opened.remark:
        say(opened.remark)
    return opened


@contextmanager
def _reported(
    plan: "Plan", pixels: list[int], opened: "OpenedModel[Any]", options: "RestoreOptions", reporter: "Reporter"
) -> Iterator["BatchProgress"]:
    """Say what is known before the pictures of a plan are restored, show how far they are, and sum up at the end."""
    from kithkin.cli._batch import BatchProgress, say_before
    from kithkin.messages import shown
    from kithkin.restore_files import estimate_for

    total = len(plan.settled) + len(plan.jobs)
    for outcome in plan.settled:
        reporter.tell(outcome)
    # Composed here for its notes alone: they hold for all pictures, so they are printed once, before the work.
    options.compose(opened.network, note=reporter.warn)
    estimate = estimate_for(opened.network, sum(pixels), options)
    say_before(pixels, estimate)
    names = [shown(job.source) for job in plan.jobs]
    with BatchProgress(pixels, estimate, len(plan.settled), names) as progress:
        yield progress
    reporter.tell_repeated()
    reporter.tell_foreign(plan.foreign)
    if reporter.counts["failed"] and total > 1:
        say(f"{reporter.counts['failed']} of {total} failed: the reasons are above")
