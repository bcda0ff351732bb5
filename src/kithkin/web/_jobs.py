"""The queue of jobs, the one thread that works on them, and results that wait to be fetched. All of
it in memory."""

import ctypes
import logging
import math
import secrets
import sys
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from kithkin.errors import ImageError, InputError, KithkinError
from kithkin.estimate import Estimate
from kithkin.restorers import out_of_memory
from kithkin.web._kept import Kept
from kithkin.web._limits import Limits
from kithkin.web._preview import Preview

LONGEST_RETRY = 120
"""Seconds after which to come again, at most: the queue moves on sooner than any estimate knows."""
Progress = Callable[[float], None]


@dataclass(frozen=True)
class Answer:
    """What a job gives: a file's bytes, their type, a name for them, and sentences on what was
    changed or lost."""

    body: bytes
    media_type: str
    name: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Problem:
    """Why a job gives nothing: the HTTP status and a sentence."""

    status: int
    detail: str


class Busy(Exception):
    """No more jobs are taken for now; try again after ``seconds``."""

    def __init__(self, seconds: int) -> None:
        super().__init__(seconds)
        self.seconds = seconds


class _Stopped(Exception):
    """The job was given up."""


class _TimeOver(Exception):
    """The job took too long."""


@dataclass(eq=False)
class Job:
    """One piece of work.

    Attributes:
        kind: jobs of one kind take about as long for each pixel.
        name: of the picture.
        pixels: that the network has to look at.
        size: bytes held while it waits.
        run: does the work, calling its argument with the finished fraction.
        patient: wait for the answer, however long nobody asks for the state.
        brief: done between two tiles of the job at work, because no network has to run.
        preview: what is finished of the picture; None where nobody looks.
        state: queued, running, done or failed.
        finished: resolved when it is done, failed or given up.
    """

    kind: str
    name: str
    pixels: int
    size: int
    run: Callable[[Progress], Answer] | None
    patient: bool = False
    brief: bool = False
    preview: Preview | None = None
    id: str = field(default_factory=lambda: secrets.token_urlsafe(16))
    state: str = "queued"
    fraction: float = 0.0
    outcome: Answer | Problem | None = None
    given_up: bool = False
    asked: float = field(default_factory=time.monotonic)
    started: float = 0.0
    reported: float = 0.0
    ended: float = 0.0
    finished: "Future[None]" = field(default_factory=Future)


