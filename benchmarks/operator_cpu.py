"""The blocked backend against the reference: time at a 128×128 map, extra memory at 512×512.

    python benchmarks/operator_cpu.py

Backends that don't agree with the reference are not timed.
"""

import json
import sys
from collections.abc import Callable

import torch

from kithkin.ops import group_patches, knn_local_attention, partition

from measure import in_a_new_process, keep, peak_extra_megabytes, seconds

CHANNELS, PATCH, K, HASHES = 32, 4, 4, 4
TOLERANCE = 1e-4


def problem(side: int) -> tuple[list[torch.Tensor], object]:
    """Query, key, value (1, N, P, C) with gradients, and the groups of the value."""
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randn(1, side, side, CHANNELS, generator=generator) for _ in range(3)]
    patches = [partition(x, PATCH).requires_grad_() for x in maps]
    groups = group_patches(patches[2], k=K, n_hashes=HASHES, generator=torch.Generator().manual_seed(1))
    return patches, groups


def passes(side: int, backend: str) -> dict[str, Callable[[], object]]:
    """The forward pass alone, and with the backward pass."""
    patches, groups = problem(side)

    def forward() -> torch.Tensor:
        with torch.no_grad():
            return knn_local_attention(*patches, groups, backend=backend)  # type: ignore[arg-type]

    def both() -> tuple[torch.Tensor, ...]:
        out = knn_local_attention(*patches, groups, backend=backend)  # type: ignore[arg-type]
        return torch.autograd.grad(out.square().sum(), patches)

    return {"forward": forward, "forward+backward": both}


def main() -> None:
    truth, found = (passes(64, name) for name in ("reference", "blocked"))
    errors = [
        (a - b).abs().max().item()
        for a, b in zip(truth["forward+backward"](), found["forward+backward"](), strict=True)
    ]
    if max(errors) > TOLERANCE:
        sys.exit(f"blocked differs from the reference by {max(errors)}: not timed")
    times = {
        name: {what: seconds(run, repeats=7) for what, run in passes(128, name).items()}
        for name in ("reference", "blocked")
    }
    memory = {
        name: {what: in_a_new_process(__file__, name, what) for what in ("forward", "forward+backward")}
        for name in ("reference", "blocked")
    }
    ratios = {what: times["reference"][what] / times["blocked"][what] for what in times["blocked"]}
    shares = {what: memory["blocked"][what] / memory["reference"][what] for what in memory["blocked"]}
    keep(
        "operator_cpu",
        {
            "problem": {"channels": CHANNELS, "patch_size": PATCH, "k": K, "n_hashes": HASHES, "dtype": "float32"},
            "seconds_at_128": times,
            "times_faster": ratios,
            "extra_megabytes_at_512": memory,
            "share_of_memory": shares,
        },
    )


if __name__ == "__main__":
    if len(sys.argv) == 3:
        print(json.dumps(peak_extra_megabytes(passes(512, sys.argv[1])[sys.argv[2]])))
    else:
        main()
