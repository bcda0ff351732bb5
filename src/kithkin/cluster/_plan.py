"""Which picture goes where, for paths and URLs, and what one worker takes at a time."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kithkin.messages import shown
from kithkin.restore_inputs import Place
from kithkin.restore_plan import Outcome, plan_files
from kithkin.storage import is_url, list_files, local_path

GROUP_FILES = 32
GROUP_BYTES = 2**21


@dataclass(frozen=True, slots=True)
class Task:
    """One picture to restore: from where, to where (paths or URLs), and the input's bytes."""

    source: str
    target: str
    size: int = 0


@dataclass(frozen=True)
class TaskPlan:
    """The pictures to restore, the inputs that are settled already (done before, or without a
    picture), and pictures in formats that kithkin does not read."""

    tasks: tuple[Task, ...]
    settled: tuple[Outcome, ...] = ()
    foreign: tuple[Outcome, ...] = ()


def plan_tasks(
    sources: Sequence[str], *, out: str | None = None, ending: str | None = None, overwrite: bool = False
) -> TaskPlan:
    """Decide where the result of every input goes, as ``kithkin.restore_files.plan_files``.

    A result that exists is complete, since it appeared in one step: its input is settled as
    skipped.

    Args:
        sources: files and folders, as paths or URLs.
        out: a folder, or a URL; needed where one of the inputs is a URL.
        ending: a name in ENDINGS, the format of all results; None keeps each input's.
        overwrite: restore again what is there already.

    Raises:
        InputError: as `plan_files`; or results at a URL that can't be listed.
    """
    out = None if out is None else local_path(out)
    plan = plan_files([local_path(source) for source in sources], out=out, ending=ending, overwrite=overwrite)
    listed = out is not None and is_url(out) and not overwrite
    present = list_files(out, missing_ok=True) if out is not None and listed else {}
    tasks, skipped = [], []
    for job in plan.jobs:
        target = str(job.target)
        if not overwrite and (target in present or (not is_url(target) and os.path.lexists(target))):
            reason = f"{shown(target)}: exists already, so it is left as it is; allow `overwrite` to replace it"
            skipped.append(Outcome(job.source, "skipped", target, reason=reason))
        else:
            tasks.append(Task(str(job.source), target, job.size or _size(job.source)))
    return TaskPlan(tuple(tasks), (*plan.settled, *skipped), plan.foreign)


def _size(place: Place) -> int:
    try:
        return os.stat(place).st_size
    except (OSError, ValueError):
        return 0  # Whoever reads it will say what is wrong.


def in_groups(tasks: Sequence[Task], workers: int) -> Iterator[range]:
    """Cut the tasks into what one worker takes at a time: many small files, or one large one.

    A group is at most GROUP_FILES files and, beyond one file, GROUP_BYTES; and small enough that
    every worker gets several, so that all end at about the same time.
    """
    most = min(GROUP_FILES, max(1, len(tasks) // (4 * workers)))
    start, held = 0, 0
    for i, task in enumerate(tasks):
        if i > start and (i - start >= most or held + task.size > GROUP_BYTES):
            yield range(start, i)
            start, held = i, 0
        held += task.size
    if start < len(tasks):
        yield range(start, len(tasks))
