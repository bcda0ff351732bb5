"""JPEG, on tensors: what the compression does to a picture, without the file."""

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

# ITU-T T.81, tables K.1 and K.2, row by row.
LUMA = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
CHROMA = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *((99,) * 8,) * 4,
)
# ITU-T T.871 (JFIF): RGB -> Y, Cb, Cr.
TO_YCC = (
    (0.299, 0.587, 0.114),
    (-0.168735892, -0.331264108, 0.5),
    (0.5, -0.418687589, -0.081312411),
)


def jpeg(image: Tensor, quality: Tensor, *, subsample: bool = False, offset: tuple[int, int] = (0, 0)) -> Tensor:
    """A picture as it comes back from a JPEG file of 8 bits, by libjpeg's scale of quality.

    Args:
        image: (B, 3, H, W) RGB; rounded to 8 bits and clipped to [0, 1] before it is compressed.
        quality: (B,) in [1, 100], one for each picture.
        subsample: halve the colours' sides, 4:2:0; otherwise 4:4:4.
        offset: how many pixels of the first block lie above and to the left of the picture, as in one that was cut.

    Returns:
        (B, 3, H, W) in [0, 1], in steps of 1/255. Chroma is averaged over 2×2 pixels and comes back by the triangle
        filter, as libjpeg does by default.

    Sources: ITU-T T.81 (transform, tables K.1 and K.2), ITU-T T.871 (colours), libjpeg's ``jpeg_set_quality``.
    """
    size, unit = image.shape[-2:], 16 if subsample else 8
    top, left = offset
    padding = (left, -(left + size[1]) % unit, top, -(top + size[0]) % unit)
    whole = F.pad(image.clamp(0, 1).mul(255).round_(), padding, mode="replicate")
    matrix = torch.tensor(TO_YCC, device=image.device, dtype=image.dtype)
    ycc = torch.einsum("dc,bchw->bdhw", matrix, whole).round_()
    luma = _compress(ycc[:, :1] - 128, _table(LUMA, quality.to(image))) + 128
    chroma, table = ycc[:, 1:], _table(CHROMA, quality.to(image))
    if subsample:
        small = _compress(F.avg_pool2d(chroma, 2), table)
        chroma = F.interpolate(small, scale_factor=2, mode="bilinear")
    else:
        chroma = _compress(chroma, table)
    back = torch.einsum("dc,bchw->bdhw", torch.linalg.inv(matrix), torch.cat([luma, chroma], dim=1))
    return back[..., top : top + size[0], left : left + size[1]].round().clamp_(0, 255).div_(255)


def _table(table: tuple[tuple[int, ...], ...], quality: Tensor) -> Tensor:
    """(B, 1, 64): the steps of quantisation at each quality."""
    scale = torch.where(quality < 50, 5000 / quality, 200 - 2 * quality).floor_()[:, None, None]
    steps = torch.tensor(table, device=quality.device, dtype=quality.dtype).view(1, 1, 64)
    return (steps * scale + 50).div_(100).floor_().clamp_(1, 255)


def _compress(planes: Tensor, table: Tensor) -> Tensor:
    """(B, C, H, W) through the transform of 8×8 blocks, quantisation and back, clipped as 8 bits less 128."""
    batch, channels, height, width = planes.shape
    transform = _transform(planes.device, planes.dtype)
    blocks = planes.view(batch, channels, height // 8, 8, width // 8, 8).transpose(3, 4).reshape(batch, -1, 64)
    coefficients = (blocks @ transform).div_(table).round_().mul_(table)
    blocks = (coefficients @ transform.T).view(batch, channels, height // 8, width // 8, 8, 8)
    return blocks.transpose(3, 4).reshape(planes.shape).clamp_(-128, 127)


@lru_cache(maxsize=8)
def _transform(device: torch.device, dtype: torch.dtype) -> Tensor:
    """(64, 64), orthonormal: from the pixels of a block to the coefficients of the two-dimensional DCT-II."""
    k = torch.arange(8, dtype=torch.float64)
    rows = torch.cos(torch.pi * k[:, None] * (2 * k + 1) / 16) / 2
    rows[0] /= 2**0.5
    return torch.kron(rows, rows).T.contiguous().to(device, dtype)
