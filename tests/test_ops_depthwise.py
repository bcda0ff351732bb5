"""GELU, depth-wise convolution, GELU: the kernel against float64, forward and gradients."""

import pytest
import torch
from torch.nn import functional as F

from kithkin.errors import InputError
from kithkin.ops import available_backends, gelu_depthwise_gelu, native

compiled = pytest.mark.skipif(available_backends()["native"] is not None, reason=str(available_backends()["native"]))

# Narrower than a strip and wider, one row, one column, channels that fill vectors and that don't.
SHAPES = [(2, 13, 9, 72), (1, 1, 1, 16), (1, 40, 3, 24), (2, 70, 37, 50), (1, 5, 300, 17)]


def tensors(shape, dtype=torch.float32):
    generator = torch.Generator().manual_seed(sum(shape))
    channels = shape[-1]
    made = [torch.randn(s, generator=generator) for s in (shape, (channels, 1, 3, 3), (channels,), shape)]
    return [x.to(dtype) for x in made]


def in_steps(x, weight, bias):
    hidden = F.conv2d(F.gelu(x).permute(0, 3, 1, 2), weight, bias, padding=1, groups=x.shape[-1])
    return F.gelu(hidden.permute(0, 2, 3, 1))


def solve(function, x, weight, bias, upstream):
    inputs = [t.detach().requires_grad_() for t in (x, weight, bias)]
    out = function(*inputs)
    return [out.detach(), *torch.autograd.grad(out, inputs, upstream)]


@compiled
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_kernel_is_right_to_float32(shape):
    found = solve(gelu_depthwise_gelu, *tensors(shape))
    truth = solve(in_steps, *tensors(shape, torch.float64))
    for a, b in zip(found, truth, strict=True):
        assert (a - b).abs().max() <= 1e-6 * b.abs().max()


@compiled
def test_the_kernel_runs_where_it_can_and_only_there(monkeypatch):
    ran = []
    monkeypatch.setattr(native, "depthwise", lambda name, **rest: ran.append(name))
    gelu_depthwise_gelu(*tensors((1, 4, 4, 16))[:3])
    assert ran == ["kithkin_depthwise"]
    gelu_depthwise_gelu(*tensors((1, 4, 4, 15))[:3])
    gelu_depthwise_gelu(*tensors((1, 4, 4, 16), torch.float64)[:3])
    gelu_depthwise_gelu(*tensors((1, 4, 4, 16), torch.bfloat16)[:3])
    with torch.autocast("cpu", torch.bfloat16):
        gelu_depthwise_gelu(*tensors((1, 4, 4, 16))[:3])
    assert ran == ["kithkin_depthwise"]


@pytest.mark.parametrize("channels", [15, 16])
def test_large_and_small_numbers_keep_their_place(channels):
    x = torch.tensor([-1e4, -20.0, -5.0, 0.0, 5.0, 20.0, 1e4]).view(1, 7, 1, 1).expand(1, 7, 1, channels)
    weight = torch.zeros(channels, 1, 3, 3)
    weight[:, :, 1, 1] = 1.0
    out = gelu_depthwise_gelu(x, weight, torch.zeros(channels))
    torch.testing.assert_close(out, F.gelu(F.gelu(x)), rtol=1e-6, atol=1e-6)


@compiled
def test_the_result_depends_neither_on_the_threads_nor_on_the_layout():
    x, weight, bias, upstream = tensors((3, 50, 20, 40))
    turned = x.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0)
    before = torch.get_num_threads()
    results = []
    try:
        for threads, laid in ((1, x), (3, turned)):
            torch.set_num_threads(threads)
            results.append(solve(gelu_depthwise_gelu, laid, weight, bias, upstream))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@compiled
def test_it_is_a_sound_operator_to_torch():
    inputs = [x.requires_grad_() for x in tensors((1, 6, 5, 16))[:3]]
    torch.library.opcheck(torch.ops.kithkin.gelu_depthwise_gelu, inputs)


@compiled
def test_no_memory_is_read_before_it_is_written(monkeypatch):
    expected = solve(gelu_depthwise_gelu, *tensors((2, 13, 9, 40)))
    make = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *args, **kwargs: make(*args, **kwargs).fill_(float("nan")))
    assert torch.empty(2).isnan().all()
    found = solve(gelu_depthwise_gelu, *tensors((2, 13, 9, 40)))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_wrong_shapes_are_refused():
    x, weight, bias, _ = tensors((1, 4, 4, 16))
    for wrong in ((x[0], weight, bias), (x, weight[:8], bias), (x, weight, bias[:8]), (x, weight[:, :, :2], bias)):
        with pytest.raises(InputError, match="gelu_depthwise_gelu: expected a map"):
            gelu_depthwise_gelu(*wrong)
