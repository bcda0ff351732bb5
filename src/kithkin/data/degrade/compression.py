"""JPEG, on tensors: what the compression does to a picture, without the file."""

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from kithkin.data.degrade.draws import Draws
from kithkin.data.transfer import Numbers, moved

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


class Compression(NamedTuple):
    """How pictures are compressed.

    Attributes:
        steps: (B, 2, 64) float32, steps of quantisation of luma and chroma.
        corner: (B, 2) int32, how many pixels of the first block lie above and to the left of each picture.
        full, halved: places of the pictures whose colours are kept at full size, 4:4:4, and at half, 4:2:0; int64.
        order: (B,) places in the row of the full and the halved ones.
        blocks: pixels down and across that hold every picture, wherever its corner lies; multiples of 16.
    """

    steps: Numbers
    corner: Numbers
    full: Numbers
    halved: Numbers
    order: Numbers
    blocks: tuple[int, int]


def draw_compression(draws: Draws, size: tuple[int, int], qualities: tuple[float, float]) -> Compression:
    """Compressions of pictures of one size, of whole qualities between these two, half of them 4:2:0, with the grid
    of blocks anywhere."""
    quality, place = np.rint(draws.between("quality", qualities)), draws.uniform("grid", 3)
    corner = (place[:, :2] * 16).astype(np.int32)
    return compression(quality, place[:, 2] < 0.5, corner, (size[0] + 15, size[1] + 15))


