"""Noise of every kind that photographs have, each picture with a kind of its own: white noise, film grain, cameras, in
colour and in black and white, even or not, before a resize, stored as files are.

All noise but a camera's is one sum: a gray field of white noise and a field for each channel, each through a kernel of
its own, times a level that may follow the brightness and the place.

Sources: the level of white noise that changes over the picture: FFDNet (Zhang, Zuo and Zhang, 2018), VDN (Yue et al.,
2019). Film grain as AV1 carries it, correlated over at most three pixels to each side, gray and colours apart, of a
strength that depends on the brightness: Norkin and Birkbeck, "Film grain synthesis for AV1 video codec" (DCC 2018).
The strength goes with sqrt(u (1 - u)), the deviation of a share u of the film that grains cover: Newson, Delon and
Galerne, "A stochastic film grain model for resolution-independent rendering" (2017).
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from kithkin.data.degrade.camera import CameraNumbers, apply_camera, draw_camera
from kithkin.data.degrade.compression import TO_YCC, Compression, compressed, draw_compression
from kithkin.data.degrade.draws import Draws, between, choose, single
from kithkin.data.degrade.fields import normal_field, smooth_field
from kithkin.data.degrade.noise import TAPS, filter_normed
from kithkin.data.degrade.resample import resample
from kithkin.data.transfer import Numbers
from kithkin.degradation_config import CameraConfig, NoiseConfig

CAMERA_MARGIN = 5
"""Two pixels of demosaicing and three of smoothing see a border."""
_CAMERA = CameraConfig(kind="camera")
_WHITE, _LUMINANCE, _FILM, _CAMERAS = range(4)
_CELLS = 3
"""Numbers along each side of the grid from which the map of a level is drawn."""
_SOFT, _HARD = 2.0, 1e6
"""Steepness of that map around its middle: it goes from level to level over the whole picture, or at a line."""
_LEAST_FOLLOWED = 0.5
"""Of how much of its strength grain follows the brightness."""


class Fields(NamedTuple):
    """Noise of deviation 1 of N pictures.

    Attributes:
        grain: (N, 2) deviations in pixels of the kernels of the gray field and of the colours'.
        chroma: (N,) share of the variance that every channel has for itself.
        keys: (N, 2) int32.
    """

    grain: Numbers
    chroma: Numbers
    keys: Numbers


class NoiseNumbers(NamedTuple):
    """What describes the noise of a batch; places are int64.

    Attributes:
        gray: places of the pictures that are turned to gray.
        cameras, others: places of those with a camera's noise, and without.
        order: (B,) places in the row of these two groups.
        sensor: the numbers of the former. All that follows, up to ``stored``, is of the others.
        kept, resized: places among them of those at their own scale, and of those that are resized.
        rows: their places in the row of these two groups.
        fields, small: noise of the former and of the latter.
        scale, offset: of the latter, as ``resample`` takes them.
        sigma: the level on the 0-255 scale.
        followed: how much of it follows the brightness, in [0, 1].
        varying: places among them of those whose level changes over the picture.
        second, steepness, maps: of these, the other level, how steeply it is reached, and the keys of the map.
        stored: places of the pictures of the batch that are rounded to 8 bits.
        packed, files: of those that are compressed, and how.
    """

    gray: Numbers
    cameras: Numbers
    others: Numbers
    order: Numbers
    sensor: CameraNumbers | None
    kept: Numbers
    resized: Numbers
    rows: Numbers
    fields: Fields
    small: Fields
    scale: Numbers
    offset: Numbers
    sigma: Numbers
    followed: Numbers
    varying: Numbers
    second: Numbers
    steepness: Numbers
    maps: Numbers
    stored: Numbers
    packed: Numbers
    files: Compression


def draw_noise(draws: Draws, size: tuple[int, int], settings: NoiseConfig) -> NoiseNumbers:
    """Draw what ``apply_noise`` does to pictures of this size."""
    # ``draw_camera`` draws from the same keys. Under one of its names its own numbers would come again.
    kind, gray, bits, file = draws.uniform("picture", 4).T
    kinds = choose((settings.white, settings.luminance, settings.film, settings.camera), kind)
    is_gray, packed = gray < settings.gray_share, np.flatnonzero(file < settings.jpeg_share)
    is_camera = kinds == _CAMERAS
    cameras, others = np.flatnonzero(is_camera), np.flatnonzero(~is_camera)
    files = Draws(np.where(is_camera, draws.child("second file").seeds, draws.seeds)).take(packed)
    draws_of_others, film = draws.take(others), kinds[others] == _FILM
    # Gray noise of one kernel is the same whether it lies in the gray field or in three equal ones.
    colored = np.where(film, draws_of_others.between("chroma", settings.chroma), 1.0)
    fields = Fields(
        single(np.where(film[:, None], between(*settings.grain, draws_of_others.uniform("grain", 2)), 0.0)),
        single(np.where(is_gray[others] | (kinds[others] == _LUMINANCE), 0.0, colored)),
        draws_of_others.keys("noise"),
    )
    resized, (vary, hard) = (
        draws_of_others.uniform("resized", 1)[:, 0] < settings.resized_share,
        draws_of_others.uniform("vary", 2).T,
    )
    kept, small, varying = (np.flatnonzero(x) for x in (~resized, resized, vary < settings.varying_share))
    sigma, second = single(between(*settings.sigma, draws_of_others.uniform("sigma", 2))).T
    scaled = draws_of_others.take(small)
    return NoiseNumbers(
        np.flatnonzero(is_gray),
        cameras,
        others,
        np.argsort(np.concatenate([cameras, others])),
        draw_camera(draws.take(cameras), size, _CAMERA) if len(cameras) else None,
        kept,
        small,
        np.argsort(np.concatenate([kept, small])),
        Fields(*(x[kept] for x in fields)),
        Fields(*(x[small] for x in fields)),
        single(scaled.between("scale", settings.resize)),
        single(scaled.uniform("offset", 2)),
        sigma,
        single(np.where(film, draws_of_others.between("followed", (_LEAST_FOLLOWED, 1.0)), 0.0)),
        varying,
        second[varying],
        single(np.where(hard < 0.5, _HARD, _SOFT))[varying],
        draws_of_others.take(varying).keys("map"),
        np.flatnonzero((bits < settings.stored_share) | is_camera),
        packed,
        draw_compression(files, _inner(size), settings.jpeg_quality),
    )


def apply_noise(clean: Tensor, numbers: NoiseNumbers, settings: NoiseConfig) -> tuple[Tensor, Tensor]:
    """(degraded, target) of pictures (B, 3, H, W), without the margin, by numbers that have been moved to their
    device."""
    if len(numbers.gray):
        clean = clean.index_copy(0, numbers.gray, as_gray(clean.index_select(0, numbers.gray)))
    inside = slice(CAMERA_MARGIN, -CAMERA_MARGIN)
    target = clean[..., inside, inside]
    parts = []
    if numbers.sensor is not None:
        seen = apply_camera(clean.index_select(0, numbers.cameras), numbers.sensor)
        parts.append(seen[..., inside, inside])
    if len(numbers.others):
        parts.append(_noisy(target.index_select(0, numbers.others), numbers, settings))
    degraded = parts[0] if len(parts) == 1 else torch.cat(parts).index_select(0, numbers.order)
    if len(numbers.gray):
        # A camera's noise has colours until here; all other gray pictures have equal channels already.
        degraded.index_copy_(0, numbers.gray, as_gray(degraded.index_select(0, numbers.gray)))
    if len(numbers.stored):
        rounded = degraded.index_select(0, numbers.stored).clamp_(0, 1).mul_(255).round_().div_(255)
        degraded.index_copy_(0, numbers.stored, rounded)
    if len(numbers.packed):
        degraded.index_copy_(0, numbers.packed, compressed(degraded.index_select(0, numbers.packed), numbers.files))
    return degraded, target


def as_gray(pictures: Tensor) -> Tensor:
    """(B, 3, H, W) with three equal channels: the luma of ITU-R BT.601, as Pillow's mode L."""
    red, green, blue = pictures.unbind(1)
    luma = torch.add(red * TO_YCC[0][0], green, alpha=TO_YCC[0][1]).add_(blue, alpha=TO_YCC[0][2])
    return luma.unsqueeze(1).expand_as(pictures)


