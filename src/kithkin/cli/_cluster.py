"""``kithkin restore --cluster``: the same lines and exit codes, with the workers of a Ray cluster and a manifest."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

from kithkin.errors import KithkinError

if TYPE_CHECKING:
    from kithkin.cli._batch import Reporter
    from kithkin.cluster import ErrandPlan
    from kithkin.restore_files import RestoreOptions

MANIFEST = "kithkin-manifest.csv"
NAMED_SKIPS = 10
"""Skipped inputs that are named one by one: of a million there may be as many, and the manifest names them."""


def restore_with(
    pool: dict[str, Any], model: str, places: dict[str, Any], options: "RestoreOptions", as_json: bool
) -> "Reporter":
    """Restore, report each file as it ends, write the manifest, and return what counted the outcomes.

    Args:
        pool: fields of ``kithkin.cluster.Pool``.
        model: a name from ``kithkin models``, or a checkpoint's path.
        places: sources, out, ending as in ``kithkin.cluster.plan_errands``; manifest, a path or URL or None.
        options: how files are restored and written.
        as_json: print one JSON object a file.
    """
    from kithkin.cli._batch import Reporter
    from kithkin.cli._memory import keep_freed_memory
    from kithkin.cluster import Manifest, Pool, connected, import_ray, plan_errands
    from kithkin.zoo import load_model

    import_ray()
    crew = Pool(**pool, prepare=keep_freed_memory)
    network = load_model(model)
    listed = places.pop("manifest")
    plan = plan_errands(**places, overwrite=options.overwrite)
    listed = listed or _beside(places["out"], plan)
    reporter = Reporter(as_json=as_json, skips=NAMED_SKIPS)
    with Manifest(listed) as manifest:
        if not plan.errands:
            _run(network, plan, options, crew, manifest, reporter)
        else:
            with connected(crew.address), _stop_on_sigterm():
                _run(network, plan, options, crew, manifest, reporter)
    typer.echo(f"kithkin: the manifest is {manifest.place}", err=True)
    return reporter


def _beside(out: str | None, plan: "ErrandPlan") -> str:
    """Where the manifest goes if no place is named: into the folder of results, or beside a result that is named."""
    if out is None:
        return MANIFEST
    targets = {*(errand.target for errand in plan.errands), *(str(outcome.target) for outcome in plan.settled)}
    if out in targets:
        out, found, _ = out.rpartition("/")
        return f"{out}/{MANIFEST}" if found else MANIFEST
    return f"{out.rstrip('/')}/{MANIFEST}"


def _run(
    network: Any, plan: "ErrandPlan", options: "RestoreOptions", crew: Any, manifest: Any, reporter: "Reporter"
) -> None:
    from itertools import chain

    from kithkin.cli._progress import progress_bar
    from kithkin.cluster import restore_errands

    total = len(plan.settled) + len(plan.errands)
    with progress_bar() as bar:
        task = bar.add_task("restore", total=total)
        for outcome in chain(plan.settled, restore_errands(network, plan.errands, options=options, pool=crew)):
            manifest.add(outcome)
            reporter.tell(outcome)
            bar.update(task, completed=reporter.counts.total())
    counts = reporter.counts.copy()
    for outcome in plan.foreign:
        manifest.add(outcome)
    reporter.tell_repeated()
    reporter.tell_foreign(plan.foreign)
    summary = ", ".join(f"{counts[status]} {status}" for status in ("written", "skipped", "failed"))
    typer.echo(f"kithkin: {total} inputs: {summary}", err=True)
    if counts.total() != total:
        raise KithkinError(f"--cluster: of {total} inputs {total - counts.total()} were lost; start it again")


@contextmanager
def _stop_on_sigterm() -> Iterator[None]:
    """End with exit code 143 on SIGTERM, through the same doors as Ctrl-C: the cluster is left, no file is half."""

    def stop(number: int, frame: object) -> None:
        typer.echo("kithkin: stopped; what was written so far is complete; start it again to go on", err=True)
        sys.exit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
