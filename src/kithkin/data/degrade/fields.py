"""Random fields over pictures: white noise by a counter-based generator, and fields that change slowly, such as the
thickness of a veil or the mask of something that moves.

White noise is a function of its key alone, made by operations on integers, the same ones for a whole batch: it comes
out bit for bit alike on every device and in every batch.
"""

import math
from functools import lru_cache
from statistics import NormalDist
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from kithkin.data.degrade.draws import Draws

Source: TypeAlias = "Draws | torch.Generator"
"""Of random numbers: draws with a key for each picture, or a generator that draws the keys."""


def as_draws(source: Source, count: int) -> Draws:
    """The draws for ``count`` pictures. A generator on a GPU is waited for."""
    if isinstance(source, Draws):
        return source
    seeds = torch.randint(-(2**63), 2**63 - 1, (count,), generator=source, device=source.device)
    return Draws(seeds.cpu().numpy().view("uint64"))


def field_keys(source: Tensor | torch.Generator, count: int) -> Tensor:
    """(count, 2) int32 keys of fields: the given ones, or drawn by a generator, on its device."""
    if isinstance(source, Tensor):
        return source
    size = (count, 2)
    return torch.randint(-(2**31), 2**31 - 1, size, generator=source, device=source.device, dtype=torch.int32)


def uniform_field(keys: Tensor, shape: tuple[int, ...]) -> Tensor:
    """White noise, uniform in [0, 1): (N, *shape) float32 in steps of 2^-24, on the device of the keys (N, 2) int32."""
    bits = _hashed(keys, math.prod(shape)) >> 8  # the upper 24, which float32 holds exactly
    return bits.float().mul_(2.0**-24).add_(0.5).view(len(keys), *shape)


def normal_field(keys: Tensor, shape: tuple[int, ...]) -> Tensor:
    """White noise of the standard normal distribution, as ``uniform_field``: each number is one of 65,536 that are
    equally likely, the means of the normal distribution between its quantiles, from -4.4 to 4.4."""
    count = math.prod(shape)
    bits = _hashed(keys, (count + 1) // 2)
    bits ^= _down(bits, 15)  # the lower halves count as much as the upper ones here
    halves = bits.view(torch.int16)[:, :count].int().bitwise_and_(0xFFFF)
    return _normal_steps(keys.device).index_select(0, halves.flatten()).view(len(keys), *shape)


def smooth_field(keys: Tensor, size: tuple[int, int], cells: int) -> Tensor:
    """Smooth random fields in [0, 1]: uniform numbers on a coarse grid, interpolated by cubic splines.

    Args:
        keys: (N, 2) int32, of the fields.
        size: (height, width) in pixels.
        cells: numbers along each side of the coarse grid; at least 2.

    Returns:
        (N, 1, height, width) float32.
    """
    coarse = uniform_field(keys, (1, cells, cells))
    return F.interpolate(coarse, size, mode="bicubic", align_corners=True).clamp_(0, 1)


def _hashed(keys: Tensor, count: int) -> Tensor:
    """(N, count) int32: hashes of the numbers from 0 under each key, of which the upper bits are the best.

    Multiplications and shifts as in 32-bit mixers (Wellons, "Prospecting for hash functions", 2018); the second half of
    the key comes in after a round, so that two sequences of overlapping counters have nothing in common.
    """
    first, second = keys[:, :1], keys[:, 1:]
    counters = torch.arange(count, dtype=torch.int32, device=keys.device)
    bits = torch.add(first, counters, alpha=_signed(0x9E3779B9))
    bits ^= _down(bits, 16)
    bits = torch.add(second, bits, alpha=_signed(0x7FEB352D))
    bits ^= _down(bits, 15)
    bits *= _signed(0x846CA68B)
    bits ^= _down(bits, 16)
    bits *= _signed(0x9E485565)
    return bits


@lru_cache(maxsize=8)
def _normal_steps(device: torch.device) -> Tensor:
    """(65536,) float32 of variance 1, rising."""
    normal, steps = NormalDist(), 2**16
    edges = [normal.inv_cdf(i / steps) for i in range(steps // 2, steps)]
    heights = torch.tensor([*map(normal.pdf, edges), 0.0], dtype=torch.float64)
    means = -heights.diff() * steps
    both = torch.cat([-means.flip(0), means])
    return (both / both.square().mean().sqrt()).float().to(device)


def _down(bits: Tensor, count: int) -> Tensor:
    """Shift down and fill up with zeros, where ``>>`` repeats the sign."""
    return (bits >> count).bitwise_and_((1 << (32 - count)) - 1)


def _signed(constant: int) -> int:
    return constant - 2**32 if constant >= 2**31 else constant
