"""The tiny network on pictures of 256² pixels to 16 megapixels, tiled as `kithkin restore` does: seconds and memory.

python benchmarks/network_cpu.py
"""

import json
import sys

import numpy as np
import torch

from kithkin.model import KiT, KiTConfig
from kithkin.restoration import restore

from measure import in_a_new_process, keep, peak_extra_megabytes, seconds

SIDES = {"256²": (256, 256), "0.25 MP": (512, 512), "1 MP": (1024, 1024), "4 MP": (2048, 2048), "16 MP": (4096, 4096)}


def picture(height: int, width: int) -> np.ndarray:
    """A smooth picture with noise, uint8 (H, W, 3): neither constant nor pure noise, so hashing has work to do."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[0:height, 0:width]
    waves = np.stack([np.sin(rows / p) + np.cos(columns / q) for p, q in ((37, 53), (91, 29), (61, 71))], axis=-1)
    return np.clip(128 + 40 * waves + rng.normal(0, 15, waves.shape), 0, 255).astype(np.uint8)


def measure(name: str) -> dict[str, float]:
    """Seconds and extra memory, the model loaded and warm."""
    model = KiT(KiTConfig.named("tiny")).eval()
    image = picture(*SIDES[name])
    restore(model, image[:512, :512])
    megabytes = peak_extra_megabytes(lambda: restore(model, image))
    repeats = 5 if image.size < 1e6 else 1
    spent = seconds(lambda: restore(model, image), repeats=repeats) if repeats > 1 else _once(model, image)
    return {
        "megapixels": image.shape[0] * image.shape[1] / 1e6,
        "seconds": spent,
        "extra_megabytes": megabytes,
        "picture_megabytes": image.nbytes / 1e6,
    }


def _once(model: KiT, image: np.ndarray) -> float:
    import time

    started = time.perf_counter()
    restore(model, image)
    return time.perf_counter() - started


def main() -> None:
    rows = {name: in_a_new_process(__file__, name) for name in SIDES}
    for row in rows.values():
        row["seconds_per_megapixel"] = row["seconds"] / row["megapixels"]
    tiled = [row["seconds_per_megapixel"] for row in list(rows.values())[1:]]
    keep(
        "network_cpu",
        {"network": "tiny", "pictures": rows, "slowest_over_fastest_a_megapixel": max(tiled) / min(tiled)},
    )


if __name__ == "__main__":
    torch.manual_seed(0)
    if len(sys.argv) == 2:
        print(json.dumps(measure(sys.argv[1])))
    else:
        main()
