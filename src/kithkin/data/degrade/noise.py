"""Noise on pictures as they are displayed."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from kithkin.data.degrade.fields import field_keys, normal_field

TAPS = 3  # on either side of the middle of a grain's kernel


def gaussian_noise(clean: Tensor, sigma: Tensor, keys: Tensor | torch.Generator) -> Tensor:
    """Add white Gaussian noise; neither clipped nor quantised, as DnCNN and its successors train.

    Args:
        clean: (B, 3, H, W) in [0, 1].
        sigma: (B,) standard deviation of each picture's noise, on the 0-255 scale.
        keys: (B, 2) int32, of each picture's noise, or a generator that draws them; on the device of ``clean``.

    Returns:
        (B, 3, H, W), values may leave [0, 1].
    """
    noise = normal_field(field_keys(keys, len(clean)), tuple(clean.shape[1:])).to(clean.dtype)
    return torch.addcmul(clean, noise, (sigma.to(clean) / 255).view(-1, 1, 1, 1))


def correlated_noise(
    clean: Tensor, sigma: Tensor, grain: Tensor, chroma: Tensor, keys: Tensor | torch.Generator
) -> Tensor:
    """Add Gaussian noise that is alike in neighbouring pixels and channels, as resizing and phones leave it.

    White noise through a Gaussian kernel, divided by the kernel's norm, so the stated level holds for every grain and
    every mix of colours; neither clipped nor quantised.

    Args:
        clean: (B, 3, H, W) in [0, 1].
        sigma: (B,) standard deviation of each channel's noise, on the 0-255 scale.
        grain: (B, 2) standard deviations in pixels of the kernel, down and across; 0 is white, above 1.2 the kernel of
            seven taps is cut short.
        chroma: (B,) in [0, 1], the share of the variance that is drawn for every channel alone; the rest is one gray
            field. The correlation between two channels is 1 - chroma.
        keys: (B, 2) int32, of each picture's noise, or a generator that draws them; on the device of ``clean``.

    Returns:
        (B, 3, H, W), values may leave [0, 1].
    """
    batch, channels, height, width = clean.shape
    size = (channels + 1, height + 2 * TAPS, width + 2 * TAPS)
    white = normal_field(field_keys(keys, batch), size).to(clean.dtype)
    share = chroma.to(clean).view(-1, 1, 1, 1)
    mixed = white[:, :channels] * share.sqrt() + white[:, channels:] * (1 - share).sqrt()
    return clean + filter_normed(mixed, grain) * (sigma.to(clean) / 255).view(-1, 1, 1, 1)


def filter_normed(white: Tensor, grain: Tensor) -> Tensor:
    """White noise through a Gaussian kernel for each picture, whose norm is 1, so that the level stays.

    Args:
        white: (B, C, H + 2 TAPS, W + 2 TAPS).
        grain: (B, 2) standard deviations in pixels, down and across, or (B, C, 2) for each channel; 0 leaves the noise
            as it is.

    Returns:
        (B, C, H, W).
    """
    taps = _taps(grain.to(white))
    return _filter(white, taps / taps.norm(dim=-1, keepdim=True))


def smooth(picture: Tensor, grain: Tensor) -> Tensor:
    """Blur each picture by a Gaussian kernel of its own.

    Args:
        picture: (B, C, H, W); the border is reflected, so H and W are at least 4.
        grain: (B, 2) standard deviations in pixels, down and across; 0 leaves the picture as it is.
    """
    taps = _taps(grain.to(picture))
    padded = F.pad(picture, (TAPS, TAPS, TAPS, TAPS), mode="reflect")
    return _filter(padded, taps / taps.sum(dim=-1, keepdim=True))


def _taps(grain: Tensor) -> Tensor:
    """(…, 2) standard deviations -> (…, 2, 7) kernels with a 1 in the middle."""
    places = torch.arange(-TAPS, TAPS + 1, device=grain.device, dtype=grain.dtype)
    return torch.exp(-0.5 * (places / grain.clamp(min=1e-3)[..., None]).square())


def _filter(padded: Tensor, taps: Tensor) -> Tensor:
    """Convolve each picture with its two kernels, (B, 2, 7) or (B, C, 2, 7); the border of ``TAPS`` is used up."""
    batch, channels, height, width = padded.shape
    each = taps.flatten(0, 1) if taps.ndim == 4 else taps.repeat_interleave(channels, dim=0)
    down, across = each.unbind(1)
    rows = padded.reshape(1, batch * channels, height, width)
    rows = F.conv2d(rows, down[:, None, :, None], groups=batch * channels)
    rows = F.conv2d(rows, across[:, None, None, :], groups=batch * channels)
    return rows.view(batch, channels, height - 2 * TAPS, width - 2 * TAPS)


def benchmark_noise(clean: np.ndarray, sigma: float) -> np.ndarray:
    """Add the noise of the published Gaussian protocol: seed 0 before every picture, neither clipped nor quantised.

    Args:
        clean: (H, W, 3) floats in [0, 1]. If its three channels are equal, it is a gray picture, and they get the
            same noise, as one channel does in the published protocol for gray pictures.
        sigma: standard deviation on the 0-255 scale.

    Returns:
        (H, W, 3) float32. The sum is made in float64, from the stream that ``numpy.random.seed(0)`` starts; the global
        random state is not touched.

    Source: the evaluation code of KAIR (Zhang), SwinIR and Restormer.
    """
    gray = bool((clean == clean[..., :1]).all())
    noise = np.random.RandomState(0).normal(0, sigma / 255, (*clean.shape[:2], 1 if gray else clean.shape[2]))
    return (clean.astype(np.float64) + noise).astype(np.float32)
