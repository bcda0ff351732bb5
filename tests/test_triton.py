"""The GPU kernels, in Triton's interpreter. `test_gpu.py` runs them on a GPU."""

import pytest
import torch

from kithkin.errors import BackendError
from kithkin.ops import available_backends, exact_groups, group_patches, knn_local_attention

import test_ops_attention as attention

pytest.importorskip("triton", reason='triton is not installed; pip install "kithkin[triton]"')
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU, Triton does not interpret")

PROBLEMS = [
    attention.by_name[about]
    for about in (
        *("k = 1", "dense, N < 2k", "N = 2k + 1", "k = 2, last chunk of 1", "a head a channel"),
        *("without look-back", "one pixel a patch", "odd sides and channels", "large scores"),
    )
]
SMALL = attention.Problem("small", 1, 9, 16, 8, k=4, rounds=2, look_back=True)
WIDE = attention.Problem("channels in three blocks", 1, 9, 4, 40, k=4, rounds=2, look_back=True)
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def assert_as_near_as_the_reference(problem, weighting, dtype):
    found = attention.solution("triton", problem, weighting, dtype)
    assert all(x.dtype == dtype for x in found)
    yardstick = attention.solution("reference", problem, weighting, dtype)
    attention.assert_parity(found, attention.truth(problem, weighting, dtype), yardstick, attention.FLOOR[dtype])


@pytest.fixture
def tensor_cores():
    """float32 takes the blocks that it has where TF32 is allowed: all keys at once. Numbers are float32's still."""
    torch.set_float32_matmul_precision("high")
    attention.solution.cache_clear()
    yield
    torch.set_float32_matmul_precision("highest")
    attention.solution.cache_clear()


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # in patches that are not there
@pytest.mark.parametrize(
    ("problem", "weighting"),
    [*((problem, "softmax") for problem in PROBLEMS), *((problem, "paper") for problem in PROBLEMS[1::2])],
    ids=lambda value: getattr(value, "about", value),
)
def test_it_errs_no_more_than_twice_the_reference(problem, weighting, tensor_cores):
    assert_as_near_as_the_reference(problem, weighting, torch.float32)


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@pytest.mark.parametrize(
    ("problem", "weighting"),
    [(attention.by_name["N = 2k + 1"], "paper"), (WIDE, "softmax")],
    ids=["as printed", "channels in three blocks"],
)
def test_keys_that_come_patch_by_patch_make_no_difference(problem, weighting):
    assert_as_near_as_the_reference(problem, weighting, torch.float32)


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@pytest.mark.parametrize(
    ("dtype", "weighting"),
    [(torch.float16, "softmax"), (torch.bfloat16, "softmax"), (torch.bfloat16, "paper")],
    ids=["float16", "bfloat16", "bfloat16, as printed"],
)
def test_half_precisions_sum_in_float32(dtype, weighting):
    assert_as_near_as_the_reference(WIDE, weighting, dtype)


def test_images_that_are_worked_on_one_after_the_other_are_the_same_to_the_bit(monkeypatch):
    problem = attention.Problem("two images", 2, 4, 4, 8, k=4, rounds=2)
    together = attention.solution("triton", problem, "softmax", torch.bfloat16)
    monkeypatch.setattr("kithkin.ops.triton_launch.SCRATCH_BYTES", 1)
    found = attention.solve("triton", problem.tensors("softmax", torch.bfloat16), problem.groups())
    assert all(torch.equal(a, b) for a, b in zip(found, together, strict=True))


def test_no_memory_is_read_before_it_is_written(monkeypatch):
    tensors, groups = SMALL.tensors("softmax", torch.bfloat16), SMALL.groups()
    expected = attention.solution("triton", SMALL, "softmax", torch.bfloat16)
    for home, name in ((torch, "empty_like"), (torch.Tensor, "new_empty")):
        monkeypatch.setattr(home, name, attention.poisoned(getattr(home, name)))
    found = attention.solve("triton", tensors, groups)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_slices_of_one_wider_tensor_and_any_strides_are_read_right():
    *qkv, upstream = SMALL.tensors("softmax", torch.bfloat16)
    expected = attention.solution("triton", SMALL, "softmax", torch.bfloat16)
    sliced = torch.cat(qkv, dim=-1).chunk(3, dim=-1)
    for laid in (sliced, [attention.spread(x) for x in qkv]):
        found = attention.solve("triton", [*laid, attention.spread(upstream)], SMALL.groups())
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_what_it_does_not_take_is_refused_with_the_reason(monkeypatch):
    x = torch.randn(1, 40, 16, 8)
    groups = group_patches(x, k=4, n_hashes=1)
    wide, coarse = torch.randn(1, 40, 16, 513), torch.randn(1, 40, 64, 8)
    for tensor, near, reason in (
        (x.double(), groups, "not float64"),
        (x, exact_groups(x, k=4), "exact neighbour lists"),
        (wide, groups, "at most 512 channels a head, not 513"),
        (coarse, groups, "k = 4 patches of 64 pixels make 256"),
        (x, group_patches(x, k=16, n_hashes=1), "k = 16 patches of 16 pixels make 256"),
    ):
        with pytest.raises(BackendError, match=reason):
            knn_local_attention(tensor, tensor, tensor, near, backend="triton")
    monkeypatch.delenv("TRITON_INTERPRET")
    assert available_backends("cpu")["triton"] == "triton runs on GPUs, not on cpu"
