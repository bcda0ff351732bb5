"""Ray: the connection, the size of the pool, and the outcomes as they come."""

import contextlib
import io
import logging
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from kithkin.cluster._places import INSTALL, is_url
from kithkin.cluster._plan import Errand, in_groups
from kithkin.cluster._worker import Orders, Result, Worker
from kithkin.errors import InputError, KithkinError
from kithkin.images._picture import one_line, shown
from kithkin.model import KiT
from kithkin.ops import available_backends
from kithkin.restore_files import Outcome, RestoreOptions

OBJECT_STORE = 2**28
"""Bytes of shared memory for a cluster that is started here: names and the model pass through it, no pixels."""
RETRIES = 2
"""How often a group of files is taken up again after its worker died; then each file of it is, alone."""


@dataclass(frozen=True)
class Pool:
    """The workers.

    Attributes:
        address: ``"auto"``, or a Ray cluster's address.
        workers: how many; None for one a GPU, or one a CPU where there are no GPUs.
        cpus: of each worker, which takes as many threads; None shares out all that the cluster has.
        device: ``"cuda"``, ``"cpu"``, or None for GPUs where the cluster has some.
        backend: of attention, a name from ``kithkin.available_backends``; None for the fastest that works.
        batch: pictures of equal size that go through the network at once. More than 1 changes roundings.
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
            raise InputError(f"--workers: there must be at least 1, got {self.workers}")
        if self.cpus is not None and self.cpus < 1:
            raise InputError(f"Pool: a worker needs at least 1 CPU, got {self.cpus}")
        if self.batch < 1:
            raise InputError(f"--batch: at least 1 picture goes through the network at once, got {self.batch}")
        if self.device not in (None, "cpu", "cuda"):
            raise InputError(f"--device: in a cluster it is cpu or cuda (Ray says which), got {self.device!r}")
        if self.backend is not None and self.backend not in available_backends("cpu"):
            raise InputError(
                f"--backend: there is no {self.backend!r}; there are {', '.join(available_backends('cpu'))}"
            )


def import_ray() -> Any:
    """Return Ray with what of it is used; raise InputError with the install line where something is missing."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    try:
        import fsspec  # noqa: F401
        import pyarrow  # noqa: F401
        import ray
        import ray.data
    except ImportError as error:
        raise InputError(f"--cluster needs Ray ({error.name} is missing); install it with: {INSTALL}") from error
    return ray


