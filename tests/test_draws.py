"""Counter-based random numbers: by their statistics, and as functions of their keys alone."""

import numpy as np
import pytest
import scipy.stats
import torch

from kithkin.data.degrade.draws import Draws
from kithkin.data.degrade.fields import as_draws, field_keys, normal_field, smooth_field, uniform_field
from kithkin.data.transfer import _sent, moved

SURE = 1e-3
"""The p-value below which a test of a distribution fails. The keys are fixed, so it fails always or never."""


def keys_of(count=64, step=0, name="noise"):
    return torch.from_numpy(Draws.of_step(0, step, range(count)).keys(name))


# keys as different as training's are, and keys that differ in one number alone
CLOSE = torch.stack([torch.zeros(64, dtype=torch.int32), torch.arange(64, dtype=torch.int32)], dim=1)
KEYS = {"of a step": keys_of(), "one half counts up": CLOSE, "the other": CLOSE.flip(1)}


@pytest.mark.parametrize("keys", KEYS.values(), ids=KEYS.keys())
def test_fields_have_their_distribution(keys):
    uniform, normal = (make(keys, (3, 40, 40)).double().numpy().ravel() for make in (uniform_field, normal_field))
    assert scipy.stats.kstest(uniform, "uniform").pvalue > SURE
    assert scipy.stats.kstest(normal, "norm").pvalue > SURE
    count = len(normal)
    for moment, value in ((1, 0), (2, 1), (3, 0), (4, 3)):
        spread = {1: 1, 2: 2, 3: 15, 4: 96}[moment]  # the variance of each power
        assert abs((normal**moment).mean() - value) < 4 * np.sqrt(spread / count)
    assert 0 <= uniform.min() < 1e-4
    assert 1 - 1e-4 < uniform.max() < 1


@pytest.mark.parametrize("keys", KEYS.values(), ids=KEYS.keys())
@pytest.mark.parametrize("make", [uniform_field, normal_field])
def test_pictures_have_nothing_in_common(make, keys):
    """The largest of 2,016 correlations of independent fields is below five standard errors."""
    fields = make(keys, (20_000,)).double().numpy()
    rest = np.corrcoef(fields) - np.eye(64)
    assert np.abs(rest).max() < 5 / np.sqrt(20_000)


@pytest.mark.parametrize("make", [uniform_field, normal_field])
def test_neighbours_channels_and_steps_have_nothing_in_common(make):
    now, then, other = (make(keys_of(**x), (3, 32, 32)).double() for x in ({}, {"step": 1}, {"name": "other"}))
    flat = (now - now.mean()).flatten(1)
    for distance in (1, 2, 31, 32, 33, 1024, 2048, 1536):  # columns, rows, channels, halves
        found = (flat[:, distance:] * flat[:, :-distance]).mean() / flat.var()
        assert abs(found) < 4.5 / np.sqrt(flat[:, distance:].numel())
    for unlike in (then, other):
        assert abs(np.corrcoef(now.flatten(), unlike.flatten())[0, 1]) < 4.5 / np.sqrt(now.numel())


def test_each_bit_is_as_often_up_as_down_and_apart_from_the_others():
    steps = (uniform_field(keys_of(16), (4096,)) * 2**24).int().flatten()
    bits = np.stack([(steps >> i & 1).double().numpy() for i in range(24)])
    assert np.abs(bits.mean(1) - 0.5).max() < 4.5 * 0.5 / np.sqrt(bits.shape[1])
    assert np.abs(np.corrcoef(bits) - np.eye(24)).max() < 5 / np.sqrt(bits.shape[1])


def test_a_field_is_a_function_of_its_key_alone():
    keys = keys_of(8)
    for make in (uniform_field, normal_field, lambda k, shape: smooth_field(k, shape[1:], 3)):
        whole = make(keys, (3, 11, 7))
        assert torch.equal(torch.cat([make(keys[i : i + 1], (3, 11, 7)) for i in range(8)]), whole)
        assert torch.equal(make(keys[4:], (3, 11, 7)), whole[4:])
    assert torch.equal(normal_field(keys, (100,))[:, :51], normal_field(keys, (51,)))


def test_numbers_have_their_distribution_and_names_of_their_own():
    draws = Draws.of_step(3, 5, range(5000))
    uniform, normal = draws.uniform("a", 4), draws.normal("b", 3)
    assert scipy.stats.kstest(uniform.ravel(), "uniform").pvalue > SURE
    assert scipy.stats.kstest(normal.ravel(), "norm").pvalue > SURE
    columns = np.concatenate([uniform, draws.uniform("b", 2), draws.child("c").uniform("a", 2)], axis=1)
    assert np.abs(np.corrcoef(columns.T) - np.eye(8)).max() < 4.5 / np.sqrt(5000)
    for other in (Draws.of_step(4, 5, range(5000)), Draws.of_step(3, 6, range(5000))):
        assert abs(np.corrcoef(other.uniform("a", 1)[:, 0], uniform[:, 0])[0, 1]) < 4.5 / np.sqrt(5000)
    part = Draws.of_step(3, 5, range(100, 200))
    assert np.array_equal(part.uniform("a", 4), uniform[100:200])
    assert np.array_equal(draws.take(np.arange(100, 200)).keys("k"), part.keys("k"))


def test_a_generator_draws_the_keys():
    first, again, other = (as_draws(torch.Generator().manual_seed(seed), 5).seeds for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert len({*first, *other}) == 10
    keys = [field_keys(torch.Generator().manual_seed(seed), 5) for seed in (1, 1, 2)]
    assert torch.equal(keys[0], keys[1])
    assert not torch.equal(keys[0], keys[2])


def test_what_goes_to_a_device_in_one_copy_arrives_as_it_was():
    rng = np.random.default_rng(0)
    arrays = [
        rng.random((3, 5)).astype(np.float32),
        np.arange(7),
        np.array([True, False, True]),
        np.zeros((0, 4), np.float32),
        rng.random((2, 3)).T,
        np.arange(6, dtype=np.int32).reshape(3, 2),
    ]
    for array, tensor in zip(arrays, _sent(arrays, torch.device("cpu")), strict=True):
        assert tensor.numpy().dtype == array.dtype
        assert np.array_equal(tensor.numpy(), array)
    nested = moved((arrays[0], (arrays[1], None, 5)), "cpu")
    assert torch.equal(nested[1][0], torch.arange(7))
    assert nested[1][1:] == (None, 5)
