"""The network (Fig. 2): its shape, its sizes, its start, and what it promises about pictures of any size."""

import math
import random
from dataclasses import FrozenInstanceError, fields

import numpy as np
import pytest
import torch

import kithkin.layers
from kithkin.errors import BackendError, InputError
from kithkin.layers import KNNTransformerBlock
from kithkin.model import KiT, count_macs, count_parameters
from kithkin.model_config import SIZES, KiTConfig

SMALL = {"width": 8, "depth": 1, "n_hashes": 1}


def pictures(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def awake(seed=0, **choices):
    """A small network in evaluation mode in which every branch says something, as after training."""
    torch.manual_seed(seed)
    model = KiT(KiTConfig(**{**SMALL, **choices})).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                fan_in = parameter[0].numel() if parameter.ndim > 1 else 100
                parameter.normal_(std=1 / math.sqrt(fan_in), generator=generator)
    return model


def blocks(model):
    return [module for module in model.modules() if isinstance(module, KNNTransformerBlock)]


CHOICES = [
    {},
    {"share_query_key": True},
    {"weighting": "paper"},
    {"n_heads": 2},
    {"hash_input": "query"},
    {"hash_features": "pooled"},
    {"hash_features": "centered"},
    {"stem_stride": 1},
    {"n_stages": 1},
    {"n_stages": 2, "depth": 2},
    {"patch_size": 2, "k": 2},
    {"k": 1},
    {"n_buckets": 6},
    {"ffn_ratio": 1.5},
    {"blocks": "c ga at ag c", "full_width": 6, "n_stages": 2},
]


# Fig. 2


def test_the_patches_of_every_stage(monkeypatch):
    """At 256×256 with patches of 4×4 the bottleneck has 4×4 patches, and each sees itself alone (Sec. 4.1)."""
    seen = []
    attention = kithkin.layers.knn_local_attention

    def recorded(query, key, value, groups, **kwargs):
        seen.append((tuple(query.shape[1:]), groups.k, groups.look_back, groups.n_hashes))
        return attention(query, key, value, groups, **kwargs)

    monkeypatch.setattr(kithkin.layers, "knn_local_attention", recorded)
    config = KiTConfig(width=8, depth=1, n_hashes=2)
    with torch.no_grad():
        KiT(config)(pictures(1, 3, 256, 256))
    down = [((1024, 16, 8), 4, True, 2), ((256, 16, 16), 4, True, 2), ((64, 16, 32), 4, True, 2)]
    assert seen == [*down, ((16, 16, 64), 1, False, 1), *reversed(down)]


def test_the_paper_s_numbers_are_the_defaults():
    config = KiTConfig()
    assert (config.patch_size, config.k, config.n_hashes, config.depth) == (4, 4, 4, 2)
    assert not config.share_query_key
    assert len(blocks(KiT(KiTConfig(width=8)))) == 2 * 7


def test_the_decoder_sees_the_encoder_s_features():
    """With a silent path below, the first encoder stage still reaches the output."""
    model = awake()
    image = pictures(1, 3, 32, 32)
    whole = model(image)
    with torch.no_grad():
        model.up[0].expand.weight.zero_()
        model.up[0].expand.bias.zero_()
    cut = model(image)
    assert not torch.equal(cut, whole)
    with torch.no_grad():
        model.merge[0].weight.zero_()
        model.merge[0].bias.zero_()
    assert not torch.equal(model(image), cut)


@pytest.mark.parametrize("choices", CHOICES, ids=str)
def test_an_untrained_network_returns_its_input(choices):
    image = pictures(2, 3, 37, 50)
    assert torch.equal(KiT(KiTConfig(**{**SMALL, **choices}))(image), image)


@pytest.mark.parametrize("choices", CHOICES, ids=str)
def test_every_choice_runs_and_changes_the_picture(choices):
    image = pictures(2, 3, 37, 50)
    out = awake(**choices)(image)
    assert out.shape == image.shape
    assert out.isfinite().all()
    assert not torch.allclose(out, image)


def test_the_output_is_not_clamped():
    image = pictures(1, 3, 16, 16) * 3 - 1
    assert torch.equal(KiT(KiTConfig(**SMALL))(image), image)


def test_a_network_without_dropout_is_the_same_in_training():
    model, image = awake(), pictures(1, 3, 37, 50)
    assert torch.equal(model.train()(image), model.eval()(image))


@pytest.mark.parametrize("stem_stride", [1, 2])
def test_where_gradients_are_kept_the_layout_of_stem_and_head_may_differ_but_not_the_picture(stem_stride):
    model, image = awake(stem_stride=stem_stride).double(), pictures(2, 3, 24, 32).double()
    seen = []
    for layer in (model.stem.conv1, model.head.conv1):
        layer.register_forward_hook(lambda _, given, __: seen.append(given[0].is_contiguous()))
    with torch.no_grad():
        expected = model(image)
    torch.testing.assert_close(model(image).detach(), expected, rtol=1e-10, atol=1e-10)
    assert seen == [False, False] + [stem_stride == 1] * 2


def test_blocks_have_rotations_of_their_own():
    model = KiT(KiTConfig(width=8, depth=2, n_hashes=1))
    firsts = [block.attention.rotations.flatten()[0].item() for block in blocks(model) if block.attention.k > 1]
    assert len(firsts) == 12
    assert len(set(firsts)) == 12


def test_the_rotation_seed_moves_the_rotations():
    first, again, other = (blocks(KiT(KiTConfig(**SMALL, rotation_seed=seed)))[0].attention for seed in (3, 3, 4))
    assert torch.equal(first.rotations, again.rotations)
    assert not torch.equal(first.rotations, other.rotations)


@pytest.mark.parametrize("choices", [{"stem_stride": 1}, {"stem_stride": 2}, {"n_stages": 2}], ids=str)
def test_the_stride_is_what_the_input_is_extended_to(choices):
    config = KiTConfig(**{**SMALL, **choices})
    assert config.stride == config.stem_stride * 2**config.n_stages


# Pictures of any size


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (7, 13), (16, 16), (17, 15), (37, 50), (2, 64)])
def test_a_picture_of_any_size(size):
    model, image = awake(), pictures(2, 3, *size)
    out = model(image)
    assert out.shape == image.shape
    assert out.isfinite().all()
    assert not torch.equal(out, image)


