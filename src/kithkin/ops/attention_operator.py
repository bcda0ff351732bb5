"""Backends that do without PyTorch's autograd, as operators that torch.compile, torch.export and autograd know.

The groups cross this border as plain tensors and numbers. Gradients are of first order.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from kithkin.ops.backend import Backend
from kithkin.ops.grouping import PatchGroups
from kithkin.ops.library import exporting, operator

REGISTERED: dict[str, Backend] = {}


def register(backend: Backend) -> Backend:
    """Make a backend known to the operators below, by its name."""
    REGISTERED[backend.name] = backend
    return backend


def attention(
    query: Tensor, key: Tensor, value: Tensor, groups: PatchGroups, weighting: str, n_heads: int, backend: str
) -> Tensor:
    """k-NN local attention by a registered backend; arguments as in ``kithkin.ops.knn_local_attention``."""
    paper, wide = weighting == "paper", torch.is_autocast_enabled(query.device.type)
    if exporting() == "steps":
        return REGISTERED[backend].forward(query, key, value, groups, paper, n_heads)[0]  # type: ignore[misc]
    out: Tensor = _forward(
        query, key, value, groups.order, groups.neighbors, groups.k, groups.look_back, paper, n_heads, backend, wide
    )[0]
    return out


@operator("knn_attention", gradient=True)
def _forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    order: Tensor,
    neighbors: Tensor | None,
    k: int,
    look_back: bool,
    paper: bool,
    n_heads: int,
    backend: str,
    wide: bool = False,
) -> tuple[Tensor, Tensor]:
    """The output, in the dtype of its sums where it is ``wide``, and what the backward pass wants of the weights."""
    run = REGISTERED[backend].forward
    assert run is not None
    if not query.numel():  # nothing to divide into blocks
        exact = torch.float64 if value.dtype == torch.float64 else torch.float32
        norm = value.new_zeros((value.shape[0] * value.shape[1], n_heads), dtype=exact)
        return torch.zeros_like(value, dtype=_dtype_out(value, wide)), norm
    out, norm = run(query, key, value, PatchGroups(order, k, look_back, neighbors), paper, n_heads)
    return out.to(_dtype_out(value, wide)), norm


def _dtype_out(value: Tensor, wide: bool) -> torch.dtype:
    return torch.promote_types(value.dtype, torch.float32) if wide else value.dtype


@torch.library.register_fake("kithkin::knn_attention")
def _(query: Tensor, key: Tensor, value: Tensor, order: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    *_, n_heads, _, wide = rest if isinstance(rest[-1], bool) else (*rest, False)
    exact = torch.float64 if value.dtype == torch.float64 else torch.float32
    norm = value.new_empty((value.shape[0] * value.shape[1], n_heads), dtype=exact)
    return value.new_empty(value.shape, dtype=_dtype_out(value, wide)), norm


@operator("knn_attention_backward", gradient=False)
def _backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    norm: Tensor,
    order: Tensor,
    neighbors: Tensor | None,
    k: int,
    look_back: bool,
    paper: bool,
    n_heads: int,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    run = REGISTERED[backend].backward
    assert run is not None
    if not query.numel():
        return torch.zeros_like(query), torch.zeros_like(key), torch.zeros_like(value)
    return run(grad, query, key, value, out, norm, PatchGroups(order, k, look_back, neighbors), paper, n_heads)


@torch.library.register_fake("kithkin::knn_attention_backward")
def _(grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    made = (x.new_empty(x.shape) for x in (query, key, value))
    return next(made), next(made), next(made)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    query, key, value, order, neighbors, *ctx.rest, _ = inputs
    ctx.save_for_backward(query, key, value, *output, order, neighbors)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 11
    saved = ctx.saved_tensors  # activation checkpoints let them be read once
    gradients = _backward(grad.to(saved[0].dtype), *saved, *ctx.rest)
    return *gradients, *(None,) * 8


torch.library.register_autograd("kithkin::knn_attention", _differentiate, setup_context=_remember)


@register_flop_formula(torch.ops.kithkin.knn_attention)
def _flops(
    query: Any, key: Any, value: Any, order: Any, neighbors: Any, k: int, look_back: bool, *rest: Any, **_: Any
) -> int:
    """Of Eqs. (8) and (9), from shapes; Eq. (10) comes with them. The backward pass is 2.5 times as much."""
    batch, count, pixels, channels = query
    candidates = k * (1 + look_back) if neighbors is None else neighbors[-1]
    return 2 * 2 * batch * order[1] * count * pixels * candidates * pixels * channels


@register_flop_formula(torch.ops.kithkin.knn_attention_backward)
def _backward_flops(grad: Any, query: Any, key: Any, value: Any, out: Any, norm: Any, *rest: Any, **_: Any) -> int:
    return _flops(query, key, value, *rest) * 5 // 2
