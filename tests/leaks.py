"""Does training see a test picture? Thumbnails find the same picture again under another size, quality or turn.

    python tests/leaks.py TRAIN… --test TEST…

lists every pair of a training and a test picture that look the same, and exits with 1 where there is one. A crop that
leaves out more than about a twentieth of a side looks like another picture, and is not found; nor is a picture in heavy
rain. So of pairs give both sides.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from kithkin.images import find_pictures, read_picture

SIDE = 16
ALIKE = 0.96
FLAT = 1 / 255
LUMA = np.float32([0.299, 0.587, 0.114])


def thumbnail(pixels):
    """What a picture looks like from afar, free of its size, brightness and contrast.

    Args:
        pixels: (H, W, 3) in [0, 1].

    Returns:
        (SIDE, SIDE) float64 of mean 0 and norm 1; all zeros for a picture without any contrast, which looks like
        every other one of them and so says nothing.
    """
    gray = Image.fromarray(np.asarray(pixels, np.float32) @ LUMA)
    small = np.asarray(gray.resize((SIDE, SIDE), Image.Resampling.BOX), np.float64)
    centred = small - small.mean()
    return centred / np.linalg.norm(centred) if small.std() > FLAT else np.zeros((SIDE, SIDE))


def turns(small):
    """The eight flips and turns of a thumbnail."""
    turned = [np.rot90(small, quarter) for quarter in range(4)]
    return [*turned, *(x[:, ::-1] for x in turned)]


def find_leaks(train, test, alike=ALIKE):
    """Which pictures are the same.

    Args:
        train, test: thumbnails.
        alike: the correlation above which two pictures are the same.

    Returns:
        (index in train, index in test, correlation), the most alike first; the best turn of each pair.
    """
    if not train or not test:
        return []
    known = np.stack([x.ravel() for x in train])
    best = np.full((len(train), len(test)), -1.0)
    for turn in zip(*(turns(x) for x in test), strict=True):
        best = np.maximum(best, known @ np.stack([x.ravel() for x in turn]).T)
    found = [(int(i), int(j), float(best[i, j])) for i, j in np.argwhere(best > alike)]
    return sorted(found, key=lambda row: -row[2])


def main(arguments=None):
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("train", nargs="+", type=Path, help="folders that are trained on")
    parser.add_argument("--test", nargs="+", type=Path, required=True, help="folders that must not be trained on")
    parser.add_argument("--alike", type=float, default=ALIKE, help="correlation of two pictures that are the same")
    chosen = parser.parse_args(arguments)
    sides = []
    for folders in (chosen.train, chosen.test):
        paths = [path for folder in folders for path in find_pictures(folder)]
        if not paths:
            parser.error(f"no picture in {', '.join(map(str, folders))}")
        sides.append((paths, [thumbnail(read_picture(path).pixels) for path in paths]))
    (train, train_small), (test, test_small) = sides
    leaks = find_leaks(train_small, test_small, chosen.alike)
    for i, j, correlation in leaks:
        print(f"{correlation:.4f}  {train[i]}  {test[j]}")
    flat = sum(not x.any() for x in train_small + test_small)
    print(f"{len(train)} training pictures, {len(test)} test pictures ({flat} without contrast): {len(leaks)} alike")
    return 1 if leaks else 0


if __name__ == "__main__":
    sys.exit(main())
