"""What one worker does: hold the model, and restore the files of one group after the other."""

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from os import fsdecode
from pathlib import Path
from typing import Any

import torch

from kithkin.cluster._places import exists, get, is_url, put
from kithkin.cluster._together import restore_together, room_for
from kithkin.errors import InputError
from kithkin.images import Picture, decode_picture, encode_picture, losses, read_picture, write_picture
from kithkin.images._picture import one_line, shown
from kithkin.model import KiT
from kithkin.ops import available_backends
from kithkin.restore_files import RestoreOptions, failure_reason, make_room, restore_picture

# By its name, since what stands above this layer is listed there too.
VERSION: str = import_module("kithkin").__version__
TRANSFERS = 8
"""Files of a URL that one worker reads or writes at once, while it restores others."""


@dataclass(frozen=True)
class Orders:
    """What every worker is told.

    Attributes:
        options: how files are restored and written.
        device: ``"cpu"`` or ``"cuda"``.
        threads: of the CPU, that one worker may use.
        backend: of attention; None for the fastest that works.
        batch: pictures of equal size that go through the network at once.
        prepare: called once before anything else.
        version: of kithkin, that gave the orders.
    """

    options: RestoreOptions
    device: str
    threads: int
    backend: str | None = None
    batch: int = 1
    prepare: Callable[[], None] | None = None
    version: str = VERSION


@dataclass
class Result:
    """What became of one file; `number` is its place among the errands."""

    number: int
    status: str = "written"
    seconds: float = 0.0
    reason: str | None = None
    notes: list[str] = field(default_factory=list)


@dataclass
class _Open:
    """A picture that was read and waits to be restored."""

    result: Result
    source: str
    target: str
    picture: Picture


