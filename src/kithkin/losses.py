"""The training loss (Sec. 3.4). Where Eq. 11 prints a norm, it takes the mean over pixels (decision D10)."""

import torch
from torch import Tensor
from torch.nn import functional as F


def charbonnier_loss(restored: Tensor, target: Tensor, epsilon: float = 1e-3) -> Tensor:
    """L_char: the mean of sqrt(d² + ε²) over all pixels and channels.

    Args:
        restored, target: (B, C, H, W).
        epsilon: ε, in units of the images.

    Returns:
        A scalar; never below ε.
    """
    return torch.sqrt((restored - target).square() + epsilon**2).mean()


def laplacian(image: Tensor) -> Tensor:
    """Δ: the 4-neighbour Laplacian of each channel, borders repeated. (B, C, H, W) -> the same."""
    channels = image.shape[1]
    stencil = image.new_tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]])
    padded = F.pad(image, (1, 1, 1, 1), mode="replicate")
    return F.conv2d(padded, stencil.expand(channels, 1, 3, 3), groups=channels)


def edge_loss(restored: Tensor, target: Tensor, epsilon: float = 1e-3) -> Tensor:
    """L_edge: the Charbonnier loss of the Laplacians. Arguments as in ``charbonnier_loss``."""
    return charbonnier_loss(laplacian(restored), laplacian(target), epsilon)


def restoration_loss(restored: Tensor, target: Tensor, *, edge_weight: float, epsilon: float = 1e-3) -> Tensor:
    """Eq. (11): L = L_char + λ L_edge, with λ = ``edge_weight``; λ = 0 skips the second term."""
    loss = charbonnier_loss(restored, target, epsilon)
    return loss + edge_weight * edge_loss(restored, target, epsilon) if edge_weight else loss
