"""The tiny network on pictures of 256² pixels to 16 megapixels, tiled as `kithkin restore` does: seconds and memory.

python benchmarks/network_cpu.py
"""

import json
import sys
import time

import numpy as np
import torch

from kithkin.model import KiT, KiTConfig
from kithkin.restoration import CPU_TILE, restore

from measure import in_a_new_process, keep, peak_extra_megabytes

SIDES = {"256²": (256, 256), "0.25 MP": (512, 512), "1 MP": (1024, 1024), "4 MP": (2048, 2048), "16 MP": (4096, 4096)}


def picture(height: int, width: int) -> np.ndarray:
    """A smooth picture with noise, uint8 (H, W, 3): neither constant nor pure noise, so hashing has work to do."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[0:height, 0:width]
    waves = np.stack([np.sin(rows / p) + np.cos(columns / q) for p, q in ((37, 53), (91, 29), (61, 71))], axis=-1)
    return np.clip(128 + 40 * waves + rng.normal(0, 15, waves.shape), 0, 255).astype(np.uint8)


def measure(name: str, what: str) -> float:
    """Seconds, the least of a few runs, or the megabytes by which memory rose at its highest."""
    model = KiT(KiTConfig.named("tiny")).eval()
    image = picture(*SIDES[name])
    restore(model, image[:64, :64])
    if what == "megabytes":
        return peak_extra_megabytes(lambda: restore(model, image))
    times = []
    for _ in range(5 if image.size < 1e7 else 2):
        started = time.perf_counter()
        restore(model, image)
        times.append(time.perf_counter() - started)
    return min(times)


def main() -> None:
    rows = {}
    for name, (height, width) in SIDES.items():
        megapixels = height * width / 1e6
        spent, memory = (in_a_new_process(__file__, name, what) for what in ("seconds", "megabytes"))
        # The picture itself, in and out: float32 planes before and after, bytes of the result.
        planes = height * width * 3 * (4 + 4 + 1) / 1e6
        rows[name] = {
            "megapixels": megapixels,
            "seconds": spent,
            "seconds_per_megapixel": spent / megapixels,
            "extra_megabytes": memory,
            "of_which_picture_megabytes": planes,
        }
    tiled = [row["seconds_per_megapixel"] for row in list(rows.values())[1:]]
    ratio = max(tiled) / min(tiled)
    keep("network_cpu", {"network": "tiny", "tile": CPU_TILE, "pictures": rows, "slowest_over_fastest": ratio})


if __name__ == "__main__":
    torch.manual_seed(0)
    if len(sys.argv) == 3:
        print(json.dumps(measure(sys.argv[1], sys.argv[2])))
    else:
        main()
