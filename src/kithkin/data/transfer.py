"""Transfer from the host to the device, in one copy that nothing waits for."""

from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

Numbers: TypeAlias = Any
"""An array on the host; a tensor once it has been moved to a device."""

_ALIGNMENT = 16
"""Bytes; what any type of number needs."""


def moved(values: Any, device: str | torch.device) -> Any:
    """The same tuples within tuples, with a tensor on the device in the place of every NumPy array; whatever else they
    hold stays as it is. To a GPU all arrays go in one copy from pinned memory, which the host doesn't wait for."""
    if torch.device(device).type == "cpu":
        tensors = [torch.from_numpy(np.ascontiguousarray(array)) for array in _arrays(values)]
    else:
        tensors = _sent(list(_arrays(values)), torch.device(device))
    return _replaced(values, iter(tensors))


def _sent(arrays: list[np.ndarray], device: torch.device) -> list[Tensor]:
    starts, total = [], 0
    for array in arrays:
        starts.append(total)
        total += -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT
    buffer = torch.empty(total, dtype=torch.uint8, pin_memory=device.type == "cuda")
    memory = buffer.numpy()
    for start, array in zip(starts, arrays, strict=True):
        memory[start : start + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    on_device = buffer.to(device, non_blocking=True)
    return [
        on_device[start : start + array.nbytes].view(torch.from_numpy(array[:0]).dtype).view(array.shape)
        for start, array in zip(starts, arrays, strict=True)
    ]


def _arrays(values: Any) -> Iterator[np.ndarray]:
    if isinstance(values, np.ndarray):
        yield values
    elif isinstance(values, tuple):
        for value in values:
            yield from _arrays(value)


def _replaced(values: Any, tensors: Iterator[Tensor]) -> Any:
    if isinstance(values, np.ndarray):
        return next(tensors)
    if not isinstance(values, tuple):
        return values
    inner = [_replaced(value, tensors) for value in values]
    return type(values)(*inner) if hasattr(values, "_fields") else tuple(inner)
