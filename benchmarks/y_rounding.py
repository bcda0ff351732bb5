"""What rounding Y to uint8 does to a PSNR on rainy pairs, near the values of today's best networks.

    python benchmarks/y_rounding.py FOLDER

FOLDER holds `input` and `target`. A restored picture of a chosen quality is imitated by leaving a share of the rain in
the clean picture: a quarter lifts the PSNR by 12 dB.
"""

import argparse
from pathlib import Path

import numpy as np

from kithkin import psnr
from kithkin.data import open_samples

SHARES = (1.0, 0.5, 0.25)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    samples = open_samples(parser.parse_args().folder)
    values: dict[float, list[tuple[float, float]]] = {share: [] for share in SHARES}
    for index in range(len(samples)):
        sample = samples[index]
        rainy, clean = (np.asarray(side, np.float64) / 255 for side in (sample.input, sample.target))
        for share in SHARES:
            picture = clean + share * (rainy - clean)
            both = [psnr(picture, clean, protocol=name) for name in ("y-unrounded", "y-matlab")]
            values[share].append((both[0], both[1]))
    print("| rain left | Y not rounded | Y rounded | difference |\n| --- | --- | --- | --- |")
    for share, found in values.items():
        plain, rounded = np.mean(found, axis=0)
        print(f"| {share:.0%} | {plain:.2f} dB | {rounded:.2f} dB | {rounded - plain:+.2f} dB |")


if __name__ == "__main__":
    main()
