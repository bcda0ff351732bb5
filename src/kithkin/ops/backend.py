"""What a backend of the operator is: when it can serve, and how it runs."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from kithkin.ops.grouping import PatchGroups


@dataclass(frozen=True)
class Problem:
    """What decides whether a backend can serve a call: plain values, none of them data.

    Attributes:
        pixels: P, pixels of a patch.
        channels: C.
        n_heads: heads that the channels are split into.
        k: query patches of a chunk.
        candidates: patches that each of them attends to, in a round.
        exact: whether each patch has its own list of neighbours.
    """

    pixels: int
    channels: int
    n_heads: int
    k: int
    candidates: int
    exact: bool


WhyNot = Callable[[str, torch.dtype, Problem | None], str | None]
Attention = Callable[[Tensor, Tensor, Tensor, PatchGroups, str, int], Tensor]
Forward = Callable[[Tensor, Tensor, Tensor, PatchGroups, bool, int], tuple[Tensor, Tensor]]
Backward = Callable[
    [Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, PatchGroups, bool, int], tuple[Tensor, Tensor, Tensor]
]


@dataclass(frozen=True)
class Backend:
    """One way to compute Eqs. (8)-(10): either plain PyTorch, or a pair of functions that do without its autograd.

    Attributes:
        name: what ``backend=`` takes.
        why_not: (device type, dtype, problem) -> None where the backend can serve, else one sentence; without a
            problem, whether it can serve any.
        plain: (query, key, value, groups, weighting, n_heads) -> output, made of differentiable PyTorch.
        forward: (query, key, value, groups, paper, n_heads) -> output, in the dtype of its sums, and norm,
            (B·N, n_heads): whatever the backward pass wants to know of the sum of weights.
        backward: (gradient, query, key, value, output, norm, groups, paper, n_heads) -> gradients of query, key, value.
        why_unasked: (device, dtype) -> None where the backend may be taken although no one named it, else one sentence;
            left out for one that always may.
        fault: (device, dtype) -> what was found wrong with it there, if anything was.
    """

    name: str
    why_not: WhyNot
    plain: Attention | None = None
    forward: Forward | None = None
    backward: Backward | None = None
    why_unasked: Callable[[torch.device, torch.dtype], str | None] | None = None
    fault: Callable[[torch.device, torch.dtype], str | None] | None = None


def takes_dtypes(name: str, *dtypes: torch.dtype) -> WhyNot:
    """The predicate of a backend that takes these dtypes, on any device."""
    words = [str(dtype).removeprefix("torch.") for dtype in dtypes]

    def why_not(device_type: str, dtype: torch.dtype, problem: Problem | None) -> str | None:
        if dtype in dtypes:
            return None
        return f"{name} takes {', '.join(words[:-1])} and {words[-1]}, not {str(dtype).removeprefix('torch.')}"

    return why_not


def pitched(*tensors: Tensor) -> tuple[int, list[Tensor]]:
    """The tensors (B, N, P, C) laid out as kernels take them, copied only where they are not, and how many numbers
    lie from pixel to pixel: C, or more where they are slices of one wider tensor."""
    _, count, pixels, channels = tensors[0].shape
    pitch = tensors[0].stride(2)
    wanted = (count * pixels * pitch, pixels * pitch, pitch, 1)
    if pitch >= channels and all(x.stride() == wanted for x in tensors):
        return pitch, list(tensors)
    return channels, [x.contiguous() for x in tensors]
