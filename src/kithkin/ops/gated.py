"""The gated block of a KiT of the second kind in one operator on CPUs, whose widened maps stay in the cache."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import register_flop_formula

from kithkin.errors import InputError
from kithkin.ops import native
from kithkin.ops.library import as_one_operator, operator
from kithkin.ops.linear import pointwise
from kithkin.ops.norm import layer_norm

WIDEST_THAT_LEARNS = 128
"""Channels up to which the kernel's backward pass is clearly faster than that of the steps.

Measured in ``docs/reference/benchmarks.md``.
"""


def gated_block(x: Tensor, parameters: Sequence[Tensor], epsilon: float = 1e-5) -> Tensor:
    """Y = X + W₁(gate(DW(V₁(LN(X))))), then Y + W₂(gate(V₂(LN(Y)))): V₁ and V₂ double the channels, DW is a 3×3
    depth-wise convolution that sees zeros beyond the border, and the gate multiplies one half of the channels by the
    other.

    Args:
        x: (B, H, W, C) floats.
        parameters: weight and bias of each layer in turn: LayerNorm (C,), V₁ (2C, C), DW (2C, 1, 3, 3), W₁ (C, C),
            LayerNorm (C,), V₂ (2C, C), W₂ (C, C).
        epsilon: added to the variance by both LayerNorms.

    Returns:
        (B, H, W, C), differentiable once on CPUs in float32 up to ``WIDEST_THAT_LEARNS`` channels, any number of times
        elsewhere. The backward pass computes again what lies between.

    Raises:
        InputError: the shapes don't fit.
    """
    c = x.shape[-1]
    weights = [(c,), (2 * c, c), (2 * c, 1, 3, 3), (c, c), (c,), (2 * c, c), (c, c)]
    shapes = [shape for weight in weights for shape in (weight, weight[:1])]
    if x.ndim != 4 or [tuple(p.shape) for p in parameters] != shapes:
        raise InputError(
            f"gated_block: expected a map (B, H, W, C) and parameters {', '.join(map(str, shapes))}, "
            f"got {tuple(x.shape)} and {', '.join(str(tuple(p.shape)) for p in parameters)}"
        )
    kernel = native.takes_maps(x.device.type, x.dtype, c) and {p.dtype for p in parameters} == {x.dtype}
    if torch.is_grad_enabled() and any(t.requires_grad for t in (x, *parameters)):
        kernel = kernel and c <= WIDEST_THAT_LEARNS
    if as_one_operator(kernel) and not torch.is_autocast_enabled(x.device.type):
        out: Tensor = _forward(x, parameters, epsilon)
        return out
    norm1, bias1, widen1, widen1_bias, stencils, stencil_bias, narrow1, narrow1_bias, *second = parameters
    norm2, bias2, widen2, widen2_bias, narrow2, narrow2_bias = second
    wide = pointwise(layer_norm(x, norm1, bias1, epsilon), widen1, widen1_bias).permute(0, 3, 1, 2)
    wide = F.conv2d(wide, stencils, stencil_bias, padding=1, groups=2 * c).permute(0, 2, 3, 1)
    x = x + pointwise(_gate(wide), narrow1, narrow1_bias)
    wide = pointwise(layer_norm(x, norm2, bias2, epsilon), widen2, widen2_bias)
    return x + pointwise(_gate(wide), narrow2, narrow2_bias)


def _gate(x: Tensor) -> Tensor:
    """(…, 2C) -> (…, C): one half of the channels times the other."""
    left, right = x.chunk(2, dim=-1)
    return left * right


@operator("gated_block", gradient=True)
def _forward(x: Tensor, parameters: Sequence[Tensor], epsilon: float) -> Tensor:
    out = x.new_empty(x.shape)
    if x.numel():
        native.gated_block("kithkin_gated_block", (x, *parameters), epsilon, out=out)
    return out


@torch.library.register_fake("kithkin::gated_block")
def _(x: Tensor, parameters: Sequence[Tensor], epsilon: float) -> Tensor:
    return x.new_empty(x.shape)


@operator("gated_block_backward", gradient=False)
def _backward(grad: Tensor, x: Tensor, parameters: Sequence[Tensor], epsilon: float) -> tuple[Tensor, Tensor]:
    """Gradients of x, and of all parameters in one row of numbers."""
    d_x, d_parameters = x.new_empty(x.shape), x.new_empty(sum(p.numel() for p in parameters))
    if not x.numel():
        return d_x, d_parameters.zero_()
    given = {"grad": grad, "d_x": d_x, "d_parameters": d_parameters}
    native.gated_block("kithkin_gated_block_backward", (x, *parameters), epsilon, **given)
    return d_x, d_parameters


@torch.library.register_fake("kithkin::gated_block_backward")
def _(grad: Tensor, x: Tensor, parameters: Sequence[Tensor], epsilon: float) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(sum(p.numel() for p in parameters))


def _remember(ctx: Any, inputs: tuple[Tensor, Sequence[Tensor], float], output: Tensor) -> None:
    x, parameters, ctx.epsilon = inputs
    ctx.save_for_backward(x, *parameters)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor, list[Tensor], None]:
    x, *parameters = ctx.saved_tensors
    d_x, d_parameters = _backward(grad, x, parameters, ctx.epsilon)
    shares = d_parameters.split([p.numel() for p in parameters])
    return d_x, [share.view(p.shape) for share, p in zip(shares, parameters, strict=True)], None


torch.library.register_autograd("kithkin::gated_block", _differentiate, setup_context=_remember)


@register_flop_formula(torch.ops.kithkin.gated_block)
def _flops(x: Any, *_: Any, **__: Any) -> int:
    """Of the four matrices and the convolution, from shapes."""
    batch, height, width, channels = x
    return int(2 * batch * height * width * channels * (6 * channels + 18))


@register_flop_formula(torch.ops.kithkin.gated_block_backward)
def _backward_flops(grad: Any, x: Any, *_: Any, **__: Any) -> int:
    return 2 * _flops(x)
