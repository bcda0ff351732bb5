"""Compile the CPU kernels, once for each instruction set, with the C++ compiler of the machine.

Installing the package does this; in a source tree: ``python -m kithkin.ops.kernels.build``.
"""

import hashlib
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
HEADERS = ("simd.hpp", "team.hpp", "chunk.hpp", "dense.hpp", "depthwise.hpp")
SOURCES = ("knn_attention.cpp", "depthwise.cpp", "feed_forward.cpp")
X86 = ("x86_64", "AMD64")

# From the plainest; the library for DEFAULT says how far down this list a processor can go (kithkin_level). Processors
# of other families have DEFAULT alone.
INSTRUCTION_SETS = {
    "DEFAULT": ["-DKITHKIN_LANES=8"],
    "AVX2": ["-DKITHKIN_LANES=8", "-mavx2", "-mfma"],
    "AVX512": ["-DKITHKIN_LANES=16", "-mavx512f", "-mavx512vl", "-mavx512bw", "-mavx512dq", "-mfma"],
}
INSTRUCTION_SETS["AVX512_BF16"] = [*INSTRUCTION_SETS["AVX512"], "-mavx512bf16"]
# GCC takes the undefined operands in its own AVX-512 headers for mistakes.
WARNINGS = ["-Wall", "-Wno-psabi", "-Wno-uninitialized", "-Wno-maybe-uninitialized"]
FLAGS = ["-O3", "-std=c++17", "-shared", "-fPIC", "-ffp-contract=fast", "-pthread", *WARNINGS]

SANITIZE = ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-sanitize=alignment"]


def library(instruction_set: str) -> Path:
    """Where the compiled kernels for these sources lie; another revision of them has another name."""
    digest = hashlib.sha256(
        b"".join((HERE / name).read_bytes() for name in ("build.py", *HEADERS, *SOURCES))
    ).hexdigest()[:12]
    return HERE / f"kernels-{digest}-{instruction_set.lower()}.so"


def build() -> list[Path]:
    """Compile what this processor's family can run; with KITHKIN_SANITIZE set, to find errors (tests/sanitize.sh).

    Returns:
        The libraries.

    Raises:
        RuntimeError: no compiler, or it fails on the plainest; the message is its first error.
    """
    compiler = next((c for c in (os.environ.get("CXX"), "c++", "g++", "clang++") if c and shutil.which(c)), None)
    if compiler is None:
        raise RuntimeError("there is no C++ compiler; install g++ or clang++")
    made: list[Path] = []
    extra = SANITIZE if os.environ.get("KITHKIN_SANITIZE") else []
    for name in INSTRUCTION_SETS if platform.machine() in X86 else ("DEFAULT",):
        target = library(name)
        part = target.with_suffix(f".{os.getpid()}.part")
        sources = [str(HERE / source) for source in SOURCES]
        command = [compiler, *FLAGS, *extra, *INSTRUCTION_SETS[name], *sources, "-o", str(part)]
        found = subprocess.run(command, capture_output=True, text=True)
        if found.returncode:
            part.unlink(missing_ok=True)
            if made:  # a compiler that does not know the newest instructions: the plainer library serves
                break
            lines = [line for line in found.stderr.splitlines() if "error" in line] or ["no message"]
            raise RuntimeError(f"{compiler} failed: {lines[0]}")
        part.replace(target)
        made.append(target)
    return made


if __name__ == "__main__":
    try:
        print("\n".join(path.name for path in build()))
    except RuntimeError as error:
        sys.exit(f"kithkin: {error}")
