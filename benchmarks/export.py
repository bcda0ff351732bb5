"""Exported networks beside PyTorch's, on one thread: seconds of the processor, and memory, for 256² and 512² pixels.

    kithkin export denoise --to onnx -o denoise.onnx && kithkin export denoise --to torch -o denoise.pt2
    python benchmarks/export.py denoise.onnx denoise.pt2

Seconds are the least of five runs and count the processor's time, which other work on the machine disturbs less.
"""

import json
import sys
import time
from collections.abc import Callable

import numpy as np
import torch

from kithkin.export import open_exported
from kithkin.export._parity import _photograph
from kithkin.zoo import load_model

from measure import in_a_new_process, keep, peak_extra_megabytes

BACKENDS = ("native", "blocked")
SIDES = (256, 512)


def network(name: str) -> Callable[[np.ndarray], np.ndarray]:
    """A file, or the shipped model with one of PyTorch's backends."""
    if name not in BACKENDS:
        return open_exported(name)
    model = load_model("denoise").set_backend(name)

    def run(batch: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return model(torch.from_numpy(batch)).numpy()

    return run


def measure(name: str, side: int, what: str) -> float:
    """Seconds of the processor, the least of five runs, or the megabytes by which memory rose at its highest."""
    torch.set_num_threads(1)
    run, image = network(name), _photograph(side, side)
    run(image[:, :, :96, :96])
    if what == "megabytes":
        return peak_extra_megabytes(lambda: run(image))
    times = []
    for _ in range(5):
        started = time.process_time()
        run(image)
        times.append(time.process_time() - started)
    return min(times)


def main(files: list[str]) -> None:
    rows = [
        {
            "network": name,
            "side": side,
            **{what: in_a_new_process(__file__, "measure", name, str(side), what) for what in ("seconds", "megabytes")},
        }
        for side in SIDES
        for name in (*BACKENDS, *files)
    ]
    keep("export", {"rows": rows})


if __name__ == "__main__":
    if sys.argv[1] == "measure":
        print(json.dumps(measure(sys.argv[2], int(sys.argv[3]), sys.argv[4])))
    else:
        main(sys.argv[1:])
