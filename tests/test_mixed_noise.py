"""Noise of every kind, by its statistics, and pictures at another scale against Pillow."""

import numpy as np
import pytest
import torch
from PIL import Image

from kithkin.data.degrade import degrade_photos
from kithkin.data.degrade.camera import apply_camera, draw_camera
from kithkin.data.degrade.compression import jpeg
from kithkin.data.degrade.draws import Draws
from kithkin.data.degrade.mixed_noise import Fields, _unit, apply_noise, as_gray, draw_noise
from kithkin.data.degrade.resample import resample
from kithkin.data.transfer import moved
from kithkin.degradation_config import CameraConfig, NoiseConfig

EDGE = 5
SIDE = 160
KINDS = ("white", "luminance", "film", "camera")
ALONE = dict.fromkeys(KINDS, 0.0) | dict.fromkeys(
    ("gray_share", "varying_share", "resized_share", "stored_share", "jpeg_share"), 0.0
)


def only(kind, **changes):
    return NoiseConfig(kind="noise", **{**ALONE, kind: 1.0, "sigma": (20, 20), **changes})


def draws_of(count, seed=0):
    return Draws.of_step(seed, 0, range(count))


def flat(count, value=0.5):
    return torch.full((count, 3, SIDE + 2 * EDGE, SIDE + 2 * EDGE), value)


def colorful(count):
    """Waves in three different colours that neither reach black nor white."""
    y, x = np.mgrid[0 : SIDE + 2 * EDGE, 0 : SIDE + 2 * EDGE] / 25
    picture = np.stack([0.5 + 0.15 * np.sin(x + 2 * y + 2 * c) for c in range(3)])
    return torch.from_numpy(picture).float().repeat(count, 1, 1, 1)


def noise_of(settings, clean, seed=0):
    """The noise on the 0-255 scale, (B, 3, H, W), as an array of float64."""
    degraded, target = degrade_photos(clean, draws_of(len(clean), seed), settings)
    return (degraded.double() - target.double()).numpy() * 255


def correlation(a, b):
    return np.corrcoef(a.ravel(), b.ravel())[0, 1]


def beside(noise, distance=1):
    """Correlation of pixels with those to their right."""
    return correlation(noise[..., distance:], noise[..., :-distance])


# The kinds


def test_white_noise_has_its_level_and_nothing_else():
    noise = noise_of(only("white"), colorful(3))
    assert noise.std((2, 3)) == pytest.approx(20, rel=0.03)
    assert abs(noise.mean()) < 0.2
    assert abs(correlation(noise[:, 0], noise[:, 1])) < 0.02
    assert abs(beside(noise)) < 0.02
    assert abs(correlation(noise[0], noise[1])) < 0.02


def test_noise_of_the_luminance_is_the_same_in_all_channels():
    noise = noise_of(only("luminance"), colorful(2))
    np.testing.assert_allclose(noise[:, 1:], noise[:, :1].repeat(2, 1), atol=1e-4)
    assert noise.std((1, 2, 3)) == pytest.approx(20, rel=0.03)
    assert abs(beside(noise)) < 0.03


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("more", [{}, {"jpeg_share": 1.0}, {"resized_share": 1.0, "varying_share": 1.0}], ids=str)
def test_a_gray_picture_is_neutral_on_both_sides(kind, more):
    clean = colorful(3)
    degraded, target = degrade_photos(clean, draws_of(3), only(kind, gray_share=1.0, **more))
    for side in (degraded, target):
        assert torch.equal(side, side[:, :1].expand_as(side))
    inside = clean[0, :, EDGE:-EDGE, EDGE:-EDGE].permute(1, 2, 0).mul(255).round().byte().numpy()
    by_pillow = np.asarray(Image.fromarray(inside).convert("L")).astype(float)
    assert np.abs(target[0, 0].numpy() * 255 - by_pillow).max() < 1.01
    assert (degraded - target).abs().mean() > 0.002


def test_gray_noise_has_the_level_that_was_asked_for():
    for kind in ("white", "luminance", "film"):
        noise = noise_of(only(kind, gray_share=1.0, grain=(0.8, 0.8)), flat(3))
        assert noise.std((1, 2, 3)) == pytest.approx(20, rel=0.05), kind


