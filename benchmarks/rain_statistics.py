"""What published rain looks like in numbers, beside the rain that is drawn here over the same clean photographs.

    python benchmarks/rain_statistics.py FOLDER

FOLDER holds ``input`` and ``target``. Each value is the median over the pictures, with the 10th and 90th percentile.
Use pairs that are trained on, never a test set: the looks in `kithkin.data.degrade.rain` were set by this table.
"""

import math
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from scipy.ndimage import gaussian_filter

from kithkin.data import Pairs
from kithkin.data.degrade.rain import LOOKS, RainSettings, add_rain
from kithkin.metrics import psnr, ssim

from measure import keep

SIDE = 320
HEAVY_BELOW = 22.0
"""dB: the published pairs fall into two groups with nothing between 19 and 22."""
LUMA = np.array([0.299, 0.587, 0.114])

MEANINGS = {
    "psnr": "PSNR of the rainy picture (y-matlab), dB",
    "ssim": "SSIM of the rainy picture (wang2d, y-matlab)",
    "mean": "mean of rainy - clean, of 255",
    "std": "standard deviation of rainy - clean, of 255",
    "skewness": "skewness of rainy - clean",
    "veil": "10th percentile of rainy - clean, of 255",
    "bright": "pixels brighter by more than 10 of 255, %",
    "dark": "pixels darker by more than 10 of 255, %",
    "on_white": "std over clean > 192 by std over clean < 64",
    "colour": "std between the channels by std",
    "angle": "angle of the streaks from the vertical, degrees, either side",
    "coherence": "coherence of the structure tensor, 0 to 1",
    "length": "correlation length along the streaks, px",
    "width": "correlation length across the streaks, px",
}


def statistics(rainy: np.ndarray, clean: np.ndarray) -> dict[str, float]:
    """The values of one pair, each (H, W, 3) uint8."""
    change = rainy.astype(np.float64) - clean
    gray, under = change @ LUMA, clean @ LUMA
    centred = gray - gray.mean()
    angle, coherence = orientation(gray)
    length, width = (correlation_length(gray, turned) for turned in (angle, angle + 90))
    white, black = gray[under > 192], gray[under < 64]
    return {
        "psnr": psnr(rainy, clean, protocol="y-matlab"),
        "ssim": ssim(rainy, clean, window="wang2d", protocol="y-matlab"),
        "mean": gray.mean(),
        "std": gray.std(),
        "skewness": (centred**3).mean() / gray.std() ** 3,
        "veil": np.percentile(gray, 10),
        "bright": 100 * (gray > 10).mean(),
        "dark": 100 * (gray < -10).mean(),
        "on_white": white.std() / black.std() if min(white.size, black.size) > 500 else math.nan,
        "colour": change.std(axis=2).mean() / gray.std(),
        "angle": abs(angle),
        "coherence": coherence,
        "length": length,
        "width": width,
    }


def orientation(gray: np.ndarray) -> tuple[float, float]:
    """Direction along which a picture changes least, in degrees from the vertical within ±90, positive where it falls
    to the left; and how much more it changes across it, (a - b) / (a + b) of the structure tensor's eigenvalues."""
    # Plain differences see less of what is thin, so they would turn every streak away from the vertical.
    down, right = (gaussian_filter(gray, 1.5, order=order) for order in ((1, 0), (0, 1)))
    xx, yy, xy = (right * right).mean(), (down * down).mean(), (right * down).mean()
    across = 0.5 * math.atan2(2 * xy, xx - yy)  # of the largest change, from the horizontal
    return math.degrees(across), math.hypot(xx - yy, 2 * xy) / (xx + yy)


def correlation_length(gray: np.ndarray, angle: float) -> float:
    """Pixels along a direction after which the autocorrelation of the fine structure has fallen to a half, twice."""
    spectrum = np.abs(np.fft.rfft2(gray - gray.mean())) ** 2
    fy, fx = np.fft.fftfreq(gray.shape[0])[:, None], np.fft.rfftfreq(gray.shape[1])
    spectrum = spectrum * (np.hypot(fy, fx) > 1 / 64)  # the veil and the picture itself are coarser
    correlation = np.fft.irfft2(spectrum, s=gray.shape)
    correlation = correlation / correlation[0, 0]
    turn = math.radians(angle)
    for step in np.arange(0.25, 60, 0.25):
        if _at(correlation, step * math.cos(turn), -step * math.sin(turn)) < 0.5:
            return 2 * step
    return 120.0


def _at(picture: np.ndarray, row: float, column: float) -> float:
    """The value between four pixels, wrapped around."""
    top, left = math.floor(row), math.floor(column)
    below, right = row - top, column - left
    height, width = picture.shape
    corners = [[picture[(top + i) % height, (left + j) % width] for j in (0, 1)] for i in (0, 1)]
    return float(np.array([1 - below, below]) @ np.array(corners) @ np.array([1 - right, right]))


def crops(folder: Path) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The centre of each pair."""
    pairs = Pairs([folder])
    for i in range(len(pairs)):
        rainy, clean = pairs[i]
        top, left = (max(side - SIDE, 0) // 2 for side in clean.shape[:2])
        yield rainy[top : top + SIDE, left : left + SIDE], clean[top : top + SIDE, left : left + SIDE]


def drawn(clean: np.ndarray, look: str, seed: int) -> np.ndarray:
    """Our rain over a picture, uint8."""
    picture = torch.from_numpy(clean.copy()).permute(2, 0, 1)[None].float() / 255
    generator = torch.Generator().manual_seed(seed)
    rainy, _ = add_rain(picture, generator, RainSettings((LOOKS[look],), (1.0,)))
    return (rainy[0] * 255).round().byte().permute(1, 2, 0).numpy()


def main(folder: Path) -> None:
    found = list(crops(folder))
    published = [statistics(*pair) for pair in found]
    groups = {
        f"published, {HEAVY_BELOW:g} dB and above": [x for x in published if x["psnr"] >= HEAVY_BELOW],
        "below": [x for x in published if x["psnr"] < HEAVY_BELOW],
    }
    for look in LOOKS:
        groups[look] = [statistics(drawn(clean, look, i), clean) for i, (_, clean) in enumerate(found)]
    table = Table("", *(f"{name} ({len(rows)})" for name, rows in groups.items()))
    result: dict[str, dict[str, list[float]]] = {name: {} for name in groups}
    for key, meaning in MEANINGS.items():
        for name, rows in groups.items():
            result[name][key] = np.nanpercentile([x[key] for x in rows], [50, 10, 90]).round(3).tolist()
        table.add_row(meaning, *("{:.3g} [{:.3g}, {:.3g}]".format(*result[name][key]) for name in groups))
    keep("rain_statistics", {"side": SIDE, "median, 10 %, 90 %": result})
    Console(width=160).print(table)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
