"""When the Triton kernels can serve; Triton itself is imported when they first run."""

import importlib.util
import os
from functools import cache

import torch
from torch import Tensor

from kithkin.ops.backend import Backend, Problem
from kithkin.ops.grouping import PatchGroups

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MOST_PIXELS, MOST_CHANNELS = 128, 256  # of a chunk and of a head, each rounded up to a power of 2


@cache
def _installed() -> bool:
    return importlib.util.find_spec("triton") is not None


def why_not(device_type: str, dtype: torch.dtype, problem: Problem | None) -> str | None:
    """None where the kernels can serve, else one sentence. On CPUs they run in Triton's interpreter, for tests."""
    if device_type != "cuda" and not (device_type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"):
        return f"triton runs on GPUs, not on {device_type}"
    if not _installed():
        return 'triton is not installed; pip install "kithkin[triton]"'
    if dtype not in DTYPES:
        return f"triton takes float32, bfloat16 and float16, not {str(dtype).removeprefix('torch.')}"
    return None if problem is None else _why_not_this(problem)


def _why_not_this(problem: Problem) -> str | None:
    if problem.exact:
        return "triton works on chunks, not on exact neighbour lists"
    pixels = _power_of_2(problem.k) * _power_of_2(max(16, problem.pixels))
    if pixels > MOST_PIXELS:
        return (
            f"triton takes chunks of at most {MOST_PIXELS} pixels, k and patches rounded up to powers of 2; "
            f"k = {problem.k} patches of {problem.pixels} pixels make {pixels}"
        )
    if problem.channels // problem.n_heads > MOST_CHANNELS:
        return f"triton takes at most {MOST_CHANNELS} channels a head, not {problem.channels // problem.n_heads}"
    return None


def _power_of_2(n: int) -> int:
    return 1 << (n - 1).bit_length()


def forward(
    query: Tensor, key: Tensor, value: Tensor, groups: PatchGroups, paper: bool, n_heads: int
) -> tuple[Tensor, Tensor]:
    """As ``kithkin.ops.triton.forward``."""
    from kithkin.ops import triton

    return triton.forward(query, key, value, groups, paper, n_heads)


def backward(*args: object) -> tuple[Tensor, Tensor, Tensor]:
    """As ``kithkin.ops.triton.backward``."""
    from kithkin.ops import triton

    return triton.backward(*args)  # type: ignore[arg-type]


BACKEND = Backend("triton", why_not, forward=forward, backward=backward)
