"""The layers: Eqs. (3) and (4), the attention layer and its rotations, up- and downsampling."""

import math
import random

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from kithkin.errors import BackendError, InputError
from kithkin.layers import Downsample, FeedForward, KNNLocalAttention, KNNTransformerBlock, Upsample
from kithkin.ops import group_patches, layer_norm, partition, reference, unpartition

import oracle


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def shaken(layer, seed=0):
    """The layer in float64 with every weight and offset moved off its start, so that none can hide."""
    layer = layer.double()
    with torch.no_grad():
        for i, parameter in enumerate(layer.parameters()):
            parameter += 0.3 * normal(*parameter.shape, seed=100 * seed + i)
    return layer


# Eqs. (3) and (4), step by step in numpy


def numbers(parameter):
    return parameter.detach().double().numpy()


def norm_by_hand(x, layer):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * numbers(layer.weight) + numbers(layer.bias)


def linear_by_hand(x, layer):
    return x @ numbers(layer.weight).T + numbers(layer.bias)


def gelu_by_hand(x):
    return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2


def attention_by_hand(x, layer, n_hashes, k):
    """(H, W, C) with at least 2k + 1 whole patches of 4×4 pixels."""
    patches = oracle.partition(x, 4)
    n_buckets = oracle.default_n_buckets(len(patches), k)
    flat = patches.reshape(len(patches), -1)
    rotations = layer.rotations.double().numpy()[:, :, : n_buckets // 2]
    orders = [oracle.sort_by_hash(oracle.lsh_hash(flat, rotation)) for rotation in rotations]
    assert len(orders) == n_hashes
    projections = (layer.query_proj, layer.key_proj, layer.value_proj)
    query, key, value = (linear_by_hand(patches, projection) for projection in projections)
    out = oracle.knn_local_attention(query, key, value, oracle.neighborhoods(orders, k, True))
    result = np.zeros(x.shape)
    for i, patch in enumerate(out):
        top, left = 4 * (i // (x.shape[1] // 4)), 4 * (i % (x.shape[1] // 4))
        result[top : top + 4, left : left + 4] = patch.reshape(4, 4, -1)
    return result


def feed_forward_by_hand(x, layer):
    wide = gelu_by_hand(linear_by_hand(x, layer.widen))
    padded = np.pad(wide, ((1, 1), (1, 1), (0, 0)))
    stencil = numbers(layer.depthwise.weight)[:, 0]
    mixed = np.zeros(wide.shape) + numbers(layer.depthwise.bias)
    for y in range(3):
        for x_ in range(3):
            mixed += padded[y : y + wide.shape[0], x_ : x_ + wide.shape[1]] * stencil[:, y, x_]
    return linear_by_hand(gelu_by_hand(mixed), layer.narrow)


def test_a_block_is_eqs_3_and_4_step_by_step():
    block = shaken(KNNTransformerBlock(6, ffn_ratio=2.0, patch_size=4, k=4, n_hashes=2))
    x = normal(2, 12, 16, 6, seed=1)
    for image, found in zip(x.numpy(), block(x).detach().numpy(), strict=True):
        attended = attention_by_hand(norm_by_hand(image, block.attention_norm), block.attention, 2, 4) + image
        expected = feed_forward_by_hand(norm_by_hand(attended, block.ffn_norm), block.ffn) + attended
        np.testing.assert_allclose(found, expected, atol=1e-10)


def test_eq_3_and_eq_4_apart():
    block = shaken(KNNTransformerBlock(6, n_hashes=2))
    x = normal(1, 12, 12, 6, seed=1)
    image = x[0].numpy()
    attended = attention_by_hand(norm_by_hand(image, block.attention_norm), block.attention, 2, 4) + image
    np.testing.assert_allclose(block.attend(x)[0].detach().numpy(), attended, atol=1e-10)
    fed = feed_forward_by_hand(norm_by_hand(image, block.ffn_norm), block.ffn) + image
    np.testing.assert_allclose(block.feed_forward(x)[0].detach().numpy(), fed, atol=1e-10)


def test_a_block_whose_branches_are_silent_is_the_identity():
    block = KNNTransformerBlock(6)
    with torch.no_grad():
        for layer in (block.attention.value_proj, block.ffn.narrow):
            layer.weight.zero_()
            layer.bias.zero_()
    x = normal(1, 12, 12, 6, dtype=torch.float32)
    assert torch.equal(block(x), x)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (4, 5), (7, 2)])
