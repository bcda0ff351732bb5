"""A picture of what the degradations do to a photograph: `rain` or `blur`, each with several seeds.

python benchmarks/sheet_rain_blur.py rain PHOTOGRAPH -o docs/images/degradations-rain.webp
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional as F

from kithkin.data.degrade.blur import BlurSettings, add_blur, cut
from kithkin.data.degrade.exposure import draw_blur
from kithkin.data.degrade.fields import as_draws
from kithkin.data.degrade.kernels import render_paths, shrunk
from kithkin.data.degrade.rain import LOOKS, RainSettings, add_rain
from kithkin.images import read_picture

GAP = 6
INSET = 20
"""Radius of the kernels that are shown, in pixels, before they are enlarged twice."""


def rain(photograph: Image.Image, size: tuple[int, int]) -> Iterator[list[Tensor]]:
    """A row for each look: the clean picture, then three seeds."""
    clean = tensor(photograph, size)
    for look in LOOKS.values():
        settings = RainSettings((look,), (1.0,))
        yield [clean, *(add_rain(clean, torch.Generator().manual_seed(seed), settings)[0] for seed in (3, 5, 7))]


def blur(photograph: Image.Image, size: tuple[int, int]) -> Iterator[list[Tensor]]:
    """A row of even blur with its kernels, and one of all else."""
    still = BlurSettings(varying=0, foreground=0, defocused=0, framed=0, exposure=(0.4, 0.8))
    hand, straight, nothing, spline = (
        replace(still, motions=tuple(float(i == kind) for i in range(4)), span=(16, 24)) for kind in range(4)
    )
    clean = tensor(photograph, tuple(side + 2 * still.margin for side in size))

    def degraded(settings: BlurSettings, seed: int, kernel: bool = False) -> Tensor:
        picture, _ = add_blur(clean, torch.Generator().manual_seed(seed), settings)
        if kernel:
            path = draw_blur(as_draws(torch.Generator().manual_seed(seed), 1), settings).path
            shown = torch.from_numpy(render_paths(shrunk(path, INSET - 1.0), INSET)).unsqueeze(1)
            side = 2 * (2 * INSET + 1)
            picture[..., -side:, -side:] = F.interpolate(shown / shown.max(), scale_factor=2)
        return picture

    yield [cut(clean, still.margin), degraded(hand, 1, True), degraded(straight, 5, True), degraded(spline, 4, True)]
    turning = replace(hand, varying=1, roll=8)
    yield [
        degraded(turning, 2),
        degraded(replace(turning, foreground=1), 6),
        degraded(replace(nothing, defocused=1, disc=(3, 3)), 0),
        degraded(BlurSettings(exposure=(0.3, 1)), 9),
    ]


KINDS: dict[str, Callable[[Image.Image, tuple[int, int]], Iterator[list[Tensor]]]] = {"rain": rain, "blur": blur}


def tensor(photograph: Image.Image, size: tuple[int, int]) -> Tensor:
    """The photograph, scaled and cut to (width, height), as (1, 3, H, W)."""
    fitted = ImageOps.fit(photograph, size, Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(fitted)).permute(2, 0, 1)[None].float() / 255


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
    parser.add_argument("--height", type=int, default=200, help="of each picture")
    chosen = parser.parse_args()
    pixels = read_picture(chosen.photograph).pixels
    photograph = Image.fromarray((pixels * 255).round().astype(np.uint8))
    rows = KINDS[chosen.kind](photograph, (chosen.width, chosen.height))
    sheet(list(rows)).save(chosen.out, quality=80)


if __name__ == "__main__":
    main()
