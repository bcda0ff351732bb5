"""The tiny network on pictures of 256² pixels to 16 megapixels, tiled as `kithkin restore` does: seconds and memory; a
training step; and what the time goes to, by PyTorch's profiler.

    python benchmarks/network_cpu.py
"""

import json
import sys
import time
from collections.abc import Callable

import numpy as np
import torch

from kithkin.cli._memory import keep_freed_memory
from kithkin.model import KiT
from kithkin.model_config import KiTConfig
from kithkin.restoration import restore
from kithkin.tiles import CPU_TILE

from measure import in_a_new_process, keep, least_seconds, peak_extra_megabytes

HASHES = 2  # as the shipped weights
SIDES = {"256²": (256, 256), "0.25 MP": (512, 512), "1 MP": (1024, 1024), "4 MP": (2048, 2048), "16 MP": (4096, 4096)}


def picture(height: int, width: int) -> np.ndarray:
    """A smooth picture with noise, uint8 (H, W, 3): neither constant nor pure noise, so hashing has work to do."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[0:height, 0:width]
    waves = np.stack([np.sin(rows / p) + np.cos(columns / q) for p, q in ((37, 53), (91, 29), (61, 71))], axis=-1)
    return np.clip(128 + 40 * waves + rng.normal(0, 15, waves.shape), 0, 255).astype(np.uint8)


def measure(name: str, what: str) -> float:
    """Seconds, the least of a few runs, or the megabytes by which memory rose at its highest."""
    if what == "seconds":
        keep_freed_memory()  # as the command line does; but what is kept would hide what is needed
    model = KiT(KiTConfig(width=24, ffn_ratio=3.0, n_hashes=HASHES)).eval()
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


def training_step(batch: int, crop: int) -> Callable[[], None]:
    """Forward, backward and AdamW on random crops."""
    model = KiT(KiTConfig(width=24, ffn_ratio=3.0, n_hashes=HASHES)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    crops = torch.rand(batch, 3, crop, crop)

    def step() -> None:
        optimizer.zero_grad()
        model(crops).square().mean().backward()
        optimizer.step()

    return step


def profile(run: Callable[[], object], count: int = 5) -> dict[str, float]:
    """The share of the CPU's time that each operation takes itself; those above 1 %."""
    for _ in range(3):
        run()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        for _ in range(count):
            run()
    events = profiler.key_averages()
    total = sum(event.self_cpu_time_total for event in events)
    shares = {event.key: event.self_cpu_time_total / total for event in events}
    return {key: round(share, 4) for key, share in sorted(shares.items(), key=lambda x: -x[1]) if share > 0.01}


def training() -> dict[str, float]:
    """Crops a second, batches of 8."""
    return {f"{crop}²": 8 / least_seconds(training_step(8, crop), budget=4) for crop in (64, 128)}


def main() -> None:
    keep_freed_memory()
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
    model, small = KiT(KiTConfig(width=24, ffn_ratio=3.0, n_hashes=HASHES)).eval(), torch.rand(1, 3, 256, 256)
    with torch.inference_mode():
        forward = {"256²": least_seconds(lambda: model(small))}
        shares = {"forward 256²": profile(lambda: model(small))}
    shares["training step 128²"] = profile(training_step(8, 128))
    network = {"network": "tiny", "n_hashes": HASHES, "tile": CPU_TILE, "pictures": rows, "slowest_over_fastest": ratio}
    keep("network_cpu", {**network, "forward_seconds": forward, "crops_per_second": training(), "profile": shares})


if __name__ == "__main__":
    torch.manual_seed(0)
    if len(sys.argv) == 3:
        print(json.dumps(measure(sys.argv[1], sys.argv[2])))
    else:
        main()
