"""Every backend on a device against float64 on the CPU: output and gradients, and twice the same bits.

    python benchmarks/gpu_parity.py [--device cuda]

Plain functions, for `tests/test_gpu.py` and for benchmarks that time nothing that errs.
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from kithkin.ops import PatchGroups, knn_local_attention
from kithkin.ops.dispatch import BACKENDS

NAMES = ("output", "gradient of query", "gradient of key", "gradient of value")

# Errors are ‖a - b‖ / ‖b‖. Twice what the reference errs by on the CPU in the same dtype is allowed, or this, where it
# errs by next to nothing. TF32 has ten bits of mantissa, and the CPU has none of it: there this is the bound.
FLOOR = {"float64": 1e-14, "float32": 2e-6, "tf32": 3e-3, "float16": 1e-3, "bfloat16": 8e-3}
REPEATS = ("triton", "native")  # on a GPU, PyTorch's own sums by index take no fixed order
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Case:
    """Random patches in random groups."""

    about: str
    batch: int
    n: int
    pixels: int
    channels: int
    k: int
    rounds: int = 1
    look_back: bool = True
    n_heads: int = 1
    weighting: str = "softmax"

    def groups(self) -> PatchGroups:
        generator = torch.Generator().manual_seed(self.n)
        rows = [torch.randperm(self.n, generator=generator) for _ in range(self.batch * self.rounds)]
        return PatchGroups(torch.stack(rows).view(self.batch, self.rounds, self.n), self.k, self.look_back)

    def tensors(self, dtype: torch.dtype, seed: int = 0) -> list[Tensor]:
        """Query, key, value and the gradient from above, on the CPU."""
        generator = torch.Generator().manual_seed(seed)
        shape = (self.batch, self.n, self.pixels, self.channels)
        query, key, value, grad = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(4))
        if self.weighting == "paper":  # all inner products positive: the denominator of Eq. (10) stays far from zero
            query, key = query.abs() + 0.5, key.abs() + 0.5
        return [x.to(dtype) for x in (query, key, value, grad)]


CASES = (
    Case("usual, one round", 2, 261, 16, 32, k=4),
    Case("usual, four rounds", 2, 261, 16, 32, k=4, rounds=4),
    Case("tiny", 1, 130, 16, 24, k=4, rounds=4),
    Case("base", 1, 65, 16, 96, k=4, rounds=2),
    Case("base, second stage", 1, 65, 16, 192, k=4, rounds=2),
    Case("base, bottleneck", 1, 33, 16, 384, k=1, look_back=False),
    Case("16 channels, heads", 1, 65, 16, 64, k=4, rounds=2, n_heads=4),
    Case("two heads of 40", 1, 65, 16, 80, k=4, rounds=2, n_heads=2),
    Case("as printed", 1, 65, 16, 32, k=4, rounds=2, weighting="paper"),
    Case("as printed, one round", 1, 65, 16, 32, k=4, weighting="paper"),
    Case("patches of one pixel", 2, 101, 1, 16, k=4, rounds=2),
    Case("patches of 2×2", 2, 101, 4, 48, k=4, rounds=2),
    Case("patches of 3×3, k = 3", 1, 50, 9, 20, k=3, rounds=2),
    Case("patches of 8×8", 1, 33, 64, 32, k=2, rounds=2),
    Case("dense", 2, 7, 16, 32, k=7, look_back=False),
    Case("chunks of 8", 1, 65, 16, 32, k=8, rounds=2),
)


def solve(case: Case, backend: str, tensors: list[Tensor]) -> list[Tensor]:
    """Output and gradients, on the device of the tensors."""
    *qkv, grad = tensors
    leaves = [x.detach().requires_grad_() for x in qkv]
    near = case.groups()
    near = PatchGroups(near.order.to(grad.device), near.k, near.look_back)
    out = knn_local_attention(*leaves, near, weighting=case.weighting, n_heads=case.n_heads, backend=backend)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]


@cache
def truth(case: Case, dtype: torch.dtype, seed: int) -> list[Tensor]:
    """In float64 on the CPU by the reference, of the very numbers that the backends get."""
    return solve(case, "reference", [x.double() for x in case.tensors(dtype, seed)])


def errors(found: list[Tensor], expected: list[Tensor]) -> dict[str, float]:
    """Relative, by name. An output or gradient that should be all zero is compared with the largest of them."""
    scale = max(x.norm().item() for x in expected[1:])
    pairs = zip(NAMES, found, expected, strict=True)
    return {name: ((a.cpu().double() - b).norm() / max(b.norm().item(), 1e-3 * scale)).item() for name, a, b in pairs}


def kind_of(dtype: torch.dtype, device: str) -> str:
    """The dtype's name, or what float32 is multiplied in on the GPU."""
    if dtype == torch.float32 and device != "cpu" and torch.backends.cuda.matmul.fp32_precision == "tf32":
        return "tf32"
    return str(dtype).removeprefix("torch.")


