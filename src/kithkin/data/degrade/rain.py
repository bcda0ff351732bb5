"""Rain, drawn over photographs.

A layer of rain is made as the published pairs were: seeds on a few pixels, blurred along the direction of the fall, and
stretched so that only the crests show. Several layers make heavier rain; far away the drops melt into a veil, and drops
close to the lens are discs out of focus.

Sources: Garg and Nayar, "Vision and rain", 2007 (a falling drop shows as a bright streak, motion blurred along its
fall, that adds to what is behind it); Yang et al., "Deep joint rain detection and removal from a single image", 2017
(Rain100L: one layer; Rain100H: layers of several directions and a veil, Eq. 7 there); Zhang and Patel, "Density-aware
single image de-raining using a multi-stream dense network", 2018 (light, medium and heavy rain from noise by a photo
editor). None of the data sets came with its generator, so `benchmarks/rain_statistics.py` set the looks below.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor

from kithkin.data.degrade.slow_fields import between, choose, log_between, smooth_field, uniform
from kithkin.errors import InputError

Range = tuple[float, float]

_BLENDS = ("add", "screen", "alpha")
_DIM = 0.5
"""The faintest seed; the brightest is 1, and between them they are uniform."""
_SLENDER = 6
_CELLS = 4
"""Numbers along each side of the grid from which slow changes over the picture are drawn."""


@dataclass(frozen=True)
class RainLook:
    """How one kind of rain looks; each picture, or each of its layers, draws every number from its range.

    Attributes:
        layers: streak layers, each with its own density, length, width and direction.
        density: fraction of the pixels that hold a seed, the start of a streak; drawn in the logarithm. 0 is no rain.
        length: of a streak, in pixels; drawn in the logarithm.
        width: of a streak at half its brightness, in pixels; drawn in the logarithm. A width above a sixth of the
            length is reduced to it, down to 1: plumper streaks are snow.
        lean: largest angle between the fall and the vertical, to either side, in degrees.
        spread: largest angle between the direction of a layer and that of the picture, in degrees.
        threshold: the part of a layer that stays dark, in standard deviations above its mean. -1 leaves a dense
            texture, 2 single streaks.
        strength: brightness of the streaks per standard deviation above the threshold, on the scale where white is 1.
        darkening: share of a layer's mean brightness that is taken from it again: above 0 some streaks darken what is
            behind them, as in a part of the published pairs.
        variation: how much the strength changes over the picture; 1 is from none to twice the mean.
        veil: opacity of the veil where it is thickest.
        light: gray value of the veil.
        drops: fraction of the picture that drops out of focus cover.
        radius: of such a drop, in pixels.
    """

    layers: tuple[int, int] = (1, 1)
    density: Range = (0.005, 0.03)
    length: Range = (15.0, 60.0)
    width: Range = (1.0, 4.0)
    lean: float = 30.0
    spread: float = 0.0
    threshold: Range = (0.5, 2.0)
    strength: Range = (0.05, 0.15)
    darkening: Range = (0.0, 0.0)
    variation: Range = (0.0, 0.4)
    veil: Range = (0.0, 0.0)
    light: Range = (0.6, 0.95)
    drops: Range = (0.0, 0.0)
    radius: Range = (3.0, 10.0)

    def __post_init__(self) -> None:
        for name, (low, high) in _bounds().items():
            value = getattr(self, name)
            first, last = value if isinstance(value, tuple) else (0.0, value)
            if not low <= first <= last <= high:
                raise InputError(f"RainLook: {name} lies within {low:g} to {high:g}, low to high; got {value}")


def _bounds() -> dict[str, Range]:
    """What each field of a look may hold."""
    bounds = {field.name: (0.0, 1.0) for field in fields(RainLook)}
    return bounds | {
        "layers": (0, 8),
        "length": (1.0, 200.0),
        "width": (0.5, 20.0),
        "lean": (0.0, 90.0),
        "spread": (0.0, 90.0),
        "threshold": (-5.0, 5.0),
        "radius": (1.0, 50.0),
    }


LIGHT = RainLook(length=(10.0, 60.0), threshold=(0.0, 1.5), strength=(0.09, 0.27))
MEDIUM = RainLook(
    layers=(1, 2),
    density=(0.01, 0.06),
    length=(10.0, 50.0),
    spread=5.0,
    threshold=(-2.0, 0.5),
    strength=(0.04, 0.11),
    darkening=(0.0, 1.0),
    drops=(0.0, 0.01),
)
HEAVY = RainLook(
    layers=(2, 4),
    density=(0.01, 0.06),
    length=(10.0, 60.0),
    width=(1.0, 4.0),
    lean=35.0,
    spread=30.0,
    threshold=(-0.5, 1.0),
    strength=(0.1, 0.3),
    veil=(0.0, 0.4),
    drops=(0.0, 0.03),
)
LOOKS = {"light": LIGHT, "medium": MEDIUM, "heavy": HEAVY}


@dataclass(frozen=True)
class RainSettings:
    """What rain a batch gets; each picture draws its look and its blending.

    Attributes:
        looks: kinds of rain.
        shares: of the looks; of any sum.
        blends: shares of "add", "screen" and "alpha". Added light is O + S, clipped (Yang et al. 2017, Eq. 1);
            screened 1 - (1 - O)(1 - S), which only brightens; alpha blending goes from O towards the streak's gray.
        gray: gray value of streaks and drops that are alpha blended.
        quantised: whether the picture is rounded to 8 bits, as the published ones are.
    """

    looks: tuple[RainLook, ...] = (LIGHT, MEDIUM, HEAVY)
    shares: tuple[float, ...] = (0.5, 0.25, 0.25)
    blends: tuple[float, float, float] = (0.4, 0.4, 0.2)
    gray: Range = (0.75, 1.0)
    quantised: bool = True

    def __post_init__(self) -> None:
        if not self.looks or len(self.looks) != len(self.shares):
            raise InputError(f"RainSettings: every look has a share; got {len(self.looks)} looks, {self.shares}")
        for name in ("shares", "blends"):
            value = getattr(self, name)
            if min(value) < 0 or sum(value) <= 0:
                raise InputError(f"RainSettings: {name} are from 0, not all of them 0; got {value}")


def add_rain(clean: Tensor, generator: torch.Generator, settings: RainSettings) -> tuple[Tensor, Tensor]:
    """Draw rain over photographs.

    Args:
        clean: (B, 3, H, W) floats in [0, 1].
        generator: draws everything; on the device of ``clean``.
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
    size = (clean.shape[2], clean.shape[3])
    picture = clean if clean.dtype == torch.float64 else clean.float()
    rain = draw_rain(len(clean), generator, settings)
    streaks, drops, veil = streak_layers(rain, size, generator), drop_layers(rain, size, generator), None
    for layer in [*streaks.unbind(1), drops]:
        picture = blend(picture, layer[:, None].to(picture), rain.gray, rain.screened)
    if any(look.veil[1] > 0 for look in settings.looks):
        veil = rain.veil.view(-1, 1, 1, 1) * between(0.5, 1.0, smooth_field(len(clean), size, _CELLS, generator))
        picture = torch.lerp(picture, rain.light.view(-1, 1, 1, 1).to(picture), veil.to(picture))
    if settings.quantised:
        picture = picture.mul(255).round_().div_(255)
    return picture.to(clean.dtype), clean


