"""Global attention, Eq. (1), and local attention, Eq. (2)."""

import numpy as np
import pytest
import torch

from kithkin.ops import global_attention, local_attention

import oracle

SHAPES = [(1, 1, 4, 3), (2, 5, 4, 3), (1, 3, 1, 1), (2, 4, 9, 5)]
BOTH = [(global_attention, oracle.global_attention), (local_attention, oracle.local_attention)]


def random_patches(shape, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for _ in range(3)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("attention", "expected"), BOTH, ids=["global", "local"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_the_result_is_the_oracle_s(attention, expected, shape, dtype, tolerance):
    inputs = random_patches(shape, dtype)
    truth = np.stack([expected(*(x[b].double().numpy() for x in inputs)) for b in range(shape[0])])
    result = attention(*inputs)
    assert result.dtype == dtype
    np.testing.assert_allclose(result.double().numpy(), truth, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("attention", [global_attention, local_attention], ids=["global", "local"])
def test_gradients_match_finite_differences(attention):
    inputs = [x.requires_grad_() for x in random_patches((2, 3, 4, 2))]
    assert torch.autograd.gradcheck(attention, inputs)


@pytest.mark.parametrize("attention", [global_attention, local_attention], ids=["global", "local"])
def test_permuting_the_patches_permutes_the_result(attention):
    inputs = random_patches((2, 6, 4, 3))
    shuffled = torch.tensor([3, 0, 5, 1, 4, 2])
    torch.testing.assert_close(attention(*(x[:, shuffled] for x in inputs)), attention(*inputs)[:, shuffled])


@pytest.mark.parametrize("attention", [global_attention, local_attention], ids=["global", "local"])
def test_a_constant_value_comes_back_unchanged(attention):
    query, key, _ = random_patches((2, 5, 4, 3))
    torch.testing.assert_close(attention(query, key, torch.full_like(key, 0.7)), torch.full_like(key, 0.7))


@pytest.mark.parametrize("attention", [global_attention, local_attention], ids=["global", "local"])
def test_logits_of_thousands_do_not_overflow(attention):
    query, key, value = random_patches((1, 5, 4, 3), torch.float32)
    assert attention(1e3 * query, 1e3 * key, value).isfinite().all()


def test_local_attention_does_not_look_beyond_its_patch():
    query, key, value = random_patches((2, 4, 4, 3))
    before = local_attention(query, key, value)
    key[0, 1], value[0, 1] = 9.0, 9.0
    after = local_attention(query, key, value)
    changed = (before != after).flatten(2).any(-1)
    assert changed.nonzero().tolist() == [[0, 1]]


def test_global_attention_of_one_patch_is_its_value():
    query, key, value = random_patches((2, 1, 4, 3))
    torch.testing.assert_close(global_attention(query, key, value), value)


def test_global_attention_keeps_the_images_of_a_batch_apart():
    query, key, value = random_patches((2, 4, 4, 3))
    before = global_attention(query, key, value)
    key[1], value[1] = 9.0, 9.0
    assert torch.equal(global_attention(query, key, value)[0], before[0])