@pytest.mark.parametrize(
    ("size", "mode"),
    [((37, 50), "reflect"), ((17, 17), "reflect"), ((9, 24), "reflect"), ((8, 8), "edge"), ((7, 13), "edge")],
)
def test_a_picture_is_extended_and_cut_back(size, mode):
    """By reflection, or by its border where it is too small to be reflected."""
    model, image = awake(), pictures(1, 3, *size)
    edges = ((0, 0), (0, 0), (0, -size[0] % 16), (0, -size[1] % 16))
    extended = torch.from_numpy(np.pad(image.numpy(), edges, mode=mode))
    assert extended.shape[2] % 16 == extended.shape[3] % 16 == 0
    assert torch.equal(model(image), model(extended)[:, :, : size[0], : size[1]])


def test_a_picture_alone_is_the_picture_in_a_batch():
    model, batch = awake(n_hashes=2), pictures(4, 3, 56, 72)
    with torch.no_grad():
        together = model(batch)
        for image, out in zip(batch.split(1), together.split(1), strict=True):
            torch.testing.assert_close(model(image), out, rtol=0, atol=1e-5)
        torch.testing.assert_close(model(batch.flip(0)), together.flip(0), rtol=0, atol=1e-5)


def test_the_same_picture_twice_gives_the_same_bytes():
    model, image = awake(), pictures(1, 3, 56, 72)
    assert torch.equal(model(image), model(image))


