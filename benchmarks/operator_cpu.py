"""The operator on the CPU, against its other backends and against other attention that people use.

    python benchmarks/operator_cpu.py

Every backend must agree with the reference, output and gradients, before it is timed. Beside them: PyTorch's
scaled_dot_product_attention in 8×8 windows and over the whole map, and reformer-pytorch's LSH attention where it is
installed. Those compute other functions: they show what an hour of compute buys, not who is right.
"""

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from kithkin.cli._memory import keep_freed_memory
from kithkin.ops import PatchGroups, available_backends, group_patches, knn_local_attention, partition

from measure import in_a_new_process, keep, least_seconds, peak_extra_megabytes, save_plot

PATCH, K, HASHES = 4, 4, 4
TOLERANCE = 1e-4
SGEMM = 1024
CHANNELS, SIDES = (16, 32, 64, 128), (32, 64, 128, 256, 512, 1024)
PLOT = Path(__file__).parent.parent / "docs/images/operator-cpu.png"
MOST_TOKENS = {"sdpa full": 128**2, "reformer LSH": 256**2, "reference": 256**2}

Attend = Callable[[], Tensor]


def maps(side: int, channels: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Query, key and value (1, H, W, C)."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(1, side, side, channels, generator=generator).to(dtype) for _ in range(3)]


def ours(side: int, channels: int, backend: str, dtype: torch.dtype = torch.float32) -> tuple[Attend, list[Tensor]]:
    """The operator on grouped patches, grouping left out: it is the same for every backend."""
    patches = [partition(x, PATCH).requires_grad_() for x in maps(side, channels, dtype)]
    exact = partition(maps(side, channels)[2], PATCH)  # in a half precision the groups themselves would move
    groups: PatchGroups = group_patches(exact, k=K, n_hashes=HASHES)
    return lambda: knn_local_attention(*patches, groups, backend=backend), patches


def windows(side: int, channels: int) -> tuple[Attend, list[Tensor]]:
    """Attention in 8×8 windows, as in Swin and Uformer; cutting the windows is left out."""
    cut = [partition(x, 8).flatten(0, 1).requires_grad_() for x in maps(side, channels)]
    return lambda: F.scaled_dot_product_attention(*cut), cut


def whole(side: int, channels: int) -> tuple[Attend, list[Tensor]]:
    """Attention of every pixel to every pixel."""
    tokens = [x.flatten(1, 2).requires_grad_() for x in maps(side, channels)]
    return lambda: F.scaled_dot_product_attention(*tokens), tokens


def reformer(side: int, channels: int) -> tuple[Attend, list[Tensor]]:
    """LSH attention over pixels: buckets of 64, as many rounds as ours; query and key are one there."""
    from reformer_pytorch import LSHAttention

    layer = LSHAttention(bucket_size=64, n_hashes=HASHES, causal=False)
    both = [x.flatten(1, 2).requires_grad_() for x in maps(side, channels)[:2]]
    return lambda: layer(*both)[0], both


def methods() -> dict[str, Callable[[int, int], tuple[Attend, list[Tensor]]]]:
    """Everything that can be timed here, by name."""
    found = {}
    for name, reason in available_backends().items():
        if reason is None and name != "triton":
            found[name] = lambda side, channels, name=name: ours(side, channels, name)
    if "native" in found:
        found["native bfloat16"] = lambda side, channels: ours(side, channels, "native", torch.bfloat16)
    found |= {"sdpa 8x8 windows": windows, "sdpa full": whole}
    try:
        import reformer_pytorch  # noqa: F401

        found["reformer LSH"] = reformer
    except ImportError:
        pass
    return found


def passes(attend: Attend, inputs: list[Tensor]) -> dict[str, Callable[[], Any]]:
    """The forward pass alone, and with the backward pass."""

    def forward() -> Tensor:
        with torch.no_grad():
            return attend()

    def both() -> tuple[Tensor, ...]:
        out = attend()
        return (out.detach(), *torch.autograd.grad(out, inputs, out.detach()))

    return {"forward": forward, "forward+backward": both}


def check(name: str, make: Callable[[int, int], tuple[Attend, list[Tensor]]]) -> float:
    """The largest difference from the reference, in units of the largest value; too large a one ends the benchmark."""
    truth, found = (passes(*f(64, 32))["forward+backward"]() for f in (lambda s, c: ours(s, c, "reference"), make))
    apart = [(a - b.float()).abs().max() / a.abs().max() for a, b in zip(truth, found, strict=True)]
    worst = torch.stack(apart).max().item()
    if not worst <= (2e-2 if "bfloat16" in name else TOLERANCE):  # a NaN is no agreement
        sys.exit(f"{name} differs from the reference by {worst}: not timed")
    return worst


def flop(side: int, channels: int) -> int:
    """Of the two products of the forward pass: 2·2·(2kP)·C·h a pixel."""
    return 8 * K * PATCH**2 * channels * HASHES * side**2


def least_of_rounds(runs: dict[Any, Callable[[], Any]], rounds: int = 3) -> dict[Any, float]:
    """Least seconds of each, which take turns: on a shared machine the speed moves within a minute."""
    found = [{name: least_seconds(run, budget=0.4) for name, run in runs.items()} for _ in range(rounds)]
    return {name: min(times[name] for times in found) for name in runs}


def by_channels() -> list[dict[str, Any]]:
    """At a 128×128 map. The rate of sgemm, PyTorch's own product of two matrices, is taken anew for each C."""
    rows = []
    for channels in CHANNELS:
        runs = {(n, what): run for n, make in methods().items() for what, run in passes(*make(128, channels)).items()}
        a = torch.randn(SGEMM, SGEMM)
        least = least_of_rounds({**runs, "sgemm": lambda a=a: a @ a})
        rate = 2 * SGEMM**3 / least["sgemm"]
        for name in methods():
            times = {what: least[name, what] for what in ("forward", "forward+backward")}
            row = {"method": name, "channels": channels, "side": 128, "seconds": times, "sgemm_gflops": rate / 1e9}
            if name in available_backends() or name.startswith("native"):
                done = flop(128, channels)
                row["gflops"] = {"forward": done / times["forward"] / 1e9}
                row["gflops"]["forward+backward"] = 3.5 * done / times["forward+backward"] / 1e9
                row["share_of_sgemm"] = {what: value * 1e9 / rate for what, value in row["gflops"].items()}
            rows.append(row)
    return rows


def by_side(channels: int = 32) -> list[dict[str, Any]]:
    rows = []
    for name, make in methods().items():
        sides = [side for side in SIDES if side**2 <= MOST_TOKENS.get(name, 1024**2)]
        least = least_of_rounds({side: passes(*make(side, channels))["forward"] for side in sides})
        rows += [{"method": name, "channels": channels, "side": side, "seconds": least[side]} for side in sides]
    return rows


def slope(rows: list[dict[str, Any]], name: str, smallest: int = 128) -> float:
    """Of log time over log pixels, by least squares."""
    points = [(math.log(r["side"] ** 2), math.log(r["seconds"])) for r in rows if r["method"] == name]
    points = [p for p in points if p[0] >= math.log(smallest**2) - 1e-9]
    mx, my = (sum(values) / len(points) for values in zip(*points, strict=True))
    return sum((x - mx) * (y - my) for x, y in points) / sum((x - mx) ** 2 for x, _ in points)


def memory() -> dict[str, dict[str, float]]:
    """Megabytes at 512×512, C = 32, by which the process grew at most, output and gradients included."""
    names = [name for name in ("native", "blocked", "reference", "sdpa 8x8 windows") if name in methods()]
    return {n: {w: in_a_new_process(__file__, n, w) for w in ("forward", "forward+backward")} for n in names}


def plain(channels: tuple[int, ...] = (32, 64)) -> list[dict[str, Any]]:
    """Seconds at a 128×128 map in this process as it is: where it was not asked to keep freed memory, a method that
    needs much of it gets it anew, page by page, at every call."""
    names = [name for name in ("native", "blocked", "reference") if name in methods()]
    rows = []
    for c in channels:
        least = least_of_rounds({(n, w): run for n in names for w, run in passes(*ours(128, c, n)).items()})
        rows += [
            {"method": n, "channels": c, "seconds": {w: t for (m, w), t in least.items() if m == n}} for n in names
        ]
    return rows


def plot(rows: list[dict[str, Any]], sides: list[dict[str, Any]]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name in dict.fromkeys(row["method"] for row in sides):
        points = [(row["side"] ** 2, row["seconds"]) for row in sides if row["method"] == name]
        left.loglog(*zip(*points, strict=True), marker="o", markersize=3, label=name)
    left.set(xlabel="pixels of the map", ylabel="seconds, forward, C = 32")
    left.legend(fontsize=7)
    for name in dict.fromkeys(row["method"] for row in rows if "gflops" in row):
        points = [(row["channels"], row["gflops"]["forward"]) for row in rows if row["method"] == name]
        right.plot(*zip(*points, strict=True), marker="o", markersize=3, label=name)
    rates = [(row["channels"], row["sgemm_gflops"]) for row in rows if row["method"] == "reference"]
    right.plot(*zip(*rates, strict=True), color="gray", linestyle=":", label="sgemm, 1024²")
    right.set(xlabel="channels", ylabel="GFLOP/s, forward, 128×128", ylim=(0, None))
    right.legend(fontsize=7)
    save_plot(figure, PLOT)


def main() -> None:
    keep_freed_memory()  # as the command line does
    differences = {name: check(name, make) for name, make in methods().items() if name in available_backends()}
    if "native" in differences:
        differences["native bfloat16"] = check("native bfloat16", methods()["native bfloat16"])
    rows, sides = by_channels(), by_side()
    slopes = {name: slope(sides, name) for name in dict.fromkeys(r["method"] for r in sides) if name not in MOST_TOKENS}
    plot(rows, sides)
    problem = {"patch_size": PATCH, "k": K, "n_hashes": HASHES}
    result = {"problem": problem, "differences_from_reference": differences, "slopes_128_to_1024": slopes}
    result |= {"by_channels": rows, "plain_process": in_a_new_process(__file__, "plain"), "by_side": sides}
    keep("operator_cpu", {**result, "extra_megabytes_at_512": memory()})


if __name__ == "__main__":
    if sys.argv[1:] == ["plain"]:
        print(json.dumps(plain()))
    elif len(sys.argv) == 3:
        print(json.dumps(peak_extra_megabytes(passes(*methods()[sys.argv[1]](512, 32))[sys.argv[2]])))
    else:
        main()
