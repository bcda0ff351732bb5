"""The fused C++ kernels in ``kernels/``, for CPUs: Eqs. (8)-(10) in float32 and bfloat16, accumulated in float32; and
in float32 the feed-forward network and the gated block.

They are a plain shared library that takes pointers, so nothing is copied and Python's lock is free while they run.
Their loops run in the threads of the OpenMP runtime that PyTorch has loaded, as many as PyTorch uses.
"""

import ctypes
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor

from kithkin.errors import InputError
from kithkin.ops.backend import Backend, Problem, pitched
from kithkin.ops.grouping import PatchGroups
from kithkin.ops.kernels.build import INSTRUCTION_SETS, level, library
from kithkin.ops.library import constant_when_compiled

DTYPES = (torch.float32, torch.bfloat16)
REMEDY = "python -m pip install ziglang && python -m kithkin.ops.kernels"
MOST_LANES = 16  # floats of the widest vector that any instruction set has

_MAP = ("threads", "batch", "height", "width", "channels")
_FEED_FORWARD = (
    *("x", "norm_weight", "norm_bias", "widen", "widen_bias"),
    *("stencils", "stencil_bias", "narrow", "narrow_bias"),
)
_GATED_BLOCK = (
    *("x", "norm1_weight", "norm1_bias", "widen1", "widen1_bias"),
    *("stencils", "stencil_bias", "narrow1", "narrow1_bias"),
    *("norm2_weight", "norm2_bias", "widen2", "widen2_bias", "narrow2", "narrow2_bias"),
)


def _struct(pointers: tuple[str, ...], numbers: tuple[str, ...], *doubles: str) -> Any:
    """The ctypes class of a struct of the kernels: its pointers, its int64 numbers, its doubles."""
    fields = [(name, ctypes.c_void_p) for name in pointers]
    fields += [(name, ctypes.c_int64) for name in numbers]  # type: ignore[misc]
    fields += [(name, ctypes.c_double) for name in doubles]  # type: ignore[misc]
    return type("Arguments", (ctypes.Structure,), {"_fields_": fields})


# KithkinCall of kernels/knn_attention.cpp, KithkinFeedForward of feed_forward.cpp and KithkinGatedBlock of
# gated.hpp: the order of the fields is theirs.
_Attention = _struct(
    (
        *("query", "key", "value", "grad", "order", "neighbors", "out", "total", "top"),
        *("norm", "delta", "d_query", "d_key", "d_value", "team"),
    ),
    (
        *("threads", "batch", "rounds", "patches", "k", "kc", "pitch"),
        *("pixels", "channels", "heads", "paper", "bfloat16"),
    ),
)
_FeedForward = _struct(
    (*_FEED_FORWARD, "hidden", "out", "grad", "d_x", "d_parameters", "team"),
    (*_MAP, "wide"),
    "epsilon",
)
_GatedBlock = _struct((*_GATED_BLOCK, "out", "grad", "d_x", "d_parameters", "team"), _MAP, "epsilon")


@cache
def instruction_set() -> str | None:
    """The richest one that kernels were compiled for and that this processor has; None without kernels."""
    if not library("LEVEL").is_file():
        return None
    names = list(INSTRUCTION_SETS)[: level() + 1]
    return next((name for name in reversed(names) if library(name).is_file()), None)


@cache
def _kernel() -> ctypes.CDLL | None:
    name = instruction_set()
    return ctypes.CDLL(str(library(name))) if name else None


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
        return f"native was not compiled for this CPU: {REMEDY}"
    return None


def remark(device_type: str) -> str | None:
    """What a user should hear once, where networks run on a CPU without these kernels; else None."""
    if why_not(device_type, torch.float32, None) is None or device_type != "cpu":
        return None
    return f"networks take up to twice as long as they could, for want of compiled CPU kernels: {REMEDY}"


def _expect(who: str, dtype: torch.dtype, **tensors: tuple[Tensor, tuple[int, ...]]) -> None:
    """The kernels take addresses: what they are going to read is looked at first, whoever calls.

    Raises:
        InputError: a tensor has another shape, dtype or device than said.
    """
    for name, (tensor, shape) in tensors.items():
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
    _call(name, _Attention(**{key: x.data_ptr() for key, x in given.items()}, **numbers))


def _call(name: str, arguments: ctypes.Structure) -> None:
    if getattr(_kernel(), name)(ctypes.byref(arguments)):
        raise MemoryError("native: there is no memory for the kernel's work space")


@constant_when_compiled
def takes_maps(device_type: str, dtype: torch.dtype, channels: int) -> bool:
    """Whether the two functions below can serve maps of this device, dtype and width."""
    fits = dtype == torch.float32 and channels >= MOST_LANES
    return fits and why_not(device_type, dtype, None) is None


