"""Plan where results go, and refuse what is bound to fail before anything is read or written."""

import errno
import mimetypes
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath

from kithkin.errors import ImageError, InputError
from kithkin.files import path_below
from kithkin.images import SUFFIXES
from kithkin.messages import os_reason, shown
from kithkin.restore_inputs import Place, content_of, identity, unread_reason
from kithkin.storage import is_url, suffix_of

ENDINGS = {name: f".{name}" for name in ("png", "jpg", "webp", "tiff", "bmp", "heic", "avif")}
"""Names of the formats that results can be written in, with the ending of their files."""
_LONGEST_NAME = 255


@dataclass(frozen=True)
class Job:
    """One picture to restore.

    Attributes:
        source: where it is.
        target: where the result goes.
        compare: where before and after go, side by side; None for nowhere.
        notes: sentences on what the plan changed, such as a name.
        size: bytes of a source at a URL; 0 where nobody looked.
    """

    source: Place
    target: Place
    compare: Path | None = None
    notes: tuple[str, ...] = ()
    size: int = 0

    @property
    def outputs(self) -> tuple[Place, ...]:
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
        reason: why it was skipped or failed, one line that begins with a path; None where it was
            written.
        notes: sentences on what was lost or done differently.
        seconds: that it took.
        precision: that the network computed in; None where nothing was written.
    """

    source: str | Path
    status: str
    target: str | Path | None = None
    compare: Path | None = None
    reason: str | None = None
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    precision: str | None = None


@dataclass(frozen=True)
class Plan:
    """The files to restore, in order, and what is settled already.

    Attributes:
        jobs: what is to be done.
        settled: inputs that give no job, and files whose result can't be written.
        foreign: pictures of folders in formats that kithkin does not read, as skipped; see
            ``restore_inputs.foreign_summary``.
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

    A file ``photo.jpg`` gives ``photo-restored.jpg`` beside it; a folder ``trip`` gives
    ``trip-restored`` beside it, with the same names and folders inside. A picture whose name does
    not end as one gets the ending of its content. Two pictures of a folder that would give one
    file, such as ``a.jpg`` and ``a.webp`` as PNG, keep their whole names: ``a.jpg.png`` and
    ``a.webp.png``.

    Args:
        sources: files and folders, as paths or URLs; one that is named twice counts once.
        out: a folder for the results, made when it is needed; or the result's file name where the
            only input is a file. Where a URL is among the inputs, a folder or a URL is required.
        ending: a name in ENDINGS, the format of all results; None keeps each input's.
        compare: also write ``<name>-compare.png`` next to each result, where that has a path.
        overwrite: results may replace files (but never an input).

    Returns:
        The plan. A folder without pictures is settled as failed, and so is a file whose result
        can't be written (its name is too long, its folder can't be made). An input that is itself
        the result of another input, as when a wildcard is used a second time, is settled as
        skipped.

    Raises:
        InputError: no inputs, an unknown ending, results of two named files in one place, a result
            in the place of an input, or a URL that can't be opened.
    """
    places = list(dict.fromkeys(_place(source) for source in sources))
    if not places:
        raise InputError("restore: there is nothing to restore; name at least one file or folder")
    suffix = _suffix(ending)
    results = None if out is None else _place(out)
    if any(isinstance(place, str) for place in (*places, results)):
        _check_results_of_urls(results)
    elif isinstance(results, Path) and _names_a_file(results, places, suffix):
        side = results.with_name(f"{results.stem}-compare.png") if compare else None
        return _finished([(Job(places[0], results, side), False)], [], [], overwrite)
    jobs: dict[tuple[str, str], tuple[Job, bool]] = {}
    settled, foreign = [], []
    for place in places:
        try:
            content = content_of(place, results, suffix)
        except ImageError as error:
            settled.append(Outcome(place, "failed", reason=str(error)))
            continue
        foreign += [Outcome(other, "skipped", reason=unread_reason(other)) for other in content.foreign]
        for source, (name, size) in content.pictures.items():
            if isinstance(place, str):  # A listing can hold any name.
                try:
                    path_below(content.results if isinstance(content.results, Path) else ".", name)
                except InputError as error:
                    settled.append(Outcome(source, "failed", reason=f"{shown(source)}: {error}"))
                    continue
            target = _below(content.results, name)
            side = None
            if compare and isinstance(target, Path):
                side = target.with_name(f"{PurePath(source).stem}-compare.png")
            jobs.setdefault(
                (identity(source), identity(target)), (Job(source, target, side, size=size), source != place)
            )
    return _finished(list(jobs.values()), settled, foreign, overwrite)


def _place(given: str | os.PathLike[str]) -> Place:
    return given if isinstance(given, str) and is_url(given) else Path(given)


def _below(folder: Place, name: str) -> Place:
    return folder / name if isinstance(folder, Path) else f"{folder.rstrip('/')}/{name}"


def _renamed(place: Place, name: str) -> Place:
    return place.with_name(name) if isinstance(place, Path) else f"{place.rpartition('/')[0]}/{name}"


def _finished(drafts: list[tuple[Job, bool]], settled: list[Outcome], foreign: list[Outcome], overwrite: bool) -> Plan:
    """Resolve clashes and find dead ends. Each job comes with whether it is of a folder."""
    jobs, clashes = _without_clashes(_with_own_names(drafts, overwrite))
    jobs, results = _without_results(jobs, overwrite)
    jobs, impossible = _without_dead_ends(jobs, overwrite)
    return Plan(tuple(jobs), (*settled, *clashes, *results, *impossible), tuple(foreign))


def _suffix(ending: str | None) -> str | None:
    if ending is not None and ending not in ENDINGS:
        raise InputError(f"restore: the format must be one of {', '.join(ENDINGS)}, got {ending!r}")
    return None if ending is None else ENDINGS[ending]


def _check_results_of_urls(results: Place | None) -> None:
    if results is None:
        raise InputError("restore: where an input is a URL, name a place for the results: a folder or a URL")
    if suffix_of(str(results)) in SUFFIXES:
        raise InputError(f"restore: {shown(results)} is a picture's name; name a folder or a URL to put results below")


def _names_a_file(out: Path, paths: list[Place], suffix: str | None) -> bool:
    """Whether `out` is a result's file name and no folder; raise InputError if it can't be one."""
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


def _with_own_names(drafts: list[tuple[Job, bool]], overwrite: bool) -> list[tuple[Job, bool]]:
    """Let pictures of folders that would write one file keep their whole names, and comparisons
    that exist stay."""
    wanted = Counter(identity(output) for job, _ in drafts for output in job.outputs)
    named = []
    for job, in_folder in drafts:
        source, target, compare, notes = job.source, job.target, job.compare, []
        own_name = PurePath(source).name
        if in_folder and wanted[identity(target)] > 1 and PurePath(target).name != own_name:
            target = _renamed(target, f"{own_name}{PurePath(target).suffix}")
            names = [shown(PurePath(place).name) for place in (target, job.target)]
            notes.append(f"its result is {names[0]}: another picture gives {names[1]}")
        if in_folder and compare is not None:
            if wanted[identity(compare)] > 1:
                compare = compare.with_name(f"{own_name}-compare.png")
            if not overwrite and os.path.lexists(compare) and not os.path.lexists(target):
                notes.append(f"{shown(compare)} exists already and stays as it is; allow `overwrite` to replace it")
                compare = None
        named.append((replace(job, target=target, compare=compare, notes=tuple(notes)), in_folder))
    return named


def _without_clashes(drafts: list[tuple[Job, bool]]) -> tuple[list[Job], list[Outcome]]:
    """Settle as failed what would write the file of another job; raise InputError where such files
    were named one by one, or where a result would replace its own input."""
    writers: dict[str, Job] = {}
    jobs, failed = [], []
    for job, in_folder in drafts:
        places = {identity(output): output for output in job.outputs}
        own = places.get(identity(job.source))
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
    """Settle as failed what can't be written, whatever the picture is: one reason for all files of
    a folder."""
    many = Counter(job.target.parent for job in jobs if isinstance(job.target, Path))
    reasons: dict[Path, str | None] = {}
    kept, failed = [], []
    for job in jobs:
        fault = None
        if isinstance(job.target, Path) and (overwrite or not os.path.lexists(job.target)):
            folder = job.target.parent
            if folder not in reasons:
                reasons[folder] = _folder_reason(folder)
            candidates = [(folder if many[folder] > 1 else job.target, reasons[folder])]
            candidates += [(Path(output), _name_reason(Path(output))) for output in job.outputs]
            fault = next(
                (f"{shown(place)}: can't be written: {reason}" for place, reason in candidates if reason), None
            )
        if fault:
            failed.append(Outcome(job.source, "failed", job.target, reason=fault))
        else:
            kept.append(job)
    return kept, failed


def unwritable(path: Path) -> str | None:
    """Why no file of this path can be made, as far as it can be known before; None where nothing
    speaks against it."""
    return _folder_reason(path.parent) or _name_reason(path)


def _folder_reason(folder: Path) -> str | None:
    """Why no file can be made in a folder, which need not exist yet."""
    existing = next((place for place in (folder, *folder.parents) if os.path.lexists(place)), Path())
    if not os.path.isdir(existing):
        return f"{shown(existing)} is no folder; choose another place"
    if not os.access(existing, os.W_OK | os.X_OK):
        return os_reason(PermissionError(errno.EACCES, os.strerror(errno.EACCES)))
    return None


def _name_reason(path: Path) -> str | None:
    size = len(os.fsencode(path.name))
    if size > _LONGEST_NAME:
        return f"its name has {size} bytes, and file systems take {_LONGEST_NAME}; choose another name"
    return None


def _without_results(jobs: list[Job], overwrite: bool) -> tuple[list[Job], list[Outcome]]:
    """Leave out inputs that are the results of other inputs; raise InputError where they would be
    replaced."""
    writers = {identity(output): job for job in jobs for output in job.outputs}
    kept, left_out = [], []
    for job in jobs:
        writer = writers.get(identity(job.source))
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
