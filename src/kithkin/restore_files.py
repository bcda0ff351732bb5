"""Restoring picture files: which file goes where, one file, and many of which each may fail alone."""

import mimetypes
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kithkin.deconvolution import check_curve
from kithkin.ensemble import check_ensemble
from kithkin.errors import ImageError, InputError, KithkinError
from kithkin.images import SUFFIXES, Picture, find_pictures, losses, read_picture, write_picture
from kithkin.images._picture import os_reason, shown
from kithkin.model import KiT
from kithkin.restoration import OVERLAP, check_strength, check_tiling, out_of_memory, restore

ENDINGS = {"png": ".png", "jpg": ".jpg", "webp": ".webp", "tiff": ".tiff", "bmp": ".bmp"}
"""Names of the formats that results can be written in, with the ending of their files."""
_GAP = 8


@dataclass(frozen=True)
class RestoreOptions:
    """How files are restored and written.

    Attributes:
        tile, overlap, strength, ensemble, uniform_blur: as in ``kithkin.restoration.restore``.
        quality: of JPEG files, 1 to 100.
        overwrite: replace results that exist already.

    Raises:
        InputError: a value is out of range.
    """

    tile: str | int = "auto"
    overlap: int = OVERLAP
    strength: float = 1.0
    ensemble: int = 1
    uniform_blur: str | None = None
    quality: int = 95
    overwrite: bool = False

    def __post_init__(self) -> None:
        check_tiling(self.tile, self.overlap)
        check_strength(self.strength)
        check_ensemble(self.ensemble)
        if self.uniform_blur is not None:
            check_curve(self.uniform_blur)
        if isinstance(self.quality, bool) or not isinstance(self.quality, int) or not 1 <= self.quality <= 100:
            raise InputError(f"restore: quality must be a whole number from 1 to 100, got {self.quality!r}")


@dataclass(frozen=True)
class Job:
    """One file to restore: where it is, where the result goes, and where before and after side by side, if wanted."""

    source: Path
    target: Path
    compare: Path | None = None

    @property
    def outputs(self) -> tuple[Path, ...]:
        """The files that the job writes."""
        return (self.target,) if self.compare is None else (self.target, self.compare)


@dataclass(frozen=True)
class Outcome:
    """What became of one input.

    Attributes:
        source: the input, a file or a folder; text where it may be a URL.
        status: ``"written"``, ``"skipped"`` or ``"failed"``.
        target: where the result is, or would have gone; None for a folder that gave no file.
        compare: where before and after are side by side; None where they are not.
        reason: why it was skipped or failed, one line that begins with a path; None where it was written.
        notes: sentences on what was lost or done differently.
        seconds: that it took.
    """

    source: str | Path
    status: str
    target: str | Path | None = None
    compare: Path | None = None
    reason: str | None = None
    notes: tuple[str, ...] = ()
    seconds: float = 0.0


@dataclass(frozen=True)
class Plan:
    """The files to restore, in order, and the inputs that are settled already because they give no job."""

    jobs: tuple[Job, ...]
    settled: tuple[Outcome, ...] = ()


def plan_files(
    sources: Sequence[str | os.PathLike[str]],
    *,
    out: str | os.PathLike[str] | None = None,
    ending: str | None = None,
    compare: bool = False,
    overwrite: bool = False,
) -> Plan:
    """Decide where the result of every input goes, before anything is read or written.

    A file ``photo.jpg`` gives ``photo-restored.jpg`` beside it; a folder ``trip`` gives ``trip-restored`` beside it,
    with the same names and folders inside. A file without a picture's ending gives a PNG.

    Args:
        sources: files and folders; a file that is named twice counts once.
        out: a folder for the results, made when it is needed; or the result's file name where the only input is a file.
        ending: a name in ENDINGS, the format of all results; None keeps each input's.
        compare: also write ``<name>-compare.png`` next to each result.
        overwrite: results may replace files (but never an input).

    Returns:
        The plan. A folder without pictures is settled as failed, and an input that is itself the result of another
        input, as when a wildcard is used a second time, as skipped.

    Raises:
        InputError: no inputs, an unknown ending, two results in one place, or a result in the place of an input.
    """
    paths = list(dict.fromkeys(Path(source) for source in sources))
    if not paths:
        raise InputError("restore: there is nothing to restore; name at least one file or folder")
    suffix = _suffix(ending)
    out = None if out is None else Path(out)
    named = out is not None and _names_a_file(out, paths, suffix)
    jobs: dict[tuple[str, str], Job] = {}
    settled = []
    for path in paths:
        try:
            targets = _folder_targets(path, out, suffix) if os.path.isdir(path) else {path: _beside(path, out, suffix)}
        except ImageError as error:
            settled.append(Outcome(path, "failed", reason=str(error)))
            continue
        for source, target in targets.items():
            target = out if named and out is not None else target
            side = target.with_name(f"{(target if named else source).stem}-compare.png") if compare else None
            jobs.setdefault((os.path.realpath(source), os.path.realpath(target)), Job(source, target, side))
    _check_outputs(list(jobs.values()))
    kept, results = _without_results(list(jobs.values()), overwrite)
    return Plan(tuple(kept), (*settled, *results))


