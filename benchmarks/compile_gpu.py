"""The Triton kernels compiled for GPUs, which takes none: spilled registers, shared memory and time, for each width.

    python benchmarks/compile_gpu.py [--quick] [--widths 16 32 96]

``--quick`` compiles a few of them and writes no file. A number that breaks a bound is printed, and the exit code is 1.
"""

import argparse
import os
import re
import resource
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # before anything imports Triton: in its interpreter nothing is compiled
    os.environ.pop("TRITON_INTERPRET", None)
    os.environ["TRITON_ALWAYS_COMPILE"] = "1"

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from kithkin.ops import triton as kernels, triton_launch

from measure import keep

PRODUCTS = ("attend", "backward_queries", "backward_keys")
KERNELS = (*PRODUCTS, "join", "inner")
DTYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
SUMS = {"level", "total", "norm", "delta"}  # float32 whatever the dtype
WIDTHS = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384)
CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"

# What a kernel may take: bytes that a thread spills, bytes of shared memory (as many as GPUs of capability 8.6 and 8.9
# give a program), and seconds of a CPU.
MOST_SPILLED, MOST_SHARED, MOST_SECONDS = 256, 99 << 10, 30.0
# float32 without tensor cores, at patches of more than 16 pixels: a product's factors are as wide as a patch.
MOST_SPILLED_OF_LARGE_PATCHES = 2048


@dataclass(frozen=True)
class Case:
    """One way to call the operator, for one compute capability."""

    width: int
    dtype: torch.dtype
    precision: str = "ieee"
    capability: int = 90
    pixels: int = 16
    k: int = 4
    look_back: bool = True
    n_heads: int = 1
    paper: bool = False
    rounds: int = 2


QUICK = (
    Case(32, torch.bfloat16),
    Case(384, torch.float32, capability=80),
    Case(192, torch.float32, "tf32", 80),
    Case(24, torch.float16, n_heads=4, paper=True),
)


def every(widths: list[int]) -> Iterator[Case]:
    """These widths at the usual patches for 9.0, and every third for 8.0; other patches, chunks, heads and float16."""
    for capability in (90, 80):
        for width in widths if capability == 90 else widths[1::3]:
            for dtype, precision in ((torch.bfloat16, "ieee"), (torch.float32, "ieee"), (torch.float32, "tf32")):
                yield Case(width, dtype, precision, capability)
    for dtype in (torch.bfloat16, torch.float32):
        for pixels, k in ((1, 4), (4, 4), (9, 4), (16, 8), (64, 2)):
            yield Case(32, dtype, pixels=pixels, k=k)
        yield Case(384, dtype, k=1, look_back=False, rounds=1)
        yield Case(512, dtype)
        yield Case(32, dtype, n_heads=4, paper=True)
    yield Case(192, torch.float16)


def kernels_of(case: Case) -> tuple[str, ...]:
    """The kernels without products are small, and alike for all widths."""
    return KERNELS if case.width in (32, 384) else PRODUCTS


def compiled(case: Case, kernel: str) -> dict[str, Any]:
    """CPU-seconds, a thread's registers and spilled bytes, bytes of shared memory, instructions of tensor cores."""
    function = getattr(kernels, kernel)
    tiles = triton_launch.tiles_of(case.pixels, case.k, case.look_back, case.width, case.dtype, case.precision)
    options = triton_launch.options_of(function, tiles, case.dtype, case.precision)
    constants: dict[str, Any] = {**tiles, "P": case.pixels, "D": case.width, "HEADS": case.n_heads, "DB": tiles["DO"]}
    constants |= {"PAPER": case.paper, "SIGNED": case.paper and case.rounds > 1, "PRECISION": case.precision}
    constants["RB"] = 64 if kernel == "join" else max(1, 64 // tiles["PB"])
    constants = {name: value for name, value in constants.items() if name in function.arg_names}
    kinds = dict.fromkeys(constants, "constexpr") | dict.fromkeys(SUMS, "*fp32")
    kinds |= {"order": "*i64", "scale": "fp32", "step": "i32", **dict.fromkeys(kernels.SIZES, "i32")}
    signature = {name: kinds.get(name, f"*{DTYPES[case.dtype]}") for name in function.arg_names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(signature) if _aligned(name, signature[name])}
    source = ASTSource(fn=function, signature=signature, constexprs=constants, attrs=aligned)
    before = _cpu_seconds()
    code = triton.compile(source, target=GPUTarget("cuda", case.capability, 32), options=options)
    seconds = _cpu_seconds() - before
    found = {"kernel": kernel, **asdict(case), "dtype": str(case.dtype).removeprefix("torch."), **options}
    used = _resources(code.asm["cubin"])
    return {**found, **used, "shared": code.metadata.shared, "mma": code.asm["ptx"].count("mma"), "seconds": seconds}


def _aligned(name: str, kind: str) -> bool:
    return kind.startswith("*") or name == "step"


def _resources(cubin: bytes) -> dict[str, int]:
    """As the compiled code states them: what is spilled lies on the stack, which is used for nothing else."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(CUOBJDUMP), "--dump-resource-usage", file.name]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return {
        name: int(re.search(rf"{word}:(\d+)", said)[1])  # type: ignore[index]
        for name, word in (("registers", "REG"), ("spilled", "STACK"))
    }


def _cpu_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(x.ru_utime + x.ru_stime for x in used)


def broken(row: dict[str, Any]) -> list[str]:
    """The bounds that a row breaks."""
    product = row["kernel"] in PRODUCTS
    cores = row["dtype"] != "float32" or row["precision"] == "tf32"
    spilled = MOST_SPILLED if cores or row["pixels"] <= 16 else MOST_SPILLED_OF_LARGE_PATCHES
    said = []
    if row["spilled"] > spilled:
        said.append(f"{row['spilled']} bytes spilled a thread, {spilled} are allowed")
    if row["shared"] > MOST_SHARED:
        said.append(f"{row['shared']} bytes of shared memory, {MOST_SHARED} are allowed")
    if row["seconds"] > MOST_SECONDS:
        said.append(f"{row['seconds']:.0f} CPU-seconds, {MOST_SECONDS:.0f} are allowed")
    if product and cores and not row["mma"]:
        said.append("no tensor core is used")
    return said


def line(row: dict[str, Any]) -> str:
    about = f"sm_{row['capability']} {row['dtype']} {row['precision']} D={row['width']} P={row['pixels']} k={row['k']}"
    about += f"{' paper' if row['paper'] else ''} {row['kernel']}"
    return (
        f"{about:58s} spilled {row['spilled']:5d} B  registers {row['registers']:3d} × {32 * row['num_warps']:3d}  "
        f"shared {row['shared'] / 1024:5.1f} KiB  {row['seconds']:4.1f} s"
    )


def main() -> None:
    warnings.filterwarnings("ignore", message="TRITON_DEFAULT_FP_FUSION")  # it is given with each kernel
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--widths", type=int, nargs="+", default=WIDTHS, help="channels of a head")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TRITON_CACHE_DIR"] = cache
        for case in QUICK if options.quick else every(options.widths):
            for kernel in kernels_of(case):
                rows.append(compiled(case, kernel))
                print(line(rows[-1]), flush=True)
    faults = [f"{line(row)}: {fault}" for row in rows for fault in broken(row)]
    if not options.quick:
        keep("compile_gpu", {"triton": triton.__version__, "widths": options.widths, "rows": rows})
    print("\n".join(faults) or f"{len(rows)} kernels, every one within its bounds")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
