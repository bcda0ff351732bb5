"""Folders and sampling: which picture, which crop, which noise."""

import hashlib
import random
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.stats
import torch
from PIL import Image

from kithkin.config import DataConfig
from kithkin.data import Pairs, Photos, open_folders, open_training_data
from kithkin.data.degrade import DEGRADATIONS, Degradation, gaussian_noise
from kithkin.data.degrade.fields import normal_field
from kithkin.data.sampling import degrade_crops, draw_crops, sample_batch, share_of_rank
from kithkin.errors import InputError, KithkinError


def chart(index, height=40, width=56):
    """A picture that names itself and every one of its places: red its number, green the row, blue the column."""
    picture = np.empty((height, width, 3), np.uint8)
    picture[..., 0] = index
    picture[..., 1] = np.arange(height)[:, None]
    picture[..., 2] = np.arange(width)[None, :]
    return picture


def write(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def photos(tmp_path, count=5, **size):
    for i in range(count):
        write(tmp_path / "photos" / f"{i:02}.png", chart(i, **size))
    return tmp_path / "photos"


def pairs(tmp_path, count=5, names=("input", "target")):
    for i in range(count):
        write(tmp_path / "pairs" / names[0] / f"{i:02}.png", chart(i))
        write(tmp_path / "pairs" / names[1] / f"{i:02}.png", 255 - chart(i))
    return tmp_path / "pairs"


def of_photos(folder, **changes):
    return DataConfig(
        **{"kind": "photos", "folders": (folder,), "crop": 16, "sigma": (0, 50), "cache_gb": 1, **changes}
    )


def of_pairs(folder, **changes):
    return DataConfig(**{"kind": "pairs", "folders": (folder,), "crop": 16, "cache_gb": 1, **changes})


def draw(dataset, config, step, batch_size=4, seed=0):
    return draw_crops(dataset, config, batch_size=batch_size, seed=seed, step=step)


def numbers_of(crops):
    return [int(crop[0, 0, 0]) for crop in crops.sides[0]]


# Folders that are drawn from as often as the run says, whatever they hold


def two_folders(tmp_path, first=3, second=9):
    """Pictures numbered from 0 in the first folder and from 100 in the second."""
    for folder, count, number in (("few", first, 0), ("many", second, 100)):
        for i in range(count):
            write(tmp_path / folder / f"{i:02}.png", chart(number + i))
    return tmp_path / "few", tmp_path / "many"


def test_weights_say_how_often_a_folder_is_drawn_from(tmp_path):
    folders = two_folders(tmp_path)
    config = of_photos("none", folders=folders, weights=(3, 1))
    dataset = open_folders(config)
    drawn = [number for step in range(60) for number in numbers_of(draw(dataset, config, step))]  # 20 epochs of 12
    found = np.bincount(drawn, minlength=109)
    assert found[:3].sum() == 180  # 9 of the 12 crops of every epoch
    assert (found[:3] == 60).all()
    assert found[100:].sum() == 60
    assert (found[100:] > 0).all()
    for epoch in range(20):
        once = np.bincount(drawn[12 * epoch : 12 * epoch + 12], minlength=109)
        assert (once[:3] == 3).all()
        assert once[100:].max() == 1


def test_shares_that_do_not_divide_an_epoch_hold_on_average(tmp_path):
    folders = two_folders(tmp_path, first=2, second=2)
    config = of_photos("none", folders=folders, weights=(9, 1))
    drawn = [x for step in range(1000) for x in numbers_of(draw(open_folders(config), config, step))]
    assert np.mean(np.array(drawn) >= 100) == pytest.approx(0.1, abs=0.02)


def test_a_folder_of_weight_0_is_never_drawn_from(tmp_path):
    folders = two_folders(tmp_path)
    for weights, inside in (((1, 0), range(3)), ((0, 1), range(100, 109))):
        config = of_photos("none", folders=folders, weights=weights)
        drawn = {x for step in range(9) for x in numbers_of(draw(open_folders(config), config, step))}
        assert drawn == set(inside)


def test_any_number_of_processes_draws_the_same_by_weights(tmp_path):
    config = of_photos("none", folders=two_folders(tmp_path), weights=(1, 4))
    dataset = open_folders(config)
    for step in range(8):
        whole = numbers_of(draw(dataset, config, step, batch_size=8, seed=5))
        for processes in (2, 4, 8):
            shares = [share_of_rank(8, rank, processes) for rank in range(processes)]
            parts = [draw_crops(dataset, config, batch_size=8, seed=5, step=step, share=share) for share in shares]
            assert [number for part in parts for number in numbers_of(part)] == whole


def test_weights_that_do_not_fit_are_refused(tmp_path):
    folders = two_folders(tmp_path)
    for weights, said in (((1,), "1 numbers for 2 folders"), ((0, 0), "all 0"), ((1, -1), "greater than or equal")):
        with pytest.raises(ValueError, match=said):
            of_photos("none", folders=folders, weights=weights)
    config = of_photos("none", folders=(), weights=(1, 2))  # as in a recipe, whose folders come later
    with pytest.raises(InputError, match="2 numbers for 1 folders"):
        draw(Photos(folders[:1]), config, 0)


# Pictures that are left out by a list


@pytest.mark.parametrize(
    "lines", ["few/01.png\nmany/05.png\n", "file\tkind\n01.png\tx\nmany/05.png\ty\nelse/1.png\tz\n"]
)
def test_a_list_leaves_pictures_out(tmp_path, lines):
    folders = two_folders(tmp_path)
    (tmp_path / "held.tsv").write_text(lines)
    config = of_photos("none", folders=folders, exclude=tmp_path / "held.tsv")
    dataset = open_folders(config)
    left = {path.relative_to(tmp_path).as_posix() for path in dataset.paths}
    everywhere = {"many/01.png"} if "\n01.png" in lines else set()  # a name without its folder is that of every folder
    expected = {f"few/{i:02}.png" for i in (0, 2)} | {f"many/{i:02}.png" for i in range(9) if i != 5}
    assert left == expected - everywhere
    assert dataset.excluded == 12 - len(left)
    assert dataset.counts == (2, len(left) - 2)


def test_a_list_leaves_out_what_blanks_and_folders_hide(tmp_path):
    write(tmp_path / "my photos" / "deep" / "a b.png", chart(0))
    write(tmp_path / "my photos" / "c.png", chart(1))
    (tmp_path / "list.txt").write_text("my_photos/deep/a_b.png\n")
    assert Photos([tmp_path / "my photos"], exclude=tmp_path / "list.txt").names == ["c.png"]


def test_a_list_that_leaves_out_nothing_or_everything_is_refused(tmp_path):
    folders = two_folders(tmp_path, first=1)
    (tmp_path / "list.txt").write_text("other/00.png\n")
    with pytest.raises(InputError, match=r"names no picture of .* such as many/00\.png"):
        Photos(folders, exclude=tmp_path / "list.txt")
    (tmp_path / "list.txt").write_text("few/00.png\n")
    with pytest.raises(InputError, match=r"leaves no picture of .*few"):
        Photos(folders, exclude=tmp_path / "list.txt")
    with pytest.raises(InputError, match="can't be read as a list of names"):
        Photos(folders, exclude=tmp_path / "none.txt")
    with pytest.raises(ValueError, match="exclude goes with"):
        of_pairs(folders[0], exclude=tmp_path / "list.txt")


# A batch is a function of the seed and the step


@pytest.mark.parametrize("kind", ["photos", "pairs"])
def test_a_batch_is_a_function_of_the_seed_and_the_step(tmp_path, kind):
    config = of_photos(photos(tmp_path)) if kind == "photos" else of_pairs(pairs(tmp_path))

    def sample(seed, step):
        batch = sample_batch(open_folders(config), config, batch_size=4, seed=seed, step=step)
        return torch.stack(list(batch))

    first = sample(3, 7)
    for other in ((3, 8), (4, 7), (3, 0), (0, 3)):
        assert not torch.equal(sample(*other), first)
    torch.manual_seed(99)
    np.random.seed(99)
    random.seed(99)
    assert torch.equal(sample(3, 7), first)


def test_the_order_of_the_steps_and_a_warm_cache_do_not_matter(tmp_path):
    config = of_photos(photos(tmp_path))
    dataset, cold = open_folders(config), Photos(config.folders)
    forward = [draw(dataset, config, step) for step in range(6)]
    backward = [draw(cold, config, step) for step in reversed(range(6))]
    for a, b in zip(forward, reversed(backward), strict=True):
        assert np.array_equal(a.sides[0], b.sides[0])
        assert np.array_equal(a.sigmas, b.sigmas)
        assert np.array_equal(a.seeds, b.seeds)


def test_the_global_random_states_are_left_alone(tmp_path):
    config = of_photos(photos(tmp_path))
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    sample_batch(open_folders(config), config, batch_size=4, seed=0, step=0)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])
    assert random.getstate() == before[2]