def _suffix(ending: str | None) -> str | None:
    if ending is not None and ending not in ENDINGS:
        raise InputError(f"restore: the format must be one of {', '.join(ENDINGS)}, got {ending!r}")
    return None if ending is None else ENDINGS[ending]


def _names_a_file(out: Path, paths: list[Path], suffix: str | None) -> bool:
    """Whether `out` is the result's file name rather than a folder; raise InputError where it can't be one."""
    kind = mimetypes.guess_type(out.name)[0] or ""
    if os.path.isdir(out) or not (os.path.lexists(out) or out.suffix.lower() in SUFFIXES or kind.startswith("image/")):
        return False
    if out.suffix.lower() not in SUFFIXES:
        raise InputError(
            f"restore: {shown(out)} is no folder, and kithkin writes only {', '.join(SUFFIXES)}; choose another name"
        )
    if len(paths) > 1 or os.path.isdir(paths[0]):
        raise InputError(f"restore: {shown(out)} is a file name, but the inputs give several results; name a folder")
    same = {".jpeg": ".jpg", ".tif": ".tiff"}
    if suffix is not None and same.get(out.suffix.lower(), out.suffix.lower()) != suffix:
        raise InputError(f"restore: {shown(out)} does not end in {suffix} as the format asks; leave one of them out")
    return True


def beside(path: str | os.PathLike[str]) -> Path:
    """Where the result of a file goes if no other place is named: ``photo-restored.jpg`` for ``photo.jpg``."""
    return _beside(Path(path), None, None)


def _beside(path: Path, folder: Path | None, suffix: str | None) -> Path:
    known = path.suffix.lower() in SUFFIXES
    name = f"{path.stem}-restored{suffix or (path.suffix if known else '.png')}"
    return path.parent / name if folder is None else folder / name


def _folder_targets(folder: Path, out: Path | None, suffix: str | None) -> dict[Path, Path]:
    """Return source -> target for every picture of a folder; raise ImageError where there is none."""
    if out is None:
        whole = folder if folder.name not in ("", "..") else folder.resolve()
        if not whole.name:
            raise ImageError(f"{shown(folder)}: has no name to derive one for the results from; name a folder for them")
        out = whole.with_name(f"{whole.name}-restored")
    inside, results = os.path.realpath(folder), os.path.realpath(out)
    within = results != inside and os.path.commonpath([inside, results]) == inside
    found = find_pictures(folder)
    pictures = [path for path in found if not (within and Path(results) in Path(os.path.realpath(path)).parents)]
    if not pictures:
        raise ImageError(f"{shown(folder)}: holds no picture ({', '.join(SUFFIXES)}); name another folder")
    targets = {path: out / path.relative_to(folder) for path in pictures}
    return {path: target.with_suffix(suffix) if suffix else target for path, target in targets.items()}


def _check_outputs(jobs: list[Job]) -> None:
    """Raise InputError where two jobs write one file, or one its own input."""
    writers: dict[str, Job] = {}
    for job in jobs:
        for output in job.outputs:
            place = os.path.realpath(output)
            if place in writers:
                raise InputError(
                    f"restore: {shown(writers[place].source)} and {shown(job.source)} would both give {shown(output)}; "
                    "restore them one after the other into different folders, or rename one"
                )
            if place == os.path.realpath(job.source):
                raise InputError(
                    f"restore: {shown(output)} would replace its own input; choose another place for the result"
                )
            writers[place] = job


def _without_results(jobs: list[Job], overwrite: bool) -> tuple[list[Job], list[Outcome]]:
    """Leave out inputs that are the results of other inputs; raise InputError where they would be replaced."""
    writers = {os.path.realpath(output): job for job in jobs for output in job.outputs}
    kept, left_out = [], []
    for job in jobs:
        writer = writers.get(os.path.realpath(job.source))
        if writer is None:
            kept.append(job)
        elif overwrite:
            raise InputError(
                f"restore: the result of {shown(writer.source)} would replace the input {shown(job.source)}; "
                "leave that out, or choose another place for the results"
            )
        else:
            reason = f"{shown(job.source)}: is the result of {shown(writer.source)}, so it is not restored again"
            left_out.append(Outcome(job.source, "skipped", job.target, reason=reason))
    return kept, left_out


