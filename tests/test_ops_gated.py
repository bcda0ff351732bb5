"""The gated block in one operator: the kernel against float64, and what PyTorch knows of it."""

import ctypes

import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from kithkin.errors import InputError
from kithkin.layers import GatedBlock
from kithkin.ops import available_backends, gated_block, native
from kithkin.ops.kernels import build

compiled = pytest.mark.skipif(available_backends()["native"] is not None, reason=str(available_backends()["native"]))

# (B, H, W, C): one pixel; rows and columns alone; several tiles across and down; channels that fill vectors, pairs of
# vectors, and neither.
PROBLEMS = [
    (1, 1, 1, 16),
    (2, 2, 3, 24),
    (1, 37, 1, 17),
    (2, 1, 37, 48),
    (1, 3, 770, 20),
    (1, 37, 66, 128),
    (2, 40, 37, 41),
]


def tensors(shape, dtype=torch.float32):
    """x, the 14 parameters at a size that keeps that of the signal, and a gradient."""
    generator = torch.Generator().manual_seed(sum(shape))
    c = shape[-1]
    weights = [(c,), (2 * c, c), (2 * c, 1, 3, 3), (c, c), (c,), (2 * c, c), (c, c)]
    scales = [1, c**-0.5, 1 / 3, c**-0.5, 1, c**-0.5, c**-0.5]
    made = [torch.randn(shape, generator=generator)]
    for weight, scale in zip(weights, scales, strict=True):
        made += [torch.randn(weight, generator=generator) * scale, torch.randn(weight[0], generator=generator)]
    return [x.to(dtype) for x in (*made, torch.randn(shape, generator=generator))]


def in_steps(x, parameters):
    """The block, one operation after the other."""
    (norm1, widen1, stencils, narrow1, norm2, widen2, narrow2), biases = parameters[::2], parameters[1::2]
    c = x.shape[-1]

    def normal(x, weight, bias):
        return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt() * weight + bias

    wide = (normal(x, norm1, biases[0]) @ widen1.T + biases[1]).permute(0, 3, 1, 2)
    wide = F.conv2d(wide, stencils, biases[2], padding=1, groups=2 * c).permute(0, 2, 3, 1)
    x = x + (wide[..., :c] * wide[..., c:]) @ narrow1.T + biases[3]
    wide = normal(x, norm2, biases[4]) @ widen2.T + biases[5]
    return x + (wide[..., :c] * wide[..., c:]) @ narrow2.T + biases[6]


def solve(function, x, *rest):
    *parameters, upstream = rest
    inputs = [t.detach().requires_grad_() for t in (x, *parameters)]
    out = function(inputs[0], inputs[1:])
    return [out.detach(), *torch.autograd.grad(out, inputs, upstream)]


def expect_the_truth(shape):
    """Result and gradients are as near to those in float64 as PyTorch's."""
    found, plain = (solve(f, *tensors(shape)) for f in (gated_block, in_steps))
    truth = solve(in_steps, *tensors(shape, torch.float64))
    for a, b, c in zip(found, plain, truth, strict=True):
        allowed = 2 * (b - c).abs().max() + 2 * torch.finfo(torch.float32).eps * c.abs().max()
        assert (a - c).abs().max() <= allowed


@compiled
@pytest.mark.parametrize("shape", PROBLEMS, ids=str)
def test_the_kernel_is_as_near_to_the_truth_as_pytorch(shape):
    expect_the_truth(shape)


@compiled
@pytest.mark.parametrize("shape", [*PROBLEMS, (1, 37, 66, 256)], ids=str)
def test_where_nothing_learns_so_is_the_result(shape):
    with torch.no_grad():
        found, plain = (f(x, p) for f in (gated_block, in_steps) for x, *p, _ in [tensors(shape)])
        x, *parameters, _ = tensors(shape, torch.float64)
        truth = in_steps(x, parameters)
    allowed = 2 * (plain - truth).abs().max() + 2 * torch.finfo(torch.float32).eps * truth.abs().max()
    assert (found - truth).abs().max() <= allowed


