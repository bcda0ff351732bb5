"""Which picture goes where, for paths and URLs: what is to be done, what is done already, and what can't be."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from kithkin.cluster._places import find_at, is_url, plain, present_at, suffix_of
from kithkin.errors import ImageError, InputError
from kithkin.files import path_below
from kithkin.images import SUFFIXES, ending_of, look_through
from kithkin.images._picture import shown
from kithkin.restore_plan import ENDINGS, Outcome, plan_files, unread

GROUP_FILES = 32
GROUP_BYTES = 2**21


@dataclass(frozen=True, slots=True)
class Errand:
    """One picture to restore: where it is, where the result goes (paths or URLs), and the input's size in bytes."""

    source: str
    target: str
    size: int = 0


@dataclass(frozen=True)
class ErrandPlan:
    """The pictures to restore, the inputs that are settled already (done before, or without a picture), and pictures
    in formats that kithkin does not read."""

    errands: tuple[Errand, ...]
    settled: tuple[Outcome, ...] = ()
    foreign: tuple[Outcome, ...] = ()


def plan_errands(
    sources: Sequence[str], *, out: str | None = None, ending: str | None = None, overwrite: bool = False
) -> ErrandPlan:
    """Decide where the result of every input goes, as ``kithkin.restore_files.plan_files``, for URLs too.

    A result that exists is complete, since it appeared in one step: its input is settled as skipped.

    Args:
        sources: files and folders, as paths or URLs.
        out: a folder, or a URL; needed where one of the inputs is a URL.
        ending: a name in ENDINGS, the format of all results; None keeps each input's.
        overwrite: restore again what is there already.

    Raises:
        InputError: as `plan_files`; or inputs or results at a URL that can't be opened.
    """
    places = [plain(source) for source in sources]
    out = None if out is None else plain(out)
    if not any(map(is_url, places)) and (out is None or not is_url(out)):
        plan = plan_files(places, out=out, ending=ending, overwrite=overwrite)
        errands = [Errand(str(job.source), str(job.target), _size(job.source)) for job in plan.jobs]
        settled, foreign = list(plan.settled), list(plan.foreign)
    else:
        errands, settled, foreign = _plan_urls(places, out, ending, overwrite)
    if overwrite:
        return ErrandPlan(tuple(errands), tuple(settled), tuple(foreign))
    present = present_at(out) if out is not None and is_url(out) else set()
    waiting = []
    for errand in errands:
        if errand.target in present or (not is_url(errand.target) and os.path.lexists(errand.target)):
            reason = f"{shown(errand.target)}: exists already, so it is left as it is; allow overwriting to replace it"
            settled.append(Outcome(errand.source, "skipped", errand.target, reason=reason))
        else:
            waiting.append(errand)
    return ErrandPlan(tuple(waiting), tuple(settled), tuple(foreign))


def _size(path: Path) -> int:
    try:
        return os.stat(path).st_size
    except (OSError, ValueError):
        return 0  # Whoever reads it will say what is wrong.


def _plan_urls(
    places: Sequence[str], out: str | None, ending: str | None, overwrite: bool
) -> tuple[list[Errand], list[Outcome], list[Outcome]]:
    if ending is not None and ending not in ENDINGS:
        raise InputError(f"restore: the format must be one of {', '.join(ENDINGS)}, got {ending!r}")
    if out is None:
        raise InputError("restore: where an input is a URL, name a place for the results with --out: a folder or a URL")
    if suffix_of(out) in SUFFIXES:
        raise InputError(f"restore: {shown(out)} is a picture's name; name a folder or a URL to put results below")
    suffix = None if ending is None else ENDINGS[ending]
    writers: dict[str, Errand] = {}
    settled: list[Outcome] = []
    foreign: list[Outcome] = []
    for place in dict.fromkeys(places):
        try:
            for source, below, size in _inputs(place, foreign):
                name = str(PurePosixPath(below).with_suffix(suffix)) if suffix else below
                try:
                    path_below("." if is_url(out) else out, name)
                except InputError as error:
                    settled.append(Outcome(source, "failed", reason=f"{shown(source)}: {error}"))
                    continue
                target = f"{out.rstrip('/')}/{name}"
                if target in writers and writers[target].source != source:
                    reason = (
                        f"{shown(writers[target].source)} and {shown(source)} would both give {shown(target)}; "
                        "restore them into different places, or rename one"
                    )
                    if source == place:
                        raise InputError(f"restore: {reason}")
                    settled.append(Outcome(source, "failed", target, reason=reason))
                    continue
                writers[target] = Errand(source, target, size)
        except ImageError as error:
            settled.append(Outcome(place, "failed", reason=str(error)))
    errands, settled = _without_results(writers, settled, overwrite)
    return errands, settled, foreign


def _inputs(place: str, foreign: list[Outcome]) -> Iterator[tuple[str, str, int]]:
    """Yield source, name below the results' place, and size; raise ImageError where there is no picture.

    Pictures that kithkin does not read are added to `foreign`: of a folder by their content, of a URL by their names.
    """
    if is_url(place):
        for url, below, size in find_at(place):
            if url != place and suffix_of(below) not in SUFFIXES:
                foreign.append(unread(url))
            else:
                yield url, _restored_name(below) if url == place else below, size
    elif os.path.isdir(place):
        content = look_through(place)
        foreign += [unread(str(path)) for path in content.foreign]
        if not content.pictures:
            raise ImageError(f"{shown(place)}: holds no picture ({', '.join(SUFFIXES)}); name another folder")
        for path in content.pictures:
            yield str(path), path.relative_to(place).with_suffix(ending_of(path)).as_posix(), _size(path)
    else:
        yield place, _restored_name(place.rpartition(os.sep)[2]), _size(Path(place))


def _restored_name(name: str) -> str:
    known = suffix_of(name) in SUFFIXES
    return f"{PurePosixPath(name).stem}-restored{PurePosixPath(name).suffix if known else '.png'}"


def _without_results(
    writers: dict[str, Errand], settled: list[Outcome], overwrite: bool
) -> tuple[list[Errand], list[Outcome]]:
    """Leave out inputs that are the results of others; raise InputError where an input would be replaced."""
    errands = []
    for errand in writers.values():
        writer = writers.get(errand.source)
        if writer is None:
            errands.append(errand)
        elif writer is errand or overwrite:
            raise InputError(
                f"restore: the result of {shown(writer.source)} would replace the input {shown(errand.source)}; "
                "choose another place for the results"
            )
        else:
            reason = f"{shown(errand.source)}: is the result of {shown(writer.source)}, so it is not restored again"
            settled.append(Outcome(errand.source, "skipped", errand.target, reason=reason))
    return errands, settled


def in_groups(errands: Sequence[Errand], workers: int) -> Iterator[range]:
    """Cut the errands into what one worker takes at a time: many small files, or one large one.

    A group is at most GROUP_FILES files and, beyond one file, GROUP_BYTES; and small enough that every worker gets
    several, so that all end at about the same time.
    """
    most = min(GROUP_FILES, max(1, len(errands) // (4 * workers)))
    start, held = 0, 0
    for i, errand in enumerate(errands):
        if i > start and (i - start >= most or held + errand.size > GROUP_BYTES):
            yield range(start, i)
            start, held = i, 0
        held += errand.size
    if start < len(errands):
        yield range(start, len(errands))
