"""Exported networks beside PyTorch's, on one thread: seconds of the processor, and memory, for 512² pixels.

    for to in onnx torch; do kithkin export denoise-gaussian-small --to $to; done
    python benchmarks/export.py denoise-gaussian-small denoise-gaussian-small.onnx denoise-gaussian-small.pt2

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

SIDE = 512


def network(name: str) -> Callable[[np.ndarray], np.ndarray]:
    """A file, or a model as PyTorch runs it."""
    if name.endswith((".onnx", ".pt2")):
        return open_exported(name)
    model = load_model(name)

    def run(batch: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return model(torch.from_numpy(batch)).numpy()

    return run


def measure(name: str, what: str) -> float:
    """Seconds of the processor, the least of five runs, or the megabytes by which memory rose at its highest."""
    torch.set_num_threads(1)
    run, image = network(name), _photograph(SIDE, SIDE)
    run(image[:, :, :96, :96])
    if what == "megabytes":
        return peak_extra_megabytes(lambda: run(image))
    times = []
    for _ in range(5):
        started = time.process_time()
        run(image)
        times.append(time.process_time() - started)
    return min(times)


def main(names: list[str]) -> None:
    torch.set_num_threads(1)  # as in the processes that measure; the results name it
    kinds = ("seconds", "megabytes")
    rows = [
        {"network": name, "side": SIDE, **{what: in_a_new_process(__file__, "measure", name, what) for what in kinds}}
        for name in names
    ]
    keep("export", {"rows": rows})


if __name__ == "__main__":
    if sys.argv[1] == "measure":
        print(json.dumps(measure(sys.argv[2], sys.argv[3])))
    else:
        main(sys.argv[1:])
