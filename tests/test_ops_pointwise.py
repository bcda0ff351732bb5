"""A linear layer from pixel to pixel: its values, its gradients, and which kernel PyTorch takes."""

import pytest
import torch

from kithkin.ops import pointwise

SHAPES = [(1, 1, 1, 3), (1, 20, 32, 32), (1, 21, 32, 32), (2, 5, 7, 24), (0, 5, 7, 24), (17, 2, 3, 5)]


@pytest.fixture(params=[1, 2])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def tensors(shape, dtype=torch.float32):
    generator = torch.Generator().manual_seed(sum(shape))
    shapes = (shape, (2 * shape[-1], shape[-1]), (2 * shape[-1],))
    return [torch.randn(s, generator=generator).to(dtype).requires_grad_() for s in shapes]


def solve(function, given):
    out = function(*given)
    gradients = torch.autograd.grad(out.square().sum(), given, create_graph=True)
    return [out, *gradients, *torch.autograd.grad(gradients[0].square().sum(), given[:2])]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients_of_both_orders_are_those_of_the_product(shape, threads):
    found, plain = solve(pointwise, tensors(shape)), solve(lambda x, w, b: x @ w.T + b, tensors(shape))
    for a, b in zip(found, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * (1 + b.abs().sum().item() / max(1, b.numel())))


def test_maps_of_a_batch_may_come_one_by_one(threads):
    x, weight, bias = (t.detach() for t in tensors((3, 25, 32, 32)))
    found = torch.vmap(lambda one: pointwise(one[None], weight, bias)[0])(x)
    torch.testing.assert_close(found, x @ weight.T + bias, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch has no oneDNN")
def test_large_maps_go_to_onednn_with_any_number_of_threads(threads):
    for shape in ((1, 21, 32, 32), (2, 5, 7, 24)):
        given = tensors(shape)
        with torch.profiler.profile() as profile:
            pointwise(*given).sum().backward()
        ran = {event.name for event in profile.events()}
        assert {"aten::mkldnn_convolution", "aten::convolution_backward"} <= ran
        assert not {name for name in ran if "slow" in name or "addmm" in name}


def test_an_export_may_leave_the_size_open():
    class Layer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            _, self.weight, self.bias = (torch.nn.Parameter(t.detach()) for t in tensors((1, 4, 4, 16)))

        def forward(self, x):
            return pointwise(x, self.weight, self.bias)

    layer, sides = Layer(), {1: torch.export.Dim("height", min=2), 2: torch.export.Dim("width", min=2)}
    exported = torch.export.export(layer, (tensors((1, 4, 6, 16))[0].detach(),), dynamic_shapes=(sides,))
    x = tensors((1, 40, 41, 16))[0].detach()
    torch.testing.assert_close(exported.module()(x), layer(x))
