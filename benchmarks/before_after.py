"""The first picture of the README: photographs with noise, rain and blur, and what kithkin makes of them.

python benchmarks/before_after.py VALIDATION -o docs/images/restored.webp

VALIDATION is the folder of the CC0 photographs gb82, which no model was trained on. Above, each photograph with a
degradation that the training code draws, stored with 8 bits; below, restored with the options in ``COLUMNS``.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from kithkin import load_model, restore
from kithkin.data.degrade.blur import BlurSettings, add_blur
from kithkin.data.degrade.rain import RainSettings, add_rain
from kithkin.data.degrade.suite import noise_example
from kithkin.images import read_picture

SIDE, GAP = 320, 6


def noise(kind: str, clean: np.ndarray) -> np.ndarray:
    """Noise of a fixed kind (``kithkin eval --protocol noises``)."""
    return noise_example(kind, clean, 0)[0]


def rain(clean: np.ndarray) -> np.ndarray:
    """Streaks of rain."""
    generator = torch.Generator().manual_seed(3)
    return from_tensor(add_rain(to_tensor(clean), generator, RainSettings())[0])


def shake(clean: np.ndarray) -> np.ndarray:
    """The blur of a hand that shook during the exposure, the same everywhere."""
    still = BlurSettings(varying=0, foreground=0, defocused=0, framed=0, exposure=(0.5, 0.5), motions=(1, 0, 0, 0))
    wide = np.pad(clean, [(still.margin, still.margin)] * 2 + [(0, 0)], mode="reflect")
    return from_tensor(add_blur(to_tensor(wide), torch.Generator().manual_seed(1), still)[0])


class Column(NamedTuple):
    """A photograph, where its square begins (top, left), what is done to it, and how it is restored."""

    photograph: str
    corner: tuple[int, int]
    degrade: Callable[[np.ndarray], np.ndarray]
    model: str
    options: dict[str, Any]


COLUMNS = (
    Column("dog", (60, 130), lambda clean: noise("camera", clean), "denoise-small", {"preset": "natural"}),
    Column("city", (40, 230), lambda clean: noise("gray-film25", clean), "denoise-small", {"preset": "natural"}),
    Column("path", (230, 60), rain, "derain", {}),
    Column("flowers", (20, 130), shake, "deblur", {"uniform_blur": "light"}),
)


def to_tensor(pixels: np.ndarray) -> torch.Tensor:
    """(H, W, 3) -> (1, 3, H, W)."""
    return torch.from_numpy(np.ascontiguousarray(pixels, np.float32)).permute(2, 0, 1)[None]


def from_tensor(picture: torch.Tensor) -> np.ndarray:
    """(1, 3, H, W) -> (H, W, 3)."""
    return picture[0].permute(1, 2, 0).numpy()


def column(folder: Path, chosen: Column) -> np.ndarray:
    """Before above after, (2 SIDE + GAP, SIDE, 3) uint8."""
    clean = read_picture(folder / f"gb82_{chosen.photograph}-lossless.jpg").pixels
    degraded = np.rint(chosen.degrade(clean).clip(0, 1) * 255).astype(np.uint8)
    restored = restore(load_model(chosen.model), degraded, **chosen.options)
    top, left = chosen.corner
    square = np.s_[top : top + SIDE, left : left + SIDE]
    return np.vstack([degraded[square], np.full((GAP, SIDE, 3), 255, np.uint8), restored[square]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("-o", "--out", type=Path, required=True)
    args = parser.parse_args()
    columns = [column(args.folder, chosen) for chosen in COLUMNS]
    gap = np.full((2 * SIDE + GAP, GAP, 3), 255, np.uint8)
    pieces = [piece for each in columns for piece in (gap, each)][1:]
    Image.fromarray(np.hstack(pieces)).save(args.out, quality=80, method=6)


if __name__ == "__main__":
    main()
