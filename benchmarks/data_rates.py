"""Crops a second of the training data alone, on one thread, from pictures in memory: what each recipe makes of them.

    python benchmarks/data_rates.py FOLDER
    python benchmarks/data_rates.py FOLDER --against OTHER/src

FOLDER holds photographs to train on. The second form compares this tree with another one, in processes that take turns;
the ratio is that of the least times of each. Times are of the core, which other work on the machine lengthens less.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from kithkin.config import DataConfig, load_config
from kithkin.data import Photos
from kithkin.data.sampling import sample_batch

from measure import keep

HERE = Path(__file__).parent.parent / "src"
ROUNDS, BUDGET, BATCHES = 3, 1.5, (8, 64)
CELLS = {
    "Gaussian noise, 96²": ("denoise-gaussian-small", 96),
    "camera, 128²": ("denoise-gaussian-small", 128, "camera"),
    "rain, 128²": ("derain-small", 128),
    "blur, 96² of 160²": ("deblur-tiny", 96),
}


def setting(recipe: str, crop: int, kind: str | None = None) -> DataConfig:
    """The data of a recipe, with another kind of degradation if one is named; it degrades every crop."""
    changes: dict[str, Any] = {"crop": crop, "cache_gb": 2.0}
    data = load_config(recipe, {"data.degradation.kind": kind} if kind else {}).data
    if data.degradation is not None:
        changes |= {"sigma": None, "degraded_share": 1.0}
    return data.model_copy(update=changes)


def least(run: Callable[[int], Any]) -> float:
    """Seconds of the core for a batch, the least of several steps: the first brings pictures and memory in."""
    run(0)
    times: list[float] = []
    while len(times) < 5 or sum(times) < BUDGET:
        started = time.process_time()
        run(len(times) % 5)
        times.append(time.process_time() - started)
    return min(times)


def rates(folder: Path) -> dict[str, float]:
    """Milliseconds of one core that a crop takes."""
    torch.set_num_threads(1)
    photos = Photos([folder], cache_gb=2.0)
    for _ in photos.read(range(len(photos))):
        pass
    found = {}
    for name, cell in CELLS.items():
        config = setting(*cell)
        for size in BATCHES:
            spent = least(lambda step, c=config, b=size: sample_batch(photos, c, batch_size=b, seed=0, step=step))
            found[f"{name}, batch of {size}"] = 1e3 * spent / size
    return found


def measured(folder: Path, source: Path) -> dict[str, float]:
    """``rates`` by the package in ``source``, in a process of its own."""
    environment = os.environ | {"PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, str(folder), "--print"]
    found: dict[str, float] = json.loads(
        subprocess.run(command, env=environment, check=True, capture_output=True).stdout
    )
    return found


def main(folder: Path, other: Path | None) -> None:
    trees = {"ms_per_crop": HERE} | ({"ms_per_crop_before": other} if other else {})
    found: dict[str, dict[str, float]] = {name: {} for name in trees}
    for _ in range(ROUNDS):
        for name, source in trees.items():
            for cell, value in measured(folder, source).items():
                found[name][cell] = min(value, found[name].get(cell, value))
    result: dict[str, Any] = dict(found)
    if other:
        now, before = found["ms_per_crop"], found["ms_per_crop_before"]
        result["times_as_fast"] = {cell: before[cell] / now[cell] for cell in now}
    print(json.dumps(result, indent=1))
    keep("data_rates", {"load": os.getloadavg(), **result})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--against", type=Path, help="another tree's src")
    parser.add_argument("--print", action="store_true", help="measure in this process and print the numbers alone")
    arguments = parser.parse_args()
    if arguments.print:
        print(json.dumps(rates(arguments.folder)))
    else:
        main(arguments.folder, arguments.against)
