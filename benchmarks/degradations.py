"""Degradations drawn on a contact sheet, with the PSNR of each cell.

    python benchmarks/degradations.py PICTURE_OR_FOLDER -o sheet.jpg

Prints the PSNR of each picture's middle under the camera's noise, ten draws each. What they cost: `data_rates.py`.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from kithkin.data.degrade import degrade_photos, gaussian_noise, margin
from kithkin.data.degrade.camera import draw_cameras, raw_noise, reduce_noise
from kithkin.data.degrade.compression import jpeg
from kithkin.data.degrade.fields import as_draws
from kithkin.data.degrade.noise import correlated_noise
from kithkin.data.transfer import moved
from kithkin.degradation_config import CameraConfig
from kithkin.images import find_pictures, read_picture

CELL, LABEL, ZOOM = 128, 18, 2
CAMERA = CameraConfig(kind="camera")
EDGE = margin(CAMERA)

Degrade = Callable[[Tensor, torch.Generator], Tensor]


def whole(value: float, clean: Tensor) -> Tensor:
    return torch.full((len(clean),), value)


def correlated(clean: Tensor, generator: torch.Generator, chroma: float) -> Tensor:
    grain = torch.full((len(clean), 2), 0.8)
    return correlated_noise(clean, whole(15, clean), grain, whole(chroma, clean), generator)


def sensor(clean: Tensor, generator: torch.Generator) -> Tensor:
    cameras = moved(draw_cameras(as_draws(generator, len(clean))), "cpu")
    return raw_noise(clean, whole(0.003, clean), whole(1e-5, clean), generator, cameras)


def reduced(clean: Tensor, generator: torch.Generator) -> Tensor:
    noise = sensor(clean, generator) - clean
    return clean + 0.6 * reduce_noise(noise, whole(0.4, clean), whole(1.5, clean))


COLUMNS: dict[str, Degrade] = {
    "clean": lambda clean, generator: clean,
    "Gaussian, sigma 15": lambda clean, generator: gaussian_noise(clean, whole(15, clean), generator),
    "correlated, gray": lambda clean, generator: correlated(clean, generator, 0.1),
    "correlated, colours": lambda clean, generator: correlated(clean, generator, 1.0),
    "sensor, developed": sensor,
    "and reduced": reduced,
    "JPEG 40, 4:2:0": lambda clean, generator: jpeg(clean, whole(40, clean), subsample=True),
    **{f"camera {i}": lambda clean, generator: degrade_photos(clean, generator, CAMERA)[0] for i in (1, 2, 3)},
}


def main(source: Path, sheet: Path, count: int) -> None:
    pictures = find_pictures(source) if source.is_dir() else [source]
    rows = [draw_row(centre(path), index) for index, path in enumerate(pictures[:count])]
    Image.fromarray(np.concatenate(rows)).save(sheet, quality=85)
    measure(pictures)


def measure(pictures: list[Path]) -> None:
    levels = []
    for index, path in enumerate(pictures):
        clean = centre(path).expand(10, -1, -1, -1)
        degraded, target = degrade_photos(clean, torch.Generator().manual_seed(index), CAMERA)
        levels += (-10 * (degraded - target).square().mean(dim=(1, 2, 3)).log10()).tolist()
    low, middle, high = np.quantile(levels, [0.1, 0.5, 0.9])
    print(
        f"camera: mean {np.mean(levels):.1f} dB, median {middle:.1f}, a tenth below {low:.1f}, a tenth above {high:.1f}"
    )


def centre(path: Path) -> Tensor:
    """(1, 3, 128 + 2m, 128 + 2m) from the middle of a picture."""
    pixels, side = read_picture(path).pixels, CELL + 2 * EDGE
    top, left = (pixels.shape[0] - side) // 2, (pixels.shape[1] - side) // 2
    return torch.from_numpy(pixels[top : top + side, left : left + side].copy()).permute(2, 0, 1)[None]


def draw_row(clean: Tensor, index: int) -> np.ndarray:
    cells, inside = [], clean[..., EDGE:-EDGE, EDGE:-EDGE]
    for place, (name, degrade) in enumerate(COLUMNS.items()):
        degraded = degrade(clean, torch.Generator().manual_seed(100 * index + place))
        if degraded.shape == clean.shape:
            degraded = degraded[..., EDGE:-EDGE, EDGE:-EDGE]
        error = (degraded.clamp(0, 1) - inside).square().mean().item()
        label = name if error == 0 else f"{name}: {-10 * np.log10(error):.1f} dB"
        cells.append(draw_cell(degraded[0].clamp(0, 1), label))
    half = (len(cells) + 1) // 2
    return np.concatenate([np.concatenate(cells[:half], axis=1), np.concatenate(cells[half:], axis=1)])


def draw_cell(picture: Tensor, label: str) -> np.ndarray:
    pixels = (picture * 255).round().byte().permute(1, 2, 0).numpy().repeat(ZOOM, axis=0).repeat(ZOOM, axis=1)
    canvas = Image.new("RGB", (CELL * ZOOM + 4, CELL * ZOOM + LABEL), "white")
    canvas.paste(Image.fromarray(pixels), (0, LABEL))
    ImageDraw.Draw(canvas).text((2, 3), label, fill="black", font=ImageFont.load_default(12))
    return np.asarray(canvas)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("-o", dest="sheet", type=Path, required=True)
    parser.add_argument("--count", type=int, default=1, help="pictures")
    arguments = parser.parse_args()
    main(arguments.source, arguments.sheet, arguments.count)