def compression(quality: np.ndarray, halved: np.ndarray, corner: np.ndarray, size: tuple[int, int]) -> Compression:
    """What ``compressed`` needs, on the host, for pictures that end within ``size`` from the first block's corner."""
    scale = np.floor(np.where(quality < 50, 5000 / quality, 200 - 2 * quality))[:, None, None]
    steps = np.floor((np.array([LUMA, CHROMA]).reshape(2, 64) * scale + 50) / 100).clip(1, 255)
    places = np.flatnonzero(~halved), np.flatnonzero(halved)
    blocks = (-(-size[0] // 16) * 16, -(-size[1] // 16) * 16)
    order = np.argsort(np.concatenate(places))
    return Compression(steps.astype(np.float32), corner.astype(np.int32), *places, order, blocks)


def jpeg(image: Tensor, quality: Any, *, subsample: bool = False, offset: tuple[int, int] = (0, 0)) -> Tensor:
    """A picture as it comes back from a JPEG file of 8 bits, by libjpeg's scale of quality.

    Args:
        image: (B, 3, H, W) RGB; rounded to 8 bits and clipped to [0, 1] before it is compressed.
        quality: (B,) in [1, 100], one for each picture; an array or a tensor on the CPU.
        subsample: halve the colours' sides, 4:2:0; otherwise 4:4:4.
        offset: how many pixels of the first block lie above and to the left of the picture, as in one that was cut.

    Returns:
        (B, 3, H, W) in [0, 1], in steps of 1/255. Chroma is averaged over 2×2 pixels and comes back by the triangle
        filter, as libjpeg does by default.

    Sources: ITU-T T.81 (transform, tables K.1 and K.2), ITU-T T.871 (colours), libjpeg's ``jpeg_set_quality``.
    """
    count = len(image)
    size = (image.shape[2] + offset[0], image.shape[3] + offset[1])
    plan = compression(np.asarray(quality), np.full(count, subsample), np.tile(np.array(offset), (count, 1)), size)
    return compressed(image, moved(plan, image.device))


def compressed(image: Tensor, plan: Compression) -> Tensor:
    """``jpeg``, with a compression for each picture, moved to its device."""
    size, blocks = (image.shape[2], image.shape[3]), plan.blocks
    pixels = image.clamp(0, 1).mul_(255).round_()
    levels = mix_channels(pixels, _to_ycc(image.device, image.dtype)).round_()
    levels[:, :1] -= 128
    # What stands beyond the border repeats it.
    whole = _window(levels, -plan.corner, blocks)
    steps = plan.steps.to(image)[:, :, None]
    luma = _compress(whole[:, :1], steps[:, 0]) + 128
    chroma = _chroma(whole[:, 1:], steps[:, 1], plan)
    seen = _window(torch.cat([luma, chroma], dim=1), plan.corner, size)
    return mix_channels(seen, _from_ycc(image.device, image.dtype)).round_().clamp_(0, 255).div_(255)


def _chroma(planes: Tensor, steps: Tensor, plan: Compression) -> Tensor:
    parts = []
    if len(plan.full):
        subset = planes.index_select(0, plan.full), steps.index_select(0, plan.full)
        parts.append(_compress(*subset))
    if len(plan.halved):
        subset = planes.index_select(0, plan.halved), steps.index_select(0, plan.halved)
        small = _compress(F.avg_pool2d(subset[0], 2), subset[1])
        parts.append(F.interpolate(small, scale_factor=2, mode="bilinear").round_())
    return parts[0] if len(parts) == 1 else torch.cat(parts).index_select(0, plan.order)


def _window(planes: Tensor, corner: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, C, *size) of planes (B, C, H, W), from a corner (B, 2) of each picture on, which may lie outside."""
    batch, channels, height, width = planes.shape
    row, column = (
        (corner[:, i : i + 1] + torch.arange(size[i], dtype=torch.int32, device=planes.device)).clamp_(0, side - 1)
        for i, side in enumerate((height, width))
    )
    plane = torch.arange(batch * channels, dtype=torch.int32, device=planes.device) * (height * width)
    start = plane.view(batch, channels, 1) + (row * width).view(batch, 1, -1)
    index = start.unsqueeze(-1) + column.view(batch, 1, 1, -1)
    return planes.flatten().index_select(0, index.flatten()).view(batch, channels, *size)


def _compress(planes: Tensor, table: Tensor) -> Tensor:
    """(B, C, H, W) through the transform of 8×8 blocks, quantisation and back, in 8 bits less 128."""
    batch, channels, height, width = planes.shape
    # A GPU may multiply float32 with the 10 bits of TensorFloat-32, which decide other roundings.
    exact = torch.float64 if planes.is_cuda else planes.dtype
    transform = _transform(planes.device, exact)
    blocks = planes.view(batch, channels, height // 8, 8, width // 8, 8).transpose(3, 4).reshape(batch, -1, 64)
    coefficients = (blocks.to(exact) @ transform).div_(table).round_().mul_(table)
    blocks = (coefficients @ transform.T).to(planes.dtype).view(batch, channels, height // 8, width // 8, 8, 8)
    return blocks.transpose(3, 4).reshape(planes.shape).round_().clamp_(-128, 127)


def mix_channels(picture: Tensor, matrices: Tensor) -> Tensor:
    """A matrix for each picture, (B, 3, 3) or (1, 3, 3), on its channels (B, 3, H, W)."""
    column = matrices.to(picture)[..., None, None].unbind(2)
    mixed = column[0] * picture[:, :1]
    for i in (1, 2):
        mixed.addcmul_(column[i], picture[:, i : i + 1])
    return mixed


@lru_cache(maxsize=8)
def _to_ycc(device: torch.device, dtype: torch.dtype) -> Tensor:
    return torch.tensor([TO_YCC], dtype=dtype).to(device)


@lru_cache(maxsize=8)
def _from_ycc(device: torch.device, dtype: torch.dtype) -> Tensor:
    return torch.tensor([TO_YCC], dtype=torch.float64).inverse().to(device, dtype)


@lru_cache(maxsize=8)
def _transform(device: torch.device, dtype: torch.dtype) -> Tensor:
    """(64, 64), orthonormal: from the pixels of a block to the coefficients of the two-dimensional DCT-II."""
    k = torch.arange(8, dtype=torch.float64)
    rows = torch.cos(torch.pi * k[:, None] * (2 * k + 1) / 16) / 2
    rows[0] /= 2**0.5
    return torch.kron(rows, rows).T.contiguous().to(device, dtype)
