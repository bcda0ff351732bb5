"""The networks that the experiments compare do what their names say."""

import argparse
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from kithkin.errors import InputError
from kithkin.layers import KNNLocalAttention
from kithkin.ops import partition, unpartition
from kithkin.ops.reference import aggregate, candidates_of_each_patch, pairwise_attention, pairwise_weights

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))
from network_variants import attentions, draw
from variant_networks import Attention, Plan, build, tree_order, window_order

GROUPINGS = ("hash", "centered", "cells", "random", "windows", "mixed", "tree", "mixed-tree")


def normal(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("grouping", GROUPINGS)
def test_every_round_of_a_grouping_holds_every_patch_once(grouping):
    layer = Attention(8, Plan(grouping=grouping, n_hashes=2), seed=3).eval()
    x = normal(2, 24, 32, 8)
    layer(x)
    groups = layer.group(partition(x, 4))
    assert groups.order.shape == (2, 2, 48)
    assert torch.equal(groups.order.sort(dim=-1).values, torch.arange(48).expand(2, 2, 48))
    assert torch.equal(groups.order, layer.group(partition(x, 4)).order)


def test_a_patch_alone_sees_itself():
    layer = Attention(8, Plan(grouping="self"), seed=0)
    assert layer.group(partition(normal(1, 16, 16, 8), 4)).candidates_per_patch == 1


def test_windows_are_blocks_of_four_patches_moved_by_one():
    assert window_order((4, 4), 0).view(4, 4).tolist() == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
    assert window_order((4, 4), 1).tolist()[:5] == [0, 1, 2, 3, 4]
    assert {5, 6, 9, 10} == set(window_order((4, 4), 1).tolist()[6:10])


def test_cells_tell_patches_apart_that_differ_little_from_what_all_share():
    kinds = torch.arange(32) % 2
    patches = (20 + normal(2, 16, 8)[kinds] + 0.05 * normal(32, 16, 8))[None]
    layer = Attention(8, Plan(grouping="cells"), seed=0).eval()
    first, second = (set(layer._hashes(patches)[0, 0, kinds == kind].tolist()) for kind in (0, 1))
    assert not first & second
    layer.sorted_by = "hash"
    assert len(set(layer._hashes(patches).flatten().tolist())) == 1


def test_the_leaves_of_a_tree_are_the_copies():
    """Eight vectors, each four times under a little noise, scattered over the row."""
    kinds = (torch.arange(32) * 7 % 32) // 4
    x = 10 * normal(8, 5)[kinds] + 0.01 * normal(32, 5)
    leaves = kinds[tree_order(x[None], 4)[0]].view(8, 4)
    assert torch.equal(leaves, leaves[:, :1].expand(8, 4))
    assert torch.equal(leaves[:, 0].sort().values, torch.arange(8))


def test_a_tree_of_any_number_holds_every_vector_once():
    order = tree_order(normal(2, 45, 3), 4)
    assert torch.equal(order.sort(dim=-1).values, torch.arange(45).expand(2, 45))


def test_a_descriptor_adds_a_scaled_cosine_to_the_pair_s_logit():
    layer = Attention(16, Plan(descriptor=4), seed=0).eval()
    x = normal(1, 16, 32, 16)
    patches = partition(x, 4)
    described = layer.describe(patches.flatten(2))
    described = F.normalize(described - described.mean(dim=1, keepdim=True), dim=-1)
    query, key = (F.pad(proj(patches), (0, 4)) for proj in (layer.query_proj, layer.key_proj))
    layer(x)
    listed = candidates_of_each_patch(layer.group(described.unsqueeze(2)))[0]
    logits = torch.einsum("npc,nmpc->nm", query[0], key[0][listed]) / (16 * 4)
    logits = logits + layer.scale**2 * torch.einsum("nd,nmd->nm", described[0], described[0][listed])
    outputs = pairwise_attention(query[0][:, None], key[0][listed], layer.value_proj(patches)[0][listed])
    expected = aggregate(torch.softmax(logits, dim=-1), outputs)
    torch.testing.assert_close(layer(x), unpartition(expected[None], 4, (16, 32)), rtol=1e-4, atol=1e-5)


def test_heads_are_those_of_the_package():
    layer, package = Attention(8, Plan(grouping="self", heads=2), seed=0), KNNLocalAttention(8, k=1, n_heads=2)
    package.load_state_dict(layer.state_dict())
    x = normal(1, 16, 32, 8)
    torch.testing.assert_close(layer(x), package(x))
    package.n_heads = 1
    assert not torch.allclose(layer(x), package(x), atol=1e-3)


def test_stencils_reach_over_the_edges_of_patches():
    """A stencil of one step to the left is the same as a picture that is moved to the left."""
    layer = Attention(8, Plan(grouping="windows", stencils=True), seed=0)
    for projection in (layer.query_proj, layer.key_proj, layer.value_proj):
        torch.nn.init.zeros_(projection.bias)
    torch.nn.init.zeros_(layer.stencils.bias)
    layer.stencils.weight.data = torch.zeros(24, 1, 3, 3).index_fill(3, torch.tensor([2]), 1) * torch.eye(3)[1][:, None]
    x = normal(1, 16, 32, 8)
    left = F.pad(x[:, :, 1:], (0, 0, 0, 1))
    moved = layer(x)
    layer.stencils = None
    torch.testing.assert_close(moved, layer(left))


@pytest.mark.parametrize("choice", [{"heads": 2}, {"stencils": True}])
def test_choices_that_do_not_go_together_are_refused(choice):
    for other in ({"descriptor": 2}, {"grouping": "scales"}):
        with pytest.raises(InputError, match="go"):
            Attention(8, Plan(**choice, **other), seed=0)


@pytest.mark.parametrize("rounds", [1, 3])
def test_a_temperature_weighs_every_candidate_once_by_its_cosine(rounds):
    layer = Attention(8, Plan(temperature=True, n_hashes=rounds), seed=0).eval()
    x = normal(1, 16, 32, 8)
    patches = partition(x, 4)
    query, key, value = (proj(patches)[0] for proj in (layer.query_proj, layer.key_proj, layer.value_proj))
    expected = []
    for patch, listed in enumerate(candidates_of_each_patch(layer.group(patches))[0].tolist()):
        distinct = sorted(set(listed))
        assert rounds == 1 or len(distinct) < len(listed)
        cosines = F.cosine_similarity(query[patch].flatten(), key[distinct].flatten(1), dim=-1)
        outputs = pairwise_attention(query[patch], key[distinct], value[distinct])
        expected.append(aggregate(torch.softmax(10 * cosines, dim=-1), outputs))
    expected = unpartition(torch.stack(expected)[None], 4, (16, 32))
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("grouping", ["scales", "random-scales"])
def test_two_scales_meet_in_one_row_and_the_fine_patches_are_returned(grouping):
    """A map of 40 by 24: 60 fine patches, and of its half, 20 by 12, 15 coarse ones."""
    layer = Attention(8, Plan(grouping=grouping), seed=0).eval()
    torch.nn.init.normal_(layer.coarse_bias)
    x = normal(2, 40, 24, 8)
    fine, coarse = partition(x, 4), partition(x.unflatten(1, (20, 2)).unflatten(3, (12, 2)).mean(dim=(2, 4)), 4)
    layer.shape = (10, 6)
    listed = candidates_of_each_patch(layer.group(torch.cat([fine, coarse], dim=1)))
    assert listed.shape == (2, 75, 8)
    assert (listed[:, :60] >= 60).any()
    query = layer.query_proj(fine)
    both = torch.cat([fine, coarse + layer.coarse_bias], dim=1)
    key, value = layer.key_proj(both), layer.value_proj(both)
    expected = []
    for image in range(2):
        index = listed[image, :60]
        keys, values = key[image][index.clamp(min=0)], value[image][index.clamp(min=0)]
        weights = pairwise_weights(query[image], keys, index >= 0)
        expected.append(aggregate(weights, pairwise_attention(query[image][:, None], keys, values)))
    torch.testing.assert_close(layer(x), unpartition(torch.stack(expected), 4, (40, 24)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "plan",
    [
        Plan(blocks="na cf g ac n", width=8, grouping="scales"),
        Plan(blocks="na cf g ac n", width=8, temperature=True),
        Plan(blocks="na cf g ac n", width=8, descriptor=2, meter=True),
        Plan(blocks="na cf g ac n", width=8, heads=2, stencils=True),
        Plan(blocks="c c c c c", width=8, full=4),
        Plan(width=8, grouping="windows"),
    ],
)
def test_an_untrained_network_returns_its_input_and_learns_in_every_parameter(plan):
    model, image = build(plan), torch.rand(2, 3, 53, 42)
    torch.testing.assert_close(model(image), image)
    for parameter in model.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    model(image).square().mean().backward()
    assert [name for name, p in model.named_parameters() if not p.grad.abs().sum() > 0] == []
    assert len(attentions(model)) == (plan.blocks.count("a") if plan.blocks else 7)


def test_a_step_s_crops_follow_from_the_seed_and_the_step():
    windows = np.random.default_rng(0).integers(0, 256, (5, 224, 224, 3), np.uint8)
    args = argparse.Namespace(seed=1, crop=32, batch=3, sigma=(25.0, 25.0))
    noisy, clean = draw(windows, args, 7)
    again = draw(windows, args, 7)
    assert torch.equal(noisy, again[0])
    assert torch.equal(clean, again[1])
    assert not torch.equal(clean, draw(windows, args, 8)[1])
    assert (noisy - clean).std().item() * 255 == pytest.approx(25, rel=0.05)
