"""Tiled against whole-picture output on photographs, at several overlaps, in tiles smaller than any by default.

    python benchmarks/tiling.py FOLDER

The neighbours that a patch finds in a tile are not those it finds in the picture; this is how much that matters.
"""

import sys
from pathlib import Path

import numpy as np
import torch

from kithkin.data.degrade import benchmark_noise
from kithkin.images import find_pictures, read_picture
from kithkin.metrics import psnr
from kithkin.restoration import restore
from kithkin.zoo import load_model

from measure import keep

TILE, OVERLAPS, SIGMA, COUNT = 256, (0, 16, 32, 64), 25.0, 5


def main(folder: Path) -> None:
    model = load_model("denoise-gaussian")
    rows = []
    for path in find_pictures(folder)[:COUNT]:
        clean = read_picture(path).pixels
        noisy = torch.from_numpy(benchmark_noise(clean, SIGMA)).permute(2, 0, 1)
        truth = torch.from_numpy(np.ascontiguousarray(clean)).permute(2, 0, 1)
        whole = restore(model, noisy, tile="off", precision="float32")
        row = {"picture": path.name, "size": list(truth.shape[1:]), "psnr_whole": psnr(whole, truth)}
        for overlap in OVERLAPS:
            tiled = restore(model, noisy, tile=TILE, overlap=overlap, precision="float32")
            row[f"overlap {overlap}"] = {"psnr_to_whole": psnr(tiled, whole), "psnr": psnr(tiled, truth)}
        rows.append(row)
    keep("tiling", {"tile": TILE, "sigma": SIGMA, "photographs": rows})


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