def restore_file(
    model: KiT,
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    options: RestoreOptions | None = None,
    compare: str | os.PathLike[str] | None = None,
    progress: Callable[[float], None] | None = None,
) -> tuple[str, ...]:
    """Restore one picture file into another, which appears complete or not at all; missing folders are made.

    Args:
        model: the network.
        source: the picture.
        target: where the result goes; its ending names the format.
        options: how; None takes the defaults.
        compare: where to write before and after side by side, 8 bit RGB; None for nowhere.
        progress: called with the finished fraction in [0, 1].

    Returns:
        Sentences on what was changed or lost; depth, alpha and metadata stay if the format has them.

    Raises:
        ImageError: the source can't be read, the target exists already (without ``overwrite``) or can't be written.
        InputError: the target is the source.
        KithkinError: the memory does not suffice.
    """
    options = options or RestoreOptions()
    source, target = Path(source), Path(target)
    if os.path.realpath(source) == os.path.realpath(target):
        raise InputError(f"restore: {shown(target)} would replace its own input; choose another place for the result")
    picture = read_picture(source)
    notes = [*picture.notes, *losses(picture, target)]
    for place in (target, compare):
        if place is not None:
            make_room(Path(place), options.overwrite)
    result = restore_picture(model, picture, options, progress=progress, note=notes.append)
    write_picture(result, target, overwrite=options.overwrite, quality=options.quality)
    if compare is not None:
        write_picture(side_by_side(picture, result), compare, overwrite=options.overwrite)
    return tuple(notes)


def restore_picture(
    model: KiT,
    picture: Picture,
    options: RestoreOptions,
    *,
    progress: Callable[[float], None] | None = None,
    note: Callable[[str], None] | None = None,
) -> Picture:
    """``kithkin.restoration.restore`` with what of it the options hold."""
    return restore(
        model,
        picture,
        tile=options.tile,
        overlap=options.overlap,
        strength=options.strength,
        ensemble=options.ensemble,
        uniform_blur=options.uniform_blur,
        progress=progress,
        note=note,
    )


def make_room(target: Path, overwrite: bool) -> None:
    """Make the target's folder; raise ImageError where that fails, or where the target must not be replaced."""
    if not overwrite and os.path.lexists(target):
        raise ImageError(f"{shown(target)}: exists already; choose another name, or allow overwriting")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ImageError(f"{shown(target)}: can't be written: its folder can't be made: {os_reason(error)}") from error


def restore_files(
    model: KiT,
    jobs: Iterable[Job],
    *,
    options: RestoreOptions | None = None,
    progress: Callable[[float], None] | None = None,
) -> Iterator[Outcome]:
    """Restore files one after the other, and go on after those that fail.

    Args:
        model: the network.
        jobs: from ``plan_files``.
        options: how; None takes the defaults. Without ``overwrite``, jobs whose target exists are skipped.
        progress: called with the finished fraction of the file at hand.

    Yields:
        The outcome of each job, as soon as it is known.
    """
    options = options or RestoreOptions()
    for job in jobs:
        if not options.overwrite and os.path.lexists(job.target):
            reason = f"{shown(job.target)}: exists already, so it is left as it is; allow overwriting to replace it"
            yield Outcome(job.source, "skipped", job.target, reason=reason)
            continue
        start = time.perf_counter()
        try:
            notes = restore_file(model, job.source, job.target, options=options, compare=job.compare, progress=progress)
        except (KithkinError, OSError, MemoryError, RuntimeError) as error:
            reason = failure_reason(error, job.source)
            yield Outcome(job.source, "failed", job.target, reason=reason, seconds=time.perf_counter() - start)
            continue
        yield Outcome(job.source, "written", job.target, job.compare, notes=notes, seconds=time.perf_counter() - start)


def failure_reason(error: Exception, source: str | Path) -> str:
    """Return one line that begins with the path that is at fault; raise the error again where it is a bug."""
    if isinstance(error, ImageError):
        return str(error)
    if out_of_memory(error):
        return f"{shown(source)}: does not fit in the memory; crop it or scale it down first"
    if isinstance(error, RuntimeError) and not isinstance(error, KithkinError):
        raise error
    return f"{shown(source)}: {error}"


def side_by_side(before: Picture, after: Picture) -> Picture:
    """Return two pictures of one size as one, 8 bit RGB, with a thin white gap between; alpha is laid over white."""
    height = before.pixels.shape[0]
    gap = np.ones((height, _GAP, 3), np.float32)
    gray_profile = before.icc is not None and before.icc[16:20] == b"GRAY"
    return Picture(np.hstack([before.over_white(), gap, after.over_white()]), icc=None if gray_profile else before.icc)
