"""Eq. (4) in one operator on CPUs: X + FFN(LN(X)) of a map, whose middle stays in the cache."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from kithkin.errors import InputError
from kithkin.ops import native
from kithkin.ops.depthwise import gelu_depthwise_gelu
from kithkin.ops.library import as_one_operator, operator
from kithkin.ops.linear import pointwise
from kithkin.ops.norm import layer_norm
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
    c, d = x.shape[-1], parameters[2].shape[0]
    shapes = [(c,), (c,), (d, c), (d,), (d, 1, 3, 3), (d,), (c, d), (c,)]
    if x.ndim != 4 or [tuple(p.shape) for p in parameters] != shapes:
        raise InputError(
            f"feed_forward: expected a map (B, H, W, C) and parameters {', '.join(map(str, shapes))}, "
            f"got {tuple(x.shape)} and {', '.join(str(tuple(p.shape)) for p in parameters)}"
        )
    kernel = native.takes_maps(x.device.type, x.dtype, min(c, d)) and {p.dtype for p in parameters} == {x.dtype}
    if as_one_operator(kernel) and not torch.is_autocast_enabled(x.device.type):
        out: Tensor = _forward(x, parameters, epsilon)[0]
        return out
    norm_weight, norm_bias, widen, widen_bias, stencils, stencil_bias, narrow, narrow_bias = parameters
    # FFN(LN(X)) + X, with Sec. 3.3's FFN: widen, GELU, depth-wise convolution, GELU, narrow.
    hidden = pointwise(layer_norm(x, norm_weight, norm_bias, epsilon), widen, widen_bias)
    return in_float32(pointwise, gelu_depthwise_gelu(hidden, stencils, stencil_bias), narrow, narrow_bias) + x


@operator("feed_forward", gradient=True)
def _forward(x: Tensor, parameters: Sequence[Tensor], epsilon: float) -> tuple[Tensor, Tensor]:
    """The result, and the widened map for the backward pass."""
    out, hidden = x.new_empty(x.shape), x.new_empty(*x.shape[:3], parameters[2].shape[0])
    if x.numel():
        native.feed_forward("kithkin_feed_forward", (x, *parameters), epsilon, out=out, hidden=hidden)
    return out, hidden


@torch.library.register_fake("kithkin::feed_forward")
def _(x: Tensor, parameters: Sequence[Tensor], epsilon: float) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty((*x.shape[:3], parameters[2].shape[0]))


@operator("feed_forward_backward", gradient=False)
def _backward(
    grad: Tensor, x: Tensor, parameters: Sequence[Tensor], hidden: Tensor, epsilon: float
) -> tuple[Tensor, Tensor]:
    """Gradients of x, and of all parameters in one row of numbers."""
    d_x, d_parameters = x.new_empty(x.shape), x.new_empty(sum(p.numel() for p in parameters))
    if not x.numel():
        return d_x, d_parameters.zero_()
    given = {"hidden": hidden, "grad": grad, "d_x": d_x, "d_parameters": d_parameters}
    native.feed_forward("kithkin_feed_forward_backward", (x, *parameters), epsilon, **given)
    return d_x, d_parameters


@torch.library.register_fake("kithkin::feed_forward_backward")
def _(grad: Tensor, x: Tensor, parameters: Sequence[Tensor], hidden: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(sum(p.numel() for p in parameters))


def _remember(ctx: Any, inputs: tuple[Tensor, Sequence[Tensor], float], output: tuple[Tensor, Tensor]) -> None:
    x, parameters, ctx.epsilon = inputs
    ctx.save_for_backward(x, output[1], *parameters)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, Any, None]:
    x, hidden, *parameters = ctx.saved_tensors
    if grad is None:
        return None, [None] * len(parameters), None
    d_x, d_parameters = _backward(grad, x, parameters, hidden, ctx.epsilon)
    shares = d_parameters.split([p.numel() for p in parameters])
    return d_x, [share.view(p.shape) for share, p in zip(shares, parameters, strict=True)], None


torch.library.register_autograd("kithkin::feed_forward", _differentiate, setup_context=_remember)


@register_flop_formula(torch.ops.kithkin.feed_forward)
def _flops(x: Any, parameters: Any, *_: Any, **__: Any) -> int:
    """Of the two matrices and the convolution, from shapes."""
    batch, height, width, channels = x
    return int(2 * batch * height * width * (2 * channels + 9) * parameters[2][0])


@register_flop_formula(torch.ops.kithkin.feed_forward_backward)
def _backward_flops(grad: Any, x: Any, *rest: Any, **_: Any) -> int:
    return 2 * _flops(x, *rest)
