"""The training loss, Eq. (11), against numpy loops."""

import math

import numpy as np
import pytest
import torch

from kithkin.losses import charbonnier_loss, edge_loss, laplacian, restoration_loss


def images(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def charbonnier_by_loops(restored, target, epsilon):
    total = 0.0
    for a, b in zip(restored.ravel(), target.ravel(), strict=True):
        total += math.sqrt((a - b) ** 2 + epsilon**2)
    return total / restored.size


def laplacian_by_loops(image):
    height, width = image.shape[2:]
    result = np.zeros(image.shape)
    for plane, out in zip(image.reshape(-1, height, width), result.reshape(-1, height, width), strict=True):
        for y in range(height):
            for x in range(width):
                near = [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
                inside = [(min(max(v, 0), height - 1), min(max(u, 0), width - 1)) for v, u in near]
                out[y, x] = sum(plane[place] for place in inside) - 4 * plane[y, x]
    return result


@pytest.mark.parametrize("epsilon", [1e-3, 0.5])
def test_charbonnier_is_the_loops_(epsilon):
    a, b = images(2, 3, 5, 7), images(2, 3, 5, 7, seed=1)
    expected = charbonnier_by_loops(a.numpy(), b.numpy(), epsilon)
    assert charbonnier_loss(a, b, epsilon).item() == pytest.approx(expected, rel=1e-12)


def test_charbonnier_by_hand():
    restored, target = torch.tensor([[[[3.0, 1.0]]]]), torch.tensor([[[[0.0, 1.0]]]])
    assert charbonnier_loss(restored, target, 4.0).item() == pytest.approx((5.0 + 4.0) / 2)


def test_charbonnier_of_equal_pictures_is_epsilon_and_the_paper_s_is_the_default():
    a = images(1, 3, 4, 4)
    assert charbonnier_loss(a, a).item() == pytest.approx(1e-3)
    assert charbonnier_loss(a, a, 0.25).item() == pytest.approx(0.25)
    assert charbonnier_loss(a, a.flip(-1)) > 1e-3


@pytest.mark.parametrize("size", [(1, 1), (1, 4), (5, 1), (2, 2), (5, 7)])
def test_the_laplacian_is_the_loops_(size):
    image = images(2, 3, *size)
    np.testing.assert_allclose(laplacian(image).numpy(), laplacian_by_loops(image.numpy()), atol=1e-14)


def test_the_laplacian_of_a_point_is_the_stencil():
    image = torch.zeros(1, 1, 5, 5)
    image[0, 0, 2, 2] = 1.0
    expected = torch.zeros(5, 5)
    expected[2, 1:4] = expected[1:4, 2] = 1.0
    expected[2, 2] = -4.0
    assert torch.equal(laplacian(image)[0, 0], expected)


def test_the_laplacian_keeps_channels_apart_and_ignores_flat_light():
    image = images(1, 3, 6, 6)
    image[:, 1] = 0.7
    found = laplacian(image)
    assert found[:, 1].abs().max() < 1e-15
    torch.testing.assert_close(found[:, 2:], laplacian(image[:, 2:]))


def test_the_edge_loss_is_the_charbonnier_loss_of_the_laplacians():
    a, b = images(2, 3, 5, 7), images(2, 3, 5, 7, seed=1)
    expected = charbonnier_by_loops(laplacian_by_loops(a.numpy()), laplacian_by_loops(b.numpy()), 1e-2)
    assert edge_loss(a, b, 1e-2).item() == pytest.approx(expected, rel=1e-12)


def test_a_change_of_brightness_is_no_edge():
    a = images(1, 3, 6, 6)
    assert edge_loss(a + 0.3, a).item() == pytest.approx(1e-3)
    assert charbonnier_loss(a + 0.3, a).item() > 0.29


@pytest.mark.parametrize("edge_weight", [0.0, 0.05, 2.0])
def test_eq_11_is_the_weighted_sum(edge_weight):
    a, b = images(2, 3, 5, 7), images(2, 3, 5, 7, seed=1)
    pixels = charbonnier_by_loops(a.numpy(), b.numpy(), 1e-3)
    edges = charbonnier_by_loops(laplacian_by_loops(a.numpy()), laplacian_by_loops(b.numpy()), 1e-3)
    found = restoration_loss(a, b, edge_weight=edge_weight)
    assert found.ndim == 0
    assert found.item() == pytest.approx(pixels + edge_weight * edges, rel=1e-12)


def test_epsilon_reaches_both_terms():
    a = images(1, 3, 4, 4)
    assert restoration_loss(a, a, edge_weight=0.5, epsilon=0.1).item() == pytest.approx(0.15)


@pytest.mark.parametrize("edge_weight", [0.0, 0.05])
def test_gradients(edge_weight):
    a, b = images(1, 2, 4, 5).requires_grad_(), images(1, 2, 4, 5, seed=1).requires_grad_()

    def loss(restored, target):
        return restoration_loss(restored, target, edge_weight=edge_weight, epsilon=0.1)

    assert torch.autograd.gradcheck(loss, (a, b))


def test_the_gradient_at_equal_pictures_is_zero_and_no_nan():
    a = images(1, 3, 4, 4).requires_grad_()
    restoration_loss(a, a.detach().clone(), edge_weight=0.05).backward()
    assert torch.equal(a.grad, torch.zeros_like(a))