@cache
def allowed(case: Case, dtype: torch.dtype, kind: str, seed: int) -> dict[str, float]:
    """The largest error of each of ``NAMES``."""
    yardstick = errors(solve(case, "reference", case.tensors(dtype, seed)), truth(case, dtype, seed))
    return {name: max(2 * error, FLOOR[kind]) for name, error in yardstick.items()}


def poison(device: str) -> None:
    """Leave NaNs in the memory that the next tensors get."""
    if torch.device(device).type == "cuda":
        blocks = [torch.full((size,), float("nan"), device=device) for size in (1 << 16, 1 << 18, 1 << 22, 1 << 24)]
        del blocks


def check(case: Case, backend: str, dtype: torch.dtype, device: str, seed: int = 0) -> dict[str, Any]:
    """One row: errors, whether a second run gives the same bits, and whether the backend ``agrees``, else the fault."""
    kind = kind_of(dtype, device)
    row: dict[str, Any] = {"case": case.about, "backend": backend, "dtype": kind, "device": device}
    tensors = [x.to(device) for x in case.tensors(dtype, seed)]
    try:
        poison(device)
        found = solve(case, backend, tensors)
        poison(device)
        again = solve(case, backend, tensors)
    except Exception as error:
        said = str(error).strip().partition("\n")[0]
        return {**row, "agrees": False, "fault": f"{type(error).__name__}: {said}"}
    row["errors"] = errors(found, truth(case, dtype, seed))
    limits = allowed(case, dtype, kind, seed)
    row["twice_the_same"] = all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
    worse = [f"{n}: {e:.1e}, allowed {limits[n]:.1e}" for n, e in row["errors"].items() if not e <= limits[n]]
    if not row["twice_the_same"] and backend in REPEATS:
        worse.append("a second run gives other bits")
    return {**row, "agrees": not worse, "fault": "; ".join(worse) or None}


def pairs(device: str) -> Iterator[tuple[str, torch.dtype]]:
    """Every backend with each dtype that it takes on the device."""
    kind = torch.device(device).type
    for dtype in DTYPES:
        yield from ((name, dtype) for name, backend in BACKENDS.items() if backend.why_not(kind, dtype, None) is None)


def verdict(device: str, backend: str, dtype: torch.dtype) -> str | None:
    """None where the backend agrees in two usual problems, else what is wrong: what to ask before it is timed."""
    rows = [check(case, backend, dtype, device) for case in CASES[:2]]
    return next((f"{row['case']}: {row['fault']}" for row in rows if not row["agrees"]), None)


def every(device: str, cases: tuple[Case, ...] = CASES) -> list[dict[str, Any]]:
    """All rows for a device. float32 also with TF32 allowed, where the device has it."""
    rows = [check(case, *pair, device) for pair in pairs(device) for case in cases]
    if torch.device(device).type == "cuda":
        before = torch.get_float32_matmul_precision()
        try:
            torch.set_float32_matmul_precision("high")
            rows += [check(case, "triton", torch.float32, device) for case in cases]
        finally:
            torch.set_float32_matmul_precision(before)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    rows = every(parser.parse_args().device)
    wrong = [row for row in rows if not row["agrees"]]
    for row in rows:
        worst = max(row["errors"].values()) if "errors" in row else float("nan")
        print(f"{row['backend']:10s} {row['dtype']:9s} {row['case']:26s} {worst:.1e}  {row['fault'] or 'agrees'}")
    sys.exit(f"{len(wrong)} of {len(rows)} are wrong" if wrong else 0)


if __name__ == "__main__":
    main()
