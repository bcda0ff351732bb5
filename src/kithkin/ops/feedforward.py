"""Eq. (4) in one operator on CPUs: X + FFN(LN(X)) of a map, whose middle stays in the cache."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from kithkin.errors import InputError
from kithkin.ops import native
from kithkin.ops.depthwise import gelu_depthwise_gelu
from kithkin.ops.norm import layer_norm
from kithkin.ops.pointwise import pointwise
from kithkin.ops.precision import in_float32


def feed_forward(x: Tensor, parameters: Sequence[Tensor], epsilon: float = 1e-5) -> Tensor:
    """X + FFN(LN(X)): LayerNorm, widen, GELU, a 3×3 depth-wise convolution, GELU, narrow, and what came in.

    Args:
        x: (B, H, W, C) floats.
        parameters: weight (C,) and bias (C,) of the LayerNorm, weight (D, C) and bias (D,) that widen, weight
            (D, 1, 3, 3) and bias (D,) of the convolution, weight (C, D) and bias (C,) that narrow.
        epsilon: added to the variance by the LayerNorm.

    Returns:
        (B, H, W, C), differentiable once on CPUs in float32, any number of times elsewhere.

    Raises:
        InputError: the shapes don't fit.
    """
    channels, wide = x.shape[-1], parameters[2].shape[0]
    shapes = [
        (channels,),
        (channels,),
        (wide, channels),
        (wide,),
        (wide, 1, 3, 3),
        (wide,),
        (channels, wide),
        (channels,),
    ]
    if x.ndim != 4 or [tuple(p.shape) for p in parameters] != shapes:
        raise InputError(
            f"feed_forward: expected a map (B, H, W, C) and parameters {', '.join(map(str, shapes))}, "
            f"got {tuple(x.shape)} and {', '.join(str(tuple(p.shape)) for p in parameters)}"
        )
    in_one = _runs_natively(x.device.type, x.dtype, min(channels, wide)) and {p.dtype for p in parameters} == {x.dtype}
    if in_one and not torch.is_autocast_enabled(x.device.type):
        out: Tensor = _forward(x, *parameters, epsilon)[0]
        return out
    norm_weight, norm_bias, widen, widen_bias, stencils, stencil_bias, narrow, narrow_bias = parameters
    hidden = pointwise(layer_norm(x, norm_weight, norm_bias, epsilon), widen, widen_bias)
    return in_float32(pointwise, gelu_depthwise_gelu(hidden, stencils, stencil_bias), narrow, narrow_bias) + x


@torch.compiler.assume_constant_result
def _runs_natively(device_type: str, dtype: torch.dtype, channels: int) -> bool:
    return native.why_not(device_type, dtype, None) is None and native.runs_depthwise(dtype, channels)


@torch.library.custom_op("kithkin::feed_forward", mutates_args=())
def _forward(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    widen: Tensor,
    widen_bias: Tensor,
    stencils: Tensor,
    stencil_bias: Tensor,
    narrow: Tensor,
    narrow_bias: Tensor,
    epsilon: float,
) -> tuple[Tensor, Tensor]:
    """The result, and the widened map for the backward pass."""
    given = (norm_weight, norm_bias, widen, widen_bias, stencils, stencil_bias, narrow, narrow_bias)
    out, hidden = torch.empty(x.shape), torch.empty(*x.shape[:3], widen.shape[0])
    if not x.numel():
        return out, hidden
    native.feed_forward("kithkin_feed_forward", (x, *given), epsilon, out=out, hidden=hidden)
    return out, hidden


@_forward.register_fake
def _(x: Tensor, norm_weight: Tensor, norm_bias: Tensor, widen: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty((*x.shape[:3], widen.shape[0]))


@torch.library.custom_op("kithkin::feed_forward_backward", mutates_args=())
def _backward(
    grad: Tensor,
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    widen: Tensor,
    widen_bias: Tensor,
    stencils: Tensor,
    stencil_bias: Tensor,
    narrow: Tensor,
    narrow_bias: Tensor,
    hidden: Tensor,
    epsilon: float,
) -> tuple[Tensor, Tensor]:
    """Gradients of x, and of all parameters in one row of numbers."""
    given = (norm_weight, norm_bias, widen, widen_bias, stencils, stencil_bias, narrow, narrow_bias)
    d_x, d_parameters = torch.empty(x.shape), torch.empty(sum(p.numel() for p in given))
    if not x.numel():
        return d_x, d_parameters.zero_()
    native.feed_forward(
        "kithkin_feed_forward_backward",
        (x, *given),
        epsilon,
        hidden=hidden,
        grad=grad,
        d_x=d_x,
        d_parameters=d_parameters,
    )
    return d_x, d_parameters


@_backward.register_fake
def _(grad: Tensor, x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    *given, _, _ = rest
    return x.new_empty(x.shape), x.new_empty(sum(p.numel() for p in given))


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *given, ctx.epsilon = inputs
    ctx.save_for_backward(*given, output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 10
    x, *given, hidden = ctx.saved_tensors
    d_x, d_parameters = _backward(grad, x, *given, hidden, ctx.epsilon)
    shares = d_parameters.split([p.numel() for p in given])
    return d_x, *(share.view(p.shape) for share, p in zip(shares, given, strict=True)), None


_forward.register_autograd(_differentiate, setup_context=_remember)


def _flops(x: Any, norm_weight: Any, norm_bias: Any, widen: Any, *_: Any, **__: Any) -> int:
    """Of the two matrices and the convolution, from shapes."""
    batch, height, width, channels = x
    return 2 * batch * height * width * (2 * channels + 9) * widen[0]


register_flop_formula(torch.ops.kithkin.feed_forward)(_flops)


@register_flop_formula(torch.ops.kithkin.feed_forward_backward)
def _backward_flops(grad: Any, x: Any, *rest: Any, **_: Any) -> int:
    return 2 * _flops(x, *rest)
