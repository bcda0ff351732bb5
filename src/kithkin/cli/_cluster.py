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
    from kithkin.restore_files import RestoreOptions

MANIFEST = "kithkin-manifest.csv"


def restore_with(
    pool: dict[str, Any], model: str, places: dict[str, Any], options: "RestoreOptions", as_json: bool
) -> int:
    """Restore, report each file as it ends, write the manifest, and return how many inputs failed.

    Args:
        pool: fields of ``kithkin.cluster.Pool``.
        model: a name from ``kithkin models``, or a checkpoint's path.
        places: sources, out, ending as in ``kithkin.cluster.plan_errands``; manifest, a path or URL or None.
        options: how files are restored and written.
        as_json: print one JSON object a file.
    """
    from kithkin.cli._memory import keep_freed_memory
    from kithkin.cluster import Manifest, Pool, connected, import_ray, plan_errands
    from kithkin.zoo import load_model

    import_ray()
    crew = Pool(**pool, prepare=keep_freed_memory)
    network = load_model(model)
    listed = places.pop("manifest") or _beside(places["out"])
    plan = plan_errands(**places, overwrite=options.overwrite)
    with Manifest(listed) as manifest:
        if not plan.errands:
            failures = _run(network, plan, options, crew, manifest, as_json)
        else:
            with connected(crew.address), _stop_on_sigterm():
                failures = _run(network, plan, options, crew, manifest, as_json)
    typer.echo(f"kithkin: the manifest is {manifest.place}", err=True)
    return failures


def _beside(out: str | None) -> str:
    return MANIFEST if out is None else f"{out.rstrip('/')}/{MANIFEST}"


def _run(network: Any, plan: Any, options: "RestoreOptions", crew: Any, manifest: Any, as_json: bool) -> int:
    from itertools import chain

    from kithkin.cli._progress import progress_bar
    from kithkin.cli.restore import report_outcome
    from kithkin.cluster import restore_errands

    stream = None if sys.stdout.isatty() else sys.stdout
    counts = {"written": 0, "skipped": 0, "failed": 0}
    total = len(plan.settled) + len(plan.errands)
    with progress_bar() as bar:
        task = bar.add_task("restore", total=total)
        for outcome in chain(plan.settled, restore_errands(network, plan.errands, options=options, pool=crew)):
            counts[outcome.status] += 1
            manifest.add(outcome)
            if as_json or outcome.status != "skipped":  # Of a million there may be as many: the manifest names them.
                report_outcome(outcome, as_json, stream)
            bar.update(task, completed=sum(counts.values()))
    summary = ", ".join(f"{count} {status}" for status, count in counts.items())
    typer.echo(f"kithkin: {total} inputs: {summary}", err=True)
    if sum(counts.values()) != total:
        raise KithkinError(f"--cluster: of {total} inputs {total - sum(counts.values())} were lost; start it again")
    return counts["failed"]


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
