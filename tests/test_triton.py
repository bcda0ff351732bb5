"""The GPU kernels, in Triton's interpreter; and that they compile for GPUs, which needs none."""

import subprocess
import sys

import pytest
import torch

from kithkin.errors import BackendError
from kithkin.ops import available_backends, exact_groups, group_patches, knn_local_attention

import test_ops_attention as attention

pytest.importorskip("triton", reason='triton is not installed; pip install "kithkin[triton]"')

PROBLEMS = [
    attention.by_name[about]
    for about in (
        *("k = 1", "dense, N < 2k", "N = 2k + 1", "k = 2, last chunk of 1", "a head a channel"),
        *("without look-back", "one pixel a patch", "odd sides and channels", "large scores"),
    )
]
SMALL = attention.Problem("small", 1, 9, 16, 8, k=4, rounds=2, look_back=True)
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # in patches that are not there
@attention.each_weighting
@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.about)
def test_it_errs_no_more_than_twice_the_reference(problem, weighting):
    found = attention.solution("triton", problem, weighting, torch.float32)
    expected = attention.truth(problem, weighting, torch.float32)
    yardstick = attention.solution("reference", problem, weighting, torch.float32)
    attention.assert_parity(found, expected, yardstick, attention.FLOOR[torch.float32])


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@attention.each_weighting
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=["float16", "bfloat16"])
def test_half_precisions_sum_in_float32(dtype, weighting):
    found = attention.solution("triton", SMALL, weighting, dtype)
    assert all(x.dtype == dtype for x in found)
    yardstick = attention.solution("reference", SMALL, weighting, dtype)
    attention.assert_parity(found, attention.truth(SMALL, weighting, dtype), yardstick, attention.FLOOR[dtype])


def test_no_memory_is_read_before_it_is_written(monkeypatch):
    tensors, groups = SMALL.tensors("softmax", torch.float32), SMALL.groups()
    expected = attention.solution("triton", SMALL, "softmax", torch.float32)
    for home, name in ((torch, "empty_like"), (torch.Tensor, "new_empty")):
        monkeypatch.setattr(home, name, attention.poisoned(getattr(home, name)))
    found = attention.solve("triton", tensors, groups)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_slices_of_one_wider_tensor_and_any_strides_are_read_right():
    *qkv, upstream = SMALL.tensors("softmax", torch.float32)
    expected = attention.solution("triton", SMALL, "softmax", torch.float32)
    sliced = torch.cat(qkv, dim=-1).chunk(3, dim=-1)
    for laid in (sliced, [attention.spread(x) for x in qkv]):
        found = attention.solve("triton", [*laid, attention.spread(upstream)], SMALL.groups())
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_what_it_does_not_take_is_refused_with_the_reason(monkeypatch):
    x = torch.randn(1, 40, 16, 8)
    groups = group_patches(x, k=4, n_hashes=1)
    wide, coarse = torch.randn(1, 40, 16, 257), torch.randn(1, 40, 64, 8)
    for tensor, near, reason in (
        (x.double(), groups, "not float64"),
        (x, exact_groups(x, k=4), "exact neighbour lists"),
        (wide, groups, "at most 256 channels a head, not 257"),
        (coarse, groups, "k = 4 patches of 64 pixels make 256"),
        (x, group_patches(x, k=16, n_hashes=1), "k = 16 patches of 16 pixels make 256"),
    ):
        with pytest.raises(BackendError, match=reason):
            knn_local_attention(tensor, tensor, tensor, near, backend="triton")
    monkeypatch.delenv("TRITON_INTERPRET")
    assert available_backends("cpu")["triton"] == "triton runs on GPUs, not on cpu"


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from kithkin.ops import triton as kernels

SIZES = {"P": 16, "D": 24, "HEADS": 1, "KB": 4, "PB": 16, "DB": 32, "SIDES": 2}
SIZES |= {"PAPER": False, "FIRST": False, "LAST": True}
KINDS = {"order": "*i64", "scale": "fp32", **{name: "i32" for name in ("n", "k", "chunks", "rounds", "j", "step")}}
for kernel in (kernels._forward_round, kernels._backward_queries, kernels._backward_keys):
    for dtype, precision in (("bf16", "ieee"), ("fp32", "tf32")):
        kinds = {**KINDS, **{name: f"*{dtype}" for name in ("query", "key", "value", "grad")}}
        sizes = {name: value for name, value in {**SIZES, "PRECISION": precision}.items() if name in kernel.arg_names}
        signature = {name: "constexpr" if name in sizes else kinds.get(name, "*fp32") for name in kernel.arg_names}
        for capability in (80, 90):
            source = ASTSource(fn=kernel, signature=signature, constexprs=sizes)
            code = triton.compile(source, target=GPUTarget("cuda", capability, 32)).asm["ptx"]
            assert "mma" in code, "no tensor core is used"
"""


@pytest.mark.slow
def test_the_kernels_compile_for_gpus_and_use_their_tensor_cores(tmp_path, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    done = subprocess.run([sys.executable, "-c", COMPILE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
