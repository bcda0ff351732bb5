"""Blur, made as a camera makes it: light that moves during an exposure is added up, linearly, and clipped afterwards.

The picture is brought to linear light and its clipped highlights are made brighter again. Then it moves along a path,
turning and growing a little, so that the kernel changes over the picture; a part of it may move on a path of its own,
or the lens be out of focus. Noise, clipping, the tone curve and 8 bits follow.

Sources: the paths are those of `kithkin.data.degrade.kernels`; averaging frames follows GoPro (Nah et al., "Deep
multi-scale convolutional neural network for dynamic scene deblurring", 2017), whose usual half averages 7 to 13 of them
as they are stored, its other half with a gamma of 2.2 (its targets are the middle ones, ours lie at the mean place);
saturation and noise follow RSBlur (Rim et al., "Realistic blur synthesis for learning image deblurring", 2022).
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from kithkin.data.degrade.kernels import (
    STEPS,
    disc_kernels,
    exposed,
    instants,
    linear_paths,
    render_paths,
    shake_paths,
    shrunk,
    spectrum,
    spline_paths,
)
from kithkin.data.degrade.slow_fields import between, choose, smooth_field, uniform
from kithkin.errors import InputError

Range = tuple[float, float]

_HIGHLIGHT = 0.98
"""Stored value from which a channel counts as clipped; the others of a pixel stay as they are."""
_NODES = 3
"""Kernels along each side of a picture whose kernel varies. Two would blur its middle as far as its corners."""
_CELLS = 3
"""Numbers along each side of the grid from which the mask of a moving part is drawn."""


@dataclass(frozen=True)
class BlurSettings:
    """What blur a batch gets; each picture draws every number from its range.

    Attributes:
        margin: pixels on every side of the clean pictures that are blurred into the rest, and cut off. Paths that reach
            farther than this less 2 and less the disc are made smaller.
        motions: shares of a shaking hand, a straight motion, none and a spline through random points.
        anxiety: how restless the hand is.
        length: of the path of a full exposure, in pixels; not of splines.
        span: side of the square in which the points of a spline lie, in pixels.
        exposure: fraction of the path that is seen; splines are seen whole.
        framed: share of pictures that are averages of frames, not of all that lies between.
        frames: smallest and largest number of such frames.
        varying: share of pictures whose kernel changes over the picture.
        roll: by how much these turn during the exposure, to either side, in degrees.
        zoom: by how much they grow or shrink, as a fraction.
        foreground: share of pictures a part of which moves on a path of its own.
        defocused: share of pictures with a background out of focus.
        disc: radius of the disc of a lens out of focus, in pixels.
        curves: shares of the sRGB curve, a gamma of 2.2 and none, by which light is told from stored values.
        highlights: by what fraction clipped highlights are made brighter before the blur, where there is a curve.
        shot: variance of the photon noise of white, linear, where white is 1.
        read: standard deviation of the noise of black.
        quantised: whether the picture is rounded to 8 bits.
    """

    margin: int = 32
    motions: tuple[float, float, float, float] = (0.6, 0.3, 0.1, 0.0)
    anxiety: Range = (0.003, 0.01)
    length: float = 60.0
    span: Range = (3.0, 24.0)
    exposure: Range = (0.01, 1.0)
    framed: float = 0.15
    frames: tuple[int, int] = (9, 21)
    varying: float = 0.5
    roll: float = 2.0
    zoom: float = 0.01
    foreground: float = 0.25
    defocused: float = 0.2
    disc: Range = (0.5, 3.0)
    curves: tuple[float, float, float] = (0.5, 0.2, 0.3)
    highlights: Range = (0.0, 1.0)
    shot: Range = (0.0, 2e-4)
    read: Range = (0.0, 0.002)
    quantised: bool = True

    def __post_init__(self) -> None:
        if self.margin < self.disc[1] + 3:
            raise InputError(
                f"BlurSettings: margin exceeds the largest disc by 3 pixels, got {self.margin}, {self.disc}"
            )
        for name, count in (("motions", 4), ("curves", 3)):
            value = getattr(self, name)
            if len(value) != count or min(value) < 0 or sum(value) <= 0:
                raise InputError(f"BlurSettings: {name} are {count} shares from 0, not all of them 0; got {value}")
        for name in ("anxiety", "span", "exposure", "frames", "disc", "highlights", "shot", "read"):
            low, high = getattr(self, name)
            if not 0 <= low <= high or (name == "exposure" and high > 1) or (name == "frames" and low < 1):
                raise InputError(
                    f"BlurSettings: {name} runs from low to high, from 0 (exposure to 1); got {low}, {high}"
                )


def add_blur(clean: Tensor, generator: torch.Generator, settings: BlurSettings) -> tuple[Tensor, Tensor]:
    """Blur photographs.

    Args:
        clean: (B, 3, H + 2 margin, W + 2 margin) floats in [0, 1].
        generator: draws everything; on the device of ``clean``.
        settings: the kinds of blur and their shares.

    Returns:
        degraded and target, both (B, 3, H, W) in [0, 1], of the dtype of ``clean``; the target is its middle.

    Raises:
        InputError: ``clean`` is something else, or no larger than its margins.
    """
    margin = settings.margin
    if clean.ndim != 4 or clean.shape[1] != 3 or not clean.is_floating_point() or min(clean.shape[2:]) <= 2 * margin:
        raise InputError(
            f"add_blur: pictures are (B, 3, H, W) floats in [0, 1], larger than two margins of {margin}; "
            f"got {clean.dtype} {tuple(clean.shape)}"
        )
    blur = draw_blur(len(clean), generator, settings)
    size = (clean.shape[2], clean.shape[3])
    light = to_light(clean if clean.dtype == torch.float64 else clean.float(), blur.curve)
    light = light * torch.where(clean >= _HIGHLIGHT, 1 + blur.highlights.view(-1, 1, 1, 1).to(light), 1.0)
    mask = foreground_mask(blur, size, generator).to(light)
    moved = blurred(light, blur, margin, mask)
    noise = torch.randn(moved.shape, generator=generator, device=moved.device).to(moved)
    shot, read = (x.view(-1, 1, 1, 1).to(moved) for x in (blur.shot, blur.read))
    seen = moved + noise * (shot * moved.clamp(min=0) + read.square()).sqrt()
    degraded = from_light(seen.clamp_(0, 1), blur.curve)
    if settings.quantised:
        degraded = degraded.mul(255).round_().div_(255)
    return degraded.clamp_(0, 1).to(clean.dtype), cut(clean, margin)


class Blur(NamedTuple):
    """The numbers that describe the blur of each picture, drawn.

    Attributes:
        path: (B, STEPS, 2) places at equal times, down and right in pixels, of mean 0.
        front: (B, STEPS, 2), of the part that moves otherwise.
        turn: (B, 2) by how much the picture grows (a fraction) and turns (radians) during the exposure.
        varying, foreground: (B,) bool.
        frames: (B,) number of instants that are seen; infinite for all that lies between.
        disc: (B,) radius out of focus, 0 in focus.
        curve: (B,) 0 for sRGB, 1 for gamma 2.2, 2 for none.
        highlights, shot, read: (B,), as in ``BlurSettings``.
    """

    path: Tensor
    front: Tensor
    turn: Tensor
    varying: Tensor
    foreground: Tensor
    frames: Tensor
    disc: Tensor
    curve: Tensor
    highlights: Tensor
    shot: Tensor
    read: Tensor


def draw_blur(count: int, generator: torch.Generator, settings: BlurSettings) -> Blur:
    """Draw the blur of ``count`` pictures; the tensors lie on the generator's device."""
    draws = iter(uniform(12, count, generator))
    few, low, high = next(draws) < settings.framed, *settings.frames
    frames = torch.where(few, between(low, high + 1, next(draws)).floor(), torch.inf)
    paths = draw_paths(2 * count, generator, settings, frames.repeat(2))
    disc = between(*settings.disc, next(draws)) * (next(draws) < settings.defocused)
    zoom, roll = 2 * next(draws) - 1, 2 * next(draws) - 1
    varying, foreground = next(draws) < settings.varying, next(draws) < settings.foreground
    curve = choose(settings.curves, next(draws))
    return Blur(
        path=paths[:count],
        front=paths[count:],
        turn=torch.stack([zoom * settings.zoom, torch.deg2rad(roll * settings.roll)], dim=1),
        varying=varying,
        foreground=foreground,
        frames=frames,
        disc=disc,
        curve=curve,
        # What is blurred as stored was clipped before.
        highlights=between(*settings.highlights, next(draws)) * (curve < 2),
        shot=between(*settings.shot, next(draws)),
        read=between(*settings.read, next(draws)),
    )


