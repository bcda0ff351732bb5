"""The operator on a GPU: is every backend right, and how near is it to what memory and tensor cores allow?

    python benchmarks/operator_gpu.py [--device cuda] [--seconds 120] [--tune] [--dry-run]

Bytes and operations are counted, not measured (docs/reference/backends.md says how); the rates that they are compared
with are measured on the device: a large copy, read and written, and a large product in bfloat16. A map that fits into
the cache may beat the copy. Beside the operator: attention in windows of as many keys, over the whole map, and
FlexAttention given all that its bias takes. Those compute other functions or a part of ours, and show what is possible.
``--tune`` times other block sizes of the kernels instead. ``--dry-run`` takes small sizes, on the CPU.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from kithkin.ops import PatchGroups, group_patches, knn_local_attention

import flex_oracle
import gpu_parity

PATCH, K = 4, 4
HALF = torch.bfloat16

Row = dict[str, Any]


@dataclass(frozen=True)
class Size:
    """Of a problem: maps (batch, side, side, channels), h rounds."""

    side: int
    channels: int
    rounds: int
    batch: int = 1

    @property
    def pixels(self) -> int:
        return self.batch * self.side**2

    def flops(self) -> int:
        """Of the two products of the forward pass: 2·2·(2kP)·C·h a pixel."""
        return 8 * K * PATCH**2 * self.channels * self.rounds * self.pixels

    def moved(self, item: int, backward: bool) -> float:
        """Bytes that the Triton kernels read and write, a chunk's keys counted once."""
        h = self.rounds
        each = 4 if h == 1 else 5 + 1 / h
        if backward:
            each += 13 if h == 1 else 14 + 5 / h
        return each * item * self.channels * h * self.pixels

    def tensors(self, device: str, dtype: torch.dtype) -> tuple[list[Tensor], PatchGroups]:
        """Query, key, value and a gradient, in patches; and their groups."""
        generator = torch.Generator(device).manual_seed(0)
        shape = (self.batch, (self.side // PATCH) ** 2, PATCH**2, self.channels)
        made = [torch.randn(shape, generator=generator, device=device) for _ in range(4)]
        groups = group_patches(made[2], k=K, n_hashes=self.rounds)
        return [x.to(dtype) for x in made], groups


FIRST = (Size(512, 32, 1), Size(512, 32, 4), Size(128, 32, 1, batch=64))
SIZES = (
    *FIRST,
    *(s for c in (16, 32, 64, 128) for n in (128, 256, 512) for h in (1, 4) if (s := Size(n, c, h)) not in FIRST),
)
SMALL = (Size(16, 16, 1), Size(16, 16, 2))


def seconds(run: Callable[[], Any], device: str) -> dict[str, Any]:
    """Median of several runs; on a GPU as a CUDA graph, where it can be one, and as it is called from Python."""
    if torch.device(device).type != "cuda":
        times = []
        for _ in range(4):
            started = time.perf_counter()
            run()
            times.append(time.perf_counter() - started)
        return {"seconds": statistics.median(times[1:])}
    for _ in range(3):
        run()
    found = {"seconds_eager": _events(run)}
    try:
        replay = _graph(run)
        found["seconds"] = _events(replay)
    except Exception as error:  # what can't be captured is timed as it is
        found |= {"seconds": found["seconds_eager"], "no_graph": f"{type(error).__name__}: {error}".splitlines()[0]}
    return found


def _graph(run: Callable[[], Any]) -> Callable[[], Any]:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def _events(run: Callable[[], Any], budget: float = 0.15) -> float:
    """Median seconds of up to 50 runs, in about so many seconds."""
    run()
    torch.cuda.synchronize()
    times: list[float] = []
    while len(times) < 5 or (sum(times) < budget and len(times) < 50):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return statistics.median(times)


def ceilings(device: str, small: bool) -> dict[str, float]:
    """Bytes a second of a copy, read and written, and FLOP a second of a product in bfloat16."""
    source, side = torch.randn(1 << (16 if small else 28), device=device), 128 if small else 8192
    target = torch.empty_like(source)
    copied = 2 * source.numel() * 4 / seconds(lambda: target.copy_(source), device)["seconds"]
    a, b = (torch.randn(side, side, device=device).to(HALF) for _ in range(2))
    return {"copy_bytes": copied, "product_flops": 2 * side**3 / seconds(lambda: a @ b, device)["seconds"]}


def passes(qkv: list[Tensor], grad: Tensor, attend: Callable[..., Tensor]) -> dict[str, Callable[[], Any]]:
    """The forward pass alone, and with the backward pass."""
    leaves = [x.detach().requires_grad_() for x in qkv]

    def forward() -> Tensor:
        with torch.no_grad():
            return attend(*qkv)

    return {"forward": forward, "forward+backward": lambda: torch.autograd.grad(attend(*leaves), leaves, grad)}


def timed(size: Size, device: str, backend: str, dtype: torch.dtype, rates: dict[str, float]) -> Iterator[Row]:
    """One row each for the forward pass and for both, of a backend."""
    (*qkv, grad), groups = size.tensors(device, dtype)
    runs = passes(qkv, grad, lambda *x: knn_local_attention(*x, groups, backend=backend))
    for what, run in runs.items():
        row = {"method": backend, "dtype": gpu_parity.kind_of(dtype, device), **asdict(size), "what": what}
        row |= seconds(run, device)
        both = what != "forward"
        row["computed_flops"] = size.flops() * (3.5 if both else 1.0)
        row["share_of_product"] = row["computed_flops"] / row["seconds"] / rates["product_flops"]
        if backend == "triton":
            row["computed_bytes"] = size.moved(dtype.itemsize, both)
            row["share_of_copy"] = row["computed_bytes"] / row["seconds"] / rates["copy_bytes"]
        yield row


def windows(size: Size, device: str) -> tuple[list[Tensor], Tensor, Callable[..., Tensor]]:
    """scaled_dot_product_attention in windows of as many pixels as a pixel of ours sees in all rounds."""
    keys = min(2 * K * PATCH**2 * size.rounds, size.pixels)
    cut = [x.flatten(0, 2).unflatten(0, (-1, 1, keys)) for x in size.tensors(device, HALF)[0]]
    return cut[:3], cut[3], F.scaled_dot_product_attention


def whole(size: Size, device: str) -> tuple[list[Tensor], Tensor, Callable[..., Tensor]]:
    """scaled_dot_product_attention of every pixel to every pixel."""
    tokens = [x.flatten(1, 2)[:, None] for x in size.tensors(device, HALF)[0]]
    return tokens[:3], tokens[3], F.scaled_dot_product_attention


def flex(size: Size, device: str) -> Iterator[Row]:
    """Of FlexAttention, all rounds, with the gathered patches and the bias given: less than the operator does."""
    (*qkv, _), groups = size.tensors(device, HALF)
    rounds, attention = flex_oracle.rounds_of(*qkv, groups), flex_oracle.compiled(device)

    def run() -> None:
        with torch.no_grad():
            for one in rounds:
                flex_oracle.attend(one, PATCH**2, attention)

    yield {"method": "flex_attention, bias given", **asdict(size), "what": "forward", **seconds(run, device)}


def others(name: str, make: Callable[..., Any], size: Size, device: str) -> Iterator[Row]:
    for what, run in passes(*make(size, device)).items():
        yield {"method": name, "dtype": "bfloat16", **asdict(size), "what": what, **seconds(run, device)}


Job = tuple[str, Callable[[], Iterator[Row]]]


def jobs(device: str, rates: dict[str, float], backends: list[str]) -> Iterator[Job]:
    """What there is to time, the most telling first."""
    small = torch.device(device).type != "cuda"
    sizes = SMALL if small else SIZES
    first = sizes[:3]

    def ours(size: Size, backend: str, dtype: torch.dtype) -> Job:
        return f"{backend} {dtype} {size}", lambda: timed(size, device, backend, dtype, rates)

    for backend in backends:
        yield from (ours(size, backend, HALF) for size in first)
    for size in first:
        yield f"windows {size}", lambda size=size: others("sdpa, windows of as many keys", windows, size, device)
    yield from (ours(size, "triton", HALF) for size in sizes[3:] if "triton" in backends)
    yield from (ours(size, backend, torch.float32) for size in first for backend in backends)
    for size in sizes[:1] if small else (Size(128, 32, 4), Size(256, 32, 4)):
        yield f"whole {size}", lambda size=size: others("sdpa, whole map", whole, size, device)
    yield f"flex {first[1]}", lambda: flex(first[1], device)
    for backend in backends:
        yield from (ours(size, backend, HALF) for size in sizes[3:] if backend != "triton")


def parity(device: str, deadline: float) -> dict[str, Any]:
    """Rows of gpu_parity while there is time, the usual cases first; and what there was no time for."""
    cases = gpu_parity.CASES[:1] if torch.device(device).type != "cuda" else gpu_parity.CASES
    order = sorted(gpu_parity.pairs(device), key=lambda pair: (pair[0] != "triton", pair[1] != HALF))
    wanted = [(case, *pair) for case in cases[:2] for pair in order]
    wanted += [(case, *pair) for case in cases[2:] for pair in order]
    rows = []
    for i, (case, backend, dtype) in enumerate(wanted):
        if time.monotonic() > deadline:
            return {"parity": rows, "not_checked": [f"{b} {d} {c.about}" for c, b, d in wanted[i:]]}
        rows.append(gpu_parity.check(case, backend, dtype, device))
    return {"parity": rows, "not_checked": []}


def measure(device: str, seconds_budget: float, note: Callable[..., Any] = dict) -> dict[str, Any]:
    """Parity, then times, in about so many seconds. A backend that fails parity is not timed.

    Args:
        note: gets what is known so far as keywords, after each row.

    Returns:
        Plain JSON: ``ceilings`` (measured rates), ``parity`` (a row for each case, backend and dtype) and
        ``not_checked``, ``refused`` (backend -> why it was not timed), ``rows`` (times) and ``not_timed``.
    """
    started = time.monotonic()
    found: dict[str, Any] = {"torch": torch.__version__, "patch_size": PATCH, "k": K}
    found |= parity(device, started + 0.4 * seconds_budget)
    wrong = [row for row in found["parity"] if not row["agrees"]]
    found["refused"] = {row["backend"]: f"{row['dtype']}, {row['case']}: {row['fault']}" for row in wrong}
    backends = [name for name in ("triton", "blocked") if any(row["backend"] == name for row in found["parity"])]
    backends = [name for name in backends if name not in found["refused"]]
    found["ceilings"] = ceilings(device, torch.device(device).type != "cuda")
    found |= {"rows": [], "not_timed": []}
    for name, run in jobs(device, found["ceilings"], backends):
        if time.monotonic() > started + 0.95 * seconds_budget:
            found["not_timed"].append(name)
            continue
        note(**found)
        try:
            found["rows"] += run()
        except Exception as error:
            found["rows"].append({"method": name, "failed": f"{type(error).__name__}: {error}".splitlines()[0]})
    return found


@contextmanager
def _changed(**values: Any) -> Iterator[None]:
    """Kernels with other block sizes or options, or another bound on what is kept of the rounds."""
    from kithkin.ops import triton_launch

    usual = triton_launch.tiles_of, triton_launch.options_of, triton_launch.SCRATCH_BYTES
    sizes = {name: value for name, value in values.items() if name in ("DK", "DO")}
    options = {name: value for name, value in values.items() if name not in (*sizes, "scratch")}
    triton_launch.tiles_of = lambda *args: {**usual[0](*args), **sizes}
    triton_launch.options_of = lambda *args: {**usual[1](*args), **options}
    triton_launch.SCRATCH_BYTES = values.get("scratch", usual[2])
    try:
        yield
    finally:
        triton_launch.tiles_of, triton_launch.options_of, triton_launch.SCRATCH_BYTES = usual


VARIANTS: tuple[dict[str, int], ...] = (
    {},
    *({"num_warps": n} for n in (4, 8)),
    *({"num_stages": n} for n in (1, 3)),
    *({"maxnreg": n} for n in (96, 128)),
    {"DK": 16, "DO": 16},
    *({"scratch": n << 20} for n in (8, 24, 256)),
)


def tune(device: str, seconds_budget: float) -> dict[str, Any]:
    """The kernels in bfloat16 with other block sizes: one row for each variant, size and pass."""
    started, rates = time.monotonic(), ceilings(device, False)
    rows: list[dict[str, Any]] = []
    for variant in VARIANTS:
        for size in (*FIRST, Size(128, 32, 4, batch=64), Size(512, 64, 4)):
            if time.monotonic() - started < seconds_budget and (size.rounds > 1 or "scratch" not in variant):
                with _changed(**variant):
                    try:
                        rows += [{**row, "variant": variant} for row in timed(size, device, "triton", HALF, rates)]
                    except Exception as error:
                        rows.append({"variant": variant, **asdict(size), "failed": str(error).splitlines()[0]})
    return {"ceilings": rates, "rows": rows}


def line(row: dict[str, Any]) -> str:
    if "failed" in row:
        return f"{row.get('method', row.get('variant'))}: {row['failed']}"
    known = [name for name in ("share_of_copy", "share_of_product") if name in row]
    shares = "".join(f"  {row[name]:6.1%} of the {name.split('_')[-1]}" for name in known)
    size = f"{row['batch']}×{row['side']}² C={row['channels']} h={row['rounds']}"
    said = f"{row['method']:30s} {row.get('dtype', ''):9s} {size:22s} {row['what']:17s} {1e3 * row['seconds']:9.3f} ms"
    return said + shares + (f"  {row['variant']}" if "variant" in row else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=120.0, help="for all of it")
    parser.add_argument("--tune", action="store_true")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--json", help="also write the findings to this file")
    options = parser.parse_args()
    device = "cpu" if options.dry_run else options.device
    found = tune(device, options.seconds) if options.tune else measure(device, options.seconds)
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(found, file, indent=1)
    wrong = [row for row in found.get("parity", []) if not row["agrees"]]
    print("\n".join([*map(line, found["rows"]), *(f"WRONG {row}" for row in wrong)]))
    print({name: value for name, value in found.items() if name not in ("rows", "parity")})


if __name__ == "__main__":
    main()
