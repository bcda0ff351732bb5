"""The CPU kernels on another processor: compiled for 64-bit ARM and run in an emulator, against what is right.

With Debian's packages g++-aarch64-linux-gnu and qemu-user-static; elsewhere skipped.
"""

import ctypes
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
import torch

from kithkin.ops import group_patches, knn_local_attention, native
from kithkin.ops.kernels import build

import test_ops_feedforward
import test_ops_gated

COMPILER, EMULATOR = (shutil.which(name) for name in ("aarch64-linux-gnu-g++", "qemu-aarch64-static"))
pytestmark = [
    pytest.mark.skipif(not (COMPILER and EMULATOR), reason="there is no cross compiler for ARM, or no emulator"),
    pytest.mark.slow,
]


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """All kernels and what reads their arguments from a file."""
    to = tmp_path_factory.mktemp("emulated") / "kernels"
    sources = [*(build.HERE / name for name in build.SOURCES), Path(__file__).parent / "emulated.cpp"]
    command = [COMPILER, *build.FLAGS, *build.INSTRUCTION_SETS["DEFAULT"], "-static", *sources, "-o", to]
    subprocess.run(list(map(str, command)), check=True)
    return to


@pytest.fixture
def emulated(program, tmp_path, monkeypatch):
    """Let the emulator run the kernels; returns the names of those that it ran."""
    ran = []
    size_of = ctypes.CDLL(None).malloc_usable_size
    size_of.argtypes, size_of.restype = [ctypes.c_void_p], ctypes.c_size_t

    def call(name, arguments):
        data, buffers = b"", []
        for field, kind in arguments._fields_:
            value = getattr(arguments, field)
            if kind is ctypes.c_void_p and value and field != "team":
                size = size_of(value)  # of the whole tensor, which begins there
                data += struct.pack("qq", -1, size)
                buffers.append((value, len(data), size))
                data += ctypes.string_at(value, size)
            else:
                value = 0 if field == "team" else value or 0
                data += struct.pack("qd" if kind is ctypes.c_double else "qq", 0, value)
        file = tmp_path / "arguments"
        file.write_bytes(data)
        subprocess.run([EMULATOR, str(program), name, str(file)], check=True)
        data = file.read_bytes()
        for address, start, size in buffers:
            ctypes.memmove(address, data[start : start + size], size)
        ran.append(name)

    monkeypatch.setattr(native, "_call", call)
    monkeypatch.setattr(native, "_kernel", lambda: True)
    return ran


@pytest.mark.parametrize("weighting", ["softmax", "paper"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_attention_and_its_gradients(emulated, dtype, weighting):
    generator = torch.Generator().manual_seed(0)
    given = [torch.rand(2, 21, 16, 24, generator=generator).to(dtype) for _ in range(3)]
    groups = group_patches(given[2], k=4, n_hashes=3, generator=torch.Generator().manual_seed(1))

    def solve(backend, kind):
        inputs = [x.to(kind, copy=True).requires_grad_() for x in given]
        out = knn_local_attention(*inputs, groups, weighting=weighting, backend=backend)
        return [out.detach(), *torch.autograd.grad(out.double().square().sum(), inputs)]

    allowed = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 1e-2, "atol": 1e-2}
    for found, truth in zip(solve("native", dtype), solve("reference", torch.float64), strict=True):
        torch.testing.assert_close(found.double(), truth, **allowed)
    assert emulated == ["kithkin_forward", "kithkin_backward"]


@pytest.mark.parametrize("shape", test_ops_gated.PROBLEMS[:4], ids=str)
def test_the_gated_block(emulated, shape):
    test_ops_gated.expect_the_truth(shape)
    assert emulated == ["kithkin_gated_block", "kithkin_gated_block_backward"]


@pytest.mark.parametrize(("shape", "wide"), test_ops_feedforward.PROBLEMS[:3], ids=str)
def test_the_feed_forward_network(emulated, shape, wide):
    test_ops_feedforward.test_the_kernel_is_as_near_to_the_truth_as_pytorch(shape, wide)
    assert set(emulated) == {"kithkin_feed_forward", "kithkin_feed_forward_backward"}
