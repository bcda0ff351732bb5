"""Pictures at another scale, each at its own, in as many operations for a large batch as for a small one."""

import math

import torch
from torch import Tensor

_SUPPORT = 2
"""Of the cubic kernel, to each side, in the coarser of the two grids."""


def resample(
    pictures: Tensor,
    scale: Tensor,
    size: tuple[int, int],
    *,
    least: float,
    offset: Tensor | None = None,
    extent: Tensor | None = None,
) -> Tensor:
    """Resize pictures by cubic interpolation, widened where they are made smaller, so that nothing aliases: what
    Pillow's ``BICUBIC`` does. At a scale of 1 and no offset pixels stay as they are.

    Args:
        pictures: (B, C, H, W).
        scale: (B,) pixels of the result for a pixel of the picture.
        size: (h, w) of the result, whose upper left corner is that of the picture.
        least: no scale is below it.
        offset: (B, 2) how many pixels of the picture lie above and to the left of the result; None is none.
        extent: (B,) rows and columns from the corner on that the picture really has; what lies beyond isn't looked at.
            None is all.

    Returns:
        (B, C, h, w); the picture ends in its border where the result reaches beyond.

    Source: R. Keys, Cubic convolution interpolation for digital image processing, 1981 (a = -1/2).
    """
    middles = (torch.arange(max(size), device=pictures.device, dtype=scale.dtype) + 0.5) / scale[:, None] - 0.5
    starts = scale.new_zeros(len(scale), 2) if offset is None else offset.to(scale)
    places, weights = _taps(middles[:, None] + starts[..., None], scale, least)
    for axis, length in zip((2, 3), size, strict=True):
        side, taps, weight = pictures.shape[axis], places[:, axis - 2, :length], weights[:, axis - 2, :length]
        weight = weight * ((taps >= 0) & (taps < (side if extent is None else extent.view(-1, 1, 1))))
        weight = (weight / weight.sum(2, keepdim=True)).to(pictures)
        pictures = _weighted(pictures, taps.clamp(0, side - 1), weight, axis)
    return pictures


def _taps(position: Tensor, scale: Tensor, least: float) -> tuple[Tensor, Tensor]:
    """(B, 2, n, T) the pixels around positions (B, 2, n) that count, int64, and by how much."""
    reach = math.ceil(_SUPPORT / min(1.0, least))
    around = torch.arange(1 - reach, reach + 1, device=position.device, dtype=position.dtype)
    places = position.floor()[..., None] + around
    distance = ((places - position[..., None]) * scale.clamp(max=1).view(-1, 1, 1, 1)).abs()
    near = (1.5 * distance - 2.5) * distance.square() + 1
    far = ((2.5 - 0.5 * distance) * distance - 4) * distance + 2
    weights = torch.where(distance < 1, near, torch.where(distance < _SUPPORT, far, 0.0))
    return places.long(), weights


def _weighted(pictures: Tensor, places: Tensor, weights: Tensor, axis: int) -> Tensor:
    """Sums of pixels along an axis, at places (B, n, T) of it. A product of matrices would be rounded as the batch and
    the device like it."""
    shape = [len(pictures), 1, 1, 1]
    shape[axis] = places.shape[1]
    wide = list(pictures.shape)
    wide[axis] = places.shape[1]
    result = pictures.new_zeros(wide)
    for place, weight in zip(places.unbind(2), weights.unbind(2), strict=True):
        result.addcmul_(pictures.gather(axis, place.view(shape).expand(wide)), weight.view(shape))
    return result
