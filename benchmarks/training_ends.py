"""Whether training with two processes ends: so many starts in a row, each of which must leave by itself.

python benchmarks/training_ends.py [--starts 50] [--patience 120]
"""

import argparse
import multiprocessing
import os
import socket
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from measure import keep

PROCESSES = 2
RUN = {
    "name": "toy",
    "task": "denoise",
    "seed": 1,
    "precision": "float32",
    "model": {"width": 8, "depth": 1, "n_hashes": 1, "n_stages": 1, "k": 2},
    "data": {"kind": "photos", "crop": 32, "sigma": [10, 50], "cache_gb": 1},
    "validation": {"sigmas": [], "crop": 32, "every": 100},
    "schedule": {"batch_size": 4, "steps": 3, "epochs": 0, "warmup": 1, "lr": 3e-3, "final_lr": 1e-5},
    "optimizer": {"betas": [0.9, 0.99], "weight_decay": 1e-2, "grad_clip": 1.0, "ema_decay": 0.9},
    "distributed": {"timeout": 60},
    "loss": {"edge_weight": 0.05, "epsilon": 1e-3},
}


def train_one(rank: int, port: int, photos: str, out: str) -> None:
    from kithkin.config import parse_config
    from kithkin.training import train

    torch.set_num_threads(1)
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": PROCESSES, "MASTER_PORT": port, "MASTER_ADDR": "127.0.0.1"}
    os.environ.update({name: str(value) for name, value in place.items()})
    run = RUN | {"data": RUN["data"] | {"folders": [photos]}}
    train(parse_config(run, source="training_ends"), out, device="cpu")


def start(folder: Path, number: int, patience: float) -> tuple[list[int | None], float]:
    """Train once; the exit codes (None: it stood still), and the seconds."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["kithkin.training", "torch.distributed.fsdp"])
    begun = time.perf_counter()
    arguments = (port, str(folder / "photos"), str(folder / f"run-{number}"))
    processes = [context.Process(target=train_one, args=(rank, *arguments)) for rank in range(PROCESSES)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(max(0.0, begun + patience - time.perf_counter()))
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    return codes, time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--starts", type=int, default=50)
    parser.add_argument("--patience", type=float, default=120.0)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "photos").mkdir()
        rng = np.random.default_rng(0)
        for i in range(4):
            Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)).save(folder / f"photos/{i}.png")
        ends = [start(folder, number, chosen.patience) for number in range(chosen.starts)]
    codes = [code for found, _ in ends for code in found]
    keep(
        "training_ends",
        {
            "starts": chosen.starts,
            "processes": PROCESSES,
            "ended by themselves": sum(code == 0 for code in codes),
            "stood still": sum(code is None for code in codes),
            "failed": sum(code not in (0, None) for code in codes),
            "longest start in seconds": round(max(seconds for _, seconds in ends), 1),
        },
    )


if __name__ == "__main__":
    main()