class Rain(NamedTuple):
    """The numbers that describe the rain of each picture, drawn.

    Attributes:
        density, length, width, angle, threshold, strength, darkening: (B, L), of each layer, units as in
            ``RainLook``; the angle from the vertical, positive where the streaks fall to the left. A layer that
            a picture has not has density 0.
        variation, veil, light, drops, radius: (B,), as in ``RainLook``.
        gray: (B,) gray value of streaks and drops.
        screened: (B,) 1 for screen and alpha blending, 0 where light is added.
    """

    density: Tensor
    length: Tensor
    width: Tensor
    angle: Tensor
    threshold: Tensor
    strength: Tensor
    darkening: Tensor
    variation: Tensor
    veil: Tensor
    light: Tensor
    drops: Tensor
    radius: Tensor
    gray: Tensor
    screened: Tensor


def draw_rain(count: int, generator: torch.Generator, settings: RainSettings) -> Rain:
    """Draw the rain of ``count`` pictures; the tensors lie on the generator's device."""
    look = choose(settings.shares, uniform(count, 1, generator)[:, 0])

    def limits(name: str) -> tuple[Tensor, Tensor]:
        table = torch.tensor([getattr(x, name) for x in settings.looks], dtype=torch.float32, device=look.device)
        chosen = table[look].view(count, -1, 1)
        return chosen[:, 0], chosen[:, -1]

    layers = max(look.layers[1] for look in settings.looks)

    def each(name: str, columns: int = layers, scale: Callable[[Tensor, Tensor, Tensor], Tensor] = between) -> Tensor:
        return scale(*limits(name), uniform(count, columns, generator))

    fewest, most = limits("layers")
    present = (
        torch.arange(layers, device=look.device) < fewest + (uniform(count, 1, generator) * (most - fewest + 1)).floor()
    )
    angle = limits("lean")[1] * (2 * uniform(count, 1, generator) - 1)
    angle = angle + limits("spread")[1] * (2 * uniform(count, layers, generator) - 1)
    blending = choose(settings.blends, uniform(count, 1, generator)[:, 0])
    gray = between(*settings.gray, uniform(count, 1, generator)[:, 0])
    length, width = each("length", scale=log_between), each("width", scale=log_between)
    return Rain(
        density=each("density", scale=log_between) * present,
        length=length,
        width=torch.minimum(width, (length / _SLENDER).clamp(min=1)),
        angle=angle,
        threshold=each("threshold"),
        strength=each("strength"),
        darkening=each("darkening"),
        **{name: each(name, 1)[:, 0] for name in ("variation", "veil", "light", "drops", "radius")},
        gray=torch.where(blending == _BLENDS.index("alpha"), gray, 1.0),
        screened=(blending != _BLENDS.index("add")).float(),
    )


