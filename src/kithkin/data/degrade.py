"""Degradations, on batches of tensors and with a generator of their own."""

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
