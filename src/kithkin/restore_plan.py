"""Where the results of picture files go, and what of it can be known to fail before anything is read or written."""

import errno
import mimetypes
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from kithkin.errors import ImageError, InputError
from kithkin.images import SUFFIXES, ending_of, look_through
from kithkin.images._find import RAW_SUFFIXES
from kithkin.images._picture import os_reason, shown

ENDINGS = {"png": ".png", "jpg": ".jpg", "webp": ".webp", "tiff": ".tiff", "bmp": ".bmp"}
"""Names of the formats that results can be written in, with the ending of their files."""
_LONGEST_NAME = 255


@dataclass(frozen=True)
class Job:
    """One file to restore: where it is, where the result goes, and where before and after side by side, if wanted.

    `notes` are sentences on what the plan changed, such as a name.
    """

    source: Path
    target: Path
    compare: Path | None = None
    notes: tuple[str, ...] = ()

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
    """The files to restore, in order, and what is settled already.

    Attributes:
        jobs: what is to be done.
        settled: inputs that give no job, and files whose result can't be written.
        foreign: pictures of folders in formats that kithkin does not read, as skipped; see ``foreign_summary``.
    """

    jobs: tuple[Job, ...]
    settled: tuple[Outcome, ...] = ()
    foreign: tuple[Outcome, ...] = ()


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
    with the same names and folders inside. A picture whose name does not end as one gets the ending of its content.
    Two pictures of a folder that would give one file, such as ``a.jpg`` and ``a.webp`` as PNG, keep their whole names:
    ``a.jpg.png`` and ``a.webp.png``.

    Args:
        sources: files and folders; a file that is named twice counts once.
        out: a folder for the results, made when it is needed; or the result's file name where the only input is a file.
        ending: a name in ENDINGS, the format of all results; None keeps each input's.
        compare: also write ``<name>-compare.png`` next to each result.
        overwrite: results may replace files (but never an input).

    Returns:
        The plan. A folder without pictures is settled as failed, and so is a file whose result can't be written (its
        name is too long, its folder can't be made); an input that is itself the result of another input, as when a
        wildcard is used a second time, is settled as skipped.

    Raises:
        InputError: no inputs, an unknown ending, results of two named files in one place, or a result in the place of
            an input.
    """
    paths = list(dict.fromkeys(Path(source) for source in sources))
    if not paths:
        raise InputError("restore: there is nothing to restore; name at least one file or folder")
    suffix = _suffix(ending)
    out = None if out is None else Path(out)
    if out is not None and _names_a_file(out, paths, suffix):
        side = out.with_name(f"{out.stem}-compare.png") if compare else None
        return _finished([(Job(paths[0], out, side), False)], [], [], overwrite)
    jobs: dict[tuple[str, str], tuple[Job, bool]] = {}
    settled, foreign = [], []
    for path in paths:
        try:
            in_folder = os.path.isdir(path)
            if in_folder:
                targets, others = _folder_targets(path, out, suffix)
            else:
                targets, others = {path: _beside(path, out, suffix)}, []
        except ImageError as error:
            settled.append(Outcome(path, "failed", reason=str(error)))
            continue
        foreign += [unread(other) for other in others]
        for source, target in targets.items():
            side = target.with_name(f"{source.stem}-compare.png") if compare else None
            key = (os.path.realpath(source), os.path.realpath(target))
            jobs.setdefault(key, (Job(source, target, side), in_folder))
    return _finished(list(jobs.values()), settled, foreign, overwrite)


def _finished(drafts: list[tuple[Job, bool]], settled: list[Outcome], foreign: list[Outcome], overwrite: bool) -> Plan:
    """The plan of jobs, each with whether it comes from a folder, once clashes are resolved and dead ends found."""
    jobs, clashes = _without_clashes(_with_own_names(drafts, overwrite))
    jobs, results = _without_results(jobs, overwrite)
    jobs, impossible = _without_dead_ends(jobs, overwrite)
    return Plan(tuple(jobs), (*settled, *clashes, *results, *impossible), tuple(foreign))


def foreign_summary(foreign: Iterable[Outcome]) -> str | None:
    """Return one sentence that counts pictures in formats that kithkin does not read, and says what to do; None for
    none."""
    endings = [_kind(Path(outcome.source)) for outcome in foreign]
    if not endings:
        return None
    counts = Counter(endings).most_common()
    raw = [f"{count} {ending}" for ending, count in counts if ending in RAW_SUFFIXES]
    rest = [f"{count} {ending}" for ending, count in counts if ending not in RAW_SUFFIXES]
    listed = [f"{', '.join(rest)} ({_CONVERT})"] if rest else []
    listed += [f"{', '.join(raw)} ({_DEVELOP})"] if raw else []
    return f"{len(endings)} {'file' if len(endings) == 1 else 'files'} skipped: {'; '.join(listed)}"


_CONVERT = "not read by kithkin: convert to PNG, JPEG, WebP, TIFF or BMP first, as with `magick IN OUT.png`"
_DEVELOP = "raw: develop to TIFF first, as with darktable"


def _kind(path: Path) -> str:
    return path.suffix.lower() or "without an ending"


def unread(source: str | Path) -> Outcome:
    """The outcome of a picture in a format that kithkin does not read."""
    why = _DEVELOP if _kind(Path(source)) in RAW_SUFFIXES else _CONVERT
    return Outcome(source, "skipped", reason=f"{shown(source)}: {why}")


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
    name = f"{path.stem}-restored{suffix or ending_of(path)}"
    return path.parent / name if folder is None else folder / name


def _folder_targets(folder: Path, out: Path | None, suffix: str | None) -> tuple[dict[Path, Path], list[Path]]:
    """Return source -> target for every picture of a folder, and the pictures that kithkin does not read.

    Raises ImageError where there is none that it reads.
    """
    if out is None:
        whole = folder if folder.name not in ("", "..") else folder.resolve()
        if not whole.name:
            raise ImageError(f"{shown(folder)}: has no name to derive one for the results from; name a folder for them")
        out = whole.with_name(f"{whole.name}-restored")
    inside, results = os.path.realpath(folder), os.path.realpath(out)
    within = results != inside and os.path.commonpath([inside, results]) == inside

    def no_result(path: Path) -> bool:
        return not (within and Path(results) in Path(os.path.realpath(path)).parents)

    found = look_through(folder)
    pictures, foreign = filter(no_result, found.pictures), list(filter(no_result, found.foreign))
    targets = {path: out / path.relative_to(folder) for path in pictures}
    if not targets:
        others = foreign_summary(Outcome(path, "skipped") for path in foreign)
        remedy = f"it holds others, {others}" if others else "name another folder"
        raise ImageError(f"{shown(folder)}: holds no picture that kithkin reads ({', '.join(SUFFIXES)}); {remedy}")
    return {path: target.with_suffix(suffix or ending_of(path)) for path, target in targets.items()}, foreign


def _with_own_names(drafts: list[tuple[Job, bool]], overwrite: bool) -> list[tuple[Job, bool]]:
    """Let pictures of folders that would write one file keep their whole names, and comparisons that exist stay."""
    wanted = Counter(os.path.realpath(output) for job, _ in drafts for output in job.outputs)
    named = []
    for job, in_folder in drafts:
        source, target, compare, notes = job.source, job.target, job.compare, []
        if in_folder and wanted[os.path.realpath(target)] > 1 and target.name != source.name:
            target = target.with_name(f"{source.name}{target.suffix}")
            notes.append(f"its result is {shown(target.name)}: another picture gives {shown(job.target.name)}")
        if in_folder and compare is not None:
            if wanted[os.path.realpath(compare)] > 1:
                compare = compare.with_name(f"{source.name}-compare.png")
            if not overwrite and os.path.lexists(compare) and not os.path.lexists(target):
                notes.append(f"{shown(compare)} exists already and stays as it is; allow overwriting to replace it")
                compare = None
        named.append((replace(job, target=target, compare=compare, notes=tuple(notes)), in_folder))
    return named


def _without_clashes(drafts: list[tuple[Job, bool]]) -> tuple[list[Job], list[Outcome]]:
    """Settle as failed what would write the file of another job; raise InputError where such files were named one by
    one, or where a result would replace its own input."""
    writers: dict[str, Job] = {}
    jobs, failed = [], []
    for job, in_folder in drafts:
        places = {os.path.realpath(output): output for output in job.outputs}
        own = places.get(os.path.realpath(job.source))
        if own is not None:
            raise InputError(f"restore: {shown(own)} would replace its own input; choose another place for the result")
        other = next(((writers[place], output) for place, output in places.items() if place in writers), None)
        if other is None:
            writers |= dict.fromkeys(places, job)
            jobs.append(job)
            continue
        reason = (
            f"{shown(other[0].source)} and {shown(job.source)} would both give {shown(other[1])}; "
            "restore them one after the other into different folders, or rename one"
        )
        if not in_folder:
            raise InputError(f"restore: {reason}")
        failed.append(Outcome(job.source, "failed", job.target, reason=reason))
    return jobs, failed


def _without_dead_ends(jobs: list[Job], overwrite: bool) -> tuple[list[Job], list[Outcome]]:
    """Settle as failed what can't be written, whatever the picture is: one reason for all files of a folder."""
    many = Counter(job.target.parent for job in jobs)
    reasons: dict[Path, str | None] = {}
    kept, failed = [], []
    for job in jobs:
        folder = job.target.parent
        if folder not in reasons:
            reasons[folder] = _folder_reason(folder)
        names = (_name_reason(output) for output in job.outputs)
        found = reasons[folder] and (folder if many[folder] > 1 else job.target, reasons[folder])
        found = found or next(((output, why) for output, why in zip(job.outputs, names, strict=True) if why), None)
        if found and (overwrite or not os.path.lexists(job.target)):
            reason = f"{shown(found[0])}: can't be written: {found[1]}"
            failed.append(Outcome(job.source, "failed", job.target, reason=reason))
        else:
            kept.append(job)
    return kept, failed


def unwritable(path: Path) -> str | None:
    """Why no file of this path can be made, as far as it can be known before; None where nothing speaks against it."""
    return _folder_reason(path.parent) or _name_reason(path)


def _folder_reason(folder: Path) -> str | None:
    """Why no file can be made in a folder, which need not exist yet."""
    there = next((place for place in (folder, *folder.parents) if os.path.lexists(place)), Path())
    if not os.path.isdir(there):
        return f"{shown(there)} is no folder; choose another place"
    if not os.access(there, os.W_OK | os.X_OK):
        return os_reason(PermissionError(errno.EACCES, os.strerror(errno.EACCES)))
    return None


def _name_reason(path: Path) -> str | None:
    size = len(os.fsencode(path.name))
    if size > _LONGEST_NAME:
        return f"its name has {size} bytes, and file systems take {_LONGEST_NAME}; choose another name"
    return None


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
