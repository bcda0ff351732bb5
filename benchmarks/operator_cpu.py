"""The backends that run on the CPU against the reference: time at a 128×128 map, extra memory at 512×512.

    python benchmarks/operator_cpu.py

Backends that don't agree with the reference are not timed.
"""

import json
import sys
from collections.abc import Callable

import torch

from kithkin.ops import available_backends, group_patches, knn_local_attention, partition

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


def sgemm_rate() -> float:
    """FLOP a second of PyTorch's own product of two 1024² matrices."""
    a = torch.randn(1024, 1024)
    return 2 * 1024**3 / seconds(lambda: a @ a, repeats=9)


def check(name: str) -> None:
    """Leave where the backend's output or gradients differ from the reference's."""
    truth, found = (passes(64, backend)["forward+backward"]() for backend in ("reference", name))
    worst = max((a - b).abs().max().item() for a, b in zip(truth, found, strict=True))  # type: ignore[call-overload]
    if worst > TOLERANCE:
        sys.exit(f"{name} differs from the reference by {worst}: not timed")


def main() -> None:
    names = [name for name, reason in available_backends().items() if reason is None]
    rows = {}
    for name in names:
        check(name)
        times = {what: seconds(run, repeats=7) for what, run in passes(128, name).items()}
        memory = {what: in_a_new_process(__file__, name, what) for what in times}
        rows[name] = {"seconds_at_128": times, "extra_megabytes_at_512": memory}
    slow = rows["reference"]
    flop = 2048 * CHANNELS * 128 * 128
    for row in rows.values():
        row["times_faster"] = {what: slow["seconds_at_128"][what] / t for what, t in row["seconds_at_128"].items()}
        row["share_of_memory"] = {
            what: m / slow["extra_megabytes_at_512"][what] for what, m in row["extra_megabytes_at_512"].items()
        }
        row["forward_gflops"] = flop / row["seconds_at_128"]["forward"] / 1e9
    shape = {"channels": CHANNELS, "patch_size": PATCH, "k": K, "n_hashes": HASHES, "dtype": "float32"}
    keep("operator_cpu", {"problem": shape, "sgemm_gflops": sgemm_rate() / 1e9, "backends": rows})


if __name__ == "__main__":
    if len(sys.argv) == 3:
        print(json.dumps(peak_extra_megabytes(passes(512, sys.argv[1])[sys.argv[2]])))
    else:
        main()
