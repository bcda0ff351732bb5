"""The fused C++ kernels in ``kernels/``, for CPUs: Eqs. (8)-(10) in float32 and bfloat16, accumulated in float32; and
in float32 the middle of the feed-forward network.

They are a plain shared library that takes pointers, so nothing is copied and Python's lock is free while they run.
Their loops run in the threads of the OpenMP runtime that PyTorch has loaded, as many as PyTorch uses.
"""

import ctypes
from functools import cache
from typing import Any

import torch
from torch import Tensor

from kithkin.ops.backend import Backend, Problem, pitched
from kithkin.ops.grouping import PatchGroups
from kithkin.ops.kernels.build import INSTRUCTION_SETS, library

DTYPES = (torch.float32, torch.bfloat16)
MOST_LANES = 16  # floats of the widest vector that any instruction set has

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


class _Depthwise(ctypes.Structure):
    """The struct KithkinDepthwise of ``kernels/depthwise.cpp``."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("x", "weight", "bias", "grad")),
        *((name, ctypes.c_void_p) for name in ("out", "d_x", "d_weight", "d_bias", "team")),
        *((name, ctypes.c_int64) for name in ("threads", "batch", "height", "width", "channels")),
    )


_FEED_FORWARD = (
    "x",
    "norm_weight",
    "norm_bias",
    "widen",
    "widen_bias",
    "stencils",
    "stencil_bias",
    "narrow",
    "narrow_bias",
)


class _FeedForward(ctypes.Structure):
    """The struct KithkinFeedForward of ``kernels/feed_forward.cpp``."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in (*_FEED_FORWARD, "hidden", "out", "grad", "d_x", "d_parameters", "team")),
        *((name, ctypes.c_int64) for name in ("threads", "batch", "height", "width", "channels", "wide")),
        ("epsilon", ctypes.c_double),
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


def _run(name: str, tensors: dict[str, Tensor], groups: PatchGroups, paper: bool, heads: int) -> None:
    (batch, count, pixels, channels), dtype = tensors["query"].shape, tensors["query"].dtype
    pitch, laid = pitched(*(tensors[key] for key in ("query", "key", "value")))
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
    _call(name, _Call(**{key: x.data_ptr() for key, x in given.items()}, **numbers))


def _call(name: str, arguments: ctypes.Structure) -> None:
    if getattr(_kernel(), name)(ctypes.byref(arguments)):
        raise MemoryError("native: there is no memory for the kernel's work space")


def runs_depthwise(dtype: torch.dtype, channels: int) -> bool:
    """Whether ``depthwise`` takes maps of this dtype and width, where the kernels are there at all."""
    return dtype == torch.float32 and channels >= MOST_LANES


def depthwise(name: str, **tensors: Tensor) -> None:
    """Run a function of ``kernels/depthwise.cpp`` on float32 tensors; x is (B, H, W, C)."""
    laid = {key: x.contiguous() for key, x in tensors.items()}
    numbers = dict(zip(("batch", "height", "width", "channels"), laid["x"].shape, strict=True))
    pointers = {key: x.data_ptr() for key, x in laid.items()}
    _call(name, _Depthwise(**pointers, **numbers, team=_team(), threads=torch.get_num_threads()))


def feed_forward(name: str, given: tuple[Tensor, ...], epsilon: float, **tensors: Tensor) -> None:
    """Run a function of ``kernels/feed_forward.cpp`` on float32 tensors: x (B, H, W, C), then the parameters."""
    laid = {key: x.contiguous() for key, x in zip(_FEED_FORWARD, given, strict=True)}
    laid |= {key: x.contiguous() for key, x in tensors.items()}
    numbers = dict(zip(("batch", "height", "width", "channels"), laid["x"].shape, strict=True))
    pointers = {key: x.data_ptr() for key, x in laid.items()}
    wide, threads = laid["widen"].shape[0], torch.get_num_threads()
    _call(name, _FeedForward(**pointers, **numbers, wide=wide, team=_team(), threads=threads, epsilon=epsilon))


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
