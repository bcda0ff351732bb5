"""How much of a restoration is applied: shares of luminance and of colour, and detail brought back.

Tiles are blended elsewhere, in ``kithkin.restorers.Tiled``.

What a restoration takes away is the residual. Its luminance is the luma of Rec. 709, computed from stored
values; its colour is the rest. So ``chroma=1, luma=0.5`` removes all colour speckle and leaves half of the grain.
"""

from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

LUMA = (0.2126, 0.7152, 0.0722)
"""Weights of red, green and blue in the luma of Rec. 709, which has the primaries of sRGB."""

_SIDE, _STEP = 8, 4
_ABOVE = 4.0  # times the energy of the noise, so twice its deviation
_LEVELS = 8
_SAMPLES = 20_000  # blocks
_ROWS = 64
_SMALLEST = 64


def blended(image: Tensor, restored: Tensor, luma: float, chroma: float, detail: float) -> Tensor:
    """Apply a part of a restoration.

    Args:
        image: the input, (3, H, W), or (1, H, W) for gray, float32 or float64.
        restored: the same, restored; it may be overwritten.
        luma: share of the change in luminance that is applied, 0 to 1.
        chroma: share of the change in colour that is applied, 0 to 1; without effect on gray.
        detail: share of the residual's ``structure`` that is brought back first, 0 to 1.

    Returns:
        The result, of the same shape and dtype: ``restored`` for 1, 1, 0, and ``image`` for 0, 0.
    """
    if detail:
        residual, brightness = luma_of(image - restored), luma_of(restored)
        restored += detail * structure(residual.float(), brightness.float())
    if luma == chroma or len(image) == 1:
        return restored if luma == 1 else torch.lerp(image, restored, luma, out=restored)
    change = restored.sub_(image)
    in_luma = (luma - chroma) * luma_of(change)
    return change.mul_(chroma).add_(in_luma).add_(image)


def luma_of(planes: Tensor) -> Tensor:
    """The luma (H, W) of planes (3, H, W), or of (1, H, W)."""
    if len(planes) == 1:
        return planes[0]
    return sum(weight * plane for weight, plane in zip(LUMA, planes, strict=True))


def structure(residual: Tensor, brightness: Tensor) -> Tensor:
    """What of a residual is structure, such as fur and bark, rather than noise.

    Noise spreads evenly over the picture, and structure stands out from it. So blocks of 8 x 8 pixels, which overlap
    by half, go through a cosine transform. The energy of the noise in each of its coefficients is the median over the
    blocks, scaled to the median of blocks that are about as bright, since noise depends on brightness. A coefficient
    of energy e above four times the noise n keeps the share 1 - 4 n / e, all others vanish, and so does the mean: an
    empirical Wiener filter. - The windowed transform: Princen and Bradley 1986.

    Args:
        residual: (H, W) float32, input less restored.
        brightness: (H, W) float32, of the restored picture.

    Returns:
        (H, W) float32; zeros where a side has less than 64 pixels, which tell too little of the noise.
    """
    height, width = residual.shape
    if min(height, width) < _SMALLEST:
        return torch.zeros_like(residual)
    edges = (_STEP, _STEP - width % -_STEP, _STEP, _STEP - height % -_STEP)
    padded, bright = (F.pad(plane[None, None], edges, mode="reflect")[0, 0] for plane in (residual, brightness))
    noise, levels, bounds = _noise(padded, bright)
    transform, window = _transform()
    out = torch.zeros_like(padded)
    for top in range(0, len(padded) - _STEP, _STEP * _ROWS):
        band = slice(top, top + _STEP * (_ROWS + 1))
        coefficients, means = _coefficients(padded[band]), _blocks(bright[band]).mean((2, 3))
        local = noise * levels[torch.bucketize(means, bounds)][..., None, None]
        coefficients *= (1 - _ABOVE * local / coefficients.square().clamp_min(1e-20)).clamp_min_(0)
        coefficients[..., 0, 0] = 0
        blocks = (transform.T @ coefficients @ transform).mul_(window)
        columns = blocks.flatten(2).flatten(0, 1).T[None]
        out[band] += F.fold(columns, out[band].shape, _SIDE, stride=_STEP)[0, 0]
    return out[_STEP : _STEP + height, _STEP : _STEP + width]


def _noise(padded: Tensor, bright: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The energy of noise in each coefficient (8, 8), its factors by brightness, and the bounds between those."""
    rows = (len(padded) - _STEP) // _STEP
    stride = max(1, rows * padded.shape[1] // _STEP // _SAMPLES)
    tops = [slice(_STEP * row, _STEP * row + _SIDE) for row in range(0, rows, stride)]
    energies = torch.cat([_coefficients(padded[top])[0] for top in tops]).square_()
    means = torch.cat([_blocks(bright[top])[0].mean((1, 2)) for top in tops])
    # Where nothing was changed, as in black borders, there is nothing to learn.
    noisy = energies.sum((1, 2)) > 0
    if not noisy.any():
        return energies[0], energies.new_ones(_LEVELS), energies.new_zeros(_LEVELS - 1)
    energies, means = energies[noisy], means[noisy]
    noise = energies.median(0).values.clamp_min(1e-20)
    groups = means.argsort().tensor_split(_LEVELS)
    factors = (energies / noise).mean((1, 2))
    levels = torch.stack([factors[group].median() if len(group) else factors.median() for group in groups])
    bounds = torch.stack([means[group].max() if len(group) else means.max() for group in groups[:-1]])
    return noise, levels, bounds


def _blocks(plane: Tensor) -> Tensor:
    """The blocks (rows, columns, 8, 8) of a plane."""
    return plane.unfold(0, _SIDE, _STEP).unfold(1, _SIDE, _STEP)


def _coefficients(plane: Tensor) -> Tensor:
    transform, window = _transform()
    return transform @ (_blocks(plane) * window) @ transform.T


@cache
def _transform() -> tuple[Tensor, Tensor]:
    """The orthonormal cosine transform (8, 8), and a window whose squares add up to one where blocks overlap."""
    order = torch.arange(_SIDE, dtype=torch.float32, device="cpu")
    at = order + 0.5
    transform = torch.cos(torch.pi / _SIDE * order[:, None] * at) * (2 / _SIDE) ** 0.5
    transform[0] /= 2**0.5
    sine = torch.sin(torch.pi / _SIDE * at)
    return transform, sine[:, None] * sine
