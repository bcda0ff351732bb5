"""The precision of a run: what ``precision = "auto"`` chooses, and TF32 for what stays float32 on CUDA."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from kithkin.config import RunConfig
from kithkin.ops import multiplies_bfloat16
from kithkin.ops.precision import BFLOAT16_SLOWER


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
    sentence = f"precision: {config.precision} on {kind}"
    if config.precision == "bfloat16" and not able:
        cost = f"; a step takes about {BFLOAT16_SLOWER} times as long as in float32" if kind == "cpu" else ""
        advice = (
            "go on where there are, or start anew with `init`" if begun_in else 'set precision = "auto" or "float32"'
        )
        return f"{sentence}, which has no instructions for products in bfloat16{cost}; {advice}"
    if begun_in:
        return f"{sentence}, in which the run was begun"
    return sentence + (", which multiplies bfloat16" if able and config.precision == "bfloat16" else "")


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
