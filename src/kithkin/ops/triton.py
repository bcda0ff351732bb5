"""Eqs. (8)-(10) by fused GPU kernels in Triton: float32, bfloat16 and float16, accumulated in float32.

A program works on a chunk of query patches and, one after the other, on the two chunks of keys it sees. The logits of
such a pair, (kP, kP), live in registers; the inner products of Eq. (10) are the traces of their P×P blocks. Rounds are
launched one after the other and combine as in online softmax. Gradients take two kernels, one for each side of the
pair, so that each number is written by one program: the result does not hang on the order in which programs run.

Logits are kept in units of log 2. This module is imported only where Triton is there; see ``gpu``.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kithkin.ops.backend import pitched
from kithkin.ops.grouping import PatchGroups

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _chunk(order, first, g, n, k, P: tl.constexpr, KB: tl.constexpr, PB: tl.constexpr):
    """Of chunk g: each pixel's place among all and whether it is there, (KB·PB,); the same of its patches, (KB,)."""
    row = tl.arange(0, KB * PB)
    place, p = g * k + row // PB, row % PB
    there = (row // PB < k) & (place < n) & (p < P)
    pixel = (first + tl.load(order + place, mask=there, other=0)) * P + p
    i = tl.arange(0, KB)
    real = (i < k) & (g * k + i < n)
    patch = first + tl.load(order + g * k + i, mask=real, other=0)
    return pixel, there, patch, real


@triton.jit
def _dot(a, b, PRECISION: tl.constexpr):
    if PRECISION == "interpreter":  # Triton's interpreter multiplies bfloat16 as if it were integers
        return tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="ieee")
    return tl.dot(a, b, input_precision=PRECISION)


@triton.jit
def _take(base, pixel, there, step, D: tl.constexpr, DB: tl.constexpr):
    """Rows of D numbers, padded to DB."""
    d = tl.arange(0, DB)
    return tl.load(base + pixel[:, None] * step + d[None, :], mask=there[:, None] & (d[None, :] < D), other=0.0)


@triton.jit
def _put(base, pixel, there, step, x, D: tl.constexpr, DB: tl.constexpr):
    d = tl.arange(0, DB)
    tl.store(base + pixel[:, None] * step + d[None, :], x, mask=there[:, None] & (d[None, :] < D))


@triton.jit
def _diagonal(KB: tl.constexpr, PB: tl.constexpr):
    """(KB·PB, KB·PB): where a query's pixel meets the same pixel of a candidate."""
    row = tl.arange(0, KB * PB)
    return (row % PB)[:, None] == (row % PB)[None, :]


@triton.jit
def _sum_of_patches(x, KB: tl.constexpr, PB: tl.constexpr):
    """(KB·PB, KB) -> (KB, KB): the sum over the pixels of each query patch."""
    return tl.sum(tl.reshape(x, (KB, PB, KB)), axis=1)


@triton.jit
def _to_pixels(x, KB: tl.constexpr, PB: tl.constexpr):
    """(KB, KB) of pairs -> (KB·PB, KB·PB) of their pixels."""
    wide = tl.broadcast_to(x[:, None, :, None], (KB, PB, KB, PB))
    return tl.reshape(wide, (KB * PB, KB * PB))


@triton.jit
def _softmaxes(s, P: tl.constexpr, KB: tl.constexpr, PB: tl.constexpr):
    """Eq. (8)'s softmaxes, one over the pixels of each candidate: (KB·PB, KB, PB)."""
    grouped = tl.reshape(s, (KB * PB, KB, PB))
    grouped = tl.where((tl.arange(0, PB) < P)[None, None, :], grouped, float("-inf"))
    e = tl.exp2(grouped - tl.max(grouped, axis=2)[:, :, None])
    return e / tl.sum(e, axis=2)[:, :, None]