def test_the_feed_forward_network_takes_any_size(size):
    ffn = shaken(FeedForward(4, 1.5))
    x = normal(2, *size, 4)
    for image, found in zip(x.numpy(), ffn(x).detach().numpy(), strict=True):
        np.testing.assert_allclose(found, feed_forward_by_hand(image, ffn), atol=1e-12)


def test_the_hidden_channels_follow_the_ratio():
    assert FeedForward(8, 3.0).depthwise.weight.shape == (24, 1, 3, 3)
    assert KNNTransformerBlock(8, ffn_ratio=1.5).ffn.widen.out_features == 12


# The attention layer against its parts


def composed(layer, x):
    """The layer's output from the parts it is said to be made of, by the reference."""
    size, (height, width) = layer.patch_size, x.shape[1:3]
    edges = ((0, 0), (0, -height % size), (0, -width % size), (0, 0))
    whole = torch.from_numpy(np.pad(x.numpy(), edges, mode="edge"))
    patches = partition(whole, size)
    query = F.linear(patches, layer.query_proj.weight, layer.query_proj.bias)
    key = F.linear(patches, layer.key_proj.weight, layer.key_proj.bias)
    value = F.linear(patches, layer.value_proj.weight, layer.value_proj.bias)
    groups = group_patches(
        query if layer.hash_input == "query" else patches,
        k=layer.k,
        n_hashes=layer.n_hashes,
        n_buckets=layer.n_buckets,
        rotations=layer.rotations,
        features=layer.hash_features,
    )
    out = reference.attention(query, key, value, groups, layer.weighting, layer.n_heads)
    if layer.n_heads > 1:
        out = F.linear(out, layer.output_proj.weight, layer.output_proj.bias)
    return unpartition(out, size, tuple(whole.shape[1:3]))[:, :height, :width]


CHOICES = [
    {},
    {"share_query_key": True},
    {"n_heads": 2},
    {"n_heads": 4, "weighting": "paper"},
    {"weighting": "paper"},
    {"hash_input": "query"},
    {"hash_features": "pooled"},
    {"hash_features": "centered"},
    {"hash_input": "query", "hash_features": "pooled", "n_heads": 2},
    {"n_buckets": 6},
    {"k": 1},
    {"k": 2, "n_hashes": 1},
    {"k": 3, "patch_size": 2},
    {"patch_size": 1},
]


