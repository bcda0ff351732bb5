"""In which precision a run computes: what ``precision = "auto"`` comes to, and TF32 for what stays float32 on CUDA."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from kithkin.config import RunConfig

SLOWER = 10
"""How many times as long a step takes in bfloat16 where a CPU has no products of it (``docs/research/bfloat16.md``)."""


def multiplies_bfloat16(device: str | torch.device) -> bool:
    """Whether a device has instructions for products in bfloat16: NVIDIA's GPUs from compute capability 8.0 on, CPUs
    with AVX-512 BF16 or AMX."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        return any(getattr(torch.cpu, name)() for name in names if hasattr(torch.cpu, name))
    return False


def settled(config: RunConfig, device: str | torch.device, *, begun_in: str | None = None) -> RunConfig:
    """The run with a precision in place of ``"auto"``.

    Args:
        config: the run.
        device: that it is trained on.
        begun_in: the precision of the steps done before, which goes on whatever the device.
    """
    if config.precision != "auto":
        return config
    chosen = begun_in or ("bfloat16" if multiplies_bfloat16(device) else "float32")
    return config.model_copy(update={"precision": chosen})


def explain(config: RunConfig, device: str | torch.device, *, begun_in: str | None = None) -> str:
    """A sentence on the precision of a settled run for its owner, and on what it costs."""
    able, kind = multiplies_bfloat16(device), torch.device(device).type
    said = f"precision: {config.precision} on {kind}"
    if config.precision == "bfloat16" and not able:
        cost = f"; a step takes about {SLOWER} times as long as in float32" if kind == "cpu" else ""
        way = "go on where there are, or start anew with --init" if begun_in else 'set precision = "auto" or "float32"'
        return f"{said}, which has no instructions for products in bfloat16{cost}; {way}"
    if begun_in:
        return f"{said}, in which the run was begun"
    return said + (", which multiplies bfloat16" if able and config.precision == "bfloat16" else "")


def warn_of_slowness(config: RunConfig, device: str | torch.device, note: str) -> None:
    """Warn who asked for no report where bfloat16 is slow."""
    if config.precision == "bfloat16" and not multiplies_bfloat16(device):
        warnings.warn(note, stacklevel=3)


@contextmanager
def tf32(device: torch.device) -> Iterator[None]:
    """Let CUDA multiply float32 in TF32, which keeps 10 bits of 23; what was set before is put back.

    The switches are global, so other threads see them as well. On other devices nothing changes.
    """
    if device.type != "cuda":
        yield
        return
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]
