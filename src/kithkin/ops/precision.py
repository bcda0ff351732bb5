"""What autocast must leave in float32."""

from collections.abc import Callable

import torch
from torch import Tensor


def in_float32(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """``function(*tensors)``, computed in float32 even under autocast; without autocast nothing but the call.

    For what is written to the residual stream, or read from it without a LayerNorm. Its features carry offsets much
    larger than the differences from pixel to pixel, which the 8 bits of bfloat16 can't hold beside them
    (``docs/research/bfloat16.md``).
    """
    kind = tensors[0].device.type
    if not torch.is_autocast_enabled(kind):
        return function(*tensors)
    with torch.autocast(kind, enabled=False):
        return function(*(x.float() for x in tensors))
