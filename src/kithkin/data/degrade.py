"""Degradations, on batches of tensors and with a generator of their own."""

import numpy as np
import torch
from torch import Tensor


def gaussian_noise(clean: Tensor, sigma: Tensor, generator: torch.Generator) -> Tensor:
    """Add white Gaussian noise; neither clipped nor quantised, as DnCNN and its successors train.

    Args:
        clean: (B, 3, H, W) in [0, 1].
        sigma: (B,) standard deviation of each picture's noise, on the 0-255 scale.
        generator: on the device of ``clean``.

    Returns:
        (B, 3, H, W), values may leave [0, 1].
    """
    noise = torch.randn(clean.shape, generator=generator, device=clean.device, dtype=clean.dtype)
    return clean + noise * (sigma.to(clean) / 255).view(-1, 1, 1, 1)


def benchmark_noise(clean: np.ndarray, sigma: float) -> np.ndarray:
    """Add the noise of the published Gaussian protocol: seed 0 before every picture, neither clipped nor quantised.

    Args:
        clean: (H, W, 3) floats in [0, 1].
        sigma: standard deviation on the 0-255 scale.

    Returns:
        (H, W, 3) float32. The sum is made in float64, from the stream that ``numpy.random.seed(0)`` starts; the global
        random state is not touched.

    Source: the evaluation code of KAIR (Zhang), SwinIR and Restormer.
    """
    noise = np.random.RandomState(0).normal(0, sigma / 255, clean.shape)
    return (clean.astype(np.float64) + noise).astype(np.float32)
