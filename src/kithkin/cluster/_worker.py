"""What one worker does: hold the model, and restore the files of one group after the other."""

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from kithkin.cluster._plan import Task
from kithkin.cluster._together import restore_together
from kithkin.errors import InputError
from kithkin.images import Picture, decode_picture, encode_picture, losses, read_picture, write_picture
from kithkin.messages import one_line, shown
from kithkin.model import KiT
from kithkin.ops import available_backends
from kithkin.restore_files import Outcome, RestoreOptions, failure_reason, make_room
from kithkin.restorers import Restorer, restore_image
from kithkin.storage import exists, is_url, read_bytes, write_bytes

# By its name, since what stands above this layer is listed there too.
VERSION: str = import_module("kithkin").__version__
TRANSFERS = 8
"""Files of a URL that one worker reads or writes at once, while it restores others."""


@dataclass(frozen=True)
class WorkerConfig:
    """What every worker is told.

    Attributes:
        options: how files are restored and written.
        device: ``"cpu"`` or ``"cuda"``.
        threads: of the CPU, that one worker may use.
        backend: of attention; None for the fastest that works.
        batch: pictures of equal size that go through the network at once.
        prepare: called once before anything else.
        version: of kithkin, that made this configuration.
    """

    options: RestoreOptions
    device: str
    threads: int
    backend: str | None = None
    batch: int = 1
    prepare: Callable[[], None] | None = None
    version: str = VERSION


@dataclass
class _File:
    """A file at work: its picture once it is read, and what became of it so far."""

    task: Task
    picture: Picture | None = None
    writing: "Future[None] | None" = None
    status: str = "written"
    seconds: float = 0.0
    reason: str | None = None
    notes: list[str] = field(default_factory=list)

    def outcome(self) -> Outcome:
        """What to report."""
        notes = tuple(self.notes)
        return Outcome(
            self.task.source, self.status, self.task.target, reason=self.reason, notes=notes, seconds=self.seconds
        )

    def attempt(self, run: Callable[[], Any]) -> Any:
        """Return what `run` gives; where it raises, the file is failed, and None comes back."""
        try:
            return run()
        except Exception as error:
            self.fail(error)
            return None

    def fail(self, error: Exception) -> None:
        """Note the reason, of unexpected errors too: a bug should not end a run of a million."""
        if "CUDA error" in str(error):
            os._exit(1)  # Every further call on this device would fail too: let Ray start the worker anew.
        self.status = "failed"
        source = self.task.source
        try:
            self.reason = failure_reason(error, source)
        except Exception:
            self.reason = f"{shown(source)}: failed unexpectedly ({type(error).__name__}: {one_line(error)})"