def streak_layers(rain: Rain, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Layers of streaks: how much each brightens every pixel.

    Seeds of random brightness, convolved with a line, less the threshold. The thresholds and strengths are in standard
    deviations of the convolved seeds, which are known, so neither the density nor the size of the streaks changes them.
    A layer wraps around at its borders, which nothing shows.

    Args:
        rain: the layers' numbers.
        size: (H, W) of the pictures.
        generator: draws the seeds.

    Returns:
        (B, L, H, W) float32; nowhere negative where the darkening is 0.
    """
    count, layers = rain.density.shape
    kept = rain.density.flatten() > 0
    density, length, width, angle, threshold, strength, darkening = (x.flatten()[kept] for x in rain[:7])
    field = torch.zeros(count * layers, *size, device=kept.device)
    if not kept.any():
        return field.view(count, layers, *size)
    kernels = streak_kernels(length, width, angle)
    wet = [max(side, kernels.shape[1]) for side in size]
    spread = _wrapped(seeds(density, (wet[0], wet[1]), generator), kernels)[:, : size[0], : size[1]]
    mean = density * (1 + _DIM) / 2
    square = density * (1 + _DIM + _DIM**2) / 3
    deviation = ((square - mean**2) * kernels.square().sum((1, 2))).sqrt()
    crests = (spread - (mean + threshold * deviation).view(-1, 1, 1)).clamp_(min=0)
    crests = crests * (strength / deviation).view(-1, 1, 1)
    crests = crests - darkening.view(-1, 1, 1) * crests.mean((1, 2), keepdim=True)
    field[kept] = crests * _changing(rain.variation, layers, size, generator).flatten(0, 1)[kept]
    return field.view(count, layers, *size)


def streak_kernels(length: Tensor, width: Tensor, angle: Tensor) -> Tensor:
    """Anti-aliased lines of sum 1: even along the streak with soft ends, Gaussian across it.

    Args:
        length, width: (N,) in pixels; the width is the full one at half the brightness.
        angle: (N,) degrees from the vertical, positive where the streak falls to the left.

    Returns:
        (N, K, K) float32, K odd and large enough for the longest.
    """
    reach = math.ceil(length.max().item() / 2 + 1.5 * width.max().item() + 1)
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


def seeds(density: Tensor, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """(N, H, W): zeros, and on a fraction ``density`` (N,) of the pixels numbers uniform in [0.5, 1]."""
    draw = torch.rand(len(density), *size, generator=generator, device=density.device)
    threshold = density.view(-1, 1, 1)
    return torch.where(draw < threshold, _DIM + (1 - _DIM) * draw / threshold, 0.0)


def drop_layers(rain: Rain, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """(B, H, W) float32: drops out of focus, even discs with soft rims, each of its own brightness; 0 elsewhere."""
    kept = rain.drops > 0
    layer = torch.zeros(len(kept), *size, device=kept.device)
    if not kept.any():
        return layer
    radius = rain.radius[kept].view(-1, 1, 1)
    reach = math.ceil(radius.max().item() + 1)
    steps = torch.arange(-reach, reach + 1, device=kept.device, dtype=torch.float32)
    discs = (radius + 0.5 - torch.hypot(steps.view(1, -1, 1), steps.view(1, 1, -1))).clamp_(0, 1)
    wet = [max(side, discs.shape[1]) for side in size]
    found = seeds(rain.drops[kept] / discs.sum((1, 2)), (wet[0], wet[1]), generator)
    bright = rain.strength[kept].mean(1).view(-1, 1, 1)
    layer[kept] = (_wrapped(found, discs)[:, : size[0], : size[1]] * bright).clamp_(0, 1)
    return layer


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


def _changing(variation: Tensor, layers: int, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """(B, layers, H, W) factors about 1."""
    field = smooth_field(len(variation) * layers, size, _CELLS, generator).view(len(variation), layers, *size)
    return 1 + variation.view(-1, 1, 1, 1) * (2 * field - 1)