@pytest.mark.parametrize("choices", CHOICES, ids=str)
def test_the_layer_is_its_parts(choices):
    layer = shaken(KNNLocalAttention(8, **{"n_hashes": 2, **choices}))
    x = normal(2, 16, 20, 8, seed=1)
    torch.testing.assert_close(layer(x), composed(layer, x), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("size", [(1, 1), (1, 17), (19, 1), (3, 4), (4, 4), (5, 7), (13, 18), (33, 21)])
def test_a_map_of_any_size_is_extended_by_its_border(size):
    layer = shaken(KNNLocalAttention(4, n_hashes=2))
    x = normal(2, *size, 4, seed=1)
    out = layer(x)
    assert out.shape == x.shape
    torch.testing.assert_close(out, composed(layer, x), rtol=1e-8, atol=1e-8)


def test_maps_in_any_memory_layout_give_the_same():
    layer = shaken(KNNLocalAttention(4, n_hashes=2))
    x = normal(2, 13, 18, 4)
    view = x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    assert not view.is_contiguous()
    torch.testing.assert_close(layer(view), layer(x))


def test_gradients_of_the_layer():
    layer = shaken(KNNLocalAttention(2, patch_size=2, k=4))
    x = normal(1, 5, 4, 2, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(layer, (x,))


def test_a_shared_projection_is_one_and_the_same():
    apart, shared = KNNLocalAttention(8), KNNLocalAttention(8, share_query_key=True)
    assert shared.key_proj is shared.query_proj
    assert apart.key_proj is not apart.query_proj
    count = [sum(p.numel() for p in layer.parameters()) for layer in (apart, shared)]
    assert count[0] - count[1] == 8 * 8 + 8
    shared(normal(1, 12, 12, 8, dtype=torch.float32)).square().mean().backward()
    assert torch.equal(shared.key_proj.weight.grad, shared.query_proj.weight.grad)


def test_only_several_heads_have_an_output_projection():
    assert not list(KNNLocalAttention(8).output_proj.parameters())
    assert len(list(KNNLocalAttention(8, n_heads=2).output_proj.parameters())) == 2


def test_with_k_1_a_patch_sees_itself_alone():
    layer = shaken(KNNLocalAttention(4, k=1))
    x = normal(1, 12, 12, 4)
    changed = x.clone()
    changed[:, 8:, 8:] += 1.0
    moved = (layer(changed) - layer(x)).abs().amax(-1)[0] > 0
    assert moved[8:, 8:].all()
    assert not moved[:8].any()
    assert not moved[:, :8].any()


@pytest.mark.parametrize(
    "wrong",
    [
        {"weighting": "sum"},
        {"hash_input": "key"},
        {"hash_features": "mean"},
        {"n_heads": 3},
        {"n_heads": 0},
        {"k": 0},
        {"n_hashes": 0},
        {"patch_size": 0},
        {"n_buckets": 3},
    ],
    ids=str,
)
def test_settings_that_can_not_be_meant_are_refused(wrong):
    with pytest.raises(InputError):
        KNNLocalAttention(8, **wrong)(normal(1, 16, 16, 8, dtype=torch.float32))


@pytest.mark.parametrize("shape", [(1, 8, 16, 16), (16, 16, 8), (1, 16, 16, 9)], ids=str)
def test_maps_of_another_shape_are_refused(shape):
    with pytest.raises(InputError, match=r"expected a map \(B, H, W, 8\).*permute"):
        KNNLocalAttention(8)(torch.zeros(shape))


def test_a_backend_that_does_not_exist_is_refused():
    layer = KNNLocalAttention(8, backend="abacus")
    with pytest.raises(BackendError, match="abacus"):
        layer(normal(1, 16, 16, 8, dtype=torch.float32))


def test_backends_agree():
    layer = shaken(KNNLocalAttention(8, n_heads=2))
    x = normal(2, 18, 21, 8)
    found = {}
    for layer.backend in (None, "reference", "blocked"):
        found[layer.backend] = layer(x)
    torch.testing.assert_close(found["blocked"], found["reference"])
    assert torch.equal(found[None], found["blocked"])


# Rotations


def random_states():
    return torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()


def same_states(before, after):
    return torch.equal(before[0], after[0]) and np.array_equal(before[1], after[1]) and before[2] == after[2]


def test_the_fixed_rotations_are_the_same_in_every_construction():
    torch.manual_seed(1)
    first = KNNLocalAttention(8, seed=5).rotations
    torch.manual_seed(2)
    np.random.seed(3)
    assert torch.equal(KNNLocalAttention(8, seed=5).rotations, first)
    assert not torch.equal(KNNLocalAttention(8, seed=6).rotations, first)


def test_the_fixed_rotations_never_change():
    """A change here changes what every checkpoint computes."""
    rotations = KNNLocalAttention(8, seed=0).rotations
    assert tuple(rotations.shape) == (4, 128, 64)
    assert rotations.flatten()[:3].tolist() == pytest.approx([1.7640523, 0.4001572, 0.9787380], rel=1e-6)
    assert rotations.mean().item() == pytest.approx(0, abs=0.02)
    assert rotations.std().item() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize(
    ("choices", "shape"),
    [
        ({}, (4, 128, 64)),
        ({"hash_features": "pooled"}, (4, 8, 64)),
        ({"n_buckets": 6, "n_hashes": 3}, (3, 128, 3)),
        ({"patch_size": 2}, (4, 32, 64)),
    ],
    ids=str,
)
def test_the_shape_of_the_rotations(choices, shape):
    assert tuple(KNNLocalAttention(8, **choices).rotations.shape) == shape


def test_rotations_follow_the_layer_but_not_into_its_checkpoint():
    layer = KNNLocalAttention(8)
    assert not [name for name in layer.state_dict() if "rotations" in name]
    assert not any(p is layer.rotations for p in layer.parameters())
    assert "rotations" in dict(layer.named_buffers())


def test_a_redraw_follows_its_generator_and_none_puts_the_fixed_ones_back():
    layer = KNNLocalAttention(8)
    fixed = layer.rotations.clone()
    drawn = []
    for seed in (1, 1, 2):
        layer.redraw_rotations(torch.Generator().manual_seed(seed))
        drawn.append(layer.rotations.clone())
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0], fixed)
    layer.redraw_rotations()
    assert torch.equal(layer.rotations, fixed)