def draw_paths(count: int, generator: torch.Generator, settings: BlurSettings, frames: Tensor | None = None) -> Tensor:
    """(count, STEPS, 2) motions as an exposure sees them, of mean 0; ``frames`` as in ``exposed``, (count,)."""
    kind, anxiety, turn, exposure = uniform(4, count, generator)
    shaken = shake_paths(between(*settings.anxiety, anxiety), settings.length, generator)
    straight = linear_paths(torch.full_like(turn, settings.length), turn)
    motion = choose(settings.motions, kind).view(-1, 1, 1)
    paths = torch.where(motion == 0, shaken, straight) * (motion != 2)
    exposure = between(*settings.exposure, exposure)
    if settings.motions[3]:
        splines = spline_paths(between(*settings.span, uniform(1, count, generator)[0]), generator)
        paths = torch.where(motion == 3, splines, paths)
        exposure = torch.where(motion.flatten() == 3, 1.0, exposure)
    return exposed(paths, exposure, torch.full_like(turn, torch.inf) if frames is None else frames)


def blurred(light: Tensor, blur: Blur, margin: int, mask: Tensor) -> Tensor:
    """Blur pictures of linear light.

    A picture that moves, turns and grows is that of 3×3 kernels, at its corners, between them and in its middle, whose
    results are blended linearly. A moving part is laid over it: what its mask covers is blurred by its own kernel, and
    so is the mask.

    Args:
        light: (B, 3, H + 2 margin, W + 2 margin), not negative.
        blur: the numbers.
        margin: the reach of all kernels.
        mask: (B, 1, H + 2 margin, W + 2 margin) of the moving parts, 0 elsewhere.

    Returns:
        (B, 3, H, W).
    """
    size = (light.shape[2], light.shape[3])
    waves = torch.fft.rfft2(light)
    if (blur.disc > 0).any():
        # The disc has no more than this to reach, and the motion what is left of the margin.
        waves = waves * spectrum(disc_kernels(blur.disc, margin), size).unsqueeze(1)
    result = light.new_empty(*light.shape[:2], *(side - 2 * margin for side in size))
    reach = margin - 2 - blur.disc
    even, varying, front = (chosen.nonzero()[:, 0] for chosen in (~blur.varying, blur.varying, blur.foreground))
    if len(even):
        kernels = _waves_of(render_paths(shrunk(blur.path, reach.view(-1, 1, 1))[even], margin), size)
        result[even] = _across(_down(waves[even] * kernels.unsqueeze(1), margin), size[1], margin)
    if len(varying):
        places = node_paths(blur, (result.shape[2], result.shape[3]), reach)[varying]
        kernels = _waves_of(render_paths(places.flatten(0, 1), margin), size)
        kernels = kernels.view(len(varying), _NODES, _NODES, *waves.shape[2:])
        result[varying] = _blended(waves[varying], kernels, size[1], margin)
    if len(front):
        kernels = _waves_of(render_paths(shrunk(blur.front[front], margin - 2), margin), size)
        parts = torch.fft.rfft2(torch.cat([mask[front], mask[front] * light[front]], 1)) * kernels.unsqueeze(1)
        cover = _across(_down(parts, margin), size[1], margin)
        result[front] = result[front] * (1 - cover[:, :1]) + cover[:, 1:]
    return result


