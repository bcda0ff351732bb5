"""Whether the patches show: steps across their borders against steps inside them, in what `denoise-gaussian` returns.

    python benchmarks/patch_grid.py FOLDER [MODEL ...]

A stage whose patches cover 8, 16 or 32 pixels of the picture could leave a step at every 8th, 16th or 32nd pixel. Over
photographs with noise of sigma 25, the mean absolute difference of two neighbouring pixels on either side of such a
border, divided by that of neighbours inside the patches (1 where there is no grid), and their difference. Once for the
output, and once for output less target, where the picture's own edges do not hide a small step; the target, which has
no patches, is the control. Photographs that were JPEG files once have a grid of their own at every 8th pixel: each is
cut by 4 pixels first, so that it lies elsewhere, and every 4th pixel is left out of what counts as inside.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from kithkin.data.degrade import benchmark_noise
from kithkin.images import find_pictures, read_picture
from kithkin.restoration import restore
from kithkin.zoo import load_model

from measure import keep

SIGMA, PERIODS, CUT = 25.0, (8, 16, 32), 4


def sums(picture: np.ndarray, period: int) -> np.ndarray:
    """[sum, count across borders, sum, count inside] of |difference| over both axes of (H, W, 3)."""
    found = np.zeros(4)
    for axis in (0, 1):
        steps = np.abs(np.diff(picture.astype(np.float64), axis=axis)).mean(axis=(1 - axis, 2))
        place = np.arange(1, len(steps) + 1)
        border, inside = place % period == 0, place % CUT != 0
        found += [steps[border].sum(), border.sum(), steps[inside].sum(), inside.sum()]
    return found


def ratio(found: np.ndarray) -> float:
    across, borders, inside, places = found
    return float((across / borders) / (inside / places))


def excess(found: np.ndarray) -> float:
    """By how much a step across a border is larger than one inside, of 255."""
    across, borders, inside, places = found
    return float(255 * (across / borders - inside / places))


def restored(model: str, pictures: list[Path]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(output, target) of each photograph, float32 (H, W, 3)."""
    network = load_model(model)
    for path in pictures:
        clean = np.ascontiguousarray(read_picture(path).pixels[CUT:, CUT:])
        noisy = torch.from_numpy(benchmark_noise(clean, SIGMA)).permute(2, 0, 1)
        yield restore(network, noisy, tile="off", precision="float32").permute(1, 2, 0).numpy(), clean


def main(folder: Path, models: list[str]) -> None:
    pictures, kept = find_pictures(folder), {}
    print("| ratio (excess, of 255) | " + " | ".join(f"{period} px" for period in PERIODS) + " |")
    print("|" + " --- |" * (len(PERIODS) + 1))
    for model in models:
        found = {(what, period): np.zeros(4) for what in ("target", "output", "error") for period in PERIODS}
        for output, target in restored(model, pictures):
            for what, picture in (("target", target), ("output", output), ("error", output - target)):
                for period in PERIODS:
                    found[what, period] += sums(picture, period)
        kept[model] = {
            f"{what} {period}": {"ratio": ratio(values), "excess": excess(values)}
            for (what, period), values in found.items()
        }
        for what in ("target", "output", "error"):
            values = (f"{ratio(found[what, period]):.3f} ({excess(found[what, period]):+.3f})" for period in PERIODS)
            print(f"| {model}, {what} | " + " | ".join(values) + " |")
    keep("patch_grid", {"sigma": SIGMA, "pictures": len(pictures), "steps": kept})


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), sys.argv[2:] or ["denoise-gaussian"])