def test_a_redraw_changes_the_output_and_the_fixed_ones_restore_it():
    layer = shaken(KNNLocalAttention(4, n_hashes=1)).train()
    x = normal(1, 32, 32, 4, seed=1)
    before = layer(x)
    assert torch.equal(layer(x), before)  # nothing is redrawn by itself, in training neither
    layer.redraw_rotations(torch.Generator().manual_seed(1))
    assert not torch.allclose(layer(x), before)
    layer.redraw_rotations(None)
    assert torch.equal(layer(x), before)


def test_the_global_random_states_are_left_alone():
    layer = KNNLocalAttention(8, n_hashes=2)
    x = normal(1, 16, 16, 8, dtype=torch.float32)
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    before = random_states()
    layer(x).sum().backward()
    layer.group(partition(x, 4))
    layer.redraw_rotations()
    layer.redraw_rotations(torch.Generator().manual_seed(1))
    assert same_states(before, random_states())


def test_construction_draws_no_rotation_from_the_global_states():
    """A layer's weights come from the global state, as in all of PyTorch; its rotations do not."""
    np.random.seed(0)
    before = random_states()
    after = []
    for k in (1, 4):  # k = 1 has no rotation
        torch.manual_seed(0)
        layer = KNNLocalAttention(8, k=k)
        after.append(torch.get_rng_state())
        assert (layer.rotations.numel() == 0) == (k == 1)
    assert torch.equal(*after)
    assert same_states((after[0], *before[1:]), random_states())


def test_the_global_random_states_are_not_read():
    layer = KNNLocalAttention(8, n_hashes=2)
    x = normal(1, 32, 32, 8, dtype=torch.float32)
    found = []
    for seed in (0, 99):
        torch.manual_seed(seed)
        np.random.seed(seed)
        layer.redraw_rotations()
        found.append(layer(x))
    assert torch.equal(*found)


# Up and down


def test_downsampling_is_a_linear_map_of_each_2_by_2_square():
    layer = shaken(Downsample(3))
    x = normal(2, 4, 6, 3)
    out = layer(x)
    assert tuple(out.shape) == (2, 2, 3, 6)
    weight = numbers(layer.conv.weight)
    for row in range(2):
        for column in range(3):
            square = x[1, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].numpy()
            expected = np.einsum("oiyx,yxi->o", weight, square) + numbers(layer.conv.bias)
            np.testing.assert_allclose(out[1, row, column].detach().numpy(), expected, atol=1e-12)


def test_upsampling_lays_a_pixel_s_values_out_as_a_2_by_2_square():
    layer = shaken(Upsample(4))
    x = normal(2, 3, 2, 4)
    out = layer(x)
    assert tuple(out.shape) == (2, 6, 4, 2)
    for row in range(3):
        for column in range(2):
            expected = linear_by_hand(x[1, row, column].numpy(), layer.expand).reshape(2, 2, 2)
            found = out[1, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].detach().numpy()
            np.testing.assert_allclose(found, expected, atol=1e-12)


# LayerNorm


@pytest.mark.parametrize("channels", [3, 24, 32])
def test_layer_norm_under_autocast_is_the_exact_one_but_for_the_rounding_of_what_goes_in_and_out(channels):
    weight, bias = normal(channels), normal(channels, seed=1)
    x, sent = normal(4, 5, channels, seed=2).bfloat16(), normal(4, 5, channels, seed=3).bfloat16()
    found, exact = (
        [t.detach().clone().to(dtype).requires_grad_() for t in (x, weight, bias)]
        for dtype in (torch.float32, torch.float64)
    )
    found[0] = x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        out = layer_norm(*found)
    truth = F.layer_norm(exact[0], (channels,), *exact[1:], 1e-5)
    assert out.dtype == torch.bfloat16
    assert (out - truth).abs().max() <= 2**-8 * truth.abs().max()
    out.backward(sent)
    truth.backward(sent.double())
    for a, b, bound in zip(found, exact, (2**-8, 1e-5, 1e-5), strict=True):
        assert (a.grad.double() - b.grad).abs().max() <= bound * b.grad.abs().max().clamp(min=1e-3)
