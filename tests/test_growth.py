"""A larger network that starts as a smaller one."""

import copy

import pytest
import torch
from torch.nn import functional as F

from kithkin.errors import InputError
from kithkin.growth import grow
from kithkin.model import KiT
from kithkin.model_config import KiTConfig
from kithkin.zoo import load_model

SMALL = {"width": 8, "n_stages": 2, "depth": 1, "ffn_ratio": 2.0, "n_hashes": 2}


def random_network(**changes):
    """No weight is zero, as none is after training."""
    model = KiT(KiTConfig(**{**SMALL, **changes})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def larger(**changes):
    return KiT(KiTConfig(**{**SMALL, **changes})).eval()


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("changes", [{}, {"depth": 2}, {"ffn_ratio": 3.0}, {"depth": 3, "ffn_ratio": 2.5}])
@torch.no_grad()
def test_more_blocks_and_a_wider_middle_change_nothing(changes, heads):
    old, new = random_network(n_heads=heads), larger(n_heads=heads, **changes)
    picture = torch.rand(1, 3, 40, 36)
    assert (new(picture) - old(picture)).abs().max() > 1e-2
    grow(old, new)
    torch.testing.assert_close(new(picture), old(picture), rtol=0, atol=2e-5)


@pytest.mark.parametrize("heads", [1, 2])
@torch.no_grad()
def test_more_channels_change_nothing_but_layernorm(heads, monkeypatch):
    """With LayerNorm taken out nothing is left that could differ, but for the hashes: k = 1 needs none."""
    monkeypatch.setattr("kithkin.layers.LayerNorm.forward", lambda self, x: x)
    monkeypatch.setattr("kithkin.layers.KNNTransformerBlock.feed_forward", lambda self, x: self.ffn(x) + x)
    old, new = random_network(k=1, n_heads=heads), larger(k=1, n_heads=heads, width=12, ffn_ratio=3.0)
    picture = torch.rand(1, 3, 40, 36)
    grow(old, new)
    torch.testing.assert_close(new(picture), old(picture), rtol=0, atol=2e-5)


def gated_without_layernorm(x, parameters, epsilon):
    (widen1, stencils, narrow1, widen2, narrow2), biases = parameters[2:8:2] + parameters[10::2], parameters[3:8:2]
    biases = biases + parameters[11::2]
    halves = lambda x: x.chunk(2, dim=-1)  # noqa: E731
    a, b = halves(convolved(F.linear(x, widen1, biases[0]), stencils, biases[1]))
    x = x + F.linear(a * b, narrow1, biases[2])
    a, b = halves(F.linear(x, widen2, biases[3]))
    return x + F.linear(a * b, narrow2, biases[4])


def convolved(x, stencils, bias):
    return F.conv2d(x.permute(0, 3, 1, 2), stencils, bias, padding=1, groups=len(bias)).permute(0, 2, 3, 1)


FOLDED = {"blocks": "c ag a gt c", "full_width": 6, "k": 2}


@torch.no_grad()
def test_a_network_with_blocks_grows_too(monkeypatch):
    old, new = random_network(**FOLDED), larger(**{**FOLDED, "blocks": "cg agc ac gt cg"})
    picture = torch.rand(1, 3, 40, 36)
    grow(old, new)
    torch.testing.assert_close(new(picture), old(picture), rtol=0, atol=2e-5)
    monkeypatch.setattr("kithkin.layers.LayerNorm.forward", lambda self, x: x)
    monkeypatch.setattr("kithkin.layers.KNNTransformerBlock.feed_forward", lambda self, x: self.ffn(x) + x)
    monkeypatch.setattr("kithkin.layers.gated_block", gated_without_layernorm)
    alone = {**FOLDED, "k": 1}
    old, new = random_network(**alone), larger(**alone, width=12, ffn_ratio=3.0)
    grow(old, new)
    torch.testing.assert_close(new(picture), old(picture), rtol=0, atol=2e-5)
    new = larger(**{**alone, "full_width": 9}, width=12)
    grow(old, new)
    torch.testing.assert_close(new(picture), old(picture), rtol=0, atol=2e-5)


@torch.no_grad()
def test_trained_weights_grow_to_nearly_the_same_function():
    old = load_model("denoise-gaussian-tiny")
    new = KiT(KiTConfig(width=32, ffn_ratio=4.0, n_hashes=2)).eval()
    grow(old, new)
    picture = torch.rand(1, 3, 8, 8).repeat_interleave(8, -1).repeat_interleave(8, -2)
    noisy = picture + 25 / 255 * torch.randn_like(picture)
    change = (old(noisy) - noisy).square().mean()
    assert (new(noisy) - old(noisy)).square().mean() < 0.02 * change


@pytest.mark.parametrize(
    ("smaller", "changes"),
    [({}, {"depth": 2}), (FOLDED, {**FOLDED, "full_width": 9, "blocks": "cg agc ac gt cg"})],
    ids=["published", "folded"],
)
def test_what_is_new_learns(smaller, changes):
    old, new = random_network(**smaller), larger(**{**changes, "width": 12, "ffn_ratio": 3.0}).train()
    grow(old, new)
    before = copy.deepcopy(new.state_dict())
    optimizer = torch.optim.AdamW(new.parameters(), lr=1e-3, weight_decay=0.0)
    for _ in range(5):
        optimizer.zero_grad()
        new(torch.rand(2, 3, 32, 32)).square().mean().backward()
        optimizer.step()
    stuck = [
        name
        for name, parameter in new.named_parameters()
        if (parameter == before[name]).flatten(1 if parameter.ndim > 1 else 0).all(-1).any()
        and not name.endswith("key_proj.bias")
    ]
    assert not stuck


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"width": 4}, "width = 8, more than 4"),
        ({"ffn_ratio": 1.0}, "ffn_ratio = 2.0, more than 1.0"),
        ({"n_stages": 1}, "n_stages = 2, not 1"),
        ({"n_heads": 2}, "n_heads = 1, not 2"),
        (FOLDED, "blocks = '', no beginning of the stages of 'c ag a gt c'"),
    ],
)
def test_another_network_is_refused(changes, said):
    with pytest.raises(InputError, match=said):
        grow(random_network(), larger(**changes))


def test_shared_projections_are_refused_more_channels():
    with pytest.raises(InputError, match="share_query_key"):
        grow(random_network(share_query_key=True), larger(share_query_key=True, width=12))
    grow(random_network(share_query_key=True), larger(share_query_key=True, depth=2))