@pytest.mark.parametrize("chroma", [0.0, 0.4])
def test_film_grain_has_its_level_its_kernel_and_its_colours(chroma):
    noise = noise_of(only("film", grain=(1.0, 1.0), chroma=(chroma, chroma)), flat(8))
    assert noise.std((2, 3)) == pytest.approx(20, rel=0.06)
    assert noise.std() == pytest.approx(20, rel=0.02)
    for distance in (1, 2):  # of white noise through a Gaussian of deviation 1
        assert beside(noise, distance) == pytest.approx(np.exp(-(distance**2) / 4), abs=0.02)
        assert beside(noise.swapaxes(2, 3), distance) == pytest.approx(np.exp(-(distance**2) / 4), abs=0.02)
    assert correlation(noise[:, 0], noise[:, 2]) == pytest.approx(1 - chroma, abs=0.02)


def test_the_grain_of_the_luminance_and_of_the_colours_are_apart():
    keys = torch.tensor([[1, 2]], dtype=torch.int32)
    noise = _unit(Fields(torch.tensor([[1.0, 0.0]]), torch.tensor([0.5]), keys), (200, 200)).numpy()
    assert abs(beside(noise[:, 0] - noise[:, 1])) < 0.02
    colors = noise - noise.mean(1, keepdims=True)
    assert beside(noise.mean(1)) == pytest.approx(np.exp(-1 / 4) * 0.5 / (0.5 + 0.5 / 3), abs=0.03)
    assert abs(beside(colors)) < 0.02
    drawn = draw_noise(draws_of(50), (40, 40), only("film")).fields.grain
    assert abs(correlation(drawn[:, 0], drawn[:, 1])) < 0.4


def test_film_grain_follows_the_brightness_and_white_noise_does_not():
    """Strongest in the middle, weaker towards black and white alike, half of it at least."""
    ends = {}
    for value in (0.02, 0.5, 0.98):
        ends[value] = noise_of(only("film", grain=(0.3, 0.3)), flat(6, value)).std((1, 2, 3))
        assert noise_of(only("white"), flat(6, value)).std() == pytest.approx(20, rel=0.02)
    assert ends[0.5] == pytest.approx(20, rel=0.05)
    np.testing.assert_allclose(ends[0.02], ends[0.98], rtol=1e-3)
    lowest, highest = 2 * np.sqrt(0.02 * 0.98), 0.5 + np.sqrt(0.02 * 0.98)
    assert (ends[0.02] / ends[0.5] > lowest - 0.01).all()
    assert (ends[0.02] / ends[0.5] < highest + 0.01).all()
    assert np.ptp(ends[0.02]) > 1


def test_a_camera_s_noise_is_that_of_its_own_kind():
    clean = colorful(4)
    degraded, _ = degrade_photos(clean, draws_of(4), only("camera"))
    numbers = draw_camera(draws_of(4), clean.shape[2:], CameraConfig(kind="camera"))
    assert torch.equal(degraded, apply_camera(clean, moved(numbers, "cpu"))[..., EDGE:-EDGE, EDGE:-EDGE])
    assert len(draw_camera(draws_of(4), (40, 40), CameraConfig(kind="camera")).order) == 4


# What happens to each


def levels_of(noise, side=16):
    """The deviation in every square of 16 pixels, (B, squares)."""
    count = noise.shape[-1] // side
    tiles = noise.reshape(len(noise), 3, count, side, count, side)
    return tiles.std((1, 3, 5)).reshape(len(noise), -1)


def test_a_level_goes_from_one_to_another():
    settings = only("white", varying_share=1.0, sigma=(5, 50))
    numbers = draw_noise(draws_of(40), (SIDE + 2 * EDGE, SIDE + 2 * EDGE), settings)
    found = levels_of(noise_of(settings, flat(40)))
    low, high = np.sort(np.stack([numbers.sigma, numbers.second]), axis=0)
    assert (found > 0.85 * low[:, None]).all()
    assert (found < 1.15 * high[:, None]).all()
    apart = high > 2 * low
    reached = (found.max(1) > 0.85 * high) & (found.min(1) < 1.2 * low)
    assert reached[apart].mean() > 0.8
    between = ((found > 1.25 * low[:, None]) & (found < 0.8 * high[:, None])).mean(1)
    hard = numbers.steepness > 100
    assert 10 < hard.sum() < 30
    assert between[apart & hard].mean() < 0.5 * between[apart & ~hard].mean()
    even = levels_of(noise_of(only("white", sigma=(5, 50)), flat(10)))
    assert (even.max(1) / even.min(1) < 1.3).all()


