"""Products from pixel to pixel."""

from torch import Tensor
from torch.nn import functional as F


def pointwise(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A linear layer on the last dimension. (B, H, W, C) -> (B, H, W, C').

    On CPUs as a 1×1 convolution, which PyTorch hands to oneDNN; its products are up to 1.8 times as fast there as
    those of the BLAS that ``linear`` calls (docs/backends.md), and a map in this layout need not be copied.
    """
    if x.device.type != "cpu":
        return F.linear(x, weight, bias)
    return F.conv2d(x.permute(0, 3, 1, 2), weight[:, :, None, None], bias).permute(0, 2, 3, 1)
