"""What rounding Y to uint8 does to a PSNR on rainy pairs, near the values of today's best networks.

    python benchmarks/y_rounding.py FOLDER

FOLDER holds `input` and `target`. Restored pictures are imitated: with a share of the rain left in the clean picture,
and with an error everywhere, Gaussian noise of 5 levels that is rounded to uint8 as a network's output is.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from kithkin import psnr
from kithkin.data import open_samples
from kithkin.data.degrade import benchmark_noise


def imitations(rainy: np.ndarray, clean: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    for share in (1.0, 0.5, 0.25):
        yield f"{share:.0%} of the rain", clean + share * (rainy - clean)
    yield "no rain, an error everywhere", np.rint(benchmark_noise(clean, 5.0).clip(0, 1) * 255) / 255


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    samples = open_samples(parser.parse_args().folder)
    values: dict[str, list[tuple[float, ...]]] = {}
    for index in range(len(samples)):
        sample = samples[index]
        rainy, clean = (np.asarray(side, np.float64) / 255 for side in (sample.input, sample.target))
        for name, picture in imitations(rainy, clean):
            both = tuple(psnr(picture, clean, protocol=protocol) for protocol in ("y-unrounded", "y-matlab"))
            values.setdefault(name, []).append(both)
    print("| what is left | Y not rounded | Y rounded | difference |\n| --- | --- | --- | --- |")
    for name, found in values.items():
        plain, rounded = np.mean(found, axis=0)
        print(f"| {name} | {plain:.2f} dB | {rounded:.2f} dB | {rounded - plain:+.2f} dB |")


if __name__ == "__main__":
    main()
