"""What all patches attend to in all blocks, against the oracle's loops over what each layer gets."""

import json

import numpy as np
import pytest
import torch

from kithkin.errors import InputError, KithkinError
from kithkin.model import KiT
from kithkin.model_config import KiTConfig
from kithkin.neighbors import map_neighbors, stage_names

import oracle

HEIGHT, WIDTH = 52, 76


@pytest.fixture(scope="module", params=[1, 2], ids=["one head", "two heads"])
def model(request):
    """Weights of every block drawn at random, for an untrained network's blocks add nothing."""
    network = KiT(KiTConfig(width=8, n_stages=2, k=2, n_hashes=3, n_heads=request.param))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in network.parameters():
            weight += 0.1 * torch.randn(weight.shape, generator=generator)
    return network.train()


def levels(height=HEIGHT, width=WIDTH):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def by_the_oracle(model, array, stage, block):
    """(the neighbourhoods, their weights) of a block, from the map that its attention layer gets."""
    part = model.encoder if stage.startswith("encoder") else model.decoder
    layer = part[int(stage[7:])][block].attention
    maps = []
    handle = layer.register_forward_pre_hook(lambda module, inputs: maps.append(inputs[0].detach()))
    model(torch.from_numpy(array.astype(np.float32) / 255).permute(2, 0, 1)[None])
    handle.remove()
    x = maps[0][0].numpy()
    x = np.pad(x, ((0, -x.shape[0] % 4), (0, -x.shape[1] % 4), (0, 0)), mode="edge")
    patches = oracle.partition(x, 4)
    half = oracle.default_n_buckets(len(patches), 2) // 2
    hashes = [oracle.lsh_hash(patches.reshape(len(patches), -1), r[:, :half].numpy()) for r in layer.rotations]
    near = oracle.neighborhoods([oracle.sort_by_hash(row) for row in hashes], 2, True)
    query, key = (
        np.float64(patches) @ np.float64(projection.weight.detach()).T + np.float64(projection.bias.detach())
        for projection in (layer.query_proj, layer.key_proj)
    )
    heads = oracle.head_slices(query.shape[2], layer.n_heads)
    weights = [
        np.mean([oracle.pairwise_weights(query[p][:, h], key[near[p]][..., h], "softmax") for h in heads], axis=0)
        for p in range(len(patches))
    ]
    return near, weights


@pytest.mark.parametrize("stage", ["encoder0", "encoder1", "decoder1", "decoder0"])
def test_candidates_and_weights_are_the_oracle_s(model, stage):
    maps = {(found.stage, found.block): found for found in map_neighbors(model, levels())}
    found = maps[stage, 1]
    near, weights = by_the_oracle(model, levels(), stage, 1)
    side = 8 if stage.endswith("0") else 16
    assert (found.patch_side, found.rounds, found.k) == (side, 3, 2)
    assert (found.rows, found.columns) == ((7, 10) if side == 8 else (4, 5))
    for p in range(len(near)):
        there = found.candidates[p] >= 0
        assert found.candidates[p][there].tolist() == near[p]
        np.testing.assert_allclose(found.weights[p][there], weights[p], atol=2e-5)
        assert (found.weights[p][~there] == 0).all()


def test_one_map_a_block_in_the_order_in_which_they_run(model):
    maps = map_neighbors(model, levels())
    names = [name for name in stage_names(model) if name != "bottleneck"]
    assert [(found.stage, found.block) for found in maps] == [(name, block) for name in names for block in range(2)]
    values = json.loads(json.dumps(maps[0].to_dict()))
    assert np.shape(values["candidates"]) == np.shape(values["weights"]) == (70, 12)
    np.testing.assert_allclose(values["weights"], maps[0].weights, atol=5.01e-5)


def test_where_nothing_is_hashed_every_patch_sees_every_other(model):
    found = next(found for found in map_neighbors(model, levels(24, 24)) if found.stage == "encoder1")
    assert (found.rows, found.columns, found.rounds, found.k) == (2, 2, 1, 4)
    assert found.candidates.tolist() == [[0, 1, 2, 3]] * 4


def test_the_model_is_left_as_it_was(model):
    before = torch.random.get_rng_state()
    map_neighbors(model, levels())
    assert all(module.training for module in model.modules())
    assert all(getattr(module, "recorder", None) is None for module in model.modules())
    assert torch.equal(before, torch.random.get_rng_state())


def test_what_makes_no_sense_is_refused(model, monkeypatch):
    with pytest.raises(InputError, match="k = 1.*take a network with k > 1"):
        map_neighbors(KiT(KiTConfig(width=8, n_stages=1, k=1)), levels())
    with pytest.raises(InputError, match="map_neighbors: expected one picture, got a batch of 2"):
        map_neighbors(model, torch.zeros(2, 3, 16, 16))

    def full(*_):
        raise MemoryError

    monkeypatch.setattr(KiT, "forward", full)
    with pytest.raises(KithkinError, match="not enough memory for 76 x 52 at once"):
        map_neighbors(model, levels())
