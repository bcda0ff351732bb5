"""Noise as it arises in a camera: on the sensor, before the picture is developed.

A picture is taken back to what the sensor saw, gets the sensor's noise and is developed again. Demosaicing is linear,
so it is applied to the noise alone: the picture itself is not softened, and without noise comes back as it was.

Source: Brooks et al., Unprocessing Images for Learned Raw Denoising (CVPR 2019).
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from kithkin.data.degrade.compression import Compression, compressed, draw_compression, mix_channels
from kithkin.data.degrade.draws import Draws
from kithkin.data.degrade.fields import field_keys, normal_field
from kithkin.data.degrade.noise import correlated_noise, smooth
from kithkin.data.transfer import Numbers
from kithkin.degradation_config import CameraConfig

# XYZ -> camera RGB of the four cameras of the Darmstadt Noise Dataset, as tabulated by Brooks et al.
XYZ_TO_CAMERA = (
    ((1.0234, -0.2969, -0.2266), (-0.5625, 1.6328, -0.0469), (-0.0703, 0.2188, 0.6406)),
    ((0.4913, -0.0541, -0.0202), (-0.6130, 1.3513, 0.2906), (-0.1564, 0.2151, 0.7183)),
    ((0.8380, -0.2630, -0.0639), (-0.2887, 1.0725, 0.2496), (-0.0627, 0.1427, 0.5438)),
    ((0.6596, -0.2079, -0.0562), (-0.4782, 1.3016, 0.1933), (-0.0970, 0.1581, 0.5181)),
)
# Linear sRGB -> XYZ under D65 (IEC 61966-2-1).
RGB_TO_XYZ = (
    (0.4124564, 0.3575761, 0.1804375),
    (0.2126729, 0.7151522, 0.0721750),
    (0.0193339, 0.1191920, 0.9503041),
)
GAMMA = 2.2


class Cameras(NamedTuple):
    """A camera and a light for each picture.

    Attributes:
        matrix: (B, 3, 3), linear sRGB -> camera RGB; rows add up to 1, so gray stays gray.
        gains: (B, 3), by which developing multiplies red, green and blue: white balance times brightness.
    """

    matrix: Numbers
    gains: Numbers


def draw_cameras(draws: Draws) -> Cameras:
    """Random cameras: a convex mix of four colour matrices, red gain U(1.9, 2.4), blue gain U(1.5, 1.9), brightness
    1 / N(0.8, 0.1) (kept above 1 / 1.2). Source: Brooks et al., Sec. 3 and their code."""
    weights = draws.uniform("camera", len(XYZ_TO_CAMERA))
    weights = weights / weights.sum(axis=1, keepdims=True)
    matrix = np.tensordot(weights, np.array(XYZ_TO_CAMERA), 1) @ np.array(RGB_TO_XYZ)
    matrix = matrix / matrix.sum(axis=2, keepdims=True)
    red, blue = draws.between("red", (1.9, 2.4)), draws.between("blue", (1.5, 1.9))
    darkness = (0.8 + 0.1 * draws.normal("darkness", 1)).clip(0.4, 1.2)
    gains = np.stack([red, np.ones_like(red), blue], axis=1) / darkness
    return Cameras(matrix.astype(np.float32), gains.astype(np.float32))


def unprocess(image: Tensor, cameras: Cameras) -> tuple[Tensor, Tensor]:
    """What the sensor saw, at full resolution in each colour.

    Args:
        image: (B, 3, H, W) sRGB in [0, 1].
        cameras: B of them.

    Returns:
        (B, 3, H, W) linear camera RGB, 1 at saturation (colours that the camera can't see may leave [0, 1]), and
        (B, 3, H, W) what each value was multiplied by: the inverse gains, but nearly 1 in highlights, so white stays
        saturated.

    Steps: inverse of the tone curve 3x² - 2x³, gamma 2.2, colour matrix, inverse gains. Source: Brooks et al., Sec. 3.
    """
    toned = 0.5 - torch.sin(torch.asin(1 - 2 * image.clamp(0, 1)) / 3)
    camera = mix_channels(toned.clamp_(min=0).pow_(GAMMA), cameras.matrix)
    gray = camera.mean(dim=1, keepdim=True)
    bright = ((gray - 0.9).clamp_(min=0) / 0.1).square_().clamp_(max=1)
    inverse = (1 / cameras.gains).to(image)[..., None, None]
    factors = torch.maximum(torch.lerp(inverse, torch.ones_like(inverse), bright), inverse)
    return camera * factors, factors


def process(raw: Tensor, factors: Tensor, cameras: Cameras) -> Tensor:
    """Develop what ``unprocess`` made of a picture: gains, colour matrix, gamma, tone curve.

    Args:
        raw, factors: (B, 3, H, W) as ``unprocess`` returns them.
        cameras: the same ones.

    Returns:
        (B, 3, H, W) sRGB in [0, 1]; the picture itself to 1e-5 where nothing was done to ``raw``.
    """
    linear = mix_channels(raw / factors, _inverse(cameras.matrix)).clamp_(0, 1)
    toned = linear.pow_(1 / GAMMA)
    return toned.square() * (3 - 2 * toned)


def draw_noise_levels(draws: Draws, sidd_share: float) -> tuple[np.ndarray, np.ndarray]:
    """Random noise levels: (B,) shot and (B,) read, for a variance of shot·x + read where x is 1 at saturation.

    Args:
        draws: of B pictures.
        sidd_share: of pictures with the noise of phones (SIDD), the rest has that of cameras (DND).

    DND: log shot ~ U(log 1e-4, log 0.012), log read ~ 2.18 log shot + 1.20 + N(0, 0.26), natural logarithms (Brooks et
    al.). SIDD: log10 shot ~ U(log10 6.8674e-4, log10 0.02195), log10 read ~ 1.85 log10 shot + 0.30 + N(0, 0.20)
    (Zamir et al., CycleISP, CVPR 2020).
    """
    (place, kind), normal = draws.uniform("level", 2).T, draws.normal("read", 1)[:, 0]
    shot = 1e-4 * (0.012 / 1e-4) ** place
    read = np.exp(2.18 * np.log(shot) + 1.20 + 0.26 * normal)
    phone_shot = 6.8674e-4 * (0.02195 / 6.8674e-4) ** place
    phone_read = 10 ** (1.85 * np.log10(phone_shot) + 0.30 + 0.20 * normal)
    both = np.where(kind < sidd_share, [phone_shot, phone_read], [shot, read]).astype(np.float32)
    return both[0], both[1]


def sensor_noise(values: Tensor, shot: Tensor, read: Tensor, keys: Tensor | torch.Generator) -> Tensor:
    """Shot and read noise of a sensor: Gaussian of variance shot·x + read, cut where x plus noise passes saturation.

    Args:
        values: (B, …) linear, 1 at saturation.
        shot, read: (B,).
        keys: (B, 2) int32, of each picture's noise, or a generator that draws them; on the device of ``values``.

    Returns:
        The noise alone, of the shape of ``values``.
    """
    shape = (-1,) + (1,) * (values.ndim - 1)
    seen = values.clamp(0, 1)
    deviation = torch.addcmul(read.to(values).view(shape), seen, shot.to(values).view(shape)).sqrt_()
    noise = normal_field(field_keys(keys, len(values)), tuple(values.shape[1:])).to(values.dtype).mul_(deviation)
    return torch.minimum(noise, 1 - seen)


def mosaic(rgb: Tensor) -> Tensor:
    """(B, 3, H, W) -> (B, 1, H, W): the one value of each pixel under an RGGB filter, red at (0, 0)."""
    bayer = rgb[:, 1:2].clone()
    bayer[..., ::2, ::2] = rgb[:, :1, ::2, ::2]
    bayer[..., 1::2, 1::2] = rgb[:, 2:, 1::2, 1::2]
    return bayer


def demosaic(bayer: Tensor) -> Tensor:
    """(B, 1, H, W) -> (B, 3, H, W), by the linear filters of Malvar, He and Cutler (ICASSP 2004); the border is
    reflected. Exact where all three channels rise by one slope."""
    seen = bayer[:, 0]
    padded = F.pad(bayer, (2, 2, 2, 2), mode="reflect")[:, 0]
    rows, columns = padded[:, 2:-2], padded[:, :, 2:-2]
    sides = padded[:, :, 1:-3] + padded[:, :, 3:-1]
    # Sums of what lies beside a pixel, above and below it, and at its corners; far is two pixels away.
    left_right, up_down, corners = sides[:, 2:-2], columns[:, 1:-3] + columns[:, 3:-1], sides[:, 1:-3] + sides[:, 3:-1]
    far_left_right, far_up_down = rows[..., :-4] + rows[..., 4:], columns[:, :-4] + columns[:, 4:]
    far = far_left_right + far_up_down
    green = (seen / 2).add_(left_right + up_down, alpha=1 / 4).sub_(far, alpha=1 / 8)
    middle = (seen * (5 / 8)).sub_(corners, alpha=1 / 8)
    along = torch.add(middle, left_right, alpha=1 / 2).sub_(far_left_right, alpha=1 / 8).add_(far_up_down, alpha=1 / 16)
    upright = middle.add_(up_down, alpha=1 / 2).sub_(far_up_down, alpha=1 / 8).add_(far_left_right, alpha=1 / 16)
    across = (seen * (3 / 4)).add_(corners, alpha=1 / 4).sub_(far, alpha=3 / 16)
    rgb = bayer.expand(-1, 3, -1, -1).clone()
    red, between, blue = rgb.unbind(1)
    between[:, ::2, ::2], between[:, 1::2, 1::2] = green[:, ::2, ::2], green[:, 1::2, 1::2]
    red[:, ::2, 1::2], blue[:, ::2, 1::2] = along[:, ::2, 1::2], upright[:, ::2, 1::2]
    red[:, 1::2, ::2], blue[:, 1::2, ::2] = upright[:, 1::2, ::2], along[:, 1::2, ::2]
    red[:, 1::2, 1::2], blue[:, ::2, ::2] = across[:, 1::2, 1::2], across[:, ::2, ::2]
    return rgb


def raw_noise(clean: Tensor, shot: Tensor, read: Tensor, keys: Tensor | torch.Generator, cameras: Cameras) -> Tensor:
    """A picture with the noise of a camera's sensor, developed: neither denoised nor compressed by the camera.

    Args:
        clean: (B, 3, H, W) in [0, 1].
        shot, read: (B,) as ``draw_noise_levels`` returns them.
        keys: (B, 2) int32, of each picture's noise, or a generator that draws them; on the device of ``clean``.
        cameras: B of them.

    Returns:
        (B, 3, H, W) in [0, 1], not quantised.
    """
    raw, factors = unprocess(clean, cameras)
    noise = demosaic(sensor_noise(mosaic(raw), shot, read, keys))
    return process(raw + noise, factors, cameras)


def reduce_noise(noise: Tensor, luma_grain: Tensor, chroma_grain: Tensor) -> Tensor:
    """Noise as a camera's own noise reduction leaves it: smoothed, and its colours more than its gray.

    Args:
        noise: (B, 3, H, W), the difference of the noisy picture and the clean one.
        luma_grain, chroma_grain: (B,) standard deviations in pixels of the Gaussian kernels; 0 does nothing.
    """
    gray = noise.mean(dim=1, keepdim=True)
    both = torch.stack([luma_grain, chroma_grain], dim=1)[..., None].expand(-1, -1, 2)
    return smooth(noise - gray, both[:, 1]) + smooth(gray, both[:, 0])


class Developed(NamedTuple):
    """The numbers of pictures with the noise of a sensor: levels, cameras, and what their noise reduction does."""

    shot: Numbers
    read: Numbers
    keys: Numbers
    cameras: Cameras
    left: Numbers
    luma: Numbers
    chroma: Numbers


class CameraNumbers(NamedTuple):
    """What describes the noise of a batch.

    Attributes:
        developed, correlated: places of the pictures with a sensor's noise, and with correlated noise; int64.
        sensor: the numbers of the former.
        level, grain, chroma, keys: of the latter, as ``correlated_noise`` takes them.
        order: (B,) places in the row of these two groups.
        packed: places of the pictures that are compressed.
        files: how.
    """

    developed: Numbers
    correlated: Numbers
    sensor: Developed
    level: Numbers
    grain: Numbers
    chroma: Numbers
    keys: Numbers
    order: Numbers
    packed: Numbers
    files: Compression


def draw_camera(draws: Draws, size: tuple[int, int], settings: CameraConfig) -> CameraNumbers:
    """Draw what ``apply_camera`` does to pictures of this size."""
    kind, file = draws.uniform("kind", 2).T
    is_correlated, packed = kind < settings.correlated_share, np.flatnonzero(file < settings.jpeg_share)
    places = np.flatnonzero(~is_correlated), np.flatnonzero(is_correlated)
    sensor_draws, noise_draws = draws.take(places[0]), draws.take(places[1])
    shot, read = draw_noise_levels(sensor_draws, settings.phone_share)
    left, luma, chroma = (
        sensor_draws.between(name, bounds).astype(np.float32)
        for name, bounds in (
            ("left", settings.noise_left),
            ("luma", settings.luma_grain),
            ("chroma", settings.chroma_grain),
        )
    )
    low, high = settings.luma_grain
    return CameraNumbers(
        *places,
        Developed(shot, read, sensor_draws.keys("sensor"), draw_cameras(sensor_draws), left, luma, chroma),
        noise_draws.between("sigma", settings.correlated_sigma).astype(np.float32),
        (low + (high - low) * noise_draws.uniform("grain", 2)).astype(np.float32),
        noise_draws.uniform("mix", 1)[:, 0].astype(np.float32),
        noise_draws.keys("noise"),
        np.argsort(np.concatenate(places)),
        packed,
        draw_compression(draws.take(packed), size, settings.jpeg_quality),
    )


def apply_camera(clean: Tensor, numbers: CameraNumbers) -> Tensor:
    """Photographs as cameras and phones hand them over: noise of the sensor, some noise reduction, 8 bits, mostly JPEG.

    A share of the pictures has correlated noise of a fixed level instead, as other ways of developing, resizing and
    sharing leave it.

    Args:
        clean: (B, 3, H, W) in [0, 1].
        numbers: from ``draw_camera``, moved to the device of the pictures.

    Returns:
        (B, 3, H, W) in [0, 1], in steps of 1/255.
    """
    parts = []
    if len(numbers.developed):
        parts.append(_developed(clean.index_select(0, numbers.developed), numbers.sensor))
    if len(numbers.correlated):
        pictures = clean.index_select(0, numbers.correlated)
        parts.append(correlated_noise(pictures, numbers.level, numbers.grain, numbers.chroma, numbers.keys))
    noisy = parts[0] if len(parts) == 1 else torch.cat(parts).index_select(0, numbers.order)
    noisy = noisy.clamp_(0, 1).mul_(255).round_().div_(255)
    if len(numbers.packed):
        noisy.index_copy_(0, numbers.packed, compressed(noisy.index_select(0, numbers.packed), numbers.files))
    return noisy


def _developed(clean: Tensor, numbers: Developed) -> Tensor:
    noise = raw_noise(clean, numbers.shot, numbers.read, numbers.keys, numbers.cameras) - clean
    reduced = reduce_noise(noise, numbers.luma, numbers.chroma)
    return torch.addcmul(clean, reduced, numbers.left.to(clean).view(-1, 1, 1, 1))


def _inverse(matrices: Tensor) -> Tensor:
    """Of (B, 3, 3), by Cramer's rule: a GPU's solvers may wait for their errors."""
    a, b, c = matrices.unbind(1)
    columns = [torch.linalg.cross(x, y) for x, y in ((b, c), (c, a), (a, b))]
    return torch.stack(columns, dim=2) / (a * columns[0]).sum(1).view(-1, 1, 1)