@pytest.mark.parametrize("shape", [(3, 16, 16), (1, 1, 16, 16), (1, 4, 16, 16), (1, 16, 16, 3)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(InputError, match=r"\(B, 3, H, W\)"):
        KiT(KiTConfig(**SMALL))(pictures(*shape))


@pytest.mark.parametrize("size", [(0, 16), (16, 0)])
def test_a_picture_without_pixels_is_refused(size):
    with pytest.raises(InputError):
        KiT(KiTConfig(**SMALL))(pictures(1, 3, *size))


def test_bfloat16_under_autocast():
    model, image = awake(), pictures(2, 3, 37, 50)
    with torch.no_grad():
        exact = model(image)
        with torch.autocast("cpu", torch.bfloat16):
            rough = model(image)
    assert rough.dtype == torch.float32
    assert rough.isfinite().all()
    change = (exact - image).square().mean().sqrt()
    assert (rough - exact).square().mean().sqrt() < 0.2 * change
    assert not torch.equal(rough, exact)


def test_float64():
    model, image = awake(), pictures(1, 3, 32, 32)
    exact = model.double()(image.double())
    assert exact.dtype == torch.float64
    torch.testing.assert_close(model.float()(image), exact.float(), rtol=0, atol=1e-4)


# Rotations and backends


def test_a_redraw_reaches_every_block_and_none_restores():
    model, image = awake(), pictures(1, 3, 64, 64)
    before = model(image)
    fixed = [block.attention.rotations.clone() for block in blocks(model)]
    model.redraw_rotations(torch.Generator().manual_seed(1))
    for block, rotations in zip(blocks(model), fixed, strict=True):
        assert block.attention.k == 1 or not torch.equal(block.attention.rotations, rotations)
    drawn = model(image)
    assert not torch.allclose(drawn, before)
    model.redraw_rotations(torch.Generator().manual_seed(1))
    assert torch.equal(model(image), drawn)
    model.redraw_rotations()
    assert torch.equal(model(image), before)


def test_the_backend_reaches_every_block():
    model, image = awake(), pictures(1, 3, 40, 40)
    assert model.set_backend("reference") is model
    assert {block.attention.backend for block in blocks(model)} == {"reference"}
    with torch.no_grad():
        truth = model(image)
        torch.testing.assert_close(model.set_backend("blocked")(image), truth, rtol=0, atol=1e-5)
        torch.testing.assert_close(model.set_backend(None)(image), truth, rtol=0, atol=1e-5)
    with pytest.raises(BackendError, match="abacus"):
        model.set_backend("abacus")(image)


def test_the_global_random_states_are_left_alone():
    model, image = KiT(KiTConfig(**SMALL)), pictures(1, 3, 40, 40)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    model(image).mean().backward()
    model.redraw_rotations(torch.Generator().manual_seed(1))
    model.redraw_rotations()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])
    assert random.getstate() == before[2]


def test_counting_leaves_the_global_random_state_alone():
    before = torch.get_rng_state()
    count_macs(KiTConfig(**SMALL), (32, 32))
    assert torch.equal(torch.get_rng_state(), before)


# Training


@pytest.mark.parametrize("choices", CHOICES, ids=str)
def test_every_weight_learns(choices):
    """The branches start at zero, so the gradient reaches the head first, then the branches, then what is in them."""
    model = KiT(KiTConfig(**{**SMALL, **choices})).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    image, target = pictures(1, 3, 64, 64), pictures(1, 3, 64, 64, seed=1)
    reached = []
    for _ in range(3):
        optimizer.zero_grad()
        (model(image) - target).square().mean().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        reached.append({name for name, p in model.named_parameters() if p.grad.any()})
        optimizer.step()
    names = {name for name, _ in model.named_parameters()}
    assert reached[0] == {"head.conv3.weight", "head.conv3.bias"}
    assert names & {"stem.conv1.weight", "head.conv1.weight", "head.conv2.weight", "merge.0.weight"} <= reached[1]
    # A softmax does not feel an offset that all keys share.
    assert {name for name in names - reached[2] if "key_proj.bias" not in name} == set()


def test_the_start_has_no_offsets_and_silent_branches():
    model = KiT(KiTConfig(width=8))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
    for block in blocks(model):
        assert not block.attention.value_proj.weight.any()
        assert not block.ffn.narrow.weight.any()
        assert block.attention.query_proj.weight.any()
    assert not model.head.conv3.weight.any()


def test_the_start_keeps_the_size_of_a_signal():
    """Behind the stem, down to the bottleneck, up and in the head, features neither vanish nor explode."""
    torch.manual_seed(0)
    model, image = KiT(KiTConfig(width=16)), torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    seen = {}
    for name in ("stem", "bottleneck", "decoder.0", "head.conv2"):
        model.get_submodule(name).register_forward_hook(
            lambda module, given, out, name=name: seen.__setitem__(name, out.std().item())
        )
    model(image)
    assert all(0.2 < value < 5 for value in seen.values()), seen


# Sizes and cost


@pytest.mark.parametrize(
    ("size", "low", "high"),
    [("tiny", 0.9e6, 1.0e6), ("small", 2.2e6, 2.8e6), ("base", 7e6, 9e6), ("paper", 18e6, 23e6)],
)
def test_the_named_sizes(size, low, high):
    model = KiT(KiTConfig.named(size))
    count = count_parameters(model)
    assert low <= count <= high
    assert count == sum(value.numel() for value in model.state_dict().values())


def test_a_shared_projection_counts_once():
    apart, shared = (KiT(KiTConfig(**SMALL, share_query_key=shared)) for shared in (False, True))
    expected = sum(c * c + c for c in (8, 16, 32, 64, 32, 16, 8))
    assert count_parameters(apart) - count_parameters(shared) == expected


