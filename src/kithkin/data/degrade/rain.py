"""Rain, drawn over photographs.

A layer of rain is made as the published pairs were: seeds on a few pixels, blurred along the direction of the fall, and
stretched so that only the crests show. Several layers make heavier rain; far away the drops melt into a veil, and drops
close to the lens are discs out of focus.

Sources: Garg and Nayar, "Vision and rain", 2007 (a falling drop shows as a bright streak, motion blurred along its
fall, that adds to what is behind it); Yang et al., "Deep joint rain detection and removal from a single image", 2017
(Rain100L: one layer; Rain100H: layers of several directions and a veil, Eq. 7 there); Zhang and Patel, "Density-aware
single image de-raining using a multi-stream dense network", 2018 (light, medium and heavy rain from noise by a photo
editor). None of the data sets came with its generator, so `benchmarks/rain_statistics.py` set the looks.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from kithkin.data.degrade.draws import Draws, between, choose, log_between, single
from kithkin.data.degrade.fields import Source, as_draws, smooth_field, uniform_field
from kithkin.data.degrade.rain_looks import HEAVY, LIGHT, LOOKS, MEDIUM, RainLook, RainSettings
from kithkin.data.transfer import Numbers, moved
from kithkin.errors import InputError

__all__ = ["HEAVY", "LIGHT", "LOOKS", "MEDIUM", "RainLook", "RainSettings", "add_rain", "apply_rain", "plan_rain"]

_BLENDS = ("add", "screen", "alpha")
_DIM = 0.5
"""The faintest seed; the brightest is 1, and between them they are uniform."""
_SLENDER = 6
_CELLS = 4
"""Numbers along each side of the grid from which slow changes over the picture are drawn."""


def add_rain(clean: Tensor, source: Source, settings: RainSettings) -> tuple[Tensor, Tensor]:
    """Draw rain over photographs.

    Args:
        clean: (B, 3, H, W) floats in [0, 1].
        source: of all random numbers, see ``degrade_photos``.
        settings: the kinds of rain and their shares.

    Returns:
        degraded and target, the latter ``clean`` itself; both of its shape and dtype, in [0, 1].

    Raises:
        InputError: ``clean`` is something else.
    """
    if clean.ndim != 4 or clean.shape[1] != 3 or not clean.is_floating_point():
        raise InputError(
            f"add_rain: pictures are (B, 3, H, W) floats in [0, 1], got {clean.dtype} {tuple(clean.shape)}"
        )
    plan = plan_rain(as_draws(source, len(clean)), settings)
    return apply_rain(clean, moved(plan, clean.device), settings), clean


class Rain(NamedTuple):
    """The numbers that describe the rain of each picture, drawn: float32.

    Attributes:
        density, length, width, angle, threshold, strength, darkening: (B, L), of each layer, units as in
            ``RainLook``; the angle from the vertical, positive where the streaks fall to the left. A layer that
            a picture has not has density 0.
        variation, veil, light, drops, radius: (B,), as in ``RainLook``.
        gray: (B,) gray value of streaks and drops.
        screened: (B,) 1 for screen and alpha blending, 0 where light is added.
    """

    density: np.ndarray
    length: np.ndarray
    width: np.ndarray
    angle: np.ndarray
    threshold: np.ndarray
    strength: np.ndarray
    darkening: np.ndarray
    variation: np.ndarray
    veil: np.ndarray
    light: np.ndarray
    drops: np.ndarray
    radius: np.ndarray
    gray: np.ndarray
    screened: np.ndarray


def draw_rain(draws: Draws, settings: RainSettings) -> Rain:
    """Draw the rain of B pictures, on the host."""
    look = choose(settings.shares, draws.uniform("look", 1)[:, 0])
    layers = max(1, *(look.layers[1] for look in settings.looks))

    def limits(name: str) -> tuple[np.ndarray, np.ndarray]:
        chosen = np.array([getattr(x, name) for x in settings.looks], np.float64)[look].reshape(len(look), -1)
        return chosen[:, :1], chosen[:, -1:]

    def each(name: str, columns: int = layers, scale: Callable[..., np.ndarray] = between) -> np.ndarray:
        return single(scale(*limits(name), draws.uniform(name, columns)))

    fewest, most = limits("layers")
    present = np.arange(layers) < fewest + np.floor(draws.uniform("layers", 1) * (most - fewest + 1))
    angle = limits("lean")[1] * (2 * draws.uniform("lean", 1) - 1)
    angle = angle + limits("spread")[1] * (2 * draws.uniform("spread", layers) - 1)
    blending = choose(settings.blends, draws.uniform("blend", 1)[:, 0])
    gray = between(*settings.gray, draws.uniform("gray", 1)[:, 0])
    length, width = each("length", scale=log_between), each("width", scale=log_between)
    return Rain(
        density=each("density", scale=log_between) * present,
        length=length,
        width=np.minimum(width, np.maximum(length / _SLENDER, 1)),
        angle=single(angle),
        threshold=each("threshold"),
        strength=each("strength"),
        darkening=each("darkening"),
        **{name: each(name, 1)[:, 0] for name in ("variation", "veil", "light", "drops", "radius")},
        gray=single(np.where(blending == _BLENDS.index("alpha"), gray, 1.0)),
        screened=single(blending != _BLENDS.index("add")),
    )


class Streaks(NamedTuple):
    """Layers of streaks: the numbers of N of them, as in ``Rain``, and the keys of their seeds and changes."""

    density: Numbers
    length: Numbers
    width: Numbers
    angle: Numbers
    threshold: Numbers
    strength: Numbers
    darkening: Numbers
    variation: Numbers
    keys: Numbers
    changes: Numbers


class Drops(NamedTuple):
    """Drops on the lens of N pictures: which share they cover, their radius and brightness, the keys of their seeds."""

    share: Numbers
    radius: Numbers
    bright: Numbers
    keys: Numbers


class RainPlan(NamedTuple):
    """What rain falls on a batch. The wet pictures are sorted, those with the most layers first, so that those that
    have a second layer, a third one and so on are the first ones.

    Attributes:
        wet, dry: places of the pictures with rain, in that order, and without; int64.
        order: (B,) places in the row of these two groups.
        gray, screened: of the wet ones, as in ``Rain``.
        counts: how many pictures have a first layer, a second one, …
        streaks: the first layers of all pictures that have one, then the second ones, …
        with_drops, drops: places among the wet ones of those with drops on the lens, and their drops.
        veiled, veil, light, keys: places among the wet ones of those with a veil, and its numbers.
    """

    wet: Numbers
    dry: Numbers
    order: Numbers
    gray: Numbers
    screened: Numbers
    counts: tuple[int, ...]
    streaks: Streaks
    with_drops: Numbers
    drops: Drops
    veiled: Numbers
    veil: Numbers
    light: Numbers
    keys: Numbers


def plan_rain(draws: Draws, settings: RainSettings, dry_share: float = 0.0) -> RainPlan:
    """Draw the rain of B pictures, ``dry_share`` of which get none, and say which pictures have which parts of it."""
    rain = draw_rain(draws, settings)
    n_layers = (rain.density > 0).sum(axis=1)
    is_dry = draws.uniform("dry", 1)[:, 0] < dry_share
    by_layers = np.argsort(-n_layers, kind="stable")
    wet, dry = by_layers[~is_dry[by_layers]], by_layers[is_dry[by_layers]]
    counts = tuple(int((n_layers[wet] > i).sum()) for i in range(rain.density.shape[1]))
    with_drops, veiled = np.flatnonzero(rain.drops[wet] > 0), np.flatnonzero(rain.veil[wet] > 0)
    under_drops, under_veil = wet[with_drops], wet[veiled]
    drops = Drops(
        rain.drops[under_drops],
        rain.radius[under_drops],
        rain.strength[under_drops].mean(axis=1),
        draws.take(under_drops).keys("drops"),
    )
    return RainPlan(
        wet,
        dry,
        np.argsort(np.concatenate([wet, dry])),
        rain.gray[wet],
        rain.screened[wet],
        tuple(count for count in counts if count),
        streaks_of(rain, draws, [wet[:count] for count in counts]),
        with_drops,
        drops,
        veiled,
        rain.veil[under_veil],
        rain.light[under_veil],
        draws.take(under_veil).keys("veil"),
    )


def streaks_of(rain: Rain, draws: Draws, places: list[np.ndarray]) -> Streaks:
    """The first layers of these pictures, the second ones of those, …: ``places`` for each layer, which they have."""
    parts = []
    for layer, chosen in enumerate(places):
        layer_draws = draws.child(f"layer {layer}").take(chosen)
        numbers = [x[chosen, layer] for x in rain[:7]]
        parts.append([*numbers, rain.variation[chosen], layer_draws.keys("seeds"), layer_draws.keys("changes")])
    if not parts:
        return Streaks(*np.zeros((8, 0), np.float32), *np.zeros((2, 0, 2), np.int32))
    return Streaks(*(np.concatenate(x) for x in zip(*parts, strict=True)))


def apply_rain(clean: Tensor, plan: RainPlan, settings: RainSettings) -> Tensor:
    """Rainy pictures, by numbers that have been moved to the device of the clean ones (B, 3, H, W)."""
    if not len(plan.wet):
        return clean
    size = (clean.shape[2], clean.shape[3])
    picture = clean.index_select(0, plan.wet).to(torch.promote_types(clean.dtype, torch.float32))
    gray, screened = (x.to(picture) for x in (plan.gray, plan.screened))
    layers = streak_layers(plan.streaks, size, streak_reach(settings)) if plan.counts else picture[:0]
    for layer, count in zip(layers.split(plan.counts), plan.counts, strict=True):
        part = picture[:count]
        part.copy_(blend(part, layer[:, None].to(picture), gray[:count], screened[:count]))
    if len(plan.with_drops):
        part = picture.index_select(0, plan.with_drops)
        layer = drop_layers(plan.drops, size, drop_reach(settings))[:, None].to(picture)
        blending = gray.index_select(0, plan.with_drops), screened.index_select(0, plan.with_drops)
        picture.index_copy_(0, plan.with_drops, blend(part, layer, *blending))
    if len(plan.veiled):
        veil = plan.veil.view(-1, 1, 1, 1) * smooth_field(plan.keys, size, _CELLS).mul_(0.5).add_(0.5)
        light = plan.light.view(-1, 1, 1, 1).to(picture)
        part = picture.index_select(0, plan.veiled)
        picture.index_copy_(0, plan.veiled, torch.lerp(part, light, veil.to(picture)))
    if settings.quantised:
        picture = picture.mul_(255).round_().div_(255)
    picture = picture.to(clean.dtype)
    return torch.cat([picture, clean.index_select(0, plan.dry)]).index_select(0, plan.order)


def streak_reach(settings: RainSettings) -> int:
    """Pixels to each side of the middle that hold every streak that these settings draw."""
    return max(math.ceil(look.length[1] / 2 + 1.5 * look.width[1] + 1) for look in settings.looks)


def drop_reach(settings: RainSettings) -> int:
    """Pixels to each side of the middle that hold every drop that these settings draw."""
    return max(math.ceil(look.radius[1] + 1) for look in settings.looks)


def streak_layers(streaks: Streaks, size: tuple[int, int], reach: int) -> Tensor:
    """Layers of streaks: how much each brightens every pixel.

    Seeds of random brightness, convolved with a line, less the threshold. The thresholds and strengths are in standard
    deviations of the convolved seeds, which are known, so neither the density nor the size of the streaks changes them.
    A layer wraps around at its borders, which nothing shows.

    Args:
        streaks: the numbers of N layers, moved to a device.
        size: (H, W) of the pictures.
        reach: as in ``streak_kernels``.

    Returns:
        (N, H, W) float32; nowhere negative where the darkening is 0.
    """
    density, darkening = streaks.density, streaks.darkening.view(-1, 1, 1)
    kernels = streak_kernels(streaks.length, streaks.width, streaks.angle, reach)
    wet = (max(size[0], kernels.shape[1]), max(size[1], kernels.shape[1]))
    spread = _wrapped(seeds(density, wet, streaks.keys), kernels)[:, : size[0], : size[1]]
    mean = density * (1 + _DIM) / 2
    square = density * (1 + _DIM + _DIM**2) / 3
    deviation = ((square - mean**2) * kernels.square().sum((1, 2))).sqrt()
    crests = (spread - (mean + streaks.threshold * deviation).view(-1, 1, 1)).clamp_(min=0)
    crests.mul_((streaks.strength / deviation).view(-1, 1, 1))
    crests.sub_(darkening * crests.mean((1, 2), keepdim=True))
    changes = smooth_field(streaks.changes, size, _CELLS)[:, 0].mul_(2).sub_(1)
    return crests.mul_(changes.mul_(streaks.variation.view(-1, 1, 1)).add_(1))


def streak_kernels(length: Tensor, width: Tensor, angle: Tensor, reach: int) -> Tensor:
    """Anti-aliased lines of sum 1: even along the streak with soft ends, Gaussian across it.

    Args:
        length, width: (N,) in pixels; the width is the full one at half the brightness.
        angle: (N,) degrees from the vertical, positive where the streak falls to the left.
        reach: pixels to each side of the middle, at least length / 2 + 1.5 width + 1.

    Returns:
        (N, K, K) float32, K = 2 reach + 1.
    """
    steps = torch.arange(-reach, reach + 1, device=length.device, dtype=torch.float32)
    down, right = steps.view(1, -1, 1), steps.view(1, 1, -1)
    turn = torch.deg2rad(angle).view(-1, 1, 1)
    along = down * turn.cos() - right * turn.sin()
    across = down * turn.sin() + right * turn.cos()
    # Ends that fade over a width look like a drop's; a square end would alias.
    fade = width.view(-1, 1, 1)
    lengthwise = ((length.view(-1, 1, 1) / 2 - along.abs()) / fade + 0.5).clamp_(0, 1)
    kernels = lengthwise * torch.exp(across.square() * (-4 * math.log(2) / fade.square()))
    return kernels / kernels.sum((1, 2), keepdim=True)


def seeds(density: Tensor, size: tuple[int, int], keys: Tensor) -> Tensor:
    """(N, H, W): zeros, and on a fraction ``density`` (N,) of the pixels numbers uniform in [0.5, 1]."""
    draw = uniform_field(keys, size)
    threshold = density.view(-1, 1, 1)
    return torch.where(draw < threshold, _DIM + (1 - _DIM) * draw / threshold, 0.0)


def drop_layers(drops: Drops, size: tuple[int, int], reach: int) -> Tensor:
    """(N, H, W) float32: drops out of focus, even discs with soft rims, each of its own brightness; 0 elsewhere."""
    steps = torch.arange(-reach, reach + 1, device=drops.radius.device, dtype=torch.float32)
    discs = (drops.radius.view(-1, 1, 1) + 0.5 - torch.hypot(steps.view(-1, 1), steps)).clamp_(0, 1)
    wet = (max(size[0], discs.shape[1]), max(size[1], discs.shape[1]))
    drop_seeds = seeds(drops.share / discs.sum((1, 2)), wet, drops.keys)
    return _wrapped(drop_seeds, discs)[:, : size[0], : size[1]].mul(drops.bright.view(-1, 1, 1)).clamp_(0, 1)


def blend(picture: Tensor, layer: Tensor, gray: Tensor, screened: Tensor) -> Tensor:
    """Lay light over pictures: O + S (g - b O), clipped to [0, 1].

    Args:
        picture: O, (B, 3, H, W) in [0, 1].
        layer: S, (B, 1, H, W).
        gray: g, (B,), the gray value of the light.
        screened: b, (B,): 0 adds the light; 1 goes from the picture towards the gray, which for g = 1 is the screen
            1 - (1 - O)(1 - S).
    """
    gray, screened = (x.view(-1, 1, 1, 1).to(picture) for x in (gray, screened))
    return (picture + layer.clamp(max=1) * (gray - screened * picture)).clamp_(0, 1)


def _wrapped(fields: Tensor, kernels: Tensor) -> Tensor:
    """Convolve each field (N, H, W) with its kernel (N, K, K), K at most H and W, as on a torus."""
    size = fields.shape[1:]
    product = torch.fft.rfft2(fields) * torch.fft.rfft2(kernels, s=size)
    return torch.fft.irfft2(product, s=size)