@pytest.mark.parametrize("batch_size", [1, 3, 5, 8, 25])
def test_every_epoch_visits_every_picture_once(tmp_path, batch_size):
    config = of_photos(photos(tmp_path))
    dataset = open_folders(config)
    visited = []
    for step in range(50 // batch_size + 1):
        visited += numbers_of(draw(dataset, config, step, batch_size))
    epochs = [visited[start : start + 5] for start in range(0, 50, 5)]
    assert all(sorted(epoch) == [0, 1, 2, 3, 4] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 5  # each in an order of its own


def test_a_batch_of_a_step_begins_where_the_last_one_ended(tmp_path):
    config = of_photos(photos(tmp_path))
    dataset = open_folders(config)
    small = [i for step in range(8) for i in numbers_of(draw(dataset, config, step, 2))]
    large = [i for step in range(2) for i in numbers_of(draw(dataset, config, step, 8))]
    assert small == large


def test_the_form_of_a_batch(tmp_path):
    config = of_photos(photos(tmp_path))
    batch = sample_batch(open_folders(config), config, batch_size=3, seed=0, step=0)
    for side in batch:
        assert tuple(side.shape) == (3, 3, 16, 16)
        assert side.dtype == torch.float32
    assert batch.target.min() >= 0
    assert batch.target.max() <= 1
    assert torch.equal((batch.target * 255).round() / 255, batch.target)


# Crops


def as_cut(crop, places):
    """The square of the chart that a crop was cut from, and which of its eight turns it is."""
    top, left = int(crop[..., 1].min()), int(crop[..., 2].min())
    square = places[top : top + len(crop), left : left + len(crop)]
    turned = [np.rot90(square, turns) for turns in range(4)]
    found = [i for i, x in enumerate([*turned, *(x[:, ::-1] for x in turned)]) if np.array_equal(x, crop[..., 1:])]
    assert len(found) == 1
    return top, left, found[0]


def test_a_crop_is_a_square_of_its_picture_in_one_of_eight_turns(tmp_path):
    config = of_photos(photos(tmp_path))
    dataset = open_folders(config)
    places = chart(0)[..., 1:]
    found = [as_cut(crop, places) for step in range(120) for crop in draw(dataset, config, step).sides[0]]
    tops, lefts, turns = zip(*found, strict=True)
    assert set(tops) == set(range(40 - 16 + 1))
    assert set(lefts) == set(range(56 - 16 + 1))
    assert min(np.bincount(turns, minlength=8)) > 480 / 8 * 0.6


def test_a_crop_may_be_the_whole_picture(tmp_path):
    config = of_photos(photos(tmp_path, height=16, width=16))
    crops = draw(open_folders(config), config, 0)
    assert [as_cut(crop, chart(0, 16, 16)[..., 1:])[:2] for crop in crops.sides[0]] == [(0, 0)] * 4


@pytest.mark.parametrize("names", [("input", "target"), ("input_crops", "target_crops")])
def test_the_crops_of_a_pair_are_aligned(tmp_path, names):
    config = of_pairs(pairs(tmp_path, names=names))
    dataset = open_folders(config)
    for step in range(20):
        crops = draw(dataset, config, step)
        assert np.array_equal(crops.sides[0], 255 - crops.sides[1])
        batch = degrade_crops(crops, config)
        torch.testing.assert_close(batch.degraded, 1 - batch.target)
        assert np.array_equal(np.rint(batch.degraded.permute(0, 2, 3, 1).numpy() * 255), crops.sides[0])


def test_pairs_get_no_noise(tmp_path):
    config = of_pairs(pairs(tmp_path))
    crops = draw(open_folders(config), config, 0)
    assert crops.sigmas.shape == (0,)


# Noise


def test_noise_levels_fill_their_range(tmp_path):
    config = of_photos(photos(tmp_path), sigma=(10, 50))
    dataset = open_folders(config)
    sigmas = np.concatenate([draw(dataset, config, step, 8).sigmas for step in range(60)])
    assert sigmas.dtype == np.float32
    assert sigmas.min() >= 10
    assert sigmas.max() <= 50
    assert np.histogram(sigmas, bins=4, range=(10, 50))[0].min() > 480 / 4 * 0.7


def test_the_noise_has_the_level_it_is_said_to_have(tmp_path):
    config = of_photos(photos(tmp_path, height=70, width=70), crop=64, sigma=(5, 75))
    dataset = open_folders(config)
    for step in range(5):
        crops = draw(dataset, config, step)
        batch = degrade_crops(crops, config)
        noise = (batch.degraded - batch.target).double() * 255
        found = noise.flatten(1).std(dim=1).numpy()
        np.testing.assert_allclose(found, crops.sigmas, rtol=0.04)
        assert (noise.flatten(1).mean(dim=1).abs().numpy() / crops.sigmas < 0.05).all()
        assert abs(np.corrcoef(noise[0].flatten(), noise[1].flatten())[0, 1]) < 0.05
        assert abs(np.corrcoef(noise[0, 0].flatten(), noise[0, 1].flatten())[0, 1]) < 0.08


def test_noise_is_not_clipped():
    clean = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).expand(2, 3, 32, 32)
    noisy = gaussian_noise(clean, torch.tensor([50.0, 50.0]), torch.Generator().manual_seed(0))
    assert noisy[0].min() < -0.3
    assert noisy[1].max() > 1.3
    assert noisy.mean().item() == pytest.approx(0.5, abs=0.02)


def test_noise_by_hand_and_per_picture():
    clean = torch.full((3, 3, 8, 8), 0.5)
    sigma = torch.tensor([0.0, 25.5, 51.0])
    keys = torch.arange(6, dtype=torch.int32).view(3, 2)
    noisy = gaussian_noise(clean, sigma, keys)
    assert torch.equal(noisy[0], clean[0])
    torch.testing.assert_close(
        noisy, clean + normal_field(keys, (3, 8, 8)) * torch.tensor([0.0, 0.1, 0.2])[:, None, None, None]
    )
    drawn = [gaussian_noise(clean, sigma, torch.Generator().manual_seed(seed)) for seed in (4, 4, 5)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_a_range_of_one_level_is_that_level(tmp_path):
    config = of_photos(photos(tmp_path), sigma=(25, 25))
    assert draw(open_folders(config), config, 0).sigmas.tolist() == [25.0] * 4


# Other degradations


def of_both(tmp_path, share=0.4, **changes):
    folder, others = photos(tmp_path), pairs(tmp_path)
    return of_photos(folder, pairs=(others,), pairs_share=share, **changes)


def test_pairs_among_photographs_stay_as_they_are_and_photographs_get_noise(tmp_path):
    config = of_both(tmp_path, sigma=(20, 50))
    dataset = open_training_data(config)
    assert len(dataset) == 5
    mixed, alone = (draw_crops(x, config, batch_size=400, seed=0, step=0) for x in (dataset, dataset.photos))
    assert 0.32 < mixed.paired.mean() < 0.48  # 0.4 within 3.3 standard deviations
    assert not alone.paired.any()
    batch, plain = degrade_crops(mixed, config), degrade_crops(alone, config)
    paired = torch.from_numpy(mixed.paired)
    sums = (batch.degraded + batch.target)[paired]  # the pairs' targets are their negatives
    assert torch.allclose(sums, torch.ones_like(sums))
    assert torch.equal(batch.degraded[~paired], plain.degraded[~paired])  # as if there were no pairs
    assert torch.equal(batch.target[~paired], plain.target[~paired])
    assert {round(255 * value.item()) for value in batch.degraded[paired][:, 0, 0, 0]} == set(range(5))


def test_pairs_lose_the_margin_that_the_degradation_of_photographs_needs(tmp_path):
    config = of_both(tmp_path, share=1.0, sigma=None, degradation={"kind": "camera"})
    batch = sample_batch(open_training_data(config), config, batch_size=6, seed=0, step=0)
    assert batch.degraded.shape == batch.target.shape == (6, 3, 16, 16)
    assert torch.allclose(batch.degraded + batch.target, torch.ones(6, 3, 16, 16))


def test_mixed_crops_in_parts_and_shares_are_the_batch(tmp_path):
    config = of_both(tmp_path)
    dataset = open_training_data(config)
    whole = sample_batch(dataset, config, batch_size=8, seed=3, step=5)
    parts = draw_crops(dataset, config, batch_size=8, seed=3, step=5).parts(4)
    assert torch.equal(whole.degraded, torch.cat([degrade_crops(part, config).degraded for part in parts]))
    shares = [
        draw_crops(dataset, config, batch_size=8, seed=3, step=5, share=share_of_rank(8, rank, 2)) for rank in (0, 1)
    ]
    assert torch.equal(whole.degraded, torch.cat([degrade_crops(share, config).degraded for share in shares]))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"pairs": ("a",)}, "pairs and pairs_share go together"),
        ({"pairs_share": 0.5}, "pairs and pairs_share go together"),
        ({"kind": "pairs", "sigma": None, "pairs": ("a",), "pairs_share": 0.5}, "give them as folders"),
        ({"pairs": ("a",), "pairs_share": 1.5}, "pairs_share"),
    ],
    ids=str,
)
def test_pairs_that_do_not_fit_are_refused(changes, reason):
    with pytest.raises(ValueError, match=reason):
        of_photos("photos", **changes)