class Jobs:
    """A bounded queue and the thread that works it off, one job at a time, first come, first
    served.

    Args:
        limits: how much may wait, and how long.

    Attributes:
        kept: restorations that stay for a while.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.kept = Kept(limits)
        self._changed = threading.Condition()
        self._waiting: deque[Job] = deque()
        self._known: dict[str, Job] = {}
        self._running: Job | None = None
        self._closed = False
        self._estimates: defaultdict[str, Estimate] = defaultdict(Estimate)
        self._thread = threading.Thread(target=self._work, name="kithkin-worker", daemon=True)

    def start(self, first: Iterable[Job] = ()) -> None:
        """Start the thread; it begins with these jobs, whose answers nobody wants and which take no
        place."""
        self._waiting.extend(first)
        self._thread.start()

    def close(self) -> None:
        """Give everything up and wait for the thread, which ends after the tile at hand."""
        with self._changed:
            self._closed = True
            for job in list(self._known.values()):
                self._drop(job)
            self._changed.notify_all()
        self._thread.join()

    def submit(self, job: Job) -> None:
        """Put a job at the end of the queue, unless one of that id is known; raises Busy where no
        more is taken."""
        with self._changed:
            if job.id in self._known:
                return
            self.check_room(job.size)
            self._known[job.id] = job
            self._waiting.append(job)
            if self._thread.ident is None:  # Mounted in another application, which does not start its parts.
                self._thread.start()
            self._changed.notify_all()

    def check_room(self, size: int) -> None:
        """Raise Busy where no job of this many bytes is taken."""
        with self._changed:
            self._expire()
            held = sum(known.size for known in self._known.values())
            waiting = sum(job.id in self._known for job in self._waiting)
            if waiting >= self._limits.queue or held + size > self._limits.held_megabytes * 1e6:
                raise Busy(self._seconds_until_free())

    def find(self, job_id: str) -> Job | None:
        """The job, which counts as asked for, or None where there is none (any more)."""
        with self._changed:
            self._expire()
            job = self._known.get(job_id)
            if job is not None:
                job.asked = time.monotonic()
            return job

    def status(self, job: Job) -> dict[str, Any]:
        """Its state; how many come before it, the one at work counted; the finished fraction; the
        seconds until it is finished, from its own pace and from what earlier ones took.
        """
        with self._changed:
            before = [job]
            if job in self._waiting and not job.brief:
                before = [*self._waiting][: self._waiting.index(job) + 1]
                before = [self._running, *before] if self._running is not None else before
            eta = round(sum(self._remaining(one) for one in before), 1)
            ahead = sum(one.id in self._known for one in before if one is not job)
            return {"state": job.state, "ahead": ahead, "fraction": job.fraction, "eta_seconds": eta}

    def take(self, job: Job) -> Answer | Problem | None:
        """The outcome of a finished job, which is forgotten with that."""
        with self._changed:
            if job.outcome is not None:
                self._drop(job)
            return job.outcome

    def drop(self, job: Job) -> None:
        """Forget a job; if it is at work, that ends after the tile at hand."""
        with self._changed:
            self._drop(job)

    def _drop(self, job: Job) -> None:
        self._known.pop(job.id, None)
        if job in self._waiting:
            self._waiting.remove(job)
        job.given_up, job.run = True, None
        self._changed.notify_all()
        if not job.finished.done():
            job.finished.set_result(None)

    def _expire(self) -> None:
        self.kept.expire()
        now, limits = time.monotonic(), self._limits
        for job in list(self._known.values()):
            unfetched = job.outcome is not None and now - job.ended > limits.keep_seconds
            abandoned = job.outcome is None and not job.patient and now - job.asked > limits.absent_seconds
            if unfetched or abandoned:
                self._drop(job)

    def _remaining(self, job: Job) -> float:
        """Seconds that it still takes, never more than the server spends on a picture."""
        if job.outcome is not None:
            return 0.0
        now, most = time.monotonic(), self._limits.work_seconds
        expected = min(self._estimates[job.kind].seconds(job.pixels), most)
        if not job.started:
            return expected
        left = expected - (now - job.started)
        if job.fraction > 0:  # what it does itself says more, the more of it is done
            by_pace = (job.reported - job.started) * (1 - job.fraction) / job.fraction - (now - job.reported)
            trust = min(1.0, 4 * job.fraction)
            left = trust * by_pace + (1 - trust) * left
        return max(0.0, min(left, most - (now - job.started)))

    def _seconds_until_free(self) -> int:
        """What Retry-After says: until the job at work is finished, from one second to two
        minutes."""
        left = self._remaining(self._running) if self._running is not None else 0.0
        return max(1, min(LONGEST_RETRY, math.ceil(left)))

    def _work(self) -> None:
        used = False  # memory, since it was given back
        while True:
            with self._changed:
                while not self._waiting and not self._closed:
                    # Results that nobody fetches are dropped in time even where no request comes.
                    held = self._known or self.kept
                    seconds = min(10.0, self._limits.keep_seconds) if held else 1.0 if used else None
                    if self._changed.wait(timeout=seconds):
                        continue
                    self._expire()
                    if used:  # a second later the last answer has been sent
                        _give_back_memory()
                        used = bool(self._known or self.kept)
                if self._closed:
                    return
                job = self._running = self._waiting.popleft()
            self._do(job)
            with self._changed:
                self._running = None
            used = True
            del job  # else it would be held until the next picture comes

    def _do(self, job: Job) -> None:
        with self._changed:
            job.state, job.started = "running", time.monotonic()
            job.reported, run = job.started, job.run
        outcome = self._outcome(job, run) if run is not None else None
        with self._changed:
            self._finish(job, outcome)

    def _do_brief(self) -> None:
        """Do the jobs that need no network, in the midst of another one."""
        while True:
            with self._changed:
                job = next((one for one in self._waiting if one.brief), None)
                if job is None:
                    return
                self._waiting.remove(job)
            self._do(job)

    def _finish(self, job: Job, outcome: Answer | Problem | None) -> None:
        job.run, job.ended = None, time.monotonic()
        if outcome is None or job.given_up:
            return
        job.outcome = outcome
        job.state = "done" if isinstance(outcome, Answer) else "failed"
        job.size = len(outcome.body) if isinstance(outcome, Answer) else 0
        if isinstance(outcome, Answer):
            job.fraction = 1.0
            self._estimates[job.kind].observe(job.pixels, job.ended - job.started)
        job.finished.set_result(None)

    def _outcome(self, job: Job, run: Callable[[Progress], Answer]) -> Answer | Problem | None:
        """Do the work; None where it was given up. The thread must outlive whatever happens
        here."""

        def progress(fraction: float) -> None:
            with self._changed:
                self._expire()
                job.fraction, job.reported = fraction, time.monotonic()
            if not job.brief:
                self._do_brief()
            if job.given_up:
                raise _Stopped
            if job.reported - job.started > self._limits.work_seconds:
                raise _TimeOver

        try:
            return run(progress)
        except _Stopped:
            return None
        except _TimeOver:
            return Problem(
                503,
                f"{job.name}: took longer than the {self._limits.work_seconds:g} seconds that this server spends on a "
                "picture; crop it or scale it down first",
            )
        except Exception as error:
            return _problem(job, error)


def _give_back_memory() -> None:
    """Return freed memory to the system: the command keeps it for the next tile, which may be hours
    away here."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def _problem(job: Job, error: Exception) -> Problem:
    if isinstance(error, ImageError | InputError):
        return Problem(422, str(error))
    if out_of_memory(error):
        return Problem(413, f"{job.name}: does not fit in the server's memory; crop it or scale it down first")
    if isinstance(error, KithkinError):
        return Problem(500, str(error))
    logging.getLogger("kithkin").exception("a job failed")
    return Problem(500, f"{job.name}: the server failed on this picture, which is a fault in kithkin; please report it")