class Worker:
    """An actor of the pool.

    Args:
        model: the network, on the CPU, or another restorer.
        config: how to use it.

    Raises:
        InputError: the configuration is of another version of kithkin, or names a backend that
            can't serve here.
    """

    def __init__(self, model: KiT | Restorer, config: WorkerConfig) -> None:
        if config.version != VERSION:
            raise InputError(
                f"cluster: this node has kithkin {VERSION}, the command is of {config.version}; install the same"
            )
        if config.prepare is not None:
            config.prepare()
        torch.set_num_threads(config.threads)
        reason = None if config.backend is None else available_backends(config.device)[config.backend]
        if reason is not None:
            raise InputError(
                f"cluster: the backend {config.backend} can't be used: {reason}; leave it out, or take another"
            )
        if isinstance(model, KiT):
            model = model.to(config.device).set_backend(config.backend).eval()
        self._model = model
        self._config = config
        self._transfers = ThreadPoolExecutor(TRANSFERS)

    def restore(self, tasks: Sequence[Task]) -> list[Outcome]:
        """Restore the files of one group, and return the outcome of each."""
        files = [_File(task) for task in tasks]
        for together in _of_equal_size(self._read(files), self._most):
            started = time.perf_counter()
            restored = self._restored(together)
            share = (time.perf_counter() - started) / len(together)
            for file, picture in zip(together, restored, strict=True):
                started = time.perf_counter()
                file.picture = None  # its memory is needed for the next ones
                if picture is not None:
                    file.writing = file.attempt(partial(self._write, picture, file.task.target))
                file.seconds += share + time.perf_counter() - started
        for file in files:
            if file.writing is not None:
                file.attempt(file.writing.result)
        return [file.outcome() for file in files]

    def _read(self, files: Sequence[_File]) -> Iterator[_File]:
        """Read the files, those of URLs ahead, and yield those that are to be restored."""
        ahead = [self._transfers.submit(self._fetch, file.task) if _remote(file.task) else None for file in files]
        for file, fetched in zip(files, ahead, strict=True):
            source, target = file.task.source, file.task.target
            started = time.perf_counter()
            try:
                data = self._fetch(file.task) if fetched is None else fetched.result()
                if data is None:
                    file.status, file.reason = "skipped", _there_already(target)
                    continue
                file.picture = decode_picture(data, source) if isinstance(data, bytes) else read_picture(data)
                file.notes += [*file.picture.notes, *losses(file.picture, target)]
            except Exception as error:
                file.fail(error)
                continue
            finally:
                file.seconds = time.perf_counter() - started
            yield file

    def _fetch(self, task: Task) -> bytes | Path | None:
        """The bytes of a URL, or the path of a file; None where the result exists already."""
        done = exists(task.target) if is_url(task.target) else os.path.lexists(task.target)
        if done and not self._config.options.overwrite:
            return None
        return read_bytes(task.source) if is_url(task.source) else Path(task.source)

    def _most(self, height: int, width: int) -> int:
        """How many pictures of this size go through the network at once."""
        return self._config.options.room_for(height, width, self._config.batch if isinstance(self._model, KiT) else 1)

    def _restored(self, files: list[_File]) -> list[Picture | None]:
        """Restore pictures of equal size; None takes the place of one that failed."""
        pictures = [file.picture for file in files if file.picture is not None]
        if len(files) > 1 and isinstance(self._model, KiT):
            with contextlib.suppress(Exception):  # One by one, each has its own error or what memory there is.
                return [*restore_together(self._model, pictures, self._config.options)]
        return [file.attempt(partial(self._restore, file)) for file in files]

    def _restore(self, file: _File) -> Picture:
        assert file.picture is not None
        restorer = self._config.options.compose(self._model, note=file.notes.append)
        restored: Picture = restore_image(restorer, file.picture, note=file.notes.append)
        return restored

    def _write(self, picture: Picture, target: str) -> "Future[None] | None":
        """Write the result: at once to a path, or in the background to a URL."""
        options = self._config.options
        if is_url(target):
            data = encode_picture(picture, target, quality=options.quality)
            return self._transfers.submit(write_bytes, target, data)
        make_room(Path(target), options.overwrite)
        write_picture(picture, target, overwrite=options.overwrite, quality=options.quality)
        return None


def _there_already(target: str) -> str:
    return (
        f"{shown(target)}: was there already when its turn came, from a worker that died or from somebody else, so it "
        "is left as it is; allow `overwrite` to replace it"
    )


def _remote(task: Task) -> bool:
    return is_url(task.source) or is_url(task.target)


def _of_equal_size(files: Iterable[_File], most: Callable[[int, int], int]) -> Iterator[list[_File]]:
    """Collect pictures of equal size, at most `most(height, width)`, to restore at once."""
    waiting: dict[tuple[int, int, bool], list[_File]] = {}
    for file in files:
        assert file.picture is not None
        height, width = file.picture.pixels.shape[:2]
        key = (height, width, file.picture.gray)
        waiting.setdefault(key, []).append(file)
        if len(waiting[key]) >= most(height, width):
            yield waiting.pop(key)
    yield from waiting.values()
