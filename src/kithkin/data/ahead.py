"""Work begun before its result is asked for: by threads of this process, or by other processes."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from multiprocessing.connection import Connection, wait
from typing import Any, TypeAlias, TypeVar

from kithkin.errors import InputError

THREADS = 2
T = TypeVar("T")
Item = TypeVar("Item")
_KILLED = (
    "train: a process that reads the data ended, most likely because the memory was full; take fewer "
    'data.workers (a script of your own that asks for them needs `if __name__ == "__main__":`)'
)


@contextmanager
def drawn_ahead(
    draw: Callable[[int], T], steps: Iterable[int], workers: int, killed: str = _KILLED
) -> Iterator[Iterator[T]]:
    """What ``draw`` gives for each of the steps, in their order, begun a few steps ahead.

    Args:
        draw: a function of the step alone, so that no number of workers changes what comes out. Pickled for them.
        steps: to draw for.
        workers: processes, each with its own copy of ``draw``; 0 draws in two threads. A script that asks for
            processes needs ``if __name__ == "__main__":``.
        killed: what to say when a process was killed.

    Raises:
        InputError: a process was killed.
        KithkinError: as ``draw`` raises it, when its step is asked for.
    """
    pool, submit, end = _threads(draw) if workers == 0 else _processes(draw, workers)

    def results() -> Iterator[T]:
        try:
            yield from in_order(submit, steps, max(THREADS, 2 * workers) + 1)
        except BrokenProcessPool as error:
            end()  # the pool waits for the others, which heed no signal
            raise InputError(killed) from error

    try:
        yield results()
    finally:
        end()
        pool.shutdown(cancel_futures=True)


def in_order(submit: Callable[[Item], Future[T]], items: Iterable[Item], depth: int) -> Iterator[T]:
    """The results of items, in their order, while up to ``depth`` of them are being worked on."""
    waiting = iter(items)
    ahead = [submit(item) for item in islice(waiting, depth)]
    while ahead:
        result = ahead.pop(0).result()
        ahead += [submit(item) for item in islice(waiting, 1)]
        yield result


# A pool, what gives it a step, and what ends its work at once.
_Pool: TypeAlias = tuple[Executor, Callable[[int], Future[T]], Callable[[], None]]


def _threads(draw: Callable[[int], T]) -> _Pool[T]:
    pool = ThreadPoolExecutor(THREADS)
    return pool, lambda step: pool.submit(draw, step), lambda: None


def _processes(draw: Callable[[int], T], workers: int) -> _Pool[T]:
    # Not forked: neither PyTorch's threads nor the network clients' survive a fork.
    context = multiprocessing.get_context("spawn")
    ending, end = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(draw, ending))
    return pool, lambda step: pool.submit(_work, step), end.close


_draw: Callable[[int], Any] | None = None


def _start_worker(draw: Callable[[int], Any], ending: Connection) -> None:
    global _draw
    for number in (signal.SIGINT, signal.SIGTERM):  # a cluster's sends them to all; the parent ends the work
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(ending,), daemon=True).start()
    _draw = draw


def _end_with(ending: Connection) -> None:
    """End where the parent closes its end of the pipe, or is killed: a pool's process would wait for work for ever."""
    wait([ending])
    os._exit(0)


def _work(step: int) -> Any:
    assert _draw is not None
    return _draw(step)