def _blended(waves: Tensor, kernels: Tensor, width: int, margin: int) -> Tensor:
    """Pictures (B, 3, …) of ``waves``, by kernels (B, down, across, …) that change over them."""
    down, right = (_hats(side - 2 * margin).to(waves.real) for side in (waves.shape[2], width))
    columns = torch.zeros((), dtype=waves.dtype, device=waves.device)
    for i in range(_NODES):
        # Each axis is blended as soon as it is back in space, which spares the second one most of its work.
        columns = columns + _down(waves.unsqueeze(1) * kernels[:, i].unsqueeze(2), margin) * down[i].view(-1, 1)
    return (_across(columns, width, margin) * right.view(-1, 1, 1, right.shape[1])).sum(1)


def _waves_of(kernels: Tensor, size: tuple[int, int]) -> Tensor:
    """``torch.fft.rfft2`` of kernels at the top left of a field of this size; their empty rows are left out."""
    return torch.fft.fft(torch.fft.rfft(kernels, n=size[1]), n=size[0], dim=-2)


def _down(waves: Tensor, margin: int) -> Tensor:
    """Take the first axis of ``torch.fft.rfft2`` back to space. The middle of a kernel lies one margin from its
    corner, so a blurred picture comes out that much farther down: after two margins, and up to the border."""
    return torch.fft.ifft(waves, dim=-2)[..., 2 * margin :, :]