def feed_forward(name: str, given: tuple[Tensor, ...], epsilon: float, **tensors: Tensor) -> None:
    """Run a function of ``kernels/feed_forward.cpp`` on float32 tensors: x (B, H, W, C), then the
    parameters.

    Raises:
        InputError: a shape, dtype or device doesn't fit.
    """
    x, widen = given[0], given[_FEED_FORWARD.index("widen")]
    c, d = _channels(x), len(widen) if widen.ndim else 0
    if d < MOST_LANES:
        raise InputError(f"native: expected a weight (D, C) of at least {MOST_LANES} rows, got {tuple(widen.shape)}")
    weights = ((c,), (c,), (d, c), (d,), (d, 1, 3, 3), (d,), (c, d), (c,))
    shapes = dict(zip(_FEED_FORWARD[1:], weights, strict=True))
    shapes |= {"hidden": (*x.shape[:3], d), "d_parameters": (sum(p.numel() for p in given[1:]),)}
    given_by_name = dict(zip(_FEED_FORWARD, given, strict=True))
    _run_on_map(name, _FeedForward, shapes, given_by_name | tensors, wide=d, epsilon=epsilon)


def gated_block(name: str, given: tuple[Tensor, ...], epsilon: float, **tensors: Tensor) -> None:
    """Run a function of ``kernels/gated_block.cpp`` or ``gated_backward.cpp`` on float32 tensors:
    x (B, H, W, C), then the parameters.

    Raises:
        InputError: a shape, dtype or device doesn't fit.
    """
    c = _channels(given[0])
    if len(given) != len(_GATED_BLOCK):
        raise InputError(f"native: expected {len(_GATED_BLOCK) - 1} parameters, got {len(given) - 1}")
    weights = ((c,), (2 * c, c), (2 * c, 1, 3, 3), (c, c), (c,), (2 * c, c), (c, c))
    parts = (shape for weight in weights for shape in (weight, weight[:1]))
    shapes = dict(zip(_GATED_BLOCK[1:], parts, strict=True))
    shapes["d_parameters"] = (sum(p.numel() for p in given[1:]),)
    given_by_name = dict(zip(_GATED_BLOCK, given, strict=True))
    _run_on_map(name, _GatedBlock, shapes, given_by_name | tensors, epsilon=epsilon)


def _channels(x: Tensor) -> int:
    """C of a map (B, H, W, C) that the kernels take; InputError for another."""
    if x.ndim != 4 or 0 in x.shape or x.shape[3] < MOST_LANES:
        raise InputError(
            f"native: expected a map (B, H, W, C) with pixels and {MOST_LANES} channels, got {tuple(x.shape)}"
        )
    return x.shape[3]


def _run_on_map(
    name: str,
    struct: Any,
    shapes: Mapping[str, tuple[int, ...]],
    tensors: dict[str, Tensor],
    **more: float,
) -> None:
    """Call a kernel with a map x and what belongs to it: of the shape of x where none is said."""
    size = tuple(tensors["x"].shape)
    expected = {key: (tensor, shapes.get(key, size)) for key, tensor in tensors.items()}
    _expect("native", torch.float32, **expected)
    laid = {key: tensor.contiguous() for key, tensor in tensors.items()}  # until the call ends
    pointers = {key: tensor.data_ptr() for key, tensor in laid.items()}
    numbers = dict(zip(_MAP, (torch.get_num_threads(), *size), strict=True))
    _call(name, struct(**pointers, **numbers, **more, team=_team()))


def forward(
    query: Tensor, key: Tensor, value: Tensor, groups: PatchGroups, paper: bool, n_heads: int
) -> tuple[Tensor, Tensor]:
    """Output and, per patch and head, the logarithm to base 2 of the sum of weights (paper: the sum).

    Raises:
        InputError: a shape, dtype or device doesn't fit.
    """
    _check_patches(groups, n_heads, query, key, value)
    out = query.new_empty(query.shape, dtype=torch.float32)
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
    sums = [x.new_zeros(x.shape, dtype=torch.float32) for x in (query, key, value)]
    gradients = dict(zip(("d_query", "d_key", "d_value"), sums, strict=True))
    tensors = {"query": query, "key": key, "value": value, "grad": grad, "norm": norm, "delta": delta}
    _run("kithkin_backward", {**tensors, **gradients}, groups, paper, n_heads)
    d_query, d_key, d_value = (x.to(query.dtype) for x in sums)
    return d_query, d_key, d_value


def _by_head(patches: Tensor, heads: int) -> Tensor:
    """(B, N, P, C) -> (B·N, P, heads, C / heads)."""
    return patches.view(-1, patches.shape[2], heads, patches.shape[3] // heads)


BACKEND = Backend("native", why_not, forward=forward, backward=backward)
