"""Ray: the connection, the size of the pool, and the outcomes as they come."""

import contextlib
import io
import logging
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from kithkin.cluster._plan import Task, in_groups
from kithkin.cluster._worker import Worker, WorkerConfig
from kithkin.errors import InputError, KithkinError
from kithkin.messages import missing_extra, one_line, shown
from kithkin.model import KiT
from kithkin.ops import available_backends
from kithkin.precision import settled_precision
from kithkin.restore_files import Outcome, RestoreOptions
from kithkin.restore_options import PRECISIONS
from kithkin.restorers import Restorer
from kithkin.storage import is_url

OBJECT_STORE = 2**28
"""Bytes of shared memory for a cluster that is started here: it holds the model, no pixels."""
RETRIES = 2
"""How often a group of files is tried again after its worker died; then each of its files is."""


@dataclass(frozen=True)
class Pool:
    """The workers.

    Attributes:
        address: ``"auto"``, or a Ray cluster's address.
        workers: how many; None for one a GPU, or one a CPU where there are no GPUs.
        cpus: of each worker, which takes as many threads; None shares out all that the cluster has.
        device: ``"cuda"``, ``"cpu"``, or None for GPUs where the cluster has some.
        backend: of attention, a name from ``kithkin.available_backends``; None for the fastest that
            works.
        batch: pictures of equal size that go through the network at once. More than 1 changes
            roundings.
        prepare: called in every worker before anything else; a function of a module.

    Raises:
        InputError: a value is out of range.
    """

    address: str = "auto"
    workers: int | None = None
    cpus: int | None = None
    device: str | None = None
    backend: str | None = None
    batch: int = 1
    prepare: Callable[[], None] | None = None

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise InputError(f"cluster: workers must be at least 1, got {self.workers}")
        if self.cpus is not None and self.cpus < 1:
            raise InputError(f"cluster: cpus must be at least 1, got {self.cpus}")
        if self.batch < 1:
            raise InputError(f"cluster: batch must be at least 1 picture, got {self.batch}")
        if self.device not in (None, "cpu", "cuda"):
            raise InputError(f"cluster: device must be cpu or cuda (Ray says which), got {self.device!r}")
        if self.backend is not None and self.backend not in available_backends("cpu"):
            raise InputError(
                f"cluster: backend must be one of {', '.join(available_backends('cpu'))}, got {self.backend!r}"
            )


def import_ray() -> Any:
    """Return Ray; raise InputError with the install line where a package is missing."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    try:
        import fsspec  # noqa: F401
        import ray
    except ImportError as error:
        raise InputError(missing_extra("cluster:", f"Ray ({error.name} is missing)", "cluster")) from error
    return ray


@contextlib.contextmanager
def connected(address: str) -> Iterator[None]:
    """Be connected to a Ray cluster, quietly, and leave it as it was.

    A connection that this process has already is used and left. With ``"auto"``, the cluster that
    RAY_ADDRESS names or that ``ray start`` made on this machine is joined; where there is none, one
    is started and stopped at the end.

    Raises:
        InputError: Ray is missing.
        KithkinError: the cluster can't be reached or started.
    """
    ray = import_ray()
    with contextlib.redirect_stdout(_WithoutRay(sys.stdout)):
        if ray.is_initialized():
            yield
            return
        try:
            _connect(ray, address)
            yield
        finally:
            ray.shutdown()


def _connect(ray: Any, address: str) -> None:
    quiet = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    try:
        with _without_stderr():
            if address == "auto":
                _join_or_start(ray, quiet)
            else:
                ray.init(address=address, **quiet)
    except Exception as error:  # Where a node is too slow to start, it is a plain Exception.
        raise KithkinError(
            f"cluster {address}: no Ray cluster can be reached or started there ({one_line(error)}); "
            "check the address, or that `ray status` works on this machine"
        ) from error


def _join_or_start(ray: Any, quiet: dict[str, Any]) -> None:
    """Join the cluster of RAY_ADDRESS or of `ray start` here; start one where there is none.

    Ray's own "auto" would also join what some other program started for itself, and end with it.
    """
    fresh = {"include_dashboard": False, "object_store_memory": OBJECT_STORE, **quiet}
    try:
        ray.init(**fresh)
    except ValueError:  # It won't set the memory of a cluster that runs.
        try:
            ray.init(**quiet)
        except ConnectionError:  # It ran once.
            ray.init(address="local", **fresh)


@contextlib.contextmanager
def _without_stderr() -> Iterator[None]:
    """Discard the process's error stream: Ray's C++ part prints there, whatever its log level."""
    kept = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


class _WithoutRay(io.TextIOBase):
    """A stream without the lines of Ray's own thread about dead workers, which we report."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        ours = threading.current_thread().name != "ray_listen_error_messages"
        return self._stream.write(text) if ours else len(text)

    def flush(self) -> None:
        self._stream.flush()

    def isatty(self) -> bool:
        return bool(self._stream.isatty())


@dataclass(frozen=True)
class Size:
    """Of the pool: how many workers, and the CPUs and GPUs of each."""

    workers: int
    cpus: int
    gpus: float


