"""Processes that train together, for the tests: started from one that has PyTorch in memory, or by torchrun."""

import contextlib
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import torch

import kithkin
import kithkin.training.loop as loop
from kithkin.config import parse_config
from kithkin.training import batches, train
from kithkin.training.state import TrainState, checkpoints

import forked

SOURCE = Path(kithkin.__file__).parent.parent
PATIENCE = 900  # seconds; a machine may be busy with other things


def values_of(photos, **changes):
    """A run of 50 steps that takes a second or two; ``section__key`` changes it."""
    values = {
        "name": "toy",
        "task": "denoise",
        "seed": 1,
        "precision": "float32",
        "model": {"width": 8, "depth": 1, "n_hashes": 1, "n_stages": 1, "k": 2},
        "data": {"kind": "photos", "folders": [str(photos)], "crop": 32, "sigma": [10, 50], "cache_gb": 1},
        "validation": {"folder": str(photos), "sigmas": [25], "crop": 32, "every": 25},
        "schedule": {"batch_size": 4, "steps": 50, "epochs": 0, "warmup": 2, "lr": 3e-3, "final_lr": 1e-5},
        "optimizer": {"betas": [0.9, 0.99], "weight_decay": 1e-2, "grad_clip": 1.0, "ema_decay": 0.9},
        "distributed": {"timeout": 60},
        "loss": {"edge_weight": 0.05, "epsilon": 1e-3},
    }
    for key, value in changes.items():
        section, _, name = key.partition("__")
        values[section][name] = value
    return values


def together(world_size, values, out, *, launched=True, terminate=None):
    """Train with this many processes of this machine; the story of each, in order of rank.

    A story says what :func:`kithkin.training.train` returned or raised, what was reported, every loss before it is
    rounded for the log, and a digest of every crop in order.

    Args:
        values: of the configuration; a list has one for each process.
        out: the run's folder; a list has one for each process.
        launched: whether the environment is that of torchrun.
        terminate: {rank: after which step it gets a SIGTERM}.
    """
    context = forked.context()
    port, ends, processes = free_port(), [], []
    for rank in range(world_size):
        ours, theirs = context.Pipe(duplex=False)
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "MASTER_PORT": port} if launched else {}
        own = [x[rank] if isinstance(x, list) else x for x in (values, out)]
        processes.append(context.Process(target=_train_one, args=(theirs, place, *own, terminate or {})))
        processes[-1].start()
        theirs.close()
        ends.append(ours)
    stories = [end.recv() if end.poll(PATIENCE) else {"error": "silence"} for end in ends]
    for process, story in zip(processes, stories, strict=True):
        process.join(10 if "error" in story else 120)
        story["exit"] = process.exitcode  # None: it stands still
        process.kill()
    return stories


def alone(values, out, **options):
    """Train with one process that torchrun had no part in; its story."""
    return together(1, values, out, launched=False, **options)[0]


def _train_one(end, place, values, out, terminate):
    torch.set_num_threads(1)
    os.environ.update({name: str(value) for name, value in place.items()}, MASTER_ADDR="127.0.0.1")
    story = {"reports": [], "losses": [], "crops": []}
    loop.LOG_EVERY = 1
    loop.plot_curves = lambda log, target: None
    mean_losses, degrade_crops, step = TrainState.mean_losses, batches.degrade_crops, loop._Run.step

    def recorded_losses(self):
        found = mean_losses(self)
        story["losses"] += found.tolist()
        return found

    def recorded_crops(*args):
        batch = degrade_crops(*args)
        story["crops"] += [hashlib.sha256(x.numpy().tobytes()).hexdigest() for x in batch.degraded]
        return batch

    def signalled_step(self, state, parts):
        step(self, state, parts)
        if terminate.get(state.ranks.rank) == state.step:
            os.kill(os.getpid(), signal.SIGTERM)

    TrainState.mean_losses, batches.degrade_crops, loop._Run.step = recorded_losses, recorded_crops, signalled_step
    try:
        final = train(parse_config(values, source="the test"), out, resume=True, report=story["reports"].append)
        story["final"] = None if final is None else str(final)
    except Exception as error:
        story["error"] = f"{type(error).__name__}: {error}"
    end.send(story)


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def toml_of(values):
    lines = [f"{key} = {json.dumps(value)}" for key, value in values.items() if not isinstance(value, dict)]
    for section, content in values.items():
        if isinstance(content, dict):
            lines += [f"[{section}]", *(f"{key} = {json.dumps(value)}" for key, value in content.items())]
    return "\n".join(lines) + "\n"


class Torchrun:
    """``torchrun … -m kithkin train … --resume`` as a process; whatever is left of it at the end is killed."""

    def __init__(self, recipe, out, *options, before=(), environment=None):
        self.log = Path(f"{recipe}.{time.monotonic_ns()}.log")
        command = [*before, sys.executable, "-m", "torch.distributed.run", *options]
        command += ["-m", "kithkin", "train", str(recipe), "--out", str(out), "--resume"]
        environment = os.environ | {"PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"} | (environment or {})
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)

    def workers(self):
        """The processes that train, in order of rank on their node."""
        pid = self.process.pid
        return [int(x) for x in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def wait_for_words(self, words, seconds=PATIENCE):
        """Until it has said this."""
        deadline = time.monotonic() + seconds
        while words not in (said := self.log.read_text()):
            assert time.monotonic() < deadline, said
            time.sleep(0.05)

    def kill(self):
        """As when the machine fails: nobody has time to say goodbye."""
        for pid in (*self.workers(), self.process.pid):
            os.kill(pid, signal.SIGKILL)
        self.process.wait()

    def wait(self, seconds=PATIENCE):
        return self.process.wait(seconds)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        if self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                self.kill()


def wait_for_step(out, step, seconds=PATIENCE):
    """The step of the newest checkpoint, once it is at least this one."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = [int(path.name.removeprefix("step-")) for path in checkpoints(out)]
        if found and found[-1] >= step:
            return found[-1]
        time.sleep(0.01)
    raise AssertionError(f"no step {step} within {seconds} s")