def _noisy(clean: Tensor, numbers: NoiseNumbers, settings: NoiseConfig) -> Tensor:
    size = (clean.shape[2], clean.shape[3])
    parts = []
    if len(numbers.kept):
        parts.append(_unit(numbers.fields, size))
    if len(numbers.resized):
        least = settings.resize[0]
        large = (math.ceil(size[0] / least) + 1, math.ceil(size[1] / least) + 1)
        fine = _unit(numbers.small, large)
        parts.append(resample(fine, numbers.scale, size, least=least, offset=numbers.offset))
    noise = parts[0] if len(parts) == 1 else torch.cat(parts).index_select(0, numbers.rows)
    return torch.addcmul(clean, noise.to(clean.dtype), _levels(clean, numbers).to(clean.dtype))


def _unit(fields: Fields, size: tuple[int, int]) -> Tensor:
    """(N, 3, *size) float32 noise of mean 0 and deviation 1."""
    white = normal_field(fields.keys, (4, size[0] + 2 * TAPS, size[1] + 2 * TAPS))
    grain = torch.cat([fields.grain[:, :1], fields.grain[:, 1:].expand(-1, 3)], 1)
    grained = filter_normed(white, grain.unsqueeze(2).expand(-1, -1, 2))
    share = fields.chroma.view(-1, 1, 1, 1)
    return torch.addcmul(grained[:, :1] * (1 - share).sqrt(), grained[:, 1:], share.sqrt())


def _levels(clean: Tensor, numbers: NoiseNumbers) -> Tensor:
    """(N, 1, H, W) the deviation of the noise of every pixel, where white is 1."""
    u = as_gray(clean)[:, :1].clamp(0, 1).float()
    followed = numbers.followed.view(-1, 1, 1, 1)
    factor = (u * (1 - u)).sqrt_().mul_(2 * followed).add_(1 - followed)
    levels = factor * (numbers.sigma / 255).view(-1, 1, 1, 1)
    if len(numbers.varying):
        mix = smooth_field(numbers.maps, (clean.shape[2], clean.shape[3]), _CELLS)
        mix = mix.sub_(0.5).mul_(numbers.steepness.view(-1, 1, 1, 1)).add_(0.5).clamp_(0, 1)
        first = numbers.sigma.index_select(0, numbers.varying).view(-1, 1, 1, 1)
        sigma = torch.lerp(first, numbers.second.view(-1, 1, 1, 1), mix)
        levels.index_copy_(0, numbers.varying, factor.index_select(0, numbers.varying) * (sigma / 255))
    return levels


def _inner(size: tuple[int, int]) -> tuple[int, int]:
    return size[0] - 2 * CAMERA_MARGIN, size[1] - 2 * CAMERA_MARGIN
