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

from kithkin.errors import InputError
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


def _expect(who: str, dtype: torch.dtype, **found: tuple[Tensor, tuple[int, ...]]) -> None:
    """The kernels take addresses: what they are going to read is looked at first, whoever calls.

    Raises:
        InputError: a tensor has another shape, dtype or device than said.
    """
    for name, (tensor, shape) in found.items():
        if tensor.shape != shape or tensor.dtype != dtype or tensor.device.type != "cpu":
            raise InputError(
                f"{who}: expected {name} {shape} of {dtype} on the CPU, got {tuple(tensor.shape)} of {tensor.dtype} on "
                f"{tensor.device}"
            )


def _check_patches(groups: PatchGroups, heads: int, *tensors: Tensor) -> None:
    first = tensors[0]
    if first.ndim != 4 or first.dtype not in DTYPES or heads < 1 or first.shape[3] % heads:
        raise InputError(
            f"native: expected patches (B, N, P, C) in float32 or bfloat16 and heads that divide C, got "
            f"{tuple(first.shape)} of {first.dtype} and {heads} heads"
        )
    names = ("query", "key", "value", "grad", "out")
    _expect("native", first.dtype, **{n: (x, tuple(first.shape)) for n, x in zip(names, tensors, strict=False)})
    if (groups.order.shape[0], groups.n_patches) != first.shape[:2]:
        raise InputError(
            f"native: the groups are of {groups.order.shape[0]} images of {groups.n_patches} patches, the tensors are "
            f"{tuple(first.shape)}"
        )


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
        "k": min(groups.k, count),  # one chunk of all patches holds no more
        "kc": groups.candidates_per_patch if neighbors is not None else min(groups.k, count) * (1 + groups.look_back),
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
    """Run a function of ``kernels/depthwise.cpp`` on float32 tensors; x is (B, H, W, C), not empty.

    Raises:
        InputError: a shape, dtype or device doesn't fit.
    """
    shape = tuple(tensors["x"].shape)
    if len(shape) != 4 or 0 in shape or shape[3] < MOST_LANES:
        raise InputError(f"native: expected a map (B, H, W, C) with pixels and {MOST_LANES} channels, got {shape}")
    shapes = {"weight": (shape[3], 1, 3, 3), "bias": shape[3:]}
    shapes |= {f"d_{key}": wanted for key, wanted in shapes.items()}
    _expect("native", torch.float32, **{key: (x, shapes.get(key, shape)) for key, x in tensors.items()})
    laid = {key: x.contiguous() for key, x in tensors.items()}
    numbers = dict(zip(("batch", "height", "width", "channels"), laid["x"].shape, strict=True))
    pointers = {key: x.data_ptr() for key, x in laid.items()}
    _call(name, _Depthwise(**pointers, **numbers, team=_team(), threads=torch.get_num_threads()))


def feed_forward(name: str, given: tuple[Tensor, ...], epsilon: float, **tensors: Tensor) -> None:
    """Run a function of ``kernels/feed_forward.cpp`` on float32 tensors: x (B, H, W, C), then the parameters.

    Raises:
        InputError: a shape, dtype or device doesn't fit.
    """
    x, widen = given[0], given[_FEED_FORWARD.index("widen")]
    if x.ndim != 4 or widen.ndim != 2 or 0 in x.shape or min(x.shape[3], len(widen)) < MOST_LANES:
        raise InputError(
            f"native: expected a map (B, H, W, C) with pixels and a weight (D, C), both of at least {MOST_LANES} "
            f"channels, got {tuple(x.shape)} and {tuple(widen.shape)}"
        )
    c, d = x.shape[3], len(widen)
    shapes = dict(
        zip(_FEED_FORWARD, (x.shape, (c,), (c,), (d, c), (d,), (d, 1, 3, 3), (d,), (c, d), (c,)), strict=True)
    )
    shapes |= {"hidden": (*x.shape[:3], d), "d_parameters": (sum(p.numel() for p in given[1:]),)}
    found = {**dict(zip(_FEED_FORWARD, given, strict=True)), **tensors}
    _expect("native", torch.float32, **{key: (t, tuple(shapes.get(key, x.shape))) for key, t in found.items()})
    laid = {key: x.contiguous() for key, x in zip(_FEED_FORWARD, given, strict=True)}
    laid |= {key: x.contiguous() for key, x in tensors.items()}
    numbers = dict(zip(("batch", "height", "width", "channels"), laid["x"].shape, strict=True))
    pointers = {key: x.data_ptr() for key, x in laid.items()}
    wide, threads = laid["widen"].shape[0], torch.get_num_threads()
    _call(name, _FeedForward(**pointers, **numbers, wide=wide, team=_team(), threads=threads, epsilon=epsilon))


def forward(
    query: Tensor, key: Tensor, value: Tensor, groups: PatchGroups, paper: bool, n_heads: int
) -> tuple[Tensor, Tensor]:
    """Output and, per patch and head, the logarithm to base 2 of the sum of weights (paper: the sum).

    Raises:
        InputError: a shape, dtype or device doesn't fit.
    """
    _check_patches(groups, n_heads, query, key, value)
    out = torch.empty(query.shape, dtype=torch.float32)
    total = out.new_empty(query.shape[0] * query.shape[1], n_heads)
    tensors = {"query": query, "key": key, "value": value, "out": out, "total": total}
    top = torch.empty_like(total)
    _run("kithkin_forward", {**tensors, "top": top}, groups, paper, n_heads)
    return out, total if paper else total.log2_().add_(top)


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
    """Gradients of query, key and value; the logits are computed again.

    Raises:
        InputError: a shape, dtype or device doesn't fit.
    """
    _check_patches(groups, n_heads, query, key, value, grad)
    _expect("native", out.dtype, out=(out, tuple(query.shape)))
    _expect("native", torch.float32, norm=(norm, (query.shape[0] * query.shape[1], n_heads)))
    grad, norm = grad.contiguous(), norm.contiguous()
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
