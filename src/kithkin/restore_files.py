"""Restore picture files: one, or many. If one fails, the others continue."""

import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from kithkin.errors import ImageError, InputError, KithkinError
from kithkin.estimate import Estimate
from kithkin.images import MAX_PIXELS, Picture, check_fits, losses, measure_picture, read_picture, write_picture
from kithkin.messages import os_reason, shown
from kithkin.model import KiT
from kithkin.precision import settled_precision
from kithkin.restore_options import RestoreOptions as RestoreOptions
from kithkin.restore_plan import Job as Job, Outcome as Outcome, Plan as Plan, plan_files as plan_files
from kithkin.restorers import Progress, Restorer, out_of_memory, restore_image, silent

_GAP = 8
_HEADER = 2**18  # bytes in which nearly every picture says its size
_WORTH_A_TRIAL = 16_000_000  # pixels


def restore_file(
    model: KiT | Restorer,
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    options: RestoreOptions | None = None,
    compare: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> tuple[str, ...]:
    """Restore one picture file into another, which appears complete or not at all; missing folders
    are made.

    Args:
        model: the network, or another restorer.
        source: the picture.
        target: where the result goes; its ending names the format.
        options: how; None takes the defaults.
        compare: where to write before and after side by side, 8 bit RGB; None for nowhere.
        progress: called with the finished fraction in [0, 1].

    Returns:
        Sentences on what was changed or lost; depth, alpha and metadata stay if the format has
        them.

    Raises:
        ImageError: the source can't be read, a file that is to be written exists already (without
            ``overwrite``) or can't be written.
        InputError: a file that is to be written is the source, or both are one.
        KithkinError: the memory does not suffice.
    """
    options = options or RestoreOptions()
    outputs = [Path(place) for place in (target, compare) if place is not None]
    taken = {os.path.realpath(source): "its own input"}
    for output in outputs:
        if (place := os.path.realpath(output)) in taken:
            raise InputError(f"restore: {shown(output)} would replace {taken[place]}; choose another place for it")
        taken[place] = "the result"
    picture = read_picture(source)
    height, width = picture.pixels.shape[:2]
    for output, columns in zip(outputs, (width, 2 * width + _GAP), strict=False):
        check_fits(columns, height, output)
    notes = [*picture.notes, *losses(picture, target)]
    for output in outputs:
        make_room(output, options.overwrite)
    restorer = options.compose(model, note=notes.append)
    result = restore_image(restorer, picture, progress=progress or silent, note=notes.append)
    if compare is not None:  # First, for a run that is stopped and repeated passes over what has a result.
        write_picture(side_by_side(picture, result), compare, overwrite=options.overwrite)
    write_picture(result, target, overwrite=options.overwrite, quality=options.quality)
    return tuple(notes)


def make_room(target: Path, overwrite: bool) -> None:
    """Make the target's folder; raise ImageError if that fails, or if the target must stay."""
    if not overwrite and os.path.lexists(target):
        raise ImageError(f"{shown(target)}: exists already; choose another name, or allow `overwrite`")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ImageError(f"{shown(target)}: can't be written: its folder can't be made: {os_reason(error)}") from error


def restore_files(
    model: KiT | Restorer,
    jobs: Iterable[Job],
    *,
    options: RestoreOptions | None = None,
    progress: Progress | None = None,
) -> Iterator[Outcome]:
    """Restore files one after the other, and go on after those that fail.

    Args:
        model: the network, or another restorer.
        jobs: from ``plan_files``.
        options: how; None takes the defaults. Without ``overwrite``, jobs whose target exists are
            skipped.
        progress: called with the finished fraction of the current file.

    Yields:
        The outcome of each job, as soon as it is known.
    """
    options = options or RestoreOptions()
    precision = settled_precision(options.precision, model)
    for job in jobs:
        if not options.overwrite and os.path.lexists(job.target):
            reason = f"{shown(job.target)}: exists already, so it is left as it is; allow `overwrite` to replace it"
            yield Outcome(job.source, "skipped", job.target, reason=reason)
            continue
        start = time.perf_counter()
        try:
            notes = restore_file(model, job.source, job.target, options=options, compare=job.compare, progress=progress)
        except (KithkinError, OSError, MemoryError, RuntimeError) as error:
            reason = failure_reason(error, job.source)
            yield Outcome(job.source, "failed", job.target, reason=reason, seconds=time.perf_counter() - start)
            continue
        seconds = time.perf_counter() - start
        yield Outcome(
            job.source,
            "written",
            job.target,
            job.compare,
            notes=(*job.notes, *notes),
            seconds=seconds,
            precision=precision,
        )


def look_ahead(plan: Plan, options: RestoreOptions) -> tuple[Plan, list[int]]:
    """Read the header of every picture of a plan.

    Returns:
        The plan, with the pictures that are too large for the format of their results settled as
        failed; and the pixels of each job that is left, 0 where it will be skipped or refused.
    """
    jobs, pixels, failed = [], [], []
    for job in plan.jobs:
        width, height = _size_by_header(job, options)
        try:
            check_fits(width, height, job.target)
        except ImageError as error:
            failed.append(Outcome(job.source, "failed", job.target, reason=str(error)))
            continue
        jobs.append(job)
        pixels.append(width * height if width * height <= MAX_PIXELS else 0)
    return replace(plan, jobs=tuple(jobs), settled=(*plan.settled, *failed)), pixels


def _size_by_header(job: Job, options: RestoreOptions) -> tuple[int, int]:
    """(width, height) of a picture; (0, 0) where it is not needed or not known."""
    if not os.path.isfile(job.source) or (not options.overwrite and os.path.lexists(job.target)):
        return 0, 0  # Not a regular file: opening a pipe would block.
    try:
        with open(job.source, "rb") as file:
            head = file.read(_HEADER)
            try:
                return measure_picture(head, job.source)
            except ImageError:  # A TIFF file may say its size at its end.
                return measure_picture(head + file.read(), job.source)
    except (KithkinError, OSError, ValueError, MemoryError):  # Whoever reads it will say what is wrong.
        return 0, 0


def estimate_for(model: KiT | Restorer, pixels: int, options: RestoreOptions) -> Estimate:
    """Return an estimate of the seconds of a picture, for many pixels from a short trial."""
    estimate = Estimate(per_pixel=3e-6 * options.cost)
    if pixels < _WORTH_A_TRIAL:
        return estimate
    trial = np.full((256, 256, 3), 128, np.uint8)
    restorer = options.compose(model, note=lambda sentence: None)
    for _ in range(2):  # The first call also loads and compiles.
        start = time.perf_counter()
        restore_image(restorer, trial)
        seconds = time.perf_counter() - start
    estimate.observe(trial.shape[0] * trial.shape[1], seconds)
    return estimate


def failure_reason(error: Exception, source: str | Path) -> str:
    """Return one line that begins with the path at fault; raise the error again if it is a bug."""
    if isinstance(error, ImageError):
        return str(error)
    if out_of_memory(error):
        return f"{shown(source)}: does not fit in the memory; crop it or scale it down first"
    if isinstance(error, RuntimeError) and not isinstance(error, KithkinError):
        raise error
    return f"{shown(source)}: {error}"


def side_by_side(before: Picture, after: Picture) -> Picture:
    """Return two pictures side by side, 8 bit RGB, over white, with a thin white gap between."""
    height = before.pixels.shape[0]
    gap = np.ones((height, _GAP, 3), np.float32)
    gray_profile = before.icc is not None and before.icc[16:20] == b"GRAY"
    return Picture(np.hstack([before.over_white(), gap, after.over_white()]), icc=None if gray_profile else before.icc)
