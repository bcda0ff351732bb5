"""A picture of what the degradations do to a photograph: `rain` or `blur`, each with several seeds.

python benchmarks/sheet_rain_blur.py rain PHOTOGRAPH -o docs/degradations-rain.jpg
"""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from kithkin.data.rain import LOOKS, RainSettings, add_rain
from kithkin.images import read_picture

GAP = 6


def rain(clean: Tensor, height: int) -> Iterator[list[Tensor]]:
    """A row for each look: the clean picture, then three seeds."""
    clean = clean[..., :height, :]
    for look in LOOKS.values():
        drawn = [
            add_rain(clean, torch.Generator().manual_seed(seed), RainSettings((look,), (1.0,)))[0] for seed in (3, 5, 7)
        ]
        yield [clean, *drawn]


KINDS: dict[str, Callable[[Tensor, int], Iterator[list[Tensor]]]] = {"rain": rain}


def sheet(rows: list[list[Tensor]]) -> Image.Image:
    """Pictures (1, 3, H, W) of one size, in rows, with white between them."""
    height, width = rows[0][0].shape[2:]
    whole = np.full((len(rows) * (height + GAP) - GAP, len(rows[0]) * (width + GAP) - GAP, 3), 255, np.uint8)
    for i, row in enumerate(rows):
        for j, picture in enumerate(row):
            top, left = i * (height + GAP), j * (width + GAP)
            whole[top : top + height, left : left + width] = (picture[0] * 255).round().byte().permute(1, 2, 0).numpy()
    return Image.fromarray(whole)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("photograph", type=Path)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--width", type=int, default=300, help="of each picture, in pixels")
    parser.add_argument("--height", type=int, default=200, help="of each picture; the rest is cut off below")
    chosen = parser.parse_args()
    pixels = read_picture(chosen.photograph).pixels
    scale = chosen.width / pixels.shape[1]
    small = Image.fromarray((pixels * 255).round().astype(np.uint8)).resize(
        (chosen.width, round(pixels.shape[0] * scale)), Image.Resampling.LANCZOS
    )
    clean = torch.from_numpy(np.array(small)).permute(2, 0, 1)[None].float() / 255
    sheet(list(KINDS[chosen.kind](clean, chosen.height))).save(chosen.out, quality=80)


if __name__ == "__main__":
    main()
