"""Eq. (4) in one operator: the kernel against float64, forward and gradients."""

import pytest
import torch
from torch.nn import functional as F

from kithkin.errors import InputError
from kithkin.ops import available_backends, feed_forward, native

compiled = pytest.mark.skipif(available_backends()["native"] is not None, reason=str(available_backends()["native"]))

# (B, H, W, C) and D: one pixel; several strips and parts; wide rows; channels that fill vectors and that do not.
PROBLEMS = [
    ((1, 1, 1, 16), 16),
    ((2, 13, 9, 24), 72),
    ((1, 70, 37, 17), 40),
    ((3, 5, 130, 32), 64),
    ((2, 4, 4, 96), 50),
]


def tensors(shape, wide, dtype=torch.float32):
    """x, the eight parameters at a size that keeps that of the signal, and a gradient."""
    generator = torch.Generator().manual_seed(sum(shape) + wide)
    channels = shape[-1]
    scales = {
        (channels,): 1.0,
        (wide, channels): channels**-0.5,
        (wide,): 1.0,
        (wide, 1, 3, 3): 1 / 3,
        (channels, wide): wide**-0.5,
    }
    order = [
        (channels,),
        (channels,),
        (wide, channels),
        (wide,),
        (wide, 1, 3, 3),
        (wide,),
        (channels, wide),
        (channels,),
    ]
    made = [torch.randn(shape, generator=generator)]
    made += [torch.randn(s, generator=generator) * scales[s] for s in order]
    return [x.to(dtype) for x in (*made, torch.randn(shape, generator=generator))]


def in_steps(x, parameters):
    """Eq. (4), one operation after the other."""
    norm_weight, norm_bias, widen, widen_bias, stencils, stencil_bias, narrow, narrow_bias = parameters
    normal = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt()
    hidden = F.gelu((normal * norm_weight + norm_bias) @ widen.T + widen_bias).permute(0, 3, 1, 2)
    mixed = F.gelu(F.conv2d(hidden, stencils, stencil_bias, padding=1, groups=len(stencils))).permute(0, 2, 3, 1)
    return mixed @ narrow.T + narrow_bias + x


def solve(function, x, *rest):
    *parameters, upstream = rest
    inputs = [t.detach().requires_grad_() for t in (x, *parameters)]
    out = function(inputs[0], inputs[1:])
    return [out.detach(), *torch.autograd.grad(out, inputs, upstream)]


@compiled
@pytest.mark.parametrize(("shape", "wide"), PROBLEMS, ids=str)
def test_the_kernel_is_as_near_to_the_truth_as_pytorch(shape, wide):
    found = solve(feed_forward, *tensors(shape, wide))
    truth = solve(in_steps, *tensors(shape, wide, torch.float64))
    plain = solve(in_steps, *tensors(shape, wide))
    for a, b, c in zip(found, truth, plain, strict=True):
        allowed = 2 * (c - b).abs().max() + 2 * torch.finfo(torch.float32).eps * b.abs().max()
        assert (a - b).abs().max() <= allowed


@compiled
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_where_the_kernel_does_not_run_the_steps_do(dtype):
    for shape, wide in (((1, 6, 5, 15), 20), ((2, 6, 5, 16), 20)):
        found, wanted = (solve(f, *tensors(shape, wide, dtype)) for f in (feed_forward, in_steps))
        for a, b in zip(found, wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@compiled
def test_the_kernel_runs_where_it_can_and_only_there(monkeypatch):
    ran = []
    monkeypatch.setattr(native, "feed_forward", lambda name, *given, **rest: ran.append(name))
    run = lambda *given: feed_forward(given[0], given[1:9])  # noqa: E731
    run(*tensors((1, 4, 4, 16), 24))
    assert ran == ["kithkin_feed_forward"]
    run(*tensors((1, 4, 4, 15), 24))
    run(*tensors((1, 4, 4, 16), 15))
    run(*tensors((1, 4, 4, 16), 24, torch.float64))
    run(*tensors((1, 4, 4, 16), 24, torch.bfloat16))
    with torch.autocast("cpu", torch.bfloat16):
        run(*tensors((1, 4, 4, 16), 24))
    assert ran == ["kithkin_feed_forward"]


@compiled
def test_the_result_depends_neither_on_the_threads_nor_on_the_layout():
    x, *rest = tensors((3, 50, 20, 24), 40)
    turned = x.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0)
    before = torch.get_num_threads()
    results = []
    try:
        for threads, laid in ((1, x), (3, turned)):
            torch.set_num_threads(threads)
            results.append(solve(feed_forward, laid, *rest))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@compiled
def test_no_memory_is_read_before_it_is_written(monkeypatch):
    given = tensors((2, 13, 9, 24), 40)
    expected = solve(feed_forward, *given)
    make = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *args, **kwargs: make(*args, **kwargs).fill_(float("nan")))
    found = solve(feed_forward, *given)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@compiled
def test_it_is_a_sound_operator_to_torch():
    x, *parameters, upstream = (x.requires_grad_() for x in tensors((1, 6, 5, 16), 20))
    torch.library.opcheck(torch.ops.kithkin.feed_forward, (x, parameters, 1e-5))
    hidden = torch.ops.kithkin.feed_forward(x, parameters, 1e-5)[1].detach()
    given = (upstream.detach(), x.detach(), [p.detach() for p in parameters], hidden, 1e-5)
    torch.library.opcheck(torch.ops.kithkin.feed_forward_backward, given)


def test_wrong_shapes_are_refused():
    x, *parameters, _ = tensors((1, 4, 4, 16), 20)
    with pytest.raises(InputError, match="feed_forward: expected a map"):
        feed_forward(x[0], parameters)
    for i in range(8):
        wrong = [p[:-1] if j == i else p for j, p in enumerate(parameters)]
        with pytest.raises(InputError, match="feed_forward: expected a map"):
            feed_forward(x, wrong)