@triton.jit
def _pair_logits(s, P: tl.constexpr, KB: tl.constexpr, PB: tl.constexpr):
    """The mean scaled inner products of Eq. (10), in units of log 2: (KB, KB)."""
    on = tl.where(_diagonal(KB, PB), s, 0.0)
    return _sum_of_patches(tl.sum(tl.reshape(on, (KB * PB, KB, PB)), axis=2), KB, PB) / P


@triton.jit
def _forward_round(
    query, key, value, order, out, total, top, n, k, chunks, rounds, j, step, scale,
    P: tl.constexpr, D: tl.constexpr, HEADS: tl.constexpr, KB: tl.constexpr, PB: tl.constexpr, DB: tl.constexpr,
    SIDES: tl.constexpr, PAPER: tl.constexpr, FIRST: tl.constexpr, LAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    image, g, head = tl.program_id(0) // chunks, tl.program_id(0) % chunks, tl.program_id(1)
    first = image.to(tl.int64) * n
    order += (image * rounds + j).to(tl.int64) * n
    pixel, there, patch, real = _chunk(order, first, g, n, k, P, KB, PB)
    q = _take(query + head * D, pixel, there, step, D, DB)
    place = patch * HEADS + head
    if FIRST:
        acc = tl.zeros((KB * PB, DB), tl.float32)
        weight_sum = tl.zeros((KB,), tl.float32)
        highest = tl.full((KB,), float("-inf"), tl.float32)
    else:
        acc = _take(out + head * D, pixel, there, D * HEADS, D, DB)
        weight_sum = tl.load(total + place, mask=real, other=0.0)
        highest = tl.load(top + place, mask=real, other=0.0)
    for side in tl.static_range(SIDES):
        other, seen, _, exists = _chunk(order, first, (g + chunks - side) % chunks, n, k, P, KB, PB)
        s = _dot(q, tl.trans(_take(key + head * D, other, seen, step, D, DB)), PRECISION)
        s *= scale * LOG2_E
        logit = tl.where(exists[None, :], _pair_logits(s, P, KB, PB), 0.0 if PAPER else float("-inf"))
        if PAPER:
            weight = logit
        else:
            new = tl.maximum(highest, tl.max(logit, axis=1))
            weight = tl.exp2(logit - new[:, None])
            share = tl.exp2(highest - new)
            wide = tl.reshape(tl.broadcast_to(share[:, None], (KB, PB)), (KB * PB,))
            acc *= wide[:, None]
            weight_sum *= share
            highest = new
        weight_sum += tl.sum(weight, axis=1)
        a = tl.reshape(_softmaxes(s, P, KB, PB), (KB * PB, KB * PB)) * _to_pixels(weight, KB, PB)
        v = _take(value + head * D, other, seen, step, D, DB)
        acc += _dot(a.to(v.dtype), v, PRECISION)
    if LAST:
        wide = tl.reshape(tl.broadcast_to(weight_sum[:, None], (KB, PB)), (KB * PB,))
        acc /= wide[:, None]
    _put(out + head * D, pixel, there, D * HEADS, acc, D, DB)
    tl.store(total + place, weight_sum, mask=real)
    tl.store(top + place, highest, mask=real)


@triton.jit
def _gradients(
    q, k, v, grad, norm, delta, valid, scale, P: tl.constexpr, KB: tl.constexpr, PB: tl.constexpr, PAPER: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """The gradient of the logits (scale left out) and the weighted softmaxes, both (KB·PB, KB·PB)."""
    s = _dot(q, tl.trans(k), PRECISION) * (scale * LOG2_E)
    logit = _pair_logits(s, P, KB, PB)
    if PAPER:
        weight = tl.where(valid, logit / norm[:, None], 0.0)
        slope = tl.where(valid, LOG2_E / norm[:, None], 0.0)
    else:
        weight = tl.where(valid, tl.exp2(logit - norm[:, None]), 0.0)
        slope = weight
    a = _softmaxes(s, P, KB, PB)
    inner = tl.reshape(_dot(grad, tl.trans(v), PRECISION), (KB * PB, KB, PB))
    mean = tl.sum(a * inner, axis=2)
    d_pair = (_sum_of_patches(mean, KB, PB) - delta[:, None]) * slope / P
    wide = _to_pixels(weight, KB, PB)
    d_s = wide * tl.reshape(a * (inner - mean[:, :, None]), (KB * PB, KB * PB))
    d_s += tl.where(_diagonal(KB, PB), _to_pixels(d_pair, KB, PB), 0.0)
    return d_s, wide * tl.reshape(a, (KB * PB, KB * PB))


@triton.jit
def _backward_queries(
    query, key, value, grad, norm, delta, order, d_query, n, k, chunks, rounds, j, step, scale,
    P: tl.constexpr, D: tl.constexpr, HEADS: tl.constexpr, KB: tl.constexpr, PB: tl.constexpr, DB: tl.constexpr,
    SIDES: tl.constexpr, PAPER: tl.constexpr, FIRST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    image, g, head = tl.program_id(0) // chunks, tl.program_id(0) % chunks, tl.program_id(1)
    first = image.to(tl.int64) * n
    order += (image * rounds + j).to(tl.int64) * n
    pixel, there, patch, real = _chunk(order, first, g, n, k, P, KB, PB)
    q = _take(query + head * D, pixel, there, step, D, DB)
    up = _take(grad + head * D, pixel, there, D * HEADS, D, DB)
    row_norm = tl.load(norm + patch * HEADS + head, mask=real, other=1.0)
    row_delta = tl.load(delta + patch * HEADS + head, mask=real, other=0.0)
    acc = tl.zeros((KB * PB, DB), tl.float32)
    for side in tl.static_range(SIDES):
        other, seen, _, exists = _chunk(order, first, (g + chunks - side) % chunks, n, k, P, KB, PB)
        keys = _take(key + head * D, other, seen, step, D, DB)
        values = _take(value + head * D, other, seen, step, D, DB)
        valid = real[:, None] & exists[None, :]
        d_s, _ = _gradients(q, keys, values, up, row_norm, row_delta, valid, scale, P, KB, PB, PAPER, PRECISION)
        acc += _dot(d_s.to(keys.dtype), keys, PRECISION) * scale
    if not FIRST:
        acc += _take(d_query + head * D, pixel, there, D * HEADS, D, DB)
    _put(d_query + head * D, pixel, there, D * HEADS, acc, D, DB)


@triton.jit
def _backward_keys(
    query, key, value, grad, norm, delta, order, d_key, d_value, n, k, chunks, rounds, j, step, scale,
    P: tl.constexpr, D: tl.constexpr, HEADS: tl.constexpr, KB: tl.constexpr, PB: tl.constexpr, DB: tl.constexpr,
    SIDES: tl.constexpr, PAPER: tl.constexpr, FIRST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Of the keys and values of a chunk, which the queries of the same and of the next chunk see."""
    image, g, head = tl.program_id(0) // chunks, tl.program_id(0) % chunks, tl.program_id(1)
    first = image.to(tl.int64) * n
    order += (image * rounds + j).to(tl.int64) * n
    pixel, there, _, real = _chunk(order, first, g, n, k, P, KB, PB)
    keys = _take(key + head * D, pixel, there, step, D, DB)
    values = _take(value + head * D, pixel, there, step, D, DB)
    acc_key = tl.zeros((KB * PB, DB), tl.float32)
    acc_value = tl.zeros((KB * PB, DB), tl.float32)
    for side in tl.static_range(SIDES):
        other, seen, patch, exists = _chunk(order, first, (g + side) % chunks, n, k, P, KB, PB)
        q = _take(query + head * D, other, seen, step, D, DB)
        up = _take(grad + head * D, other, seen, D * HEADS, D, DB)
        row_norm = tl.load(norm + patch * HEADS + head, mask=exists, other=1.0)
        row_delta = tl.load(delta + patch * HEADS + head, mask=exists, other=0.0)
        valid = exists[:, None] & real[None, :]
        d_s, a = _gradients(q, keys, values, up, row_norm, row_delta, valid, scale, P, KB, PB, PAPER, PRECISION)
        acc_key += _dot(tl.trans(d_s).to(q.dtype), q, PRECISION) * scale
        acc_value += _dot(tl.trans(a).to(up.dtype), up, PRECISION)
    if not FIRST:
        acc_key += _take(d_key + head * D, pixel, there, D * HEADS, D, DB)
        acc_value += _take(d_value + head * D, pixel, there, D * HEADS, D, DB)
    _put(d_key + head * D, pixel, there, D * HEADS, acc_key, D, DB)
    _put(d_value + head * D, pixel, there, D * HEADS, acc_value, D, DB)


def _launch(
    kernel: Any, qkv: list[Tensor], more: dict[str, Tensor], groups: PatchGroups, paper: bool, n_heads: int
) -> None:
    """One launch a round; ``more`` are the kernel's further tensors."""
    batch, count, pixels, channels = qkv[0].shape
    step, (query, key, value) = pitched(*qkv)
    width = channels // n_heads
    blocks = {"KB": groups.k, "PB": max(16, pixels), "DB": max(16, width)}
    exact = torch.get_float32_matmul_precision() == "highest" or query.dtype != torch.float32
    precision = "interpreter" if query.device.type == "cpu" else "ieee" if exact else "tf32"
    for j in range(groups.n_hashes):
        last = {"LAST": j == groups.n_hashes - 1} if kernel is _forward_round else {}
        kernel[(batch * groups.n_chunks, n_heads)](
            query=query,
            key=key,
            value=value,
            order=groups.order.contiguous(),
            **more,
            n=count,
            k=groups.k,
            chunks=groups.n_chunks,
            rounds=groups.n_hashes,
            j=j,
            step=step,
            scale=width**-0.5,
            P=pixels,
            D=width,
            HEADS=n_heads,
            SIDES=2 if groups.look_back else 1,
            PAPER=paper,
            FIRST=j == 0,
            PRECISION=precision,
            **{name: triton.next_power_of_2(value) for name, value in blocks.items()},
            **last,
        )


def forward(
    query: Tensor, key: Tensor, value: Tensor, groups: PatchGroups, paper: bool, n_heads: int
) -> tuple[Tensor, Tensor]:
    """Output and, per patch and head, the logarithm to base 2 of the sum of weights (paper: the sum)."""
    out = query.new_empty(query.shape, dtype=torch.float32)
    total = out.new_empty(query.shape[0] * query.shape[1], n_heads)
    top = torch.empty_like(total)
    more = {"out": out, "total": total, "top": top}
    _launch(_forward_round, [query, key, value], more, groups, paper, n_heads)
    return out.to(value.dtype), total if paper else total.log2_().add_(top)


def backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    norm: Tensor,
    groups: PatchGroups,
    paper: bool,
    n_heads: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value; the logits are computed again."""
    grad = grad.contiguous()
    by_head = (-1, query.shape[2], n_heads, query.shape[3] // n_heads)
    delta = (grad.float().view(by_head) * out.float().view(by_head)).sum(dim=(1, 3))
    d_query, d_key, d_value = (x.new_empty(x.shape, dtype=torch.float32) for x in (query, key, value))
    qkv, known = [query, key, value], {"grad": grad, "norm": norm, "delta": delta}
    _launch(_backward_queries, qkv, {**known, "d_query": d_query}, groups, paper, n_heads)
    _launch(_backward_keys, qkv, {**known, "d_key": d_key, "d_value": d_value}, groups, paper, n_heads)
    d_query, d_key, d_value = (x.to(query.dtype) for x in (d_query, d_key, d_value))
    return d_query, d_key, d_value
