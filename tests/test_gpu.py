"""On a GPU, where there is one: `python -m pytest -m gpu`. What these tests lean on is tested without one."""

import sys
from pathlib import Path

import pytest
import torch

from kithkin.ops import PatchGroups, knn_local_attention, trusted
from kithkin.ops.dispatch import BACKENDS

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import flex_oracle
import gpu_parity
import operator_gpu

NO_GPU = None if torch.cuda.is_available() else "PyTorch finds no GPU"
COUNT = torch.cuda.device_count()


def gpu(test):
    return pytest.mark.gpu(pytest.mark.skipif(NO_GPU is not None, reason=str(NO_GPU))(test))


each_case = pytest.mark.parametrize("case", gpu_parity.CASES, ids=lambda case: case.about)
DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in gpu_parity.DTYPES}


def assert_agrees(row):
    assert row["agrees"], row["fault"]


@gpu
@each_case
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", ["triton", "blocked", "reference"])
def test_every_backend_agrees_with_float64_on_the_cpu(backend, dtype, case):
    if reason := BACKENDS[backend].why_not("cuda", DTYPES[dtype], None):
        pytest.skip(reason)
    assert_agrees(gpu_parity.check(case, backend, DTYPES[dtype], "cuda"))


@gpu
@each_case
def test_float32_may_be_multiplied_in_tf32(case):
    torch.set_float32_matmul_precision("high")
    try:
        assert_agrees(gpu_parity.check(case, "triton", torch.float32, "cuda"))
    finally:
        torch.set_float32_matmul_precision("highest")


@gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_kernels_agree_with_flex_attention(dtype):
    for case in gpu_parity.CASES[:2]:
        *qkv, _ = (x.cuda() for x in case.tensors(DTYPES[dtype]))
        near = PatchGroups(case.groups().order.cuda(), case.k)
        found = knn_local_attention(*qkv, near, backend="triton").double()
        expected = flex_oracle.knn_local_attention(*(x.double().float() for x in qkv), near).double()
        assert (found - expected).norm() / expected.norm() <= (3e-3 if dtype == "float32" else 1e-2)


@gpu
def test_the_kernels_are_trusted_here():
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert trusted("cuda", dtype)


@gpu
@pytest.mark.skipif(COUNT < 2, reason=f"there are {COUNT} GPUs")
def test_the_second_gpu_is_used_where_the_tensors_are_there():
    torch.cuda.set_device(0)
    assert_agrees(gpu_parity.check(gpu_parity.CASES[1], "triton", torch.bfloat16, "cuda:1"))


@gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_graph_of_the_operator_gives_what_the_operator_gives(dtype):
    case = gpu_parity.CASES[1]
    *qkv, _ = (x.cuda() for x in case.tensors(DTYPES[dtype]))
    near = PatchGroups(case.groups().order.cuda(), case.k)
    expected = knn_local_attention(*qkv, near, backend="triton")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = knn_local_attention(*qkv, near, backend="triton")
    found.fill_(float("nan"))
    graph.replay()
    assert torch.equal(found, expected)


def losses(device, backend):
    """Of 20 steps of a small network that learns to undo noise, from one seed, on one batch."""
    from kithkin.model import KiT
    from kithkin.model_config import KiTConfig

    torch.manual_seed(0)
    network = KiT(KiTConfig(width=16, n_stages=1, depth=1, stem_stride=1, n_hashes=1)).set_backend(backend).to(device)
    generator = torch.Generator().manual_seed(1)
    clean = torch.rand(2, 3, 32, 32, generator=generator)
    noisy = clean + 0.1 * torch.randn(clean.shape, generator=generator)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    found = []
    for _ in range(20):
        loss = (network(noisy.to(device)) - clean.to(device)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return torch.tensor(found, dtype=torch.float64)


@gpu
@pytest.mark.parametrize("backend", ["triton", "blocked"])
def test_training_on_the_gpu_goes_as_on_the_cpu(backend):
    """The groups of a patch or two may fall otherwise: sums are rounded in another order there."""
    on_cpu, on_gpu = losses("cpu", "blocked"), losses("cuda", backend)
    assert on_cpu[-1] < 0.8 * on_cpu[0]
    assert ((on_gpu - on_cpu).abs() / on_cpu).max() <= 0.02


# What these tests lean on


def test_a_backend_that_errs_does_not_agree(monkeypatch):
    case = gpu_parity.Case("small", 1, 9, 4, 8, k=4, rounds=2)
    assert_agrees(gpu_parity.check(case, "blocked", torch.float32, "cpu"))
    right = gpu_parity.solve

    def solve(case, backend, tensors):
        out, *grads = right(case, backend, tensors)
        return [out, *(1.0001 * x if backend == "blocked" else x for x in grads)]

    monkeypatch.setattr(gpu_parity, "solve", solve)
    row = gpu_parity.check(case, "blocked", torch.float32, "cpu")
    assert not row["agrees"]
    assert "gradient of key" in row["fault"]
    assert "output" not in row["fault"]
    monkeypatch.setattr(gpu_parity, "solve", lambda *_: [x.fill_(float("nan")) for x in right(*_)])
    assert "output: nan" in gpu_parity.check(case, "blocked", torch.bfloat16, "cpu")["fault"]


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
def test_flex_attention_computes_the_equations():
    case = gpu_parity.Case("last chunk of 1, heads", 2, 13, 4, 8, k=4, rounds=3, n_heads=2)
    *qkv, _ = case.tensors(torch.float32)
    expected = gpu_parity.truth(case, torch.float32, 0)[0]
    found = flex_oracle.knn_local_attention(*qkv, case.groups(), case.n_heads)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)


def test_the_networks_of_the_training_test_learn_on_the_cpu():
    found = losses("cpu", "blocked")
    assert found[-1] < 0.8 * found[0]


def test_what_errs_is_not_timed_and_the_rest_is(monkeypatch):
    right = gpu_parity.solve

    def solve(case, backend, tensors):
        found = right(case, backend, tensors)
        return [1.1 * x for x in found] if backend == "blocked" else found

    sizes = (operator_gpu.Size(8, 4, 1),) * 2
    monkeypatch.setattr(operator_gpu, "SMALL", sizes)
    monkeypatch.setattr(operator_gpu, "flex", lambda *_: iter(()))  # slow where nothing fuses it
    monkeypatch.setattr(gpu_parity, "CASES", (gpu_parity.Case("small", 1, 9, 4, 8, k=4, rounds=2),))
    pairs = [("reference", torch.float32), ("blocked", torch.float32)]
    monkeypatch.setattr(gpu_parity, "pairs", lambda device: iter(pairs))
    assert "blocked" in {row["method"] for row in operator_gpu.measure("cpu", 60.0)["rows"]}
    monkeypatch.setattr(gpu_parity, "solve", solve)
    found = operator_gpu.measure("cpu", 60.0)
    assert "output" in found["refused"]["blocked"]
    assert {row["method"] for row in found["rows"]} == {"sdpa, windows of as many keys", "sdpa, whole map"}
    late = operator_gpu.measure("cpu", 0.0)
    assert late["rows"] == []
    assert len(late["not_checked"]) == 2
    assert late["not_timed"]


@pytest.mark.parametrize(("rounds", "forward", "both"), [(1, 8.0, 34.0), (4, 10.5, 41.0)])
def test_the_bytes_are_those_that_the_docs_state(rounds, forward, both):
    size = operator_gpu.Size(16, 32, rounds)
    assert size.moved(2, backward=False) == forward * 32 * rounds * 16**2
    assert size.moved(2, backward=True) == both * 32 * rounds * 16**2
