"""Undo a known blur, measure what a blur leaves unexplained, and estimate the noise in a picture."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from kithkin.data.degrade.kernels import spectrum
from kithkin.deconvolution.constants import DAMPING, FILLS, LEAST_WEIGHT, QUIETEST


def deconvolve(image: Tensor, kernel: Tensor, *, sigma: float) -> Tensor:
    """Undo a known blur: the picture x that minimises |k * x - image|² + w |grad x|² + 0.0001 |x|².

    The weight w grows with the variance of the noise.

    Args:
        image: (C, H, W), floating in [0, 1] but for noise.
        kernel: (n, n) with n odd, of sum 1.
        sigma: noise level of the picture, on the 0-255 scale.

    Returns:
        (C, H, W) float32, not clamped. Noise is not removed: where the kernel keeps little, it is made larger.
    """
    margin = kernel.shape[-1]
    height, width = image.shape[1:]
    inside = (slice(0, height), slice(0, width))
    rows, columns = closed(image[0].float(), margin).shape
    size = (rows, columns)
    transfer = spectrum(kernel.float(), size)
    weight = max((sigma / 25.5) ** 2, LEAST_WEIGHT)
    inverse = transfer.conj() / (transfer.abs() ** 2 + weight * gradient_power(size) + DAMPING)
    result = image.new_empty(image.shape, dtype=torch.float32)
    for plane, out in zip(image.float(), result, strict=True):
        wide = closed(plane, margin)
        for fill in range(FILLS):
            sharp = torch.fft.irfft2(torch.fft.rfft2(wide) * inverse, s=size)
            if fill + 1 < FILLS:
                wide = torch.fft.irfft2(torch.fft.rfft2(sharp) * transfer, s=size)
                wide[inside] = plane
        out.copy_(sharp[inside])
    return result


def unexplained(image: Tensor, sharp: Tensor, kernel: Tensor, *, sigma: float, power: float = 1.0) -> float:
    """How much of a picture a kernel leaves unexplained: the mean square of k * sharp - image, in that of the noise.

    Args:
        image, sharp: (C, H, W), floating in [0, 1] but for noise.
        kernel: (n, n) with n odd, of sum 1.
        sigma: noise level of ``image``, on the 0-255 scale.
        power: the power of stored values that was blurred.

    Returns:
        About 1 where the blur is the kernel's everywhere and ``sharp`` is the picture without it. Pixels whose blur
        reaches beyond the borders are left out.
    """
    margin = kernel.shape[-1] // 2
    height, width = image.shape[1:]
    inside = (slice(margin, height - margin), slice(margin, width - margin))
    transfer = spectrum(kernel.float(), (height, width))
    left = 0.0
    for plane, clear in zip(image.float(), sharp.float(), strict=True):
        waves = torch.fft.rfft2(clear.clamp(0, 1) ** power) * transfer
        again = torch.fft.irfft2(waves, s=(height, width)).clamp(0, 1) ** (1 / power)
        left += float((again[inside] - plane[inside]).square().mean())
    return left / len(image) / (sigma / 255) ** 2


def noise_level(image: Tensor) -> float:
    """The standard deviation of the noise of a (C, H, W) picture in [0, 1], on the 0-255 scale; at least ``QUIETEST``.

    It is told from what a mask leaves of the picture that takes out planes and straight edges; in a blurred picture
    little else is left.
    """
    image = image.float()
    mask = image.new_tensor([[1.0, -2.0, 1.0], [-2.0, 4.0, -2.0], [1.0, -2.0, 1.0]])
    left = F.conv2d(image[:, None], mask[None, None]).abs().mean()
    return max(255 * math.sqrt(math.pi / 2) / 6 * float(left), QUIETEST)


def closed(plane: Tensor, margin: int) -> Tensor:
    """Extend (H, W) below and to the right, by `margin` pixels at least, so that it goes on into its other end."""
    height, width = plane.shape
    right = _fast(width + margin) - width
    below = _fast(height + margin) - height
    ramp = plane.new_tensor(range(1, right + 1)) / (right + 1)
    plane = torch.cat([plane, torch.lerp(plane[:, -1:], plane[:, :1], ramp)], dim=1)
    ramp = (plane.new_tensor(range(1, below + 1)) / (below + 1))[:, None]
    return torch.cat([plane, torch.lerp(plane[-1:], plane[:1], ramp)], dim=0)


def _fast(length: int) -> int:
    """The next even length that has no prime factor above 5, for which Fourier transforms are quick."""
    while True:
        rest = length
        for factor in (2, 3, 5):
            while rest % factor == 0:
                rest //= factor
        if rest == 1 and length % 2 == 0:
            return length
        length += 1


def difference_spectra(size: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    kind: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}
    across = torch.exp(2j * math.pi * torch.fft.rfftfreq(size[1], **kind)) - 1
    down = torch.exp(2j * math.pi * torch.fft.fftfreq(size[0], **kind)) - 1
    return across[None], down[:, None]


def gradient_power(size: tuple[int, ...]) -> Tensor:
    across, down = difference_spectra(size)
    return across.abs() ** 2 + down.abs() ** 2
