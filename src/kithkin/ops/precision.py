"""What autocast must leave in float32, and which devices multiply bfloat16."""

from collections.abc import Callable

import torch
from torch import Tensor

BFLOAT16_SLOWER = 10
"""How many times as long bfloat16 takes where a CPU has no products of it (``docs/research/bfloat16.md``)."""


def multiplies_bfloat16(device: str | torch.device) -> bool:
    """Whether a device has instructions for products in bfloat16: NVIDIA's GPUs from compute capability 8.0 on, CPUs
    with AVX-512 BF16 or AMX. False for a GPU that PyTorch doesn't see here."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.is_available() and torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        return any(getattr(torch.cpu, name)() for name in names if hasattr(torch.cpu, name))
    return False


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