class Worker:
    """An actor of the pool.

    Args:
        model: the network, on the CPU.
        orders: how to use it.

    Raises:
        InputError: another version of kithkin than the one that gave the orders, or a backend that can't serve here.
    """

    def __init__(self, model: KiT, orders: Orders) -> None:
        if orders.version != VERSION:
            raise InputError(
                f"cluster: this node has kithkin {VERSION}, the command is of {orders.version}; install the same"
            )
        if orders.prepare is not None:
            orders.prepare()
        torch.set_num_threads(orders.threads)
        reason = None if orders.backend is None else available_backends(orders.device)[orders.backend]
        if reason is not None:
            raise InputError(f"--backend {orders.backend}: {reason}; leave it out, or take another")
        self._model = model.to(orders.device).set_backend(orders.backend).eval()
        self._orders = orders
        self._transfers = ThreadPoolExecutor(TRANSFERS)

    def __call__(self, table: Any) -> Any:
        """Restore the files of an Arrow table (number, source, target); return one with what became of each."""
        import pyarrow

        places = (
            {**row, "source": fsdecode(row["source"]), "target": fsdecode(row["target"])} for row in table.to_pylist()
        )
        results = self.restore(list(places))
        schema = pyarrow.schema(
            [
                ("number", pyarrow.int64()),
                ("status", pyarrow.string()),
                ("seconds", pyarrow.float64()),
                ("reason", pyarrow.string()),
                ("notes", pyarrow.list_(pyarrow.string())),
            ]
        )
        return pyarrow.Table.from_pylist([vars(result) for result in results], schema)

    def restore(self, rows: list[dict[str, Any]]) -> list[Result]:
        """Restore the files of one group; what fails says so in its result, and the others go on."""
        results: list[Result] = []
        writing: list[tuple[Result, str, Future[None] | None]] = []
        for together in _of_equal_size(self._opened(rows, results), self._most):
            started = time.perf_counter()
            restored = self._restored(together)
            share = (time.perf_counter() - started) / len(together)
            for opened, picture in zip(together, restored, strict=True):
                started = time.perf_counter()
                future = None
                if picture is not None:
                    future = _guarded(opened.result, opened.source, partial(self._write, picture, opened.target))
                opened.result.seconds += share + time.perf_counter() - started
                writing.append((opened.result, opened.source, future))
        for result, source, future in writing:
            if future is not None:
                _guarded(result, source, future.result)
            results.append(result)
        return results

    def _opened(self, rows: list[dict[str, Any]], results: list[Result]) -> Iterator[_Open]:
        """Read the files that are to be restored, those of URLs ahead; the results of the others are settled."""
        ahead = [self._transfers.submit(self._fetch, row) if _remote(row) else None for row in rows]
        for row, fetched in zip(rows, ahead, strict=True):
            result = Result(row["number"])
            started = time.perf_counter()
            try:
                data = self._fetch(row) if fetched is None else fetched.result()
                if data is None:
                    result.status, result.reason = "skipped", _there_already(row["target"])
                    results.append(result)
                    continue
                picture = decode_picture(data, row["source"]) if isinstance(data, bytes) else read_picture(data)
                result.notes += [*picture.notes, *losses(picture, row["target"])]
            except Exception as error:
                results.append(_failed(result, error, row["source"]))
                continue
            finally:
                result.seconds = time.perf_counter() - started
            yield _Open(result, row["source"], row["target"], picture)

    def _fetch(self, row: dict[str, Any]) -> bytes | Path | None:
        """The bytes of a URL, or the path of a local file; None where the result is there, so that nothing is to do."""
        target = row["target"]
        there = exists(target) if is_url(target) else os.path.lexists(target)
        if there and not self._orders.options.overwrite:
            return None
        return get(row["source"]) if is_url(row["source"]) else Path(row["source"])

    def _most(self, height: int, width: int) -> int:
        """How many pictures of this size go through the network at once."""
        options = self._orders.options
        most = 1 if options.uniform_blur else self._orders.batch
        return room_for(height, width, most, options.tile)

    def _restored(self, together: list[_Open]) -> list[Picture | None]:
        """Restore pictures of equal size; None takes the place of one that failed."""
        if len(together) > 1:
            with contextlib.suppress(Exception):  # One by one, each has its own error or what memory there is.
                pictures = [opened.picture for opened in together]
                options = self._orders.options
                strength, ensemble = options.strength, options.ensemble
                return [*restore_together(self._model, pictures, strength=strength, ensemble=ensemble)]
        return [_guarded(opened.result, opened.source, partial(self._alone, opened)) for opened in together]

    def _alone(self, opened: _Open) -> Picture:
        note = opened.result.notes.append
        return restore_picture(self._model, opened.picture, self._orders.options, note=note)

    def _write(self, picture: Picture, target: str) -> "Future[None] | None":
        """Write the result: at once to a path, or in the background to a URL."""
        options = self._orders.options
        if is_url(target):
            data = encode_picture(picture, target, quality=options.quality)
            return self._transfers.submit(put, data, target)
        make_room(Path(target), options.overwrite)
        write_picture(picture, target, overwrite=options.overwrite, quality=options.quality)
        return None


def _guarded(result: Result, source: str, run: Callable[[], Any]) -> Any:
    """Return what `run` gives; where it raises, put the reason into the result and return None."""
    try:
        return run()
    except Exception as error:
        _failed(result, error, source)
        return None


def _there_already(target: str) -> str:
    return (
        f"{shown(target)}: was there already when its turn came, from a worker that died or from somebody else, so it "
        "is left as it is; allow overwriting to replace it"
    )


def _remote(row: dict[str, Any]) -> bool:
    return is_url(row["source"]) or is_url(row["target"])


def _of_equal_size(items: Iterable[_Open], most: Callable[[int, int], int]) -> Iterator[list[_Open]]:
    """Collect pictures that can go through the network at once, as many as `most` says for a height and a width."""
    waiting: dict[tuple[int, int, bool], list[_Open]] = {}
    for item in items:
        height, width = item.picture.pixels.shape[:2]
        key = (height, width, item.picture.gray)
        waiting.setdefault(key, []).append(item)
        if len(waiting[key]) >= most(height, width):
            yield waiting.pop(key)
    yield from waiting.values()


def _failed(result: Result, error: Exception, source: str) -> Result:
    """Put the reason into a result; an unexpected one too, since a bug met once should not end a run of a million."""
    if "CUDA error" in str(error):
        os._exit(1)  # Every further call on this device would fail too: let Ray start the worker anew.
    result.status = "failed"
    try:
        result.reason = failure_reason(error, source)
    except Exception:
        result.reason = f"{shown(source)}: failed unexpectedly ({type(error).__name__}: {one_line(error)})"
    return result