def test_a_frozen_weight_is_not_counted():
    model = KiT(KiTConfig(**SMALL))
    count = count_parameters(model)
    model.stem.conv1.requires_grad_(False)
    assert count - count_parameters(model) == 8 * 3 * 9 + 8


def test_the_cost_of_tiny():
    """3.1 GMAC at 256×256, about 95 kFLOP a pixel: by hand, of ten gated blocks two thirds at 1/2 and 1/4, 6 C² + 18 C
    products a pixel of their maps each, and the convolutions around them."""
    blocks = sum(n * (6 * c * c + 18 * c) / s for n, c, s in ((4, 48, 4), (4, 96, 16), (2, 192, 64)))
    full = 9 * (3 * 16 + 16 * 16) * 2 + 2 * 16 * 48
    between = 2 * (48 * 96 * 4 / 16 + 96 * 192 * 4 / 64)
    assert count_macs(KiTConfig.named("tiny")) == pytest.approx(256**2 * (blocks + full + between), rel=0.05)


def test_the_cost_is_at_least_that_of_its_convolutions_and_follows_the_choices():
    config = KiTConfig(width=8, depth=1, n_hashes=2)
    cost = count_macs(config, (64, 64))
    stem = 64 * 64 * 8 * 27 + 2 * 32 * 32 * 8 * 72
    head = 32 * 32 * 72 * (8 + 32) + 64 * 64 * 72 * 3
    assert cost > stem + head
    assert count_macs(config, (128, 128)) > 3.5 * cost
    assert count_macs(KiTConfig(width=8, depth=1, n_hashes=4), (64, 64)) > cost
    assert count_macs(KiTConfig(width=8, depth=2, n_hashes=2), (64, 64)) > cost
    assert count_macs(KiTConfig(width=8, depth=1, n_hashes=2, stem_stride=1), (64, 64)) > 2 * cost


# The configuration


def test_the_configuration_survives_a_round_trip():
    config = KiTConfig(width=12, n_buckets=8, weighting="paper", share_query_key=True)
    assert KiTConfig.from_dict(config.to_dict()) == config
    assert set(config.to_dict()) == {field.name for field in fields(KiTConfig)}


def test_the_configuration_is_frozen():
    with pytest.raises(FrozenInstanceError):
        KiTConfig().width = 3


def test_a_named_size_takes_changes():
    assert KiTConfig.named("tiny", k=2) == KiTConfig(**SIZES["tiny"], k=2)
    assert KiTConfig.named("tiny", width=8).width == 8
    with pytest.raises(InputError, match="tiny"):
        KiTConfig.named("huge")


@pytest.mark.parametrize(
    ("key", "near"),
    [("widht", "width"), ("hashes", "n_hashes"), ("patchsize", "patch_size"), ("stride", "stem_stride")],
)
def test_an_unknown_key_is_refused_with_the_nearest_name(key, near):
    with pytest.raises(InputError, match=f"{key}.*did you mean {near!r}"):
        KiTConfig.from_dict({key: 4})
    with pytest.raises(InputError, match=near):
        KiTConfig.named("tiny", **{key: 4})


def test_an_unknown_key_like_no_other_lists_the_known_ones():
    with pytest.raises(InputError, match="width.*rotation_seed"):
        KiTConfig.from_dict({"zzz": 4})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *((key, value) for key in ("width", "n_stages", "depth", "patch_size", "k", "n_hashes") for value in (0, -1)),
        ("n_heads", 0),
        ("n_heads", 3),  # 8 channels
        ("stem_stride", 0),
        ("stem_stride", 3),
        ("n_buckets", 0),
        ("n_buckets", 1),
        ("n_buckets", 7),
        ("ffn_ratio", 0),
        ("ffn_ratio", -1.0),
        ("ffn_ratio", math.nan),
        ("ffn_ratio", 0.01),  # of 8 channels: none
        ("weighting", "sum"),
        ("hash_input", "key"),
        ("hash_features", "mean"),
        ("width", "8"),
        ("width", 8.5),
        ("depth", None),
        ("n_buckets", "8"),
        ("ffn_ratio", "2"),
        ("share_query_key", "no"),
        ("rotation_seed", "0"),
    ],
)
def test_a_value_that_can_not_be_meant_is_refused_by_name(key, value):
    with pytest.raises(InputError, match=key):
        KiTConfig.from_dict({"width": 8, key: value})
