"""When the Triton kernels can serve, and when they are taken unasked. Triton itself is imported when they first run.

On a GPU they are taken unasked once their results were seen to agree with ``blocked``'s there, in this process: a check
of a small problem at their first use, for each dtype. See ``trusted``.
"""

import importlib.util
import logging
import os
import threading
import warnings
from functools import cache

import torch
from torch import Tensor

from kithkin.ops import blocked
from kithkin.ops.backend import Backend, Problem
from kithkin.ops.grouping import PatchGroups

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MOST_PIXELS, MOST_CHANNELS = 128, 512  # of a chunk, rounded up to a power of 2, and of a head

# By how much results and gradients may differ from float64, ‖a - b‖ / ‖b‖: about five times what is expected of the
# rounding of each, and far less than any mistake makes of them.
TOLERANCE = {"float32": 1e-5, "tf32": 3e-3, "float16": 5e-3, "bfloat16": 3e-2}

_verdicts: dict[tuple[torch.device, str], str | None] = {}
_lock = threading.Lock()


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
    pixels = _power_of_2(problem.k) * _power_of_2(problem.pixels)
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


def trusted(device: str | torch.device = "cuda", dtype: torch.dtype = torch.float32) -> bool:
    """Whether ``triton`` is taken on this GPU where no backend is named. The first call for a dtype finds out.

    It compares output and gradients of a small problem with ``blocked``'s in float64, in some seconds, most of them
    for compiling. The answer holds for the process. ``knn_local_attention`` calls it at its first use of a GPU; call it
    yourself before you capture a CUDA graph, where nothing can be checked. Where the kernels fail, a warning says why
    and ``blocked`` serves; ``backend="triton"`` runs them regardless.

    Args:
        device: a GPU; on any other device the answer is no.
        dtype: of query, key and value.
    """
    return why_unasked(_indexed(device), dtype) is None


def why_unasked(device: torch.device, dtype: torch.dtype) -> str | None:
    """None where the kernels may be taken unasked, else one sentence."""
    if not _checked_on(device):
        return f"triton is not taken unasked on {device.type}"
    if (reason := why_not(device.type, dtype, None)) is not None:
        return reason
    device = _indexed(device)
    key = (device, _name_of(dtype))
    with _lock:
        if key not in _verdicts:
            if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
                reason = "a CUDA graph is being captured before kithkin.ops.trusted() was called"
                warnings.warn(f"{_told(key)} are not used: {reason}; blocked serves", stacklevel=2)
                return f"triton was not checked: {reason}"
            _verdicts[key] = _verdict(device, dtype)
            _report(key, _verdicts[key])
        return _verdicts[key]


def fault(device: torch.device, dtype: torch.dtype) -> str | None:
    """What a check that was made found wrong, in one sentence; None where it found nothing or was not made."""
    return _verdicts.get((_indexed(device), _name_of(dtype)))


def _checked_on(device: torch.device) -> bool:
    return device.type == "cuda"


def _indexed(device: str | torch.device) -> torch.device:
    device = torch.device(device)
    if device.type == "cuda" and device.index is None and torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return device


def _name_of(dtype: torch.dtype) -> str:
    """Of the dtype, or of what float32 is multiplied in."""
    if dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32":
        return "tf32"
    return str(dtype).removeprefix("torch.")


def _told(key: tuple[torch.device, str]) -> str:
    return f"kithkin: the Triton kernels ({key[1]}, {key[0]})"


def _report(key: tuple[torch.device, str], verdict: str | None) -> None:
    if verdict is None:
        logging.getLogger("kithkin").info("%s agree with blocked and are used", _told(key))
    else:
        warnings.warn(f"{_told(key)} are not used unless asked for: {verdict}; blocked serves", stacklevel=3)


def _verdict(device: torch.device, dtype: torch.dtype) -> str | None:
    """``_disagreement`` in a thread of its own: there no autocast, no inference mode and no tracing is on."""
    outcome: list[str | None] = []

    def check() -> None:
        try:
            outcome.append(_disagreement(device, dtype))
        except Exception as error:
            outcome.append(f"triton failed: {type(error).__name__}: {str(error).strip().partition(chr(10))[0]}")

    thread = threading.Thread(target=check)
    thread.start()
    thread.join()
    return outcome[0]


def _disagreement(device: torch.device, dtype: torch.dtype) -> str | None:
    """None where output and gradients are as near to float64 as they should be, else one sentence."""
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(1, 14, 16, 32, generator=generator).to(device, dtype) for _ in range(4)]
    order = torch.stack([torch.randperm(14, generator=generator) for _ in range(2)])[None]
    groups = PatchGroups(order.to(device), k=4)
    actual, expected = _solved(forward, backward, tensors, groups), _truth(tensors, groups)
    allowed = TOLERANCE[_name_of(dtype)]
    for name, a, b in zip(("output", "gradient of query", "of key", "of value"), actual, expected, strict=True):
        error = ((a.double() - b).norm() / b.norm()).item()
        if not error <= allowed:  # a NaN is no agreement
            return f"triton's {name} differs from blocked's by {error:.1e}, allowed are {allowed:.0e}"
    return None


def _truth(tensors: list[Tensor], groups: PatchGroups) -> list[Tensor]:
    return _solved(blocked.forward, blocked.backward, [x.double() for x in tensors], groups)


def _solved(run, differentiate, tensors: list[Tensor], groups: PatchGroups) -> list[Tensor]:  # type: ignore[no-untyped-def]
    *qkv, grad = tensors
    out, norm = run(*qkv, groups, False, 1)
    return [out, *differentiate(grad, *qkv, out, norm, groups, False, 1)]


def forward(
    query: Tensor, key: Tensor, value: Tensor, groups: PatchGroups, paper: bool, n_heads: int
) -> tuple[Tensor, Tensor]:
    """As ``kithkin.ops.triton_launch.forward``."""
    from kithkin.ops import triton_launch

    return triton_launch.forward(query, key, value, groups, paper, n_heads)


def backward(*args: object) -> tuple[Tensor, Tensor, Tensor]:
    """As ``kithkin.ops.triton_launch.backward``."""
    from kithkin.ops import triton_launch

    return triton_launch.backward(*args)  # type: ignore[arg-type]


BACKEND = Backend("triton", why_not, forward=forward, backward=backward, why_unasked=why_unasked, fault=fault)