@pytest.mark.parametrize("scale", [0.6, 0.75, 1.6])
def test_resized_noise_is_what_a_resize_makes_of_white_noise(scale):
    noise = noise_of(only("white", resized_share=1.0, resize=(scale, scale)), flat(4))
    large = round(4 * SIDE / scale)
    white = Image.fromarray(np.random.default_rng(0).normal(0, 20, (large, large)).astype(np.float32))
    expected = np.asarray(white.resize((4 * SIDE, 4 * SIDE), Image.Resampling.BICUBIC))
    assert noise.std() == pytest.approx(expected.std(), rel=0.03)
    for distance in (1, 2, 3):
        assert beside(noise, distance) == pytest.approx(beside(expected, distance), abs=0.03)
        assert beside(noise.swapaxes(2, 3), distance) == pytest.approx(beside(expected, distance), abs=0.03)
    assert abs(correlation(noise[:, 0], noise[:, 1])) < 0.03


def test_every_resized_picture_has_its_own_scale():
    settings = only("white", resized_share=1.0)
    numbers = draw_noise(draws_of(200), (90, 90), settings)
    assert numbers.scale.min() < 0.63
    assert numbers.scale.max() > 1.57
    noise = noise_of(settings, flat(12))
    scales = draw_noise(draws_of(12), (SIDE + 2 * EDGE,) * 2, settings).scale
    blurred = np.array([beside(x[None]) for x in noise])
    assert np.corrcoef(scales, blurred)[0, 1] > 0.9


def test_stored_pictures_have_8_bits_and_the_others_do_not():
    clean = flat(2, 0.1)
    for share, stored in ((1.0, True), (0.0, False)):
        degraded, _ = degrade_photos(clean, draws_of(2), only("white", sigma=(50, 50), stored_share=share))
        steps = degraded * 255
        assert ((steps - steps.round()).abs().max() < 1e-3) == stored
        assert (degraded.min() >= 0) == stored


def test_compression_comes_last():
    """Without noise, of one quality: what Pillow's JPEG would make of the clean picture, wherever its blocks lie."""
    clean = colorful(6)
    settings = only("white", sigma=(0, 0), jpeg_share=1.0, jpeg_quality=(20, 20))
    degraded, target = degrade_photos(clean, draws_of(6), settings)
    expected = [jpeg(target[:1], np.array([20.0]), subsample=half) for half in (False, True)]
    lost = (degraded - target).square().mean((1, 2, 3))
    wanted = torch.stack([(x - target[:1]).square().mean() for x in expected])
    assert (lost > 0.7 * wanted.min()).all()
    assert (lost < 1.4 * wanted.max()).all()
    noisy = noise_of(only("white", jpeg_share=1.0, jpeg_quality=(20, 20)), flat(2))
    assert noisy.std() < 15  # of 20: a low quality takes away much of the noise


# The shares


def test_the_shares_hold():
    shares = {"white": 0.4, "luminance": 0.2, "film": 0.3, "camera": 0.1}
    others = {"gray_share": 0.3, "stored_share": 0.6, "jpeg_share": 0.25, "varying_share": 0.5, "resized_share": 0.2}
    settings = NoiseConfig(kind="noise", **shares, **others)
    count = 20_000
    numbers = draw_noise(draws_of(count), (40, 40), settings)
    assert len(numbers.cameras) / count == pytest.approx(0.1, abs=0.01)
    assert len(numbers.gray) / count == pytest.approx(0.3, abs=0.015)
    assert len(numbers.stored) / count == pytest.approx(0.6 + 0.4 * 0.1, abs=0.015)  # and those of cameras
    assert len(numbers.packed) / count == pytest.approx(0.25, abs=0.015)
    others = len(numbers.others)
    assert len(numbers.varying) / others == pytest.approx(0.5, abs=0.015)
    assert len(numbers.resized) / others == pytest.approx(0.2, abs=0.015)
    film = numbers.followed > 0
    assert film.mean() == pytest.approx(0.3 / 0.9, abs=0.015)
    chroma = np.concatenate([numbers.fields.chroma, numbers.small.chroma])
    neutral = (0.2 + 0.7 * 0.3) / 0.9  # of the luminance, and gray pictures of white noise and of film
    assert (chroma == 0).mean() == pytest.approx(neutral, abs=0.015)
    assert numbers.sigma.min() < 0.1
    assert numbers.sigma.max() > 54.9


