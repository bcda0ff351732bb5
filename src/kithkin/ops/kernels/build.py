"""Compile the CPU kernels with the C++ compiler of the machine.

Installing the package does this; in a source tree: ``python -m kithkin.ops.kernels.build``. That
makes the library for the richest instruction set that this processor runs. Environment variables
change what is made:

- ``KITHKIN_KERNELS=all``: every instruction set of this processor's family, for any machine.
- ``KITHKIN_SANITIZE=1``: libraries that find errors (``tests/sanitize.sh``).
- ``CXX``: the compiler.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).parent
HEADERS = ("api.hpp", "simd.hpp", "team.hpp", "chunk.hpp", "dense.hpp", "depthwise.hpp", "panels.hpp", "gated.hpp")
# The longest first: so the jobs of several cores end together.
SOURCES = ("gated_backward.cpp", "knn_attention.cpp", "feed_forward.cpp", "gated_block.cpp", "depthwise.cpp")
LEVEL = "level.cpp"

# From the plainest; kithkin_level (level.cpp) says how far down this list a processor can go. Those that are not x86-64
# have DEFAULT alone.
INSTRUCTION_SETS = {
    "DEFAULT": ["-DKITHKIN_LANES=8"],
    "AVX2": ["-DKITHKIN_LANES=8", "-mavx2", "-mfma"],
    "AVX512": ["-DKITHKIN_LANES=16", "-mavx512f", "-mavx512vl", "-mavx512bw", "-mavx512dq", "-mfma"],
}
INSTRUCTION_SETS["AVX512_BF16"] = [*INSTRUCTION_SETS["AVX512"], "-mavx512bf16"]

# GCC takes the undefined operands in its own AVX-512 headers for mistakes.
WARNINGS = ["-Wall", "-Wno-psabi", "-Wno-uninitialized", "-Wno-maybe-uninitialized"]
FLAGS = ["-O3", "-std=c++17", "-ffp-contract=fast", "-fvisibility=hidden", "-pthread", *WARNINGS]
SANITIZE = ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-sanitize=alignment"]


def library(name: str, folder: Path = HERE) -> Path:
    """Return where the kernels for an instruction set, or "LEVEL", lie; another revision of them has another name."""
    names = ("build.py", *HEADERS, *SOURCES, LEVEL)
    digest = hashlib.sha256(b"".join((HERE / source).read_bytes() for source in names)).hexdigest()[:12]
    suffix = {"win32": ".dll", "darwin": ".dylib"}.get(sys.platform, ".so")
    return folder / f"kernels-{digest}-{name.lower()}{suffix}"


def level() -> int:
    """Return how far down the list of instruction sets this processor can go, by the library that ``build`` made."""
    return int(ctypes.CDLL(str(library("LEVEL"))).kithkin_level())


def build(folder: Path = HERE) -> list[Path]:
    """Compile the kernels, one file of one instruction set on each core.

    Args:
        folder: where the libraries go.

    Returns:
        The libraries.

    Raises:
        RuntimeError: no compiler, or it fails on the plainest; the message is its first error.
    """
    compiler = _compiler()
    flags = [*FLAGS, *(SANITIZE if os.environ.get("KITHKIN_SANITIZE") else [])]
    if sys.platform != "win32":
        flags.append("-fPIC")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(cores) as pool:

        def compiled(name: str, sources: tuple[str, ...]) -> list[Future[Path]]:
            made = [(HERE / source, Path(scratch, f"{name}-{source}.o")) for source in sources]
            options = [compiler, *flags, *INSTRUCTION_SETS.get(name, [])]
            return [pool.submit(_run, [*options, "-c", str(source)], to) for source, to in made]

        def linked(name: str, objects: list[Future[Path]]) -> Path:
            target = library(name, folder)
            part = target.with_suffix(f".{os.getpid()}.part")
            _run([compiler, *flags, "-shared", *(str(made.result()) for made in objects)], part)
            part.replace(target)
            return target

        folder.mkdir(parents=True, exist_ok=True)
        made = [linked("LEVEL", compiled("LEVEL", (LEVEL,)))]
        names = list(INSTRUCTION_SETS) if platform.machine() in ("x86_64", "AMD64") else ["DEFAULT"]
        every = os.environ.get("KITHKIN_KERNELS") == "all"
        if not every:
            names = names[: level() + 1]
        names.reverse()
        for together in [names] if every else [[name] for name in names]:
            objects = {name: compiled(name, SOURCES) for name in together}
            for name, found in objects.items():
                try:
                    made.append(linked(name, found))
                except RuntimeError as error:  # the compiler may not know the newest instructions
                    failed = error
            if made[1:]:
                return made
    raise failed


def _compiler() -> str:
    for name in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        if name and shutil.which(name):
            return name
    raise RuntimeError("there is no C++ compiler; install g++ or clang++")


def _run(command: list[str], to: Path) -> Path:
    found = subprocess.run([*command, "-o", str(to)], capture_output=True, text=True)
    if found.returncode:
        to.unlink(missing_ok=True)
        lines = [line for line in found.stderr.splitlines() if "error" in line] or ["no message"]
        raise RuntimeError(f"{command[0]} failed: {lines[0]}")
    return to


if __name__ == "__main__":
    try:
        print("\n".join(path.name for path in build()))
    except RuntimeError as error:
        sys.exit(f"kithkin: {error}")
