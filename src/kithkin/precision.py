"""The precision in which a network restores: what ``precision="auto"`` chooses, and autocast for bfloat16."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from kithkin.errors import InputError
from kithkin.ops import multiplies_bfloat16
from kithkin.ops.precision import BFLOAT16_SLOWER


def settled_precision(precision: str, model: Any, device: str | torch.device | None = None) -> str:
    """The precision that a network restores in: ``"float32"`` or ``"bfloat16"``, or what its weights were turned into;
    ``"float32"`` for a restorer that is no network.

    ``"auto"`` is bfloat16 where the network has ``config.blocks`` and the device has instructions for its products. The
    paper's network stays float32: it loses more (``docs/research/bfloat16.md``).

    Args:
        precision: ``"auto"``, ``"float32"`` or ``"bfloat16"``.
        model: the network, or another restorer.
        device: where it runs; None for where it is.

    Raises:
        InputError: the weights don't have this precision.
    """
    if not isinstance(model, nn.Module):
        return "float32"
    weight = next(model.parameters(), torch.empty(0))
    if weight.dtype != torch.float32:
        own = str(weight.dtype).removeprefix("torch.")
        if precision not in ("auto", own):
            raise InputError(f"restore: precision {precision!r} needs weights in float32, these are in {own}; use auto")
        return own
    if precision != "auto":
        return precision
    blocks = model.config.blocks  # type: ignore[union-attr]
    return "bfloat16" if blocks and multiplies_bfloat16(device or weight.device) else "float32"


def slowness(precision: str, device: str | torch.device) -> str | None:
    """A sentence for who chose bfloat16 where the device has no instructions for it; else None."""
    if precision != "bfloat16" or multiplies_bfloat16(device):
        return None
    kind = torch.device(device).type
    cost = f", and takes about {BFLOAT16_SLOWER} times as long as in float32" if kind == "cpu" else ""
    return f"precision bfloat16 on {kind}, which has no instructions for its products{cost}; use auto or float32"


@contextmanager
def computing_in(precision: str, model: nn.Module) -> Iterator[None]:
    """Run a network in a settled precision, whatever autocast is set around.

    Copies of the weights in bfloat16 are not kept: made in inference mode, they would be of no use to a training step
    under the same autocast.
    """
    weight = next(model.parameters(), torch.empty(0))
    kind, half = weight.device.type, precision == "bfloat16" and weight.dtype == torch.float32
    if not half and not torch.is_autocast_enabled(kind):
        yield
        return
    with torch.autocast(kind, torch.bfloat16, enabled=half, cache_enabled=False):
        yield
