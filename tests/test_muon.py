import math

import pytest
import torch

from kithkin.model import KiT
from kithkin.model_config import KiTConfig
from kithkin.training.muon import Muon, hidden_weights, orthogonalised


def matrices(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# Orthogonal matrices


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 16, 144), (2, 256, 64), (1, 1, 5), (4, 2, 2)], ids=str)
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_singular_values_end_near_one_and_singular_vectors_stay(shape, scale):
    found = orthogonalised(matrices(*shape) * scale)
    assert found.shape == shape
    u, values, vt = torch.linalg.svd(matrices(*shape).double(), full_matrices=False)
    clear = values / values.norm(dim=-1, keepdim=True) > 0.01  # five steps do not lift what is smaller
    inner = u.mT @ found.double() @ vt.mT
    sizes = inner.diagonal(dim1=-2, dim2=-1)
    assert ((sizes > 0.6) & (sizes < 1.3))[clear].all()
    assert (inner - torch.diag_embed(sizes)).abs().max() < 1e-3


def test_matrices_of_a_batch_do_not_meet():
    batch = matrices(5, 12, 20)
    torch.testing.assert_close(orthogonalised(batch)[3:4], orthogonalised(batch[3:4]))


def test_zeros_stay_zeros():
    assert orthogonalised(torch.zeros(2, 8, 8)).abs().max() == 0


# Steps


def stepped(weight, gradients, **options):
    parameter = torch.nn.Parameter(weight.clone())
    optimizer = Muon([parameter], **options)
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
    return parameter.detach()


def test_a_step_is_that_of_torch_within_its_bfloat16():
    """``torch.optim.Muon`` iterates in bfloat16."""
    weight, gradients = matrices(24, 40), [matrices(24, 40, seed=seed) for seed in (1, 2, 3)]
    theirs = torch.nn.Parameter(weight.clone())
    optimizer = torch.optim.Muon([theirs], lr=0.02, weight_decay=0.1, momentum=0.9, adjust_lr_fn="match_rms_adamw")
    for gradient in gradients:
        theirs.grad = gradient.clone()
        optimizer.step()
    ours = stepped(weight, gradients, lr=0.02, weight_decay=0.1, momentum=0.9, update_rms=0.2)
    moved, theirs_moved = ours - weight, theirs.detach() - weight
    assert (moved - theirs_moved).norm() < 0.02 * theirs_moved.norm()


def test_in_bfloat16_a_step_differs_by_its_rounding_alone():
    weight, gradient = matrices(48, 32), [matrices(48, 32, seed=1)]
    exact, rounded = (
        stepped(weight, gradient, lr=0.02, dtype=dtype) - weight for dtype in (torch.float32, torch.bfloat16)
    )
    assert 0 < (exact - rounded).norm() < 0.05 * exact.norm()


def test_the_first_step_by_hand():
    """Orthogonal gradients are their own direction, up to the iteration's factor on a flat spectrum."""
    gradient = torch.eye(16)
    factor = orthogonalised(gradient[None])[0, 0, 0].item()
    assert 0.6 < factor < 1.3
    moved = stepped(torch.ones(16, 16), [gradient], lr=0.1, weight_decay=0.5, update_rms=0.4)
    torch.testing.assert_close(
        moved, torch.ones(16, 16) * (1 - 0.1 * 0.5) - 0.1 * 0.4 * math.sqrt(16) * factor * gradient
    )


@pytest.mark.parametrize("shape", [(16, 16), (64, 16), (16, 8, 3, 3)], ids=str)
def test_the_numbers_of_a_step_have_the_asked_for_size(shape):
    """A k-th of it for kernels of side k."""
    moved = stepped(torch.zeros(shape), [matrices(*shape)], lr=0.01, update_rms=0.5)
    side = shape[-1] if len(shape) == 4 else 1
    assert moved.square().mean().sqrt() == pytest.approx(0.01 * 0.5 / side, rel=0.25)


def test_weights_of_one_shape_and_of_others_step_as_if_alone():
    shapes = [(8, 8), (8, 4, 3, 3), (8, 8), (16, 8)]
    together = [torch.nn.Parameter(matrices(*shape, seed=i)) for i, shape in enumerate(shapes)]
    still = torch.nn.Parameter(torch.ones(8, 8))
    optimizer = Muon([*together, still], lr=0.05, weight_decay=0.1)
    for turn in range(3):
        for i, parameter in enumerate(together):
            parameter.grad = matrices(*parameter.shape, seed=10 * turn + i)
        optimizer.step()
    for i, (shape, parameter) in enumerate(zip(shapes, together, strict=True)):
        gradients = [matrices(*shape, seed=10 * turn + i) for turn in range(3)]
        alone = stepped(matrices(*shape, seed=i), gradients, lr=0.05, weight_decay=0.1)
        torch.testing.assert_close(parameter.detach(), alone, rtol=1e-4, atol=1e-5)
    assert torch.equal(still.detach(), torch.ones(8, 8))  # it had no gradient


def test_momentum_goes_on_where_the_gradient_turns():
    first, second = matrices(8, 8), -0.01 * matrices(8, 8)
    start = torch.zeros(8, 8)
    once = stepped(start, [first], lr=0.1)
    assert ((stepped(start, [first, second], lr=0.1) - once) * once).sum() > 0
    assert ((stepped(start, [first, second], lr=0.1, momentum=0.0) - once) * once).sum() < 0


# What it takes


@pytest.mark.parametrize("n_heads", [1, 2])
def test_the_weights_between_features_are_all_matrices_but_the_outermost_and_the_depthwise(n_heads):
    model = KiT(KiTConfig(width=8, n_heads=n_heads))
    taken = {id(p) for p in hidden_weights(model)}
    left = {name for name, p in model.named_parameters() if p.ndim > 1 and id(p) not in taken}
    assert {name for name in left if "depthwise" not in name} == {"stem.conv1.weight", "head.conv3.weight"}
    assert all(p.ndim > 1 for p in hidden_weights(model))
