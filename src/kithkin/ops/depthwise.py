"""The middle of KiT's feed-forward network in PyTorch's operations: GELU, a 3×3 depth-wise convolution, GELU.

On CPUs ``kithkin.ops.feed_forward`` does this and what is around it in one pass over memory.
"""

from torch import Tensor
from torch.nn import functional as F

from kithkin.errors import InputError


def gelu_depthwise_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """GELU(DW(GELU(x)) + bias), with a 3×3 depth-wise convolution DW that sees zeros beyond the border.

    Args:
        x: (B, H, W, C) floats.
        weight: (C, 1, 3, 3).
        bias: (C,).

    Returns:
        (B, H, W, C).

    Raises:
        InputError: the shapes don't fit.
    """
    channels = x.shape[-1]
    if x.ndim != 4 or weight.shape != (channels, 1, 3, 3) or bias.shape != (channels,):
        raise InputError(
            "gelu_depthwise_gelu: expected a map (B, H, W, C), weight (C, 1, 3, 3) and bias (C,), "
            f"got {tuple(x.shape)}, {tuple(weight.shape)} and {tuple(bias.shape)}"
        )
    if not x.numel():  # which conv2d refuses; gradients must reach all three
        return x * weight.sum((1, 2, 3)) + bias
    hidden = F.conv2d(F.gelu(x).permute(0, 3, 1, 2), weight, bias, padding=1, groups=channels)
    return F.gelu(hidden.permute(0, 2, 3, 1))
