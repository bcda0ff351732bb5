"""Degradations, on batches of tensors and with a generator of their own.

A degradation that a recipe can name is an entry of ``DEGRADATIONS`` and a section in ``kithkin.degradation_config``.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from kithkin.data.degrade.blur import apply_blur
from kithkin.data.degrade.camera import CameraNumbers, apply_camera, draw_camera
from kithkin.data.degrade.draws import Draws
from kithkin.data.degrade.exposure import BlurSettings, Exposure, plan_blur
from kithkin.data.degrade.fields import Source, as_draws
from kithkin.data.degrade.mixed_noise import CAMERA_MARGIN, apply_noise, draw_noise
from kithkin.data.degrade.noise import benchmark_noise, correlated_noise, gaussian_noise
from kithkin.data.degrade.rain import RainPlan, apply_rain, plan_rain
from kithkin.data.degrade.rain_looks import LOOKS, RainSettings
from kithkin.data.degrade.suite import NOISES, noise_example
from kithkin.data.transfer import Numbers, moved
from kithkin.degradation_config import BlurConfig, CameraConfig, CorrelatedConfig, RainConfig
from kithkin.errors import InputError

__all__ = [
    "DEGRADATIONS",
    "NOISES",
    "Degradation",
    "benchmark_noise",
    "degrade_photos",
    "gaussian_noise",
    "margin",
    "noise_example",
]


class Degradation(NamedTuple):
    """What a recipe can ask for by its kind.

    Attributes:
        draw: ``(draws, (height, width), settings) -> numbers``: all that describes what is done to pictures of that
            size, drawn on the host in NumPy: tuples within tuples of arrays.
        apply: ``(clean, numbers, settings) -> (degraded, target)``; clean (B, 3, H, W) in [0, 1], the numbers'
            arrays as tensors on its device, the results without the margin.
        margin: ``settings -> pixels`` along each border that the degradation uses up.
    """

    draw: Callable[[Draws, tuple[int, int], Any], Any]
    apply: Callable[[Tensor, Any, Any], tuple[Tensor, Tensor]]
    margin: Callable[[Any], int]


@torch.no_grad()
def degrade_photos(clean: Tensor, source: Source, settings: Any) -> tuple[Tensor, Tensor]:
    """Degrade photographs as a recipe's ``[data.degradation]`` says.

    Args:
        clean: (B, 3, H, W) in [0, 1].
        source: of all random numbers: a generator, of whose state the result is a function, or draws.
        settings: a degradation's section of the configuration.

    Returns:
        (degraded, target), each (B, 3, H - 2m, W - 2m) for a margin of m.

    Raises:
        InputError: another shape, or sides that leave nothing inside the margin.
    """
    edge = margin(settings)
    if clean.ndim != 4 or clean.shape[1] != 3 or min(clean.shape[2:]) <= 2 * edge:
        raise InputError(
            f"{settings.kind}: pictures are (B, 3, H, W) with sides above {2 * edge}, got "
            f"{tuple(clean.shape)}; give larger ones"
        )
    kind = DEGRADATIONS[settings.kind]
    numbers = kind.draw(as_draws(source, len(clean)), (clean.shape[2], clean.shape[3]), settings)
    return kind.apply(clean, moved(numbers, clean.device), settings)


def margin(settings: Any) -> int:
    """How many pixels of each border ``degrade_photos`` uses up; 0 where there is no degradation."""
    return 0 if settings is None else DEGRADATIONS[settings.kind].margin(settings)


class _Correlated(NamedTuple):
    sigma: Numbers
    grain: Numbers
    chroma: Numbers
    keys: Numbers


def _draw_correlated(draws: Draws, size: tuple[int, int], settings: CorrelatedConfig) -> _Correlated:
    low, high = settings.grain
    grain = low + (high - low) * draws.uniform("grain", 2)
    sigma, chroma = draws.between("sigma", settings.sigma), draws.between("chroma", settings.chroma)
    single = [x.astype(np.float32) for x in (sigma, grain, chroma)]
    return _Correlated(single[0], single[1], single[2], draws.keys("noise"))


def _correlated(clean: Tensor, numbers: _Correlated, settings: CorrelatedConfig) -> tuple[Tensor, Tensor]:
    return correlated_noise(clean, *numbers), clean


def _rain_settings(settings: RainConfig) -> RainSettings:
    return RainSettings(tuple(LOOKS.values()), (settings.light, settings.medium, settings.heavy))


def _draw_rain(draws: Draws, size: tuple[int, int], settings: RainConfig) -> RainPlan:
    return plan_rain(draws, _rain_settings(settings), settings.dry_share)


def _rain(clean: Tensor, plan: RainPlan, settings: RainConfig) -> tuple[Tensor, Tensor]:
    return apply_rain(clean, plan, _rain_settings(settings)), clean


def _camera(clean: Tensor, numbers: CameraNumbers, settings: CameraConfig) -> tuple[Tensor, Tensor]:
    inside = slice(CAMERA_MARGIN, -CAMERA_MARGIN)
    return apply_camera(clean, numbers)[..., inside, inside], clean[..., inside, inside]


def _blur_settings(settings: BlurConfig) -> BlurSettings:
    curved = 1 - settings.linear_share
    return BlurSettings(
        margin=settings.margin,
        motions=(settings.shake, settings.straight, settings.still, settings.spline),
        length=settings.length,
        span=settings.span,
        exposure=settings.exposure,
        framed=settings.framed_share,
        varying=settings.varying_share,
        foreground=settings.foreground_share,
        defocused=settings.defocused_share,
        curves=(curved * 5 / 7, curved * 2 / 7, settings.linear_share),
        read=settings.read,
    )


def _draw_blur(draws: Draws, size: tuple[int, int], settings: BlurConfig) -> Exposure:
    return plan_blur(draws, size, _blur_settings(settings), settings.sharp_share)


def _blur(clean: Tensor, exposure: Exposure, settings: BlurConfig) -> tuple[Tensor, Tensor]:
    return apply_blur(clean, exposure, _blur_settings(settings))


DEGRADATIONS: dict[str, Degradation] = {
    "correlated": Degradation(_draw_correlated, _correlated, margin=lambda settings: 0),
    "rain": Degradation(_draw_rain, _rain, margin=lambda settings: 0),
    "blur": Degradation(_draw_blur, _blur, margin=lambda settings: settings.margin),
    "camera": Degradation(draw_camera, _camera, margin=lambda settings: CAMERA_MARGIN),
    "noise": Degradation(draw_noise, apply_noise, margin=lambda settings: CAMERA_MARGIN),
}