def of_camera(folder, **changes):
    return of_photos(folder, **{"sigma": None, "degradation": {"kind": "camera"}, **changes})


WORD = 2**64 - 1
GOLDEN = 0x9E3779B97F4A7C15


def mixed(value):
    """SplitMix64's finaliser, of whole numbers."""
    value = (value + GOLDEN) & WORD
    value = ((value ^ value >> 30) * 0xBF58476D1CE4E5B9) & WORD
    value = ((value ^ value >> 27) * 0x94D049BB133111EB) & WORD
    return value ^ value >> 31


def child(key, name):
    return mixed(key ^ int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little"))


def uniforms(key, name, count):
    return [(mixed((child(key, name) + i * GOLDEN) & WORD) >> 11) / 2**53 for i in range(1, count + 1)]


def normals(key, name, count):
    """By the quantiles of the two halves of each hash, instead of a table of means between quantiles."""
    low, high = child(key, name) & 0xFFFFFFFF, child(key, name) >> 32
    halves = []
    for i in range((count + 1) // 2):
        bits = (low + i * 0x9E3779B9) & 0xFFFFFFFF
        bits = (high + (bits ^ bits >> 16) * 0x7FEB352D) & 0xFFFFFFFF
        bits = (bits ^ bits >> 15) * 0x846CA68B & 0xFFFFFFFF
        bits = (bits ^ bits >> 16) * 0x9E485565 & 0xFFFFFFFF
        bits ^= bits >> 15
        halves += [bits & 0xFFFF, bits >> 16]
    return scipy.stats.norm.ppf((np.array(halves[:count]) + 0.5) / 2**16)


def by_hand(config, pictures, batch_size, seed, step):
    """(clean, noisy) of plain Gaussian noise, written out anew from what a batch is said to be."""
    both = []
    for place in range(batch_size):
        epoch, turn = divmod(step * batch_size + place, len(pictures))
        picture = pictures[np.random.default_rng([seed, 1, epoch]).permutation(len(pictures))[turn]]
        key = mixed((mixed(mixed(seed) ^ step) + place * GOLDEN) & WORD)
        down, right, turns, flip = uniforms(key, "cut", 4)
        top, left = (int(x * (n - config.crop + 1)) for x, n in zip((down, right), picture.shape[:2], strict=True))
        crop = np.rot90(picture[top : top + config.crop, left : left + config.crop], int(4 * turns))
        crop = crop[:, ::-1] if flip < 0.5 else crop
        clean = torch.from_numpy(crop.copy()).permute(2, 0, 1).float() / 255
        low, high = config.sigma
        sigma = low + (high - low) * uniforms(key, "sigma", 1)[0]
        noise = torch.from_numpy(normals(key, "noise", clean.numel())).float().view_as(clean)
        both.append((clean, clean + noise * sigma / 255))
    return [torch.stack(side) for side in zip(*both, strict=True)]


@pytest.mark.parametrize(("seed", "step"), [(0, 0), (3, 7)])
def test_a_batch_is_what_the_seed_the_step_and_the_places_say(tmp_path, seed, step):
    config = of_photos(photos(tmp_path))
    batch = sample_batch(open_folders(config), config, batch_size=4, seed=seed, step=step)
    clean, noisy = by_hand(config, [chart(i) for i in range(5)], 4, seed, step)
    assert torch.equal(batch.target, clean)
    # A mean between two quantiles lies beside the quantile between them, the farther out the more.
    assert (batch.degraded - noisy).abs().max() < 0.1 * 50 / 255
    assert (batch.degraded - noisy).abs().mean() < 1e-5


@pytest.mark.parametrize("kind", ["correlated", "camera", "noise", "rain", "blur"])
@pytest.mark.parametrize("world_size", [1, 2, 3, 6])
def test_the_shares_of_the_processes_make_up_the_batch_bit_for_bit(tmp_path, kind, world_size):
    """What one process sees, several see together: each crop once, with the same cut, noise and degradation."""
    settings = {"kind": kind, "margin": 8, "length": 12} if kind == "blur" else {"kind": kind}
    config = of_photos(photos(tmp_path), degradation=settings, degraded_share=0.6)
    dataset = open_folders(config)
    for step in range(2):
        whole = sample_batch(dataset, config, batch_size=6, seed=5, step=step)
        shares = [share_of_rank(6, rank, world_size) for rank in range(world_size)]
        assert sorted(place for share in shares for place in share) == list(range(6))
        drawn = [draw_crops(dataset, config, batch_size=6, seed=5, step=step, share=share) for share in shares]
        batches = [degrade_crops(part, config) for crops in drawn for part in crops.parts(6 // world_size)]
        for side in ("degraded", "target"):
            assert torch.equal(torch.cat([getattr(batch, side) for batch in batches]), getattr(whole, side))


@pytest.mark.parametrize("changes", [{}, {"sigma": (0, 25), "degraded_share": 0.5}], ids=["alone", "mixed"])
def test_a_degraded_batch_is_a_function_of_the_seed_and_the_step(tmp_path, changes):
    config = of_camera(photos(tmp_path), **changes)
    sample = partial(sample_batch, open_folders(config), config, batch_size=4)
    first = sample(seed=3, step=7)
    assert first.degraded.shape == first.target.shape == (4, 3, 16, 16)
    torch.manual_seed(99)
    assert all(torch.equal(a, b) for a, b in zip(first, sample(seed=3, step=7), strict=True))
    for other in ((3, 8), (4, 7)):
        assert not torch.equal(sample(seed=other[0], step=other[1]).degraded, first.degraded)


def nothing(draws, size, settings):
    """No numbers describe the degradation."""


def test_the_crop_is_larger_by_the_margin_and_the_margin_is_cut_off(tmp_path, monkeypatch):
    def lift(clean, numbers, settings):
        inside = clean[..., 3:-3, 3:-3]
        return inside + 1, inside / 2

    monkeypatch.setitem(DEGRADATIONS, "camera", Degradation(nothing, lift, margin=lambda settings: 3))
    config = of_camera(photos(tmp_path))
    crops = draw(open_folders(config), config, 0)
    batch = degrade_crops(crops, config)
    assert crops.sides[0].shape == (4, 22, 22, 3)
    inside = torch.from_numpy(crops.sides[0][:, 3:19, 3:19]).permute(0, 3, 1, 2) / 255
    torch.testing.assert_close(batch.degraded, inside + 1)
    torch.testing.assert_close(batch.target, inside / 2)
    with pytest.raises(InputError, match=r"56×40, smaller than a crop of 36×36 with the 3 pixels around"):
        draw(open_folders(config), of_camera(config.folders[0], crop=36), 0)


def test_a_share_of_the_crops_is_degraded_and_the_others_get_noise(tmp_path, monkeypatch):
    def turn_white(clean, numbers, settings):
        inside = clean[..., 2:-2, 2:-2]
        return torch.ones_like(inside), torch.zeros_like(inside)

    monkeypatch.setitem(DEGRADATIONS, "camera", Degradation(nothing, turn_white, margin=lambda settings: 2))
    config = of_camera(photos(tmp_path), sigma=(5, 25), degraded_share=0.75)
    dataset, chosen = open_folders(config), []
    for step in range(100):
        crops = draw(dataset, config, step)
        batch = degrade_crops(crops, config)
        inside = torch.from_numpy(crops.sides[0][:, 2:18, 2:18]).permute(0, 3, 1, 2) / 255
        for i, white in enumerate(crops.degraded):
            if white:
                assert batch.degraded[i].min() == 1
                assert batch.target[i].max() == 0
            else:
                torch.testing.assert_close(batch.target[i], inside[i])
                found = (batch.degraded[i] - inside[i]).std().item() * 255
                assert found == pytest.approx(crops.sigmas[i], rel=0.2)
        chosen += crops.degraded.tolist()
    assert np.mean(chosen) == pytest.approx(0.75, abs=0.07)


# Folders


def test_photographs_are_found_at_any_depth_in_any_format(tmp_path):
    for name in ("a.png", "deep/b.jpg", "deep/er/c.PNG", "d.bmp"):
        write(tmp_path / name, chart(1))
    (tmp_path / "notes.txt").write_text("no picture")
    dataset = Photos([tmp_path])
    assert [path.name for path in dataset.paths] == ["a.png", "d.bmp", "b.jpg", "c.PNG"]
    assert len(dataset) == 4
    (pixels,) = dataset[0]
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels, chart(1))


def test_several_folders_are_one_row(tmp_path):
    write(tmp_path / "b" / "1.png", chart(1))
    write(tmp_path / "a" / "2.png", chart(2))
    dataset = Photos([tmp_path / "b", tmp_path / "a"])
    assert [int(dataset[i][0][0, 0, 0]) for i in range(2)] == [1, 2]


def test_gray_and_transparent_pictures_become_rgb(tmp_path):
    Image.fromarray(chart(7)[..., 1]).save(tmp_path / "gray.png")
    dataset = Photos([tmp_path])
    assert np.array_equal(dataset[0][0], np.repeat(chart(7)[..., 1:2], 3, axis=-1))


def test_the_cache_keeps_to_its_budget(tmp_path, monkeypatch):
    reads = []
    import kithkin.data.folders as module

    read = module.read_picture
    monkeypatch.setattr(module, "read_picture", lambda path: reads.append(path.name) or read(path))
    size = chart(0).nbytes
    folder = photos(tmp_path)
    for budget, expected in ((0, 10), (2.5 * size / 1e9, 8), (1, 5)):
        reads.clear()
        dataset = Photos([folder], cache_gb=budget)
        twice = [[dataset[i][0] for i in range(5)] for _ in range(2)]
        assert len(reads) == expected
        assert all(np.array_equal(a, b) for a, b in zip(*twice, strict=True))


def test_the_kind_chooses_the_data_set(tmp_path):
    assert isinstance(open_folders(of_photos(photos(tmp_path))), Photos)
    assert isinstance(open_folders(of_pairs(pairs(tmp_path))), Pairs)


def test_pairs_may_differ_in_their_endings(tmp_path):
    write(tmp_path / "input" / "x" / "1.jpg", chart(1))
    write(tmp_path / "target" / "x" / "1.png", chart(1))
    dataset = Pairs([tmp_path])
    assert [(a.name, b.name) for a, b in dataset.paths] == [("1.jpg", "1.png")]
    assert np.array_equal(dataset[0][1], chart(1))


# What is refused


def test_no_folder_at_all():
    with pytest.raises(InputError, match="names no training data"):
        open_folders(SimpleNamespace(folders=(), kind="photos", cache_gb=0))


@pytest.mark.parametrize("kind", [Photos, Pairs])
def test_a_missing_folder(tmp_path, kind):
    with pytest.raises(KithkinError, match="missing"):
        kind([tmp_path / "missing"])


def test_a_file_instead_of_a_folder(tmp_path):
    path = write(tmp_path / "a.png", chart(1))
    with pytest.raises(InputError, match=r"a\.png is not a folder"):
        Photos([path])


def test_an_empty_folder_even_beside_a_full_one(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("no picture")
    with pytest.raises(InputError, match="empty holds no picture"):
        Photos([photos(tmp_path), tmp_path / "empty"])


@pytest.mark.parametrize("side", ["input", "target"])
def test_pairs_without_one_side(tmp_path, side):
    write(tmp_path / side / "1.png", chart(1))
    with pytest.raises(InputError, match="target" if side == "input" else "input"):
        Pairs([tmp_path])


@pytest.mark.parametrize("side", ["input", "target"])
def test_a_picture_without_a_partner(tmp_path, side):
    folder = pairs(tmp_path)
    write(folder / side / "alone.png", chart(9))
    with pytest.raises(InputError, match="1 pictures have no partner.*alone"):
        Pairs([folder])


def test_many_pictures_without_a_partner_are_counted(tmp_path):
    folder = pairs(tmp_path)
    for i in range(10, 15):
        write(folder / "input" / f"{i}.png", chart(9))
    with pytest.raises(InputError, match="5 pictures.*10.png, .*11.png, .*12.png…"):
        Pairs([folder])


def test_two_inputs_of_one_name_are_not_passed_over(tmp_path):
    folder = pairs(tmp_path)
    write(folder / "input" / "00.jpg", chart(9))
    with pytest.raises(InputError, match="00"):
        Pairs([folder])


def test_sizes_that_differ_in_a_pair(tmp_path):
    folder = pairs(tmp_path)
    write(folder / "target" / "03.png", chart(9, 40, 55))
    dataset = Pairs([folder])
    with pytest.raises(InputError, match=r"input.03\.png is 56×40.*target.03\.png is 55×40"):
        dataset[3]


@pytest.mark.parametrize("crop", [41, 57])
def test_a_crop_larger_than_a_picture(tmp_path, crop):
    config = of_photos(photos(tmp_path), crop=crop)
    with pytest.raises(InputError, match=rf"\d\d\.png.*56×40, smaller than a crop of {crop}×{crop}"):
        draw(open_folders(config), config, 0)


def test_a_file_that_is_no_picture(tmp_path):
    folder = photos(tmp_path)
    (folder / "02.png").write_bytes(b"not a picture")
    config = of_photos(folder)
    with pytest.raises(KithkinError, match=r"02\.png"):
        draw(open_folders(config), config, 0, batch_size=5)