def _across(rows: Tensor, width: int, margin: int) -> Tensor:
    """Take the second axis back, likewise."""
    return torch.fft.irfft(rows, n=width)[..., 2 * margin :]


def _hats(side: int) -> Tensor:
    """(_NODES, side): how much the kernels along an axis count at each pixel; they sum to one."""
    place = torch.linspace(0, _NODES - 1, side)
    return (1 - (place - torch.arange(_NODES).view(-1, 1)).abs()).clamp(min=0)


def node_paths(blur: Blur, size: tuple[int, int], reach: Tensor) -> Tensor:
    """How each of the places that have a kernel (from the top left, row by row) moves when the picture moves, turns and
    grows about its middle.

    Args:
        blur: the numbers.
        size: (H, W) between the outermost places.
        reach: (B,) no path goes farther, in pixels.

    Returns:
        (B, _NODES², STEPS, 2).
    """
    down, right = (0.5 * side * torch.linspace(-1, 1, _NODES, device=blur.turn.device) for side in size)
    nodes = torch.stack([down.repeat_interleave(_NODES), right.repeat(_NODES)], dim=-1)
    zoom, roll = blur.turn.view(-1, 1, 2).unbind(-1)
    # By how far a place moves from the beginning to the end; small angles.
    way = torch.stack([zoom * nodes[:, 0] + roll * nodes[:, 1], zoom * nodes[:, 1] - roll * nodes[:, 0]], -1)
    times = instants(blur.frames)
    times = (times - times.mean(1, keepdim=True)).view(-1, 1, STEPS, 1)
    return shrunk(blur.path.unsqueeze(1) + times * way.unsqueeze(2), reach.view(-1, 1, 1, 1))


def foreground_mask(blur: Blur, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """(B, 1, H, W) smooth masks of the moving parts, in [0, 1]: about half of a picture that has one, else nothing."""
    field = smooth_field(len(blur.disc), size, _CELLS, generator)
    # An edge a few pixels wide, so that it looks cut out of the scene and not faded into it.
    edge = 4 * _CELLS / max(size)
    return ((field - 0.5) / edge + 0.5).clamp_(0, 1) * blur.foreground.view(-1, 1, 1, 1)


def cut(pictures: Tensor, margin: int) -> Tensor:
    """The pictures (…, H, W) without their margins."""
    return pictures[..., margin : pictures.shape[-2] - margin, margin : pictures.shape[-1] - margin]


def to_light(stored: Tensor, curve: Tensor) -> Tensor:
    """Linear light of stored values (B, 3, H, W) in [0, 1], by the sRGB curve (0), a gamma of 2.2 (1) or none (2)."""
    srgb = torch.where(stored <= 0.04045, stored / 12.92, ((stored + 0.055) / 1.055) ** 2.4)
    return _of_curve(curve, srgb, stored**2.2, stored)


def from_light(light: Tensor, curve: Tensor) -> Tensor:
    """The inverse of ``to_light``."""
    srgb = torch.where(light <= 0.0031308, light * 12.92, 1.055 * light.clamp(min=1e-9) ** (1 / 2.4) - 0.055)
    return _of_curve(curve, srgb, light ** (1 / 2.2), light)


def _of_curve(curve: Tensor, *values: Tensor) -> Tensor:
    which = curve.view(-1, 1, 1, 1)
    return torch.where(which == 0, values[0], torch.where(which == 1, values[1], values[2]))
