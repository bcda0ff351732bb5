"""Compile the CPU kernels with the C++ compiler of the machine.

Installing the package does this; in a source tree: ``python -m kithkin.ops.kernels``. That makes
the library for the richest instruction set that this processor runs. Where there is no compiler,
``pip install ziglang`` brings one. Environment variables change what is made:

- ``KITHKIN_TARGET=TAG``: every instruction set for another system or an older one (``TARGETS``), by
  zig's compiler.
- ``KITHKIN_KERNELS=all``: every instruction set of this processor's family.
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
import sysconfig
import tempfile
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).parent
HEADERS = ("api.hpp", "simd.hpp", "team.hpp", "chunk.hpp", "dense.hpp", "depthwise.hpp", "panels.hpp", "gated.hpp")
# The longest first: so the jobs of several cores end together.
SOURCES = ("gated_backward.cpp", "knn_attention.cpp", "feed_forward.cpp", "gated_block.cpp")
LEVEL = "level.cpp"

# From the plainest; kithkin_level (level.cpp) says how far down this list a processor can go. Those that are not x86-64
# have DEFAULT alone.
INSTRUCTION_SETS = {
    "DEFAULT": ["-DKITHKIN_LANES=8"],
    "AVX2": ["-DKITHKIN_LANES=8", "-mavx2", "-mfma"],
    "AVX512": ["-DKITHKIN_LANES=16", "-mavx512f", "-mavx512vl", "-mavx512bw", "-mavx512dq", "-mfma"],
}
INSTRUCTION_SETS["AVX512_BF16"] = [*INSTRUCTION_SETS["AVX512"], "-mavx512bf16"]

# The platform tags of the released wheels, and what zig's compiler calls these systems.
TARGETS = {
    "manylinux_2_28_x86_64": "x86_64-linux-gnu.2.28",
    "manylinux_2_28_aarch64": "aarch64-linux-gnu.2.28",
    "macosx_11_0_arm64": "aarch64-macos.11.0",
    "win_amd64": "x86_64-windows-gnu",
}

# GCC takes the undefined operands in its own AVX-512 headers for mistakes.
WARNINGS = ["-Wall", "-Wno-psabi", "-Wno-uninitialized", "-Wno-maybe-uninitialized"]
FLAGS = ["-O3", "-std=c++17", "-ffp-contract=fast", "-fvisibility=hidden", "-pthread", *WARNINGS]
SANITIZE = ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-sanitize=alignment"]


def platform_tag() -> str:
    """Return the wheel tag of the platform that the kernels are compiled for: one machine, never a universal binary."""
    here = sysconfig.get_platform().replace("universal2", platform.machine())
    return os.environ.get("KITHKIN_TARGET") or here.replace("-", "_").replace(".", "_")


def library(name: str, folder: Path = HERE, system: str = sys.platform) -> Path:
    """Return where the kernels for an instruction set, or "LEVEL", lie; another revision of them has another name."""
    names = ("build.py", *HEADERS, *SOURCES, LEVEL)
    digest = hashlib.sha256(b"".join((HERE / source).read_bytes() for source in names)).hexdigest()[:12]
    suffix = {"win": ".dll", "dar": ".dylib", "mac": ".dylib"}.get(system[:3], ".so")
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
    compiler, tag = _compiler(), platform_tag()
    flags = [*FLAGS, *(SANITIZE if os.environ.get("KITHKIN_SANITIZE") else [])]
    if not tag.startswith("win"):
        flags.append("-fPIC")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(cores) as pool:

        def compiled(name: str, sources: tuple[str, ...]) -> list[Future[Path]]:
            made = [(HERE / source, Path(scratch, f"{name}-{source}.o")) for source in sources]
            options = [*compiler, *flags, *INSTRUCTION_SETS.get(name, [])]
            return [pool.submit(_run, [*options, "-c", str(source)], to) for source, to in made]

        def linked(name: str, objects: list[Future[Path]]) -> Path:
            target = library(name, folder, tag)
            part = target.with_suffix(f".{os.getpid()}.part")
            command = [*compiler, *flags, "-shared", *(str(made.result()) for made in objects)]
            shutil.copy(_run(command, Path(scratch, target.name)), part)  # some linkers leave more files beside it
            part.replace(target)
            return target

        folder.mkdir(parents=True, exist_ok=True)
        made = [linked("LEVEL", compiled("LEVEL", (LEVEL,)))]
        names = list(INSTRUCTION_SETS) if tag.endswith(("x86_64", "amd64")) else ["DEFAULT"]
        every = bool(os.environ.get("KITHKIN_TARGET")) or os.environ.get("KITHKIN_KERNELS") == "all"
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


def _compiler() -> list[str]:
    target = os.environ.get("KITHKIN_TARGET")
    if target and target not in TARGETS:
        raise RuntimeError(f"KITHKIN_TARGET is {target}; there are {', '.join(TARGETS)}")
    for name in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        if name and shutil.which(name) and not target:
            return [name]
    # Named for this machine too: else zig uses all instructions that the processor has.
    here = (t for t in TARGETS if platform_tag()[:3] in t and t.endswith(platform.machine().lower()))
    target = target or next(here, None)
    if target and find_spec("ziglang"):
        return [sys.executable, "-m", "ziglang", "c++", "-s", "-target", TARGETS[target]]
    raise RuntimeError("there is no C++ compiler; install g++ or clang++, or run: python -m pip install ziglang")


def _run(command: list[str], to: Path) -> Path:
    found = subprocess.run([*command, "-o", str(to)], capture_output=True, text=True)
    if found.returncode:
        to.unlink(missing_ok=True)
        lines = [line for line in found.stderr.splitlines() if "error" in line] or ["no message"]
        raise RuntimeError(f"{command[0]} failed: {lines[0]}")
    return to
