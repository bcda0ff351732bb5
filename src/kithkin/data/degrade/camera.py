"""Noise as it arises in a camera: on the sensor, before the picture is developed.

A picture is taken back to what the sensor saw, gets the sensor's noise and is developed again. Demosaicing is linear,
so it is applied to the noise alone: the picture itself is not softened, and without noise comes back as it was.

Source: Brooks et al., Unprocessing Images for Learned Raw Denoising (CVPR 2019).
"""

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from kithkin.data.degrade.jpeg import jpeg
from kithkin.data.degrade.noise import correlated_noise, draw, smooth
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
# Malvar, He and Cutler (2004), in sixteenths: green at red and blue; red at green in a red row; red at blue. At green
# in a blue row the second one stands upright.
GREEN = ((0, 0, -2, 0, 0), (0, 0, 4, 0, 0), (-2, 4, 8, 4, -2), (0, 0, 4, 0, 0), (0, 0, -2, 0, 0))
ALONG = ((0, 0, 1, 0, 0), (0, -2, 0, -2, 0), (-2, 8, 10, 8, -2), (0, -2, 0, -2, 0), (0, 0, 1, 0, 0))
ACROSS = ((0, 0, -3, 0, 0), (0, 4, 0, 4, 0), (-3, 0, 12, 0, -3), (0, 4, 0, 4, 0), (0, 0, -3, 0, 0))


class Cameras(NamedTuple):
    """A camera and a light for each picture.

    Attributes:
        matrix: (B, 3, 3), linear sRGB -> camera RGB; rows add up to 1, so gray stays gray.
        gains: (B, 3), by which developing multiplies red, green and blue: white balance times brightness.
    """

    matrix: Tensor
    gains: Tensor


def draw_cameras(count: int, generator: torch.Generator) -> Cameras:
    """Random cameras: a convex mix of four colour matrices, red gain U(1.9, 2.4), blue gain U(1.5, 1.9), brightness
    1 / N(0.8, 0.1) (kept above 1 / 1.2). Source: Brooks et al., Sec. 3 and their code."""
    device = generator.device
    weights = torch.rand(count, len(XYZ_TO_CAMERA), generator=generator, device=device)
    weights = weights / weights.sum(dim=1, keepdim=True)
    mixed = torch.einsum("bk,kij->bij", weights, torch.tensor(XYZ_TO_CAMERA, device=device))
    matrix = mixed @ torch.tensor(RGB_TO_XYZ, device=device)
    matrix = matrix / matrix.sum(dim=2, keepdim=True)
    red, blue = draw(count, (1.9, 2.4), generator), draw(count, (1.5, 1.9), generator)
    darkness = torch.randn(count, generator=generator, device=device).mul_(0.1).add_(0.8).clamp_(0.4, 1.2)
    return Cameras(matrix, torch.stack([red, torch.ones_like(red), blue], dim=1) / darkness[:, None])


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
    camera = _colours(toned.clamp_(min=0).pow_(GAMMA), cameras.matrix)
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
    linear = _colours(raw / factors, torch.linalg.inv(cameras.matrix)).clamp_(0, 1)
    toned = linear.pow_(1 / GAMMA)
    return toned.square() * (3 - 2 * toned)