def size_pool(nodes: Sequence[tuple[int, int]], workers: int | None, device: str | None) -> Size:
    """Share the nodes among the workers, so that together they use no more than there is.

    Args:
        nodes: (CPUs, GPUs) of each.
        workers, device: as in ``Pool``.

    Raises:
        InputError: no GPUs where they are asked for, or more workers than CPUs.
    """
    all_cpus, all_gpus = (sum(node[i] for node in nodes) for i in (0, 1))
    if device == "cuda" and not all_gpus:
        raise InputError("cluster: device must be cpu: this cluster has no GPU that Ray knows of")
    if device != "cpu" and all_gpus:
        workers = workers or all_gpus
        sharing = -(-workers // all_gpus)
        slots = [(cpus, gpus * sharing) for cpus, gpus in nodes]
        return Size(workers, _cpus_each(slots, workers), 1 / sharing)
    workers = workers or all_cpus
    if workers > all_cpus:
        raise InputError(
            f"cluster: workers must be at most {all_cpus}, since each needs a CPU of the cluster, got {workers}"
        )
    return Size(workers, _cpus_each([(cpus, cpus) for cpus, _ in nodes], workers), 0)


def _cpus_each(nodes: Sequence[tuple[int, int]], workers: int) -> int:
    """The most whole CPUs for each worker, 0 if not one; a node takes no more than its slots."""
    most = max((cpus for cpus, _ in nodes), default=0)
    fits = (n for n in range(most, 0, -1) if sum(min(cpus // n, slots) for cpus, slots in nodes) >= workers)
    return next(fits, 0)


def restore_tasks(
    model: KiT | Restorer, tasks: Sequence[Task], *, options: RestoreOptions | None = None, pool: Pool | None = None
) -> Iterator[Outcome]:
    """Restore pictures with the workers of a cluster, whatever files fail and workers die.

    Args:
        model: the network, on the CPU, or another restorer that can be pickled; every node gets it
            from here.
        tasks: from ``kithkin.cluster.plan_tasks``. Paths must be the same on every node.
        options: how; None takes the defaults. ``precision="auto"`` is settled here for all workers:
            bfloat16 where this machine multiplies it on a device of the workers' kind, whatever
            their own machines can do.
        pool: the workers; None takes the defaults.

    Yields:
        The outcome of each task, in the order in which they end. One whose worker died each time is
        failed.

    Raises:
        InputError, KithkinError: Ray is missing, the cluster can't be reached, or its workers can't
            start.
    """
    options, pool = options or RestoreOptions(), pool or Pool()
    if not tasks:
        return
    with connected(pool.address):
        import ray

        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        size = size_pool([(int(n.get("CPU", 0)), int(n.get("GPU", 0))) for n in nodes], pool.workers, pool.device)
        size = size if pool.cpus is None else replace(size, cpus=pool.cpus)
        device = "cuda" if size.gpus else "cpu"
        precision = settled_precision(options.precision, model, device)
        options = replace(options, precision=precision) if precision in PRECISIONS else options
        config = WorkerConfig(options, device, max(size.cpus, 1), pool.backend, pool.batch, pool.prepare)
        actor = ray.remote(Worker).options(
            num_cpus=size.cpus, num_gpus=size.gpus, max_restarts=-1, max_task_retries=RETRIES
        )
        shared = ray.put(model)
        workers = [actor.remote(shared, config) for _ in range(size.workers)]
        missing = dict(enumerate(tasks))
        for number, outcome in _outcomes(workers, tasks, list(in_groups(tasks, size.workers))):
            task = missing.pop(number)
            used = precision if outcome.status == "written" else None
            yield replace(outcome, source=task.source, target=task.target, precision=used)
        for task in missing.values():
            reason = (
                f"{shown(task.source)}: its worker died every time, at last {RETRIES + 1} times with this file alone; "
                "it may need more memory than there is: take fewer workers or smaller tiles"
            )
            yield Outcome(task.source, "failed", task.target, reason=reason)


def _outcomes(
    workers: list[Any], tasks: Sequence[Task], groups: Sequence[Sequence[int]]
) -> Iterator[tuple[int, Outcome]]:
    """Give each idle worker the next group. A file whose worker died each time has no outcome.

    Ray starts a dead worker again and repeats its group, RETRIES times. A group that is lost even
    then is taken up again after all others, each file alone, so that only the file that kills its
    worker is lost.

    Args:
        workers: handles of the actors; taken out of the list.
        tasks: all of them.
        groups: numbers of tasks, which one worker takes at a time.
    """
    import ray

    def when_alive(worker: Any) -> Any:
        """Answers once the worker is started again; until then Ray would refuse a group."""
        return worker.restore.options(max_task_retries=-1).remote([])

    waiting = deque(groups)
    # Only who answers gets work: a worker that the cluster has no room for would keep its group for ever.
    at_work: dict[Any, tuple[Any, Sequence[int]]] = {when_alive(worker): (worker, ()) for worker in workers}
    workers.clear()  # An actor that nobody holds ends: an idle one makes room for one that starts again.
    while waiting or any(group for _, group in at_work.values()):
        (answer,), _ = ray.wait(list(at_work))
        worker, group = at_work.pop(answer)
        try:
            yield from zip(group, ray.get(answer), strict=True)
        except (ray.exceptions.ActorDiedError, ray.exceptions.RayTaskError) as error:
            raise KithkinError(f"cluster: the workers can't start or go on: {_cause(error)}") from error
        except ray.exceptions.RayError:
            waiting += [[number] for number in group] if len(group) > 1 else []
            at_work[when_alive(worker)] = worker, ()
            continue
        if waiting:
            group = waiting.popleft()
            at_work[worker.restore.remote([_everywhere(tasks[number]) for number in group])] = worker, group


def _everywhere(task: Task) -> Task:
    """The task with paths that mean the same in another folder."""
    source, target = (place if is_url(place) else os.path.abspath(place) for place in (task.source, task.target))
    return replace(task, source=source, target=target)


def _cause(error: Exception) -> str:
    """The line of an actor's traceback that says why."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    ours = [line for line in lines if line.startswith("kithkin.errors.")]
    return one_line(ours[-1].partition(": ")[2] if ours else lines[-1] if lines else type(error).__name__)
