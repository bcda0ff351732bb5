"""Fixed examples of every kind of noise, to measure a denoiser with: the same for every run and on every device."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from kithkin.data.degrade.draws import Draws
from kithkin.data.degrade.fields import normal_field
from kithkin.data.degrade.mixed_noise import CAMERA_MARGIN, apply_noise, as_gray, draw_noise
from kithkin.data.degrade.noise import benchmark_noise
from kithkin.data.transfer import moved
from kithkin.degradation_config import NoiseConfig
from kithkin.errors import InputError

_SHARES = ("white", "luminance", "film", "camera", "gray_share", "varying_share", "resized_share", "jpeg_share")
_HALVES = (10.0, 50.0)


def _only(kind: str, also: str | None = None) -> NoiseConfig:
    """One kind, and all of what else may happen or nothing. Every number is said here, so that another default of a
    recipe leaves the examples as they are."""
    shares = {name: float(name in (kind, also)) for name in _SHARES}
    return NoiseConfig(
        kind="noise",
        sigma=(25, 25),
        grain=(0.8, 0.8),
        chroma=(0.3, 0.3),
        resize=(0.6, 1.6),
        stored_share=1.0,
        jpeg_quality=(50, 90),
        **shares,
    )


NOISES: dict[str, float | NoiseConfig | None] = {
    "white25": 25.0,
    "white50": 50.0,
    "luminance25": _only("luminance"),
    "gray25": _only("white", "gray_share"),
    "film25": _only("film"),
    "gray-film25": _only("film", "gray_share"),
    "halves10-50": None,
    "resized25": _only("white", "resized_share"),
    "jpeg25": _only("white", "jpeg_share"),
    "camera": _only("camera"),
}
"""The examples: the level of the published white noise, the settings that ``kind = "noise"`` takes, or None for a
picture whose left half has other noise than its right one. The number behind a name is the level, sigma."""


@torch.no_grad()
def noise_example(name: str, clean: np.ndarray, index: int) -> tuple[np.ndarray, np.ndarray]:
    """A picture with noise of one kind, and what it should become.

    Args:
        name: a key of ``NOISES``.
        clean: (H, W, 3) floats in [0, 1], with sides of at least 3.
        index: of the picture in its set: what is drawn follows from it alone.

    Returns:
        (degraded, target), both (H, W, 3) float32. White noise is that of ``benchmark_noise``, neither clipped nor
        rounded; all other degraded pictures have 8 bits. The target is the picture, or what a gray file of it holds.

    Raises:
        InputError: there is no such name.
    """
    if name not in NOISES:
        raise InputError(f"noise_example: no noise is called {name!r}; there are {', '.join(NOISES)}")
    noise = NOISES[name]
    if isinstance(noise, float):
        return benchmark_noise(clean, noise), clean.astype(np.float32)
    picture = torch.from_numpy(np.ascontiguousarray(clean, np.float32)).permute(2, 0, 1)[None]
    draws = Draws.of_step(0, index, [0])
    if noise is None:
        return _as_array(_halves(picture, draws)), clean.astype(np.float32)
    if noise.gray_share:
        picture = as_gray(picture).mul(255).round().div(255)
    wide = F.pad(picture, (CAMERA_MARGIN,) * 4, mode="replicate")
    numbers = draw_noise(draws, (wide.shape[2], wide.shape[3]), noise)
    degraded, _ = apply_noise(wide, moved(numbers, "cpu"), noise)
    return _as_array(degraded), _as_array(picture)


def _halves(picture: Tensor, draws: Draws) -> Tensor:
    noise = normal_field(moved(draws.keys("halves"), "cpu"), tuple(picture.shape[1:]))
    left = torch.arange(picture.shape[3]) < picture.shape[3] // 2
    sigma = torch.where(left, *_HALVES)
    return (picture + noise * (sigma / 255)).clamp(0, 1).mul(255).round().div(255)


def _as_array(picture: Tensor) -> np.ndarray:
    return picture[0].permute(1, 2, 0).contiguous().numpy()