def draw_noise_levels(count: int, sidd_share: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random noise levels: (B,) shot and (B,) read, for a variance of shot·x + read where x is 1 at saturation.

    Args:
        count: B.
        sidd_share: of pictures with the noise of phones (SIDD), the rest has that of cameras (DND).
        generator: of the draws.

    DND: log shot ~ U(log 1e-4, log 0.012), log read ~ 2.18 log shot + 1.20 + N(0, 0.26), natural logarithms (Brooks et
    al.). SIDD: log10 shot ~ U(log10 6.8674e-4, log10 0.02195), log10 read ~ 1.85 log10 shot + 0.30 + N(0, 0.20)
    (Zamir et al., CycleISP, CVPR 2020).
    """
    place, normal = draw(count, (0, 1), generator), torch.randn(count, generator=generator, device=generator.device)
    phone = draw(count, (0, 1), generator) < sidd_share
    shot = 1e-4 * (0.012 / 1e-4) ** place
    read = torch.exp(2.18 * shot.log() + 1.20 + 0.26 * normal)
    phone_shot = 6.8674e-4 * (0.02195 / 6.8674e-4) ** place
    phone_read = 10 ** (1.85 * phone_shot.log10() + 0.30 + 0.20 * normal)
    return torch.where(phone, phone_shot, shot), torch.where(phone, phone_read, read)


def sensor_noise(values: Tensor, shot: Tensor, read: Tensor, generator: torch.Generator) -> Tensor:
    """Shot and read noise of a sensor: Gaussian of variance shot·x + read, cut where x plus noise passes saturation.

    Args:
        values: (B, …) linear, 1 at saturation.
        shot, read: (B,).
        generator: on the device of ``values``.

    Returns:
        The noise alone, of the shape of ``values``.
    """
    shape = (-1,) + (1,) * (values.ndim - 1)
    seen = values.clamp(0, 1)
    deviation = torch.addcmul(read.to(values).view(shape), seen, shot.to(values).view(shape)).sqrt_()
    noise = torch.randn(values.shape, generator=generator, device=values.device, dtype=values.dtype).mul_(deviation)
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
    filters = _malvar(bayer.device, bayer.dtype)
    green, along, upright, across = F.conv2d(F.pad(bayer, (2, 2, 2, 2), mode="reflect"), filters).unbind(1)
    rgb = bayer.expand(-1, 3, -1, -1).clone()
    red, middle, blue = rgb.unbind(1)
    middle[:, ::2, ::2], middle[:, 1::2, 1::2] = green[:, ::2, ::2], green[:, 1::2, 1::2]
    red[:, ::2, 1::2], blue[:, ::2, 1::2] = along[:, ::2, 1::2], upright[:, ::2, 1::2]
    red[:, 1::2, ::2], blue[:, 1::2, ::2] = upright[:, 1::2, ::2], along[:, 1::2, ::2]
    red[:, 1::2, 1::2], blue[:, ::2, ::2] = across[:, 1::2, 1::2], across[:, ::2, ::2]
    return rgb


def raw_noise(
    clean: Tensor, shot: Tensor, read: Tensor, generator: torch.Generator, cameras: Cameras | None = None
) -> Tensor:
    """A picture with the noise of a camera's sensor, developed: neither denoised nor compressed by the camera.

    Args:
        clean: (B, 3, H, W) in [0, 1].
        shot, read: (B,) as ``draw_noise_levels`` returns them.
        generator: on the device of ``clean``.
        cameras: B of them; None draws some.

    Returns:
        (B, 3, H, W) in [0, 1], not quantised.
    """
    cameras = cameras or draw_cameras(len(clean), generator)
    raw, factors = unprocess(clean, cameras)
    noise = demosaic(sensor_noise(mosaic(raw), shot, read, generator))
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


@torch.no_grad()
def camera_noise(clean: Tensor, generator: torch.Generator, settings: CameraConfig) -> Tensor:
    """Photographs as cameras and phones hand them over: noise of the sensor, some noise reduction, 8 bits, mostly JPEG.

    A share of the pictures has correlated noise of a fixed level instead, as other ways of developing, resizing and
    sharing leave it. Chroma sub-sampling and the place of JPEG's grid are drawn once a batch, all else for each
    picture.

    Args:
        clean: (B, 3, H, W) in [0, 1].
        generator: on the device of ``clean``.
        settings: ranges and shares.

    Returns:
        (B, 3, H, W) in [0, 1], in steps of 1/255.
    """
    count = len(clean)
    noisy = clean.clone()
    developed = draw(count, (0, 1), generator) >= settings.correlated_share
    for rows, degrade in ((developed, _developed), (~developed, _correlated)):
        places = rows.nonzero().flatten()
        if len(places):
            noisy[places] = degrade(clean[places], generator, settings)
    quality = draw(count, settings.jpeg_quality, generator)
    packed = (draw(count, (0, 1), generator) < settings.jpeg_share).view(-1, 1, 1, 1)
    top, left, halved = (int(x) for x in (torch.rand(3, generator=generator, device=clean.device) * 16).tolist())
    noisy = noisy.clamp_(0, 1).mul_(255).round_().div_(255)
    return torch.where(packed, jpeg(noisy, quality.round(), subsample=halved < 8, offset=(top, left)), noisy)


def _developed(clean: Tensor, generator: torch.Generator, settings: CameraConfig) -> Tensor:
    count = len(clean)
    shot, read = draw_noise_levels(count, settings.phone_share, generator)
    noise = raw_noise(clean, shot, read, generator) - clean
    left, luma, chroma = (
        draw(count, bounds, generator) for bounds in (settings.noise_left, settings.luma_grain, settings.chroma_grain)
    )
    return clean + reduce_noise(noise, luma, chroma) * left.view(-1, 1, 1, 1)


def _correlated(clean: Tensor, generator: torch.Generator, settings: CameraConfig) -> Tensor:
    count = len(clean)
    sigma = draw(count, settings.correlated_sigma, generator)
    grain = torch.stack([draw(count, settings.luma_grain, generator) for _ in range(2)], dim=1)
    return correlated_noise(clean, sigma, grain, draw(count, (0, 1), generator), generator)


def _colours(picture: Tensor, matrices: Tensor) -> Tensor:
    """A matrix for each picture, on its channels."""
    return (matrices.to(picture) @ picture.flatten(2)).view(picture.shape)


@lru_cache(maxsize=8)
def _malvar(device: torch.device, dtype: torch.dtype) -> Tensor:
    along = torch.tensor(ALONG, dtype=dtype)
    filters = [torch.tensor(GREEN, dtype=dtype), along, along.T, torch.tensor(ACROSS, dtype=dtype)]
    return torch.stack(filters)[:, None].div(16).to(device)
