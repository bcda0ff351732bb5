"""``kithkin restore --cluster``: the same output and exit codes, Ray workers, a manifest."""

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from kithkin.cli._command import say
from kithkin.errors import KithkinError

if TYPE_CHECKING:
    from kithkin.cli._batch import Reporter
    from kithkin.cluster import TaskPlan
    from kithkin.restore_files import RestoreOptions

MANIFEST = "kithkin-manifest.csv"
NAMED_SKIPS = 10
"""Skipped inputs that are named one by one; the manifest names all of them."""


def restore_with(
    pool_fields: dict[str, Any],
    model: str,
    places: dict[str, Any],
    manifest: str | None,
    options: "RestoreOptions",
    as_json: bool,
) -> "Reporter":
    """Restore, report each file as it ends, write the manifest, and return what counted the
    outcomes.

    Args:
        pool_fields: of ``kithkin.cluster.Pool``.
        model: as ``kithkin.methods.open_restorer`` takes it.
        places: sources, out, ending as in ``kithkin.cluster.plan_tasks``.
        manifest: path or URL of the list; None for a file among the results.
        options: how files are restored and written.
        as_json: print one JSON object a file.
    """
    from kithkin.cli._batch import Reporter
    from kithkin.cli._memory import keep_freed_memory
    from kithkin.cluster import Manifest, Pool, connected, import_ray, plan_tasks
    from kithkin.methods import open_restorer

    import_ray()
    pool = Pool(**pool_fields, prepare=keep_freed_memory)
    opened = open_restorer(model)
    if opened.remark:
        say(opened.remark)
    plan = plan_tasks(**places, overwrite=options.overwrite)
    reporter = Reporter(as_json=as_json, model=opened.name, skips=NAMED_SKIPS)
    with (
        Manifest(manifest or _beside(places["out"], plan), model=opened.name) as table,
        contextlib.ExitStack() as stack,
    ):
        if plan.tasks:
            stack.enter_context(connected(pool.address))
            stack.enter_context(_stop_on_sigterm())
        _run(opened.network, plan, options, pool, table, reporter)
    say(f"the manifest is {table.place}")
    return reporter


def _beside(out: str | None, plan: "TaskPlan") -> str:
    """Where the manifest goes by default: into the folder of results, or beside a named result."""
    if out is None:
        return MANIFEST
    targets = {*(task.target for task in plan.tasks), *(str(outcome.target) for outcome in plan.settled)}
    if out in targets:
        folder, slash, _ = out.rpartition("/")
        return f"{folder}/{MANIFEST}" if slash else MANIFEST
    return f"{out.rstrip('/')}/{MANIFEST}"


def _run(
    model: Any, plan: "TaskPlan", options: "RestoreOptions", pool: Any, manifest: Any, reporter: "Reporter"
) -> None:
    from itertools import chain

    from kithkin.cli._progress import progress_bar
    from kithkin.cluster import restore_tasks

    total = len(plan.settled) + len(plan.tasks)
    with progress_bar() as bar:
        bar_id = bar.add_task("restore", total=total)
        for outcome in chain(plan.settled, restore_tasks(model, plan.tasks, options=options, pool=pool)):
            manifest.add(outcome)
            reporter.tell(outcome)
            bar.update(bar_id, completed=reporter.counts.total())
    counts = reporter.counts.copy()
    for outcome in plan.foreign:
        manifest.add(outcome)
    reporter.tell_repeated()
    reporter.tell_foreign(plan.foreign)
    summary = ", ".join(f"{counts[status]} {status}" for status in ("written", "skipped", "failed"))
    say(f"{total} inputs: {summary}")
    if counts.total() != total:
        raise KithkinError(f"cluster: of {total} inputs {total - counts.total()} were lost; start it again")


@contextlib.contextmanager
def _stop_on_sigterm() -> Iterator[None]:
    """End with exit code 143 on SIGTERM, as orderly as on Ctrl-C: no file is left half written."""

    def stop(number: int, frame: object) -> None:
        say("stopped; what was written so far is complete; give the command again to continue")
        sys.exit()

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except SystemExit as error:  # While it waits, Ray replaces the code of a SystemExit.
        raise SystemExit(128 + signal.SIGTERM) from error
    finally:
        signal.signal(signal.SIGTERM, before)