@compiled
@pytest.mark.parametrize("name", build.INSTRUCTION_SETS)
def test_every_instruction_set_that_runs_here_gives_the_same(name, monkeypatch):
    if not build.library(name).is_file() or list(build.INSTRUCTION_SETS).index(name) > build.level():
        pytest.skip(f"{name} does not run here")
    kernel = ctypes.CDLL(str(build.library(name)))
    monkeypatch.setattr(native, "_kernel", lambda: kernel)
    for shape in PROBLEMS[:5]:
        expect_the_truth(shape)


@compiled
def test_the_kernel_runs_where_it_can_and_only_there(monkeypatch):
    ran = []
    monkeypatch.setattr(native, "gated_block", lambda name, *given, **rest: ran.append(name))
    run = lambda given: gated_block(given[0], given[1:15])  # noqa: E731
    run(tensors((1, 4, 4, 16)))
    assert ran == ["kithkin_gated_block"]
    run(tensors((1, 4, 4, 15)))
    run(tensors((1, 4, 4, 16), torch.float64))
    run(tensors((1, 4, 4, 16), torch.bfloat16))
    with torch.autocast("cpu", torch.bfloat16):
        run(tensors((1, 4, 4, 16)))
    assert ran == ["kithkin_gated_block"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_where_the_kernel_does_not_run_the_steps_do(dtype):
    for shape in ((1, 6, 5, 15), (2, 6, 5, 16)):
        found, wanted = (solve(f, *tensors(shape, dtype)) for f in (gated_block, in_steps))
        for a, b in zip(found, wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * b.abs().max().item())


@compiled
def test_the_result_depends_neither_on_the_threads_nor_on_the_layout():
    given = tensors((3, 70, 20, 24))
    turned = [t.permute(*range(t.ndim)[::-1]).contiguous().permute(*range(t.ndim)[::-1]) for t in given]
    before = torch.get_num_threads()
    results = []
    try:
        for threads, laid in ((1, given), (3, turned)):
            torch.set_num_threads(threads)
            results.append(solve(gated_block, *laid))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@compiled
def test_no_memory_is_read_before_it_is_written(monkeypatch):
    given = tensors((2, 13, 9, 24))
    expected = solve(gated_block, *given)
    make = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *args, **kwargs: make(*args, **kwargs).fill_(float("nan")))
    found = solve(gated_block, *given)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@compiled
def test_it_is_a_sound_operator_to_torch():
    x, *parameters = (t.requires_grad_() for t in tensors((1, 6, 5, 16))[:-1])
    torch.library.opcheck(torch.ops.kithkin.gated_block, (x, parameters, 1e-5))
    detached = [p.detach() for p in parameters]
    torch.library.opcheck(torch.ops.kithkin.gated_block_backward, (x.detach(), x.detach(), detached, 1e-5))


@compiled
def test_its_products_are_counted_as_those_of_the_steps():
    """(PyTorch counts more for the steps: the gradient of a grouped convolution as if it had no groups.)"""
    with FlopCounterMode(display=False) as counter:
        solve(gated_block, *tensors((2, 6, 5, 16)))
    assert counter.get_total_flops() == 3 * 2 * 60 * (6 * 16 * 16 + 18 * 16)


@compiled
def test_a_compiled_and_an_exported_block_hold_the_operator():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        block = GatedBlock(16).eval()
    x = torch.randn(1, 5, 6, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(torch.compile(block, fullgraph=True, backend="aot_eager")(x), block(x))
    exported = torch.export.export(block, (x,))
    assert "kithkin.gated_block" in str(exported.graph)
    assert torch.equal(exported.module()(x), block(x))


def test_wrong_shapes_are_refused():
    x, *parameters, _ = tensors((1, 4, 4, 16))
    with pytest.raises(InputError, match="gated_block: expected a map"):
        gated_block(x[0], parameters)
    for i in range(14):
        wrong = [p[:-1] if j == i else p for j, p in enumerate(parameters)]
        with pytest.raises(InputError, match="gated_block: expected a map"):
            gated_block(x, wrong)
