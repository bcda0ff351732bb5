"""Whether a file is ever half written: processes that write without end are killed (SIGKILL) at a moment of chance, 100
times each, and what they leave is read.

python benchmarks/killed_while_writing.py [--times 100]
"""

import argparse
import itertools
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from kithkin.checkpoint import read_model, save_model
from kithkin.files import write_whole
from kithkin.images import Picture, read_picture, write_picture
from kithkin.model import KiT
from kithkin.model_config import KiTConfig

from measure import keep

LETTERS = 2_000_000
PICTURES = [Picture(np.full((600, 800, 3), value, np.float32)) for value in (0.25, 0.75)]
MODELS = [KiT(KiTConfig(width=16, depth=1, rotation_seed=seed)) for seed in (1, 2)]


def write_a_picture(path: Path, index: int) -> None:
    write_picture(PICTURES[index], path, overwrite=True)


def read_a_picture(path: Path) -> None:
    pixels = read_picture(path).pixels
    assert pixels.shape == (600, 800, 3)
    assert np.ptp(pixels) == 0


def read_a_text(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert (len(text), len(set(text))) == (LETTERS, 1)


# Name -> the file, how it is written (the first or the second content), and how it is read.
WRITERS: dict[str, tuple[str, Callable[[Path, int], Any], Callable[[Path], Any]]] = {
    "picture": ("a.bmp", write_a_picture, read_a_picture),
    "checkpoint": ("a.safetensors", lambda path, index: save_model(MODELS[index], path), read_model),
    "text": ("a.txt", lambda path, index: write_whole(path, "ab"[index] * LETTERS), read_a_text),
}


def kill_a_writer(path: Path, write: Callable[[Path, int], Any], seconds: float) -> bool:
    """Let a process replace a file again and again, and kill it after so many seconds; whether it died of that."""
    child = os.fork()
    if child == 0:
        for index in itertools.cycle((0, 1)):
            write(path, index)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--times", type=int, default=100)
    times = parser.parse_args().times
    rng = random.Random(1)
    found = {}
    for name, (file, write, read) in WRITERS.items():
        counts = {"killed": 0, "whole": 0, "nothing yet": 0, "half": 0, "killed while a temporary file was there": 0}
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, file)
            for _ in range(times):
                counts["killed"] += kill_a_writer(path, write, rng.uniform(0, 0.15))
                try:
                    if path.exists():
                        read(path)
                    counts["whole" if path.exists() else "nothing yet"] += 1
                except Exception as error:
                    print(f"{name}: {error}", file=sys.stderr)
                    counts["half"] += 1
                left = list(Path(folder).glob(".kithkin-*.part"))  # hidden, and never read
                counts["killed while a temporary file was there"] += bool(left)
                for part in left:
                    part.unlink()
        found[name] = counts
    keep("killed_while_writing", {"times": times, "writers": found})


if __name__ == "__main__":
    main()
