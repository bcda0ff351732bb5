"""Training with several processes: what the distributed path costs one, what a second one brings here, and what 8 and
64 GPUs should bring by the formula in docs/reference/scaling.md.

    python benchmarks/training_scaling.py
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from kithkin.config import RunConfig, load_config
from kithkin.data import open_folders
from kithkin.data.sampling import sample_batch
from kithkin.model import KiT, count_macs, count_parameters
from kithkin.model_config import KiTConfig
from kithkin.training.distributed import Ranks, joined
from kithkin.training.state import TrainState
from kithkin.training.step import TrainingStep

from measure import keep

RECIPE, STEPS = "denoise-gaussian-tiny", 100

# Assumptions, none of them measured: what a GPU sustains in a training step, what links bring, what a hop costs.
SUSTAINED = {"float32": 10e12, "bfloat16": 40e12}  # FLOP/s
NVLINK, NETWORK = 300e9, 0.8 * 200e9 / 8  # bytes a second and direction: of a GPU within a node, of a node
HOP, GPUS_A_NODE = 10e-6, 8


def write_photos(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for i in range(16):
        Image.fromarray(rng.integers(0, 256, (96, 96, 3), np.uint8)).save(folder / f"{i}.png")


def config_for(folder: Path) -> RunConfig:
    return load_config(RECIPE, {"data.folders": [folder], "schedule.steps": STEPS, "schedule.warmup": 1})


def overhead(folder: Path) -> dict[str, float]:
    """Milliseconds of CPU time of a step, with and without the distributed path, step by step in turn."""
    place = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29431"}
    os.environ.update(place)
    config = config_for(folder)
    parts = [sample_batch(open_folders(config.data), config.data, batch_size=8, seed=0, step=0)]
    times: dict[str, list[float]] = {"plain": [], "distributed": []}
    with joined("cpu", config.distributed) as ranks:
        sides = {
            name: (own, TrainingStep(config, state=TrainState.create(config, own)))
            for name, own in (("plain", Ranks("cpu")), ("distributed", ranks))
        }
        for _ in range(STEPS):
            for name, (own, step) in sides.items():
                started = time.process_time()
                step.run(parts)
                own.any_of(False, False)
                times[name].append(time.process_time() - started)
    medians = {name: 1e3 * statistics.median(values[5:]) for name, values in times.items()}
    return medians | {"ratio": medians["distributed"] / medians["plain"]}


def crops_per_second(folder: Path, processes: int) -> float:
    """The best row of a run's log, one thread a process."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    with tempfile.TemporaryDirectory() as out:
        command += ["-m", "kithkin", "train", RECIPE, "--data", str(folder), "--out", out, "--json"]
        command += ["--set", f"schedule.steps={STEPS}", "--set", "schedule.warmup=1"]
        run = subprocess.run(
            command, check=True, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
    return max(json.loads(line)["crops_per_s"] for line in run.stdout.splitlines())


def expected(network: str, crops: int, gpus: int, precision: str) -> dict[str, float | str | int]:
    """Efficiency of GPUs that each take this many 128² crops a step, gradients in float32, without and with overlap."""
    config = KiTConfig.named(network)
    with torch.random.fork_rng(devices=[]):
        gradient = 4 * count_parameters(KiT(config))
    step = crops * 3 * 2 * count_macs(config, (128, 128)) / SUSTAINED[precision]
    inside, nodes = min(gpus, GPUS_A_NODE), max(1, gpus // GPUS_A_NODE)
    reduce = ring(gradient, inside, NVLINK) + ring(gradient, nodes, NETWORK)
    seen = max(0.0, reduce - step * 2 / 3)  # the backward pass is two thirds of a step, and gradients leave during it
    return {
        "network": network,
        "crops_a_gpu": crops,
        "gpus": gpus,
        "precision": precision,
        "gradient_megabytes": gradient / 1e6,
        "step_ms": 1e3 * step,
        "reduce_ms": 1e3 * reduce,
        "efficiency_without_overlap": step / (step + reduce),
        "efficiency_with_overlap": step / (step + seen),
    }


def ring(size: float, members: int, bandwidth: float) -> float:
    """Seconds of a ring all-reduce."""
    return 2 * (members - 1) / members * size / bandwidth + 2 * (members - 1) * HOP


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_photos(folder)
        rates: dict[int, float] = {1: 0.0, 2: 0.0}
        for _ in range(3):
            for count in rates:
                rates[count] = max(rates[count], crops_per_second(folder, count))
        cost = overhead(folder)
    rows = [
        expected(network, crops, gpus, precision)
        for network, crops in (("paper", 16), ("paper", 2), ("small", 16))
        for precision in SUSTAINED
        for gpus in (8, 64)
    ]
    keep("training_scaling", {"cpu_ms_a_step": cost, "crops_per_second": rates, "expected": rows})


if __name__ == "__main__":
    main()