@contextlib.contextmanager
def connected(address: str) -> Iterator[None]:
    """Be connected to a Ray cluster, quietly, and leave it as it was.

    A connection that this process has already is used and left. With ``"auto"``, the cluster that RAY_ADDRESS names or
    that ``ray start`` made on this machine is joined; where there is none, one is started and stopped at the end.

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
            f"--cluster {address}: no Ray cluster can be reached or started there ({one_line(error)}); "
            "check the address, or that `ray status` works on this machine"
        ) from error


def _join_or_start(ray: Any, quiet: dict[str, Any]) -> None:
    """Join the cluster of RAY_ADDRESS, or that `ray start` made here; start one where there is none.

    Ray's own "auto" would also join what some other program started for itself, and end with it.
    """
    own = {"include_dashboard": False, "object_store_memory": OBJECT_STORE, **quiet}
    try:
        ray.init(**own)
    except ValueError:  # It won't set the memory of a cluster that runs.
        try:
            ray.init(**quiet)
        except ConnectionError:  # It ran once.
            ray.init(address="local", **own)


@contextlib.contextmanager
def _without_stderr() -> Iterator[None]:
    """Send the process's own error stream nowhere: Ray's C++ part greets there, whatever its log level."""
    kept = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


class _WithoutRay(io.TextIOBase):
    """A stream without what Ray's own thread prints to it: it tells of every worker that dies, and so do we."""

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
        raise InputError("--device cuda: this cluster has no GPU that Ray knows of; leave it out, or take cpu")
    if device != "cpu" and all_gpus:
        workers = workers or all_gpus
        sharing = -(-workers // all_gpus)
        slots = [(cpus, gpus * sharing) for cpus, gpus in nodes]
        return Size(workers, _cpus_each(slots, workers), 1 / sharing)
    workers = workers or all_cpus
    if workers > all_cpus:
        raise InputError(
            f"--workers {workers}: this cluster has {all_cpus} CPUs, and each worker needs one; take fewer"
        )
    return Size(workers, _cpus_each([(cpus, cpus) for cpus, _ in nodes], workers), 0)


def _cpus_each(nodes: Sequence[tuple[int, int]], workers: int) -> int:
    """The most whole CPUs that each worker can have where a node takes at most its second number; 0 if not one."""
    most = max((cpus for cpus, _ in nodes), default=0)
    fits = (n for n in range(most, 0, -1) if sum(min(cpus // n, slots) for cpus, slots in nodes) >= workers)
    return next(fits, 0)


def restore_errands(
    model: KiT, errands: Sequence[Errand], *, options: RestoreOptions | None = None, pool: Pool | None = None
) -> Iterator[Outcome]:
    """Restore pictures with the workers of a cluster, and go on after files that fail and workers that die.

    Args:
        model: the network, on the CPU; every node gets it from here.
        errands: from ``kithkin.cluster.plan_errands``. Paths must be the same on every node.
        options: how; None takes the defaults.
        pool: the workers; None takes the defaults.

    Yields:
        The outcome of each errand, in the order in which they end. One whose worker died each time is failed.

    Raises:
        InputError, KithkinError: Ray is missing, the cluster can't be reached, or its workers can't start.
    """
    options, pool = options or RestoreOptions(), pool or Pool()
    if not errands:
        return
    with connected(pool.address):
        import ray

        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        size = size_pool([(int(n.get("CPU", 0)), int(n.get("GPU", 0))) for n in nodes], pool.workers, pool.device)
        size = size if pool.cpus is None else replace(size, cpus=pool.cpus)
        device = "cuda" if size.gpus else "cpu"
        orders = Orders(options, device, max(size.cpus, 1), pool.backend, pool.batch, pool.prepare)
        crew = _Crew(ray.put(model), orders, size)
        missing = dict(enumerate(errands))
        groups = [list(group) for group in in_groups(errands, size.workers)]
        for queued in (None, 1):  # The second time each file alone, so that only what kills the worker is lost.
            for result in crew.results(groups, missing, queued):
                yield _outcome(missing.pop(result.number), result)
            groups = [[number] for number in missing]
        for errand in missing.values():
            reason = (
                f"{shown(errand.source)}: its worker died every time, with others in the group and then "
                f"{RETRIES + 1} times alone; it may need more memory than there is: take fewer --workers, or --tile 256"
            )
            yield Outcome(errand.source, "failed", errand.target, reason=reason)


def _outcome(errand: Errand, result: Result) -> Outcome:
    return Outcome(
        errand.source,
        result.status,
        errand.target,
        reason=result.reason,
        notes=tuple(result.notes),
        seconds=result.seconds,
    )


@dataclass(frozen=True)
class _Crew:
    """The pool of actors: what each holds, and how many there are."""

    model: Any
    orders: Orders
    size: Size

    def results(self, groups: list[list[int]], errands: dict[int, Errand], queued: int | None) -> Iterator[Result]:
        """Run groups of errands through Ray Data; those whose worker died too often give nothing.

        Args:
            groups: numbers of errands, that one worker takes at a time.
            errands: by number.
            queued: groups that wait at a worker at most; they are lost with it. None leaves it to Ray.
        """
        import pyarrow
        import ray.data

        if not groups:
            return
        tables = [pyarrow.Table.from_pylist([_row(n, errands[n]) for n in group]) for group in groups]
        with _quiet_data(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # There is no other way yet to bound the retries: see pyproject.toml.
            data = ray.data.from_arrow(tables).map_batches(
                _Actor,
                fn_constructor_args=(self.model, self.orders),
                batch_size=None,
                batch_format="pyarrow",
                compute=ray.data.ActorPoolStrategy(size=self.size.workers, max_tasks_in_flight_per_actor=queued),
                num_cpus=self.size.cpus,
                num_gpus=self.size.gpus or None,
                max_restarts=-1,
                max_task_retries=RETRIES,
            )
            try:
                tables_done: Any = data.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
                for table in tables_done:
                    yield from (Result(**row) for row in table.to_pylist())
            except ray.exceptions.RayError as error:
                raise KithkinError(f"--cluster: the workers can't start or go on: {_cause(error)}") from error


class _Actor(Worker):
    """A worker that takes the model from Ray's object store."""

    def __init__(self, model: Any, orders: Orders) -> None:
        import ray

        super().__init__(ray.get(model), orders)


def _row(number: int, errand: Errand) -> dict[str, Any]:
    return {"number": number, "source": _everywhere(errand.source), "target": _everywhere(errand.target)}


def _everywhere(place: str) -> bytes:
    """A URL, or a path that means the same in another folder; as bytes, since a file's name need not be text."""
    return os.fsencode(place if is_url(place) else os.path.abspath(place))


def _cause(error: Exception) -> str:
    """The line of an actor's traceback that says why."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    ours = [line for line in lines if line.startswith("kithkin.errors.")]
    return one_line(ours[-1].partition(": ")[2] if ours else lines[-1] if lines else type(error).__name__)


@contextlib.contextmanager
def _quiet_data() -> Iterator[None]:
    """Let Ray Data tolerate groups that are lost, and print nothing; afterwards as before."""
    import ray.data

    context = ray.data.DataContext.get_current()
    ours = {
        "enable_progress_bars": False,
        "print_on_execution_start": False,
        "max_errored_blocks": -1,
        "execution_no_progress_timeout_s": -1,
    }
    before = {name: getattr(context, name) for name in ours if hasattr(context, name)}
    logger = logging.getLogger("ray.data")
    level = logger.level
    try:
        for name in before:
            setattr(context, name, ours[name])
        logger.setLevel(logging.CRITICAL + 1)
        yield
    finally:
        for name, value in before.items():
            setattr(context, name, value)
        logger.setLevel(level)
