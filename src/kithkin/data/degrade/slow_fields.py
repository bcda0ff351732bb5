"""Random fields over a picture that change slowly: the thickness of a veil, the mask of something that moves."""

import torch
from torch import Tensor
from torch.nn import functional as F


def uniform(count: int, columns: int, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
    """(count, columns) uniform in [0, 1), on the device of the generator: the numbers that describe a degradation."""
    return torch.rand(count, columns, generator=generator, device=generator.device, dtype=dtype)


def between(low: Tensor | float, high: Tensor | float, draw: Tensor) -> Tensor:
    """Carry a draw in [0, 1) to the range from ``low`` to ``high``."""
    return low + (high - low) * draw


def log_between(low: Tensor, high: Tensor, draw: Tensor) -> Tensor:
    """Like ``between``, uniform in the logarithm where the range does not begin at 0."""
    return torch.where(low > 0, low * (high / low.clamp(min=1e-9)) ** draw, between(low, high, draw))


def choose(shares: tuple[float, ...], draw: Tensor) -> Tensor:
    """Indices drawn with these shares (of any sum): int64, of the shape of ``draw``, which is uniform in [0, 1)."""
    steps = torch.tensor(shares, dtype=draw.dtype, device=draw.device).cumsum(0)
    return torch.bucketize(draw * steps[-1], steps[:-1], right=True)


def smooth_field(count: int, size: tuple[int, int], cells: int, generator: torch.Generator) -> Tensor:
    """Smooth random fields in [0, 1]: uniform numbers on a coarse grid, interpolated by cubic splines.

    Args:
        count: fields.
        size: (height, width) in pixels.
        cells: numbers along each side of the coarse grid; at least 2.
        generator: draws them; the fields lie on its device.

    Returns:
        (count, 1, height, width) float32.
    """
    coarse = torch.rand(count, 1, cells, cells, generator=generator, device=generator.device)
    return F.interpolate(coarse, size, mode="bicubic", align_corners=True).clamp_(0, 1)