def test_what_a_camera_does_is_apart_from_what_is_done_to_its_picture():
    numbers = draw_noise(draws_of(20_000), (40, 40), NoiseConfig(kind="noise", jpeg_share=0.5))
    cameras, sensor = numbers.cameras, numbers.sensor
    defaults = CameraConfig(kind="camera")
    assert len(sensor.correlated) / len(cameras) == pytest.approx(defaults.correlated_share, abs=0.02)
    first = cameras[sensor.packed]
    for part in (numbers.gray, np.setdiff1d(cameras, numbers.gray)):
        own = np.intersect1d(cameras, part)
        assert np.isin(own, first).mean() == pytest.approx(defaults.jpeg_share, abs=0.03)
    twice, a, b = np.intersect1d(first, numbers.packed, return_indices=True)
    assert len(twice) > 1000
    alike = (sensor.files.corner[a] == numbers.files.corner[b]).all(axis=1)
    assert alike.mean() < 0.02  # of 256 places


def test_a_gray_picture_of_a_camera_has_8_bits():
    degraded, _ = degrade_photos(colorful(4), draws_of(4), only("camera", gray_share=1.0))
    steps = degraded * 255
    assert (steps - steps.round()).abs().max() < 1e-3


def test_the_target_of_a_colour_picture_is_the_picture():
    clean = colorful(8)
    degraded, target = degrade_photos(clean, draws_of(8), NoiseConfig(kind="noise", gray_share=0.0))
    assert torch.equal(target, clean[..., EDGE:-EDGE, EDGE:-EDGE])
    assert degraded.shape == target.shape
    assert ((degraded - target).abs().amax((1, 2, 3)) > 0).all()


def test_a_batch_of_one_kind_and_of_none():
    """Groups without a picture: of 24 batches of one some have each."""
    settings = NoiseConfig(kind="noise")
    seen = set()
    for seed in range(24):
        numbers = draw_noise(draws_of(1, seed), (40, 40), settings)
        degraded, target = apply_noise(torch.rand(1, 3, 40, 40), moved(numbers, "cpu"), settings)
        assert degraded.shape == target.shape == (1, 3, 30, 30)
        seen.add((len(numbers.cameras), len(numbers.gray), len(numbers.packed)))
    assert len(seen) > 4


def test_a_recipe_without_any_kind_is_refused():
    with pytest.raises(ValueError, match="at least one kind needs a share"):
        NoiseConfig(kind="noise", white=0, luminance=0, film=0, camera=0)
    with pytest.raises(ValueError, match="from low to high"):
        NoiseConfig(kind="noise", resize=(1.5, 0.7))


# Another scale


@pytest.mark.parametrize("scale", [0.5, 0.6, 0.75, 1.0, 1.6])
def test_a_resized_picture_is_pillow_s(scale):
    picture = np.random.default_rng(0).random((60, 80)).astype(np.float32)
    size = int(60 * scale), int(80 * scale)
    expected = np.asarray(Image.fromarray(picture).resize(size[::-1], Image.Resampling.BICUBIC))
    found = resample(torch.from_numpy(picture)[None, None], torch.tensor([scale]), size, least=0.5)
    np.testing.assert_allclose(found[0, 0].numpy(), expected, atol=1e-5)


def test_pictures_of_a_batch_have_scales_of_their_own_and_1_changes_nothing():
    pictures = torch.rand(3, 2, 48, 40, generator=torch.Generator().manual_seed(0))
    scale = torch.tensor([0.5, 1.0, 0.8])
    together = resample(pictures, scale, (24, 20), least=0.5)
    for i in range(3):
        assert torch.equal(resample(pictures[i : i + 1], scale[i : i + 1], (24, 20), least=0.5), together[i : i + 1])
    assert torch.equal(together[1], pictures[1, :, :24, :20])


def test_an_offset_moves_and_an_extent_hides():
    pictures = torch.rand(1, 1, 30, 30, generator=torch.Generator().manual_seed(0))
    one, offset = torch.ones(1), torch.tensor([[3.0, 5.0]])
    assert torch.equal(resample(pictures, one, (8, 8), least=1, offset=offset), pictures[..., 3:11, 5:13])
    hidden = pictures.clone()
    hidden[..., 20:, :], hidden[..., 20:] = 1e6, 1e6
    some = torch.tensor([0.5])
    found = resample(hidden, some, (10, 10), least=0.5, extent=torch.tensor([20]))
    assert torch.equal(found, resample(pictures[..., :20, :20], some, (10, 10), least=0.5))


def test_gray_is_luma():
    colors = torch.tensor([[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0], [0.3, 0.3, 0.3]]).view(4, 3, 1, 1)
    expected = torch.tensor([0.299, 0.587, 0.114, 0.3]).view(4, 1, 1, 1).expand(-1, 3, 1, 1)
    torch.testing.assert_close(as_gray(colors), expected)
