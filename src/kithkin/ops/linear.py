"""Linear layers over the channels of each pixel."""

import torch
from torch import Tensor
from torch.nn import functional as F

from kithkin.ops.library import exporting

# PyTorch gives a map of at most so many numbers to no library where it is convolved alone.
_SMALL = 20480


def pointwise(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A linear layer on the last dimension. (B, H, W, C) -> (B, H, W, C').

    On CPUs as a 1×1 convolution, which PyTorch hands to oneDNN; its products are up to 1.8 times as fast there as
    those of the BLAS that ``linear`` calls (docs/reference/backends.md), and a map in this layout need not be copied.
    """
    if x.device.type != "cpu":
        return F.linear(x, weight, bias)
    if exporting():  # runtimes multiply and add in one pass where the input has two dimensions
        return F.linear(x.flatten(0, -2), weight, bias).view(*x.shape[:-1], weight.shape[0])
    dilation = 1
    if x.dtype == torch.float32 and not (torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu")):
        if len(x) < 2 and x.numel() <= _SMALL:
            return F.linear(x, weight, bias)
        # With one thread PyTorch keeps a 1×1 convolution from oneDNN, but none that is dilated, which changes nothing.
        dilation = 2 if torch.backends.mkldnn.is_available() else 1
    return F.conv2d(x.permute(0, 3, 1, 2), weight[:, :, None, None], bias, dilation=dilation).permute(0, 2, 3, 1)
