"""Eqs. (8)-(10) by the fused C++ kernel in ``kernels/``: float32 and bfloat16 on CPUs, accumulated in float32.

The kernel is a plain shared library that takes pointers, so nothing is copied and Python's lock is free while it runs.
Its loops run in the threads of the OpenMP runtime that PyTorch has loaded, as many as PyTorch uses.
"""

import ctypes
from functools import cache
from typing import Any

import torch
from torch import Tensor

from kithkin.ops.grouping import PatchGroups
from kithkin.ops.kernels.build import library

DTYPES = (torch.float32, torch.bfloat16)

_POINTERS = (
    *("query", "key", "value", "grad", "queries", "candidates", "out", "total", "top"),
    *("norm", "delta", "d_query", "d_key", "d_value", "team"),
)
_NUMBERS = (
    *("threads", "rounds", "batch", "chunks", "kq", "kc"),
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
    """The library for this processor; None where there is none."""
    known = torch.backends.cpu.get_cpu_capability()
    for name in dict.fromkeys((known, "AVX2" if known == "AVX512" else "DEFAULT", "DEFAULT")):
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


def why_not(device_type: str, dtype: torch.dtype, groups: PatchGroups | None) -> str | None:
    """None where the kernel can serve tensors of this device and dtype in these groups, else one sentence."""
    if device_type != "cpu":
        return f"native runs on the CPU, not on {device_type}"
    if dtype not in DTYPES:
        return f"native takes float32 and bfloat16, not {str(dtype).removeprefix('torch.')}"
    if groups is not None and groups.neighbors is not None:
        return "native works on chunks, not on exact neighbour lists"
    if _kernel() is None:
        return "native was not compiled; with a C++ compiler at hand: python -m kithkin.ops.kernels.build"
    return None


def attention(query: Tensor, key: Tensor, value: Tensor, groups: PatchGroups, weighting: str, n_heads: int) -> Tensor:
    """k-NN local attention by the kernel; arguments as in :func:`kithkin.ops.knn_local_attention`."""
    tables = tuple(_rows(places, groups.n_patches) for places in (groups.chunks(), groups.candidates()))
    out: Tensor = _NativeAttention.apply(query, key, value, *tables, weighting == "paper", n_heads)
    return out


def _rows(places: Tensor, count: int) -> Tensor:
    """(B, h, G, k) places of patches -> (h, B, G, k) rows of the flattened (B·N) patches; -1 stays."""
    first = torch.arange(places.shape[0]).view(-1, 1, 1, 1) * count
    return torch.where(places < 0, places, places + first).transpose(0, 1).contiguous()


def _run(name: str, tensors: dict[str, Tensor], shape: torch.Size, paper: bool, heads: int) -> None:
    queries, candidates = tensors["queries"], tensors["candidates"]
    numbers: dict[str, Any] = {
        "team": _team(),
        "threads": torch.get_num_threads(),
        "rounds": queries.shape[0],
        "batch": queries.shape[1],
        "chunks": queries.shape[2],
        "kq": queries.shape[3],
        "kc": candidates.shape[3],
        "pixels": shape[2],
        "channels": shape[3],
        "heads": heads,
        "paper": paper,
        "bfloat16": tensors["query"].dtype == torch.bfloat16,
    }
    call = _Call(**{key: x.data_ptr() for key, x in tensors.items()}, **numbers)
    if getattr(_kernel(), name)(ctypes.byref(call)):
        raise MemoryError("native: there is no memory for the kernel's work space")


class _NativeAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        queries: Tensor,
        candidates: Tensor,
        paper: bool,
        heads: int,
    ) -> Tensor:
        query, key, value = (x.contiguous() for x in (query, key, value))
        out = torch.empty_like(query, dtype=torch.float32)
        total = out.new_empty(query.shape[0] * query.shape[1], heads)
        top = torch.empty_like(total)
        taken = {"query": query, "key": key, "value": value, "queries": queries, "candidates": candidates}
        _run("kithkin_forward", {**taken, "out": out, "total": total, "top": top}, query.shape, paper, heads)
        _by_head(out, heads).div_(total[:, None, :, None])
        norm = total if paper else total.log_().add_(top)
        out = out.to(value.dtype)
        ctx.save_for_backward(query, key, value, queries, candidates, out, norm)
        ctx.rest = paper, heads
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        query, key, value, queries, candidates, out, norm = ctx.saved_tensors
        paper, heads = ctx.rest
        grad = grad.contiguous()
        delta = (_by_head(grad.float(), heads) * _by_head(out.float(), heads)).sum(dim=(1, 3))
        found = [torch.zeros_like(x, dtype=torch.float32) for x in (query, key, value)]
        gradients = dict(zip(("d_query", "d_key", "d_value"), found, strict=True))
        taken = {"query": query, "key": key, "value": value, "queries": queries, "candidates": candidates}
        tensors = {**taken, "grad": grad, "norm": norm, "delta": delta, **gradients}
        _run("kithkin_backward", tensors, query.shape, paper, heads)
        return *(x.to(query.dtype) for x in found), None, None, None, None


def _by_head(patches: Tensor, heads: int) -> Tensor:
    """(B, N, P, C) -> (B·N, P, heads, C / heads)."""
    return patches.view(-1, patches.shape[2], heads, patches.shape[3] // heads)
