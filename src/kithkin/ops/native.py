"""Eqs. (8)-(10) by the fused C++ kernel in ``kernels/``: float32 and bfloat16 on CPUs, accumulated in float32.

The kernel is a plain shared library that takes pointers, so nothing is copied and Python's lock is free while it runs.
Its loops run in the threads of the OpenMP runtime that PyTorch has loaded, as many as PyTorch uses.
"""

import ctypes
from functools import cache
from typing import Any

import torch
from torch import Tensor

from kithkin.ops.backend import Backend, Problem
from kithkin.ops.grouping import PatchGroups
from kithkin.ops.kernels.build import INSTRUCTION_SETS, library

DTYPES = (torch.float32, torch.bfloat16)

_POINTERS = (
    *("query", "key", "value", "grad", "order", "neighbors", "out", "total", "top"),
    *("norm", "delta", "d_query", "d_key", "d_value", "team"),
)
_NUMBERS = (
    *("threads", "batch", "rounds", "patches", "k", "kc", "pitch"),
    *("pixels", "channels", "heads", "paper", "bfloat16"),
)


class _Call(ctypes.Structure):
    """The struct KithkinCall of ``kernels/knn_attention.cpp``."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in _POINTERS),
        *((name, ctypes.c_int64) for name in _NUMBERS),
    )


@cache
def _kernel() -> ctypes.CDLL | None:
    """The library of the richest instruction set that was compiled and that this processor has, or None."""
    plainest = library("DEFAULT")
    if not plainest.is_file():
        return None
    level = ctypes.CDLL(str(plainest)).kithkin_level()
    for name in reversed(list(INSTRUCTION_SETS)[: level + 1]):
        if library(name).is_file():
            return ctypes.CDLL(str(library(name)))
    return None


@cache
def _team() -> int | None:
    """The address of the loaded OpenMP runtime's GOMP_parallel; None where there is no such symbol."""
    try:
        return ctypes.cast(ctypes.CDLL(None).GOMP_parallel, ctypes.c_void_p).value
    except (AttributeError, OSError, TypeError):
        return None


def why_not(device_type: str, dtype: torch.dtype, problem: Problem | None) -> str | None:
    """None where the kernel can serve tensors of this device and dtype, else one sentence; it takes every problem."""
    if device_type != "cpu":
        return f"native runs on the CPU, not on {device_type}"
    if dtype not in DTYPES:
        return f"native takes float32 and bfloat16, not {str(dtype).removeprefix('torch.')}"
    if _kernel() is None:
        return "native was not compiled; with a C++ compiler at hand: python -m kithkin.ops.kernels.build"
    return None


def _pitched(*tensors: Tensor) -> tuple[int, list[Tensor]]:
    """The tensors (B, N, P, C) laid out as the kernel takes them, copied only where they are not, and how many numbers
    lie from pixel to pixel: C, or more where they are slices of one wider tensor."""
    _, count, pixels, channels = tensors[0].shape
    pitch = tensors[0].stride(2)
    wanted = (count * pixels * pitch, pixels * pitch, pitch, 1)
    if pitch >= channels and all(x.stride() == wanted for x in tensors):
        return pitch, list(tensors)
    return channels, [x.contiguous() for x in tensors]


def _run(name: str, tensors: dict[str, Tensor], groups: PatchGroups, paper: bool, heads: int) -> None:
    (batch, count, pixels, channels), dtype = tensors["query"].shape, tensors["query"].dtype
    pitch, laid = _pitched(*(tensors[key] for key in ("query", "key", "value")))
    neighbors = None if groups.neighbors is None else groups.neighbors.contiguous()
    order = groups.order.contiguous()
    numbers: dict[str, Any] = {
        "order": order.data_ptr(),
        "neighbors": None if neighbors is None else neighbors.data_ptr(),
        "team": _team(),
        "threads": torch.get_num_threads(),
        "batch": batch,
        "rounds": groups.n_hashes,
        "patches": count,
        "k": groups.k,
        "kc": groups.candidates_per_patch,
        "pitch": pitch,
        "pixels": pixels,
        "channels": channels,
        "heads": heads,
        "paper": paper,
        "bfloat16": dtype == torch.bfloat16,
    }
    given = {**tensors, **dict(zip(("query", "key", "value"), laid, strict=True))}
    call = _Call(**{key: x.data_ptr() for key, x in given.items()}, **numbers)
    if getattr(_kernel(), name)(ctypes.byref(call)):
        raise MemoryError("native: there is no memory for the kernel's work space")


def forward(
    query: Tensor, key: Tensor, value: Tensor, groups: PatchGroups, paper: bool, n_heads: int
) -> tuple[Tensor, Tensor]:
    """Output and, per patch and head, the logarithm to base 2 of the sum of weights (paper: the sum)."""
    out = torch.empty(query.shape, dtype=torch.float32)
    total = out.new_empty(query.shape[0] * query.shape[1], n_heads)
    tensors = {"query": query, "key": key, "value": value, "out": out, "total": total}
    top = torch.empty_like(total)
    _run("kithkin_forward", {**tensors, "top": top}, groups, paper, n_heads)
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
    delta = (_by_head(grad.float(), n_heads) * _by_head(out.float(), n_heads)).sum(dim=(1, 3))
    found = [torch.zeros(x.shape, dtype=torch.float32) for x in (query, key, value)]
    gradients = dict(zip(("d_query", "d_key", "d_value"), found, strict=True))
    tensors = {"query": query, "key": key, "value": value, "grad": grad, "norm": norm, "delta": delta}
    _run("kithkin_backward", {**tensors, **gradients}, groups, paper, n_heads)
    d_query, d_key, d_value = (x.to(query.dtype) for x in found)
    return d_query, d_key, d_value


def _by_head(patches: Tensor, heads: int) -> Tensor:
    """(B, N, P, C) -> (B·N, P, heads, C / heads)."""
    return patches.view(-1, patches.shape[2], heads, patches.shape[3] // heads)


BACKEND = Backend("native", why_not, forward=forward, backward=backward)
