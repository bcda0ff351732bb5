"""Degradations, by their statistics, by published formulas and against Pillow's JPEG."""

import io
import random

import numpy as np
import pytest
import torch
from PIL import Image

from kithkin.data.degrade import degrade_photos, margin
from kithkin.data.degrade.camera import (
    Cameras,
    apply_camera,
    demosaic,
    draw_camera,
    draw_cameras,
    draw_noise_levels,
    mosaic,
    process,
    raw_noise,
    reduce_noise,
    sensor_noise,
    unprocess,
)
from kithkin.data.degrade.compression import jpeg
from kithkin.data.degrade.draws import Draws
from kithkin.data.degrade.fields import as_draws
from kithkin.data.degrade.noise import correlated_noise, smooth
from kithkin.data.transfer import moved
from kithkin.degradation_config import BlurConfig, CameraConfig, CorrelatedConfig, RainConfig
from kithkin.errors import InputError


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def every(value, count=2):
    return torch.full((count,), float(value))


def cameras_of(count):
    return moved(draw_cameras(Draws.of_step(0, 0, range(count))), "cpu")


def camera_noise(clean, source, settings):
    numbers = draw_camera(as_draws(source, len(clean)), clean.shape[2:], settings)
    return apply_camera(clean, moved(numbers, "cpu"))


def scene(height=90, width=120, seed=0):
    """Waves, a hard edge and fine texture, (1, 3, H, W), on the grid of 8 bits."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / 40
    waves = np.stack([0.5 + 0.25 * np.sin(3 * x + 2 * y + 2 * c) for c in range(3)])
    waves[:, :, width // 2 :] *= np.array([1.2, 0.7, 0.4])[:, None, None]
    picture = np.clip(waves + rng.normal(0, 0.03, waves.shape), 0, 1)
    return torch.from_numpy(np.rint(picture * 255) / 255).float()[None]


def db(a, b):
    return -10 * (a - b).square().mean().log10().item()


def correlation(a, b):
    return np.corrcoef(a.flatten(), b.flatten())[0, 1]


# Correlated noise


@pytest.mark.parametrize("grain", [(0.0, 0.0), (0.6, 0.6), (1.2, 0.4)])
@pytest.mark.parametrize("chroma", [0.0, 0.3, 1.0])
def test_correlated_noise_has_its_level_and_its_colours(grain, chroma):
    clean = torch.full((2, 3, 160, 160), 0.5)
    sigma = torch.tensor([5.0, 40.0])
    noisy = correlated_noise(clean, sigma, torch.tensor([grain, grain]), every(chroma), seeded())
    noise = (noisy - clean) * 255
    found = noise.flatten(2).std(dim=2)
    torch.testing.assert_close(found, sigma[:, None].expand(2, 3), rtol=0.04, atol=0)
    assert (noise.mean(dim=(2, 3)).abs() < 0.05 * sigma[:, None]).all()
    assert correlation(noise[0, 0], noise[0, 2]) == pytest.approx(1 - chroma, abs=0.06)
    assert abs(correlation(noise[0], noise[1])) < 0.05


def test_the_grain_is_the_autocorrelation_of_a_gaussian():
    """White noise through a Gaussian of deviation g has the autocorrelation exp(-d²/4g²)."""
    clean = torch.zeros(1, 3, 200, 200)
    noise = correlated_noise(clean, every(25, 1), torch.tensor([[1.0, 0.0]]), every(1, 1), seeded())[0]
    for distance in (1, 2):
        found = correlation(noise[:, distance:], noise[:, :-distance])
        assert found == pytest.approx(np.exp(-(distance**2) / 4), abs=0.02)
        assert abs(correlation(noise[:, :, distance:], noise[:, :, :-distance])) < 0.02


def test_smoothing_keeps_the_mean_and_does_nothing_without_grain():
    picture = scene().repeat(2, 1, 1, 1)
    still, blurred = smooth(picture, torch.tensor([[0.0, 0.0], [1.0, 1.0]]))
    torch.testing.assert_close(still, picture[0])
    flat = smooth(torch.full((1, 3, 9, 9), 0.7), torch.tensor([[0.5, 1.0]]))
    torch.testing.assert_close(flat, torch.full((1, 3, 9, 9), 0.7))
    from scipy.ndimage import gaussian_filter

    expected = gaussian_filter(picture[1].numpy(), (0, 1, 1), mode="mirror", radius=3)
    np.testing.assert_allclose(blurred.numpy(), expected, atol=1e-6)


# The sensor


def test_a_picture_comes_back_from_the_sensor():
    picture = torch.rand(4, 3, 32, 32, generator=seeded())
    picture[0, :, :4], picture[0, :, 4:8] = 0, 1
    cameras = cameras_of(4)
    raw, factors = unprocess(picture, cameras)
    assert (raw - picture).abs().max() > 0.2
    torch.testing.assert_close(process(raw, factors, cameras), picture, rtol=0, atol=1e-5)


def test_gray_and_white_by_hand():
    """Gray stays gray in every camera: tone curve 3x² - 2x³, gamma 2.2 and the gains alone. White stays saturated."""
    cameras = Cameras(cameras_of(1).matrix, torch.tensor([[2.5, 1.25, 2.0]]))
    linear = np.array([0.01, 0.18, 0.6])
    toned = linear ** (1 / 2.2)
    picture = torch.tensor(3 * toned**2 - 2 * toned**3).float().view(1, 1, 1, 3).expand(1, 3, 1, 3)
    raw, _ = unprocess(picture, cameras)
    expected = torch.tensor(linear / np.array([[2.5], [1.25], [2.0]])).float().view(1, 3, 1, 3)
    torch.testing.assert_close(raw, expected, rtol=1e-4, atol=1e-6)
    white, _ = unprocess(torch.ones(1, 3, 1, 1), cameras)
    torch.testing.assert_close(white, torch.ones(1, 3, 1, 1))


def test_cameras_are_drawn_from_the_published_ranges():
    cameras = cameras_of(500)
    torch.testing.assert_close(cameras.matrix.sum(dim=2), torch.ones(500, 3))
    assert (torch.linalg.cond(cameras.matrix) < 20).all()
    red, blue = cameras.gains[:, 0] / cameras.gains[:, 1], cameras.gains[:, 2] / cameras.gains[:, 1]
    for found, (low, high) in ((red, (1.9, 2.4)), (blue, (1.5, 1.9))):
        assert low <= found.min() < low + 0.02
        assert high - 0.02 < found.max() <= high + 1e-6
    darkness = 1 / cameras.gains[:, 1]
    assert darkness.mean().item() == pytest.approx(0.8, abs=0.02)
    assert darkness.std().item() == pytest.approx(0.1, abs=0.01)


@pytest.mark.parametrize(
    ("share", "low", "high", "slope", "offset", "spread", "log"),
    [
        (0.0, 1e-4, 0.012, 2.18, 1.20, 0.26, np.log),
        (1.0, 6.8674e-4, 0.02195, 1.85, 0.30, 0.20, np.log10),
    ],
    ids=["DND", "SIDD"],
)
def test_noise_levels_follow_the_published_line(share, low, high, slope, offset, spread, log):
    shot, read = (x.astype(float) for x in draw_noise_levels(Draws.of_step(0, 0, range(2000)), share))
    assert low * 0.999 <= shot.min() < low * 1.05
    assert high * 0.95 < shot.max() <= high * 1.001
    assert log(shot).mean() == pytest.approx((log(low) + log(high)) / 2, abs=0.05 * (log(high) - log(low)))
    rest = log(read) - slope * log(shot) - offset
    assert rest.mean() == pytest.approx(0, abs=0.02)
    assert rest.std() == pytest.approx(spread, rel=0.08)
    assert abs(np.corrcoef(np.abs(rest), log(shot))[0, 1]) < 0.1


def test_a_share_of_the_levels_is_that_of_phones():
    shot, read = (x.astype(float) for x in draw_noise_levels(Draws.of_step(0, 0, range(20_000)), 0.3))
    phones = shot > 0.012  # more than any camera has
    assert phones.mean() == pytest.approx(0.3 * np.log(2.195 / 1.2) / np.log(219.5 / 6.8674), abs=0.01)
    rest = (np.log10(read) - 1.85 * np.log10(shot) - 0.30)[phones]
    assert rest.mean() == pytest.approx(0, abs=0.03)
    assert rest.std() == pytest.approx(0.20, rel=0.08)


def test_sensor_noise_has_the_variance_of_shot_and_read():
    level = torch.tensor([0.0, 0.1, 0.5]).view(3, 1, 1, 1).expand(3, 1, 200, 200)
    shot, read = torch.tensor([0.01, 0.01, 0.002]), torch.tensor([1e-4, 1e-4, 1e-3])
    noise = sensor_noise(level, shot, read, seeded()).flatten(1)
    expected = torch.tensor([1e-4, 1.1e-3, 2e-3])
    torch.testing.assert_close(noise.var(dim=1), expected, rtol=0.03, atol=0)
    assert (noise.mean(dim=1).abs() < 3 * (expected / 200**2).sqrt()).all()


def test_a_saturated_sensor_shows_no_more_than_saturation():
    level = torch.tensor([0.95, 1.0]).view(2, 1, 1, 1).expand(2, 1, 50, 50)
    seen = level + sensor_noise(level, every(0.02), every(1e-4), seeded())
    assert seen.max() <= 1
    assert (seen[1] < 0.999).float().mean().item() == pytest.approx(0.5, abs=0.05)


def test_the_mosaic_is_rggb():
    rgb = torch.arange(3.0).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    assert mosaic(rgb)[0, 0].tolist() == [[0, 1, 0, 1], [1, 2, 1, 2]] * 2


def test_demosaicing_by_the_formulas_of_malvar():
    """Bilinear interpolation and a gain (1/2, 5/8, 3/4) on the Laplacian of the colour that was seen there."""
    bayer = torch.rand(1, 1, 16, 16, generator=seeded(), dtype=torch.float64)
    red, green, blue = demosaic(bayer)[0].numpy()
    seen = bayer[0, 0].numpy()

    def at(places, row, column):
        return [seen[row + r, column + c] for r, c in places]

    cross, diagonal = [(-1, 0), (1, 0), (0, -1), (0, 1)], [(-1, -1), (-1, 1), (1, -1), (1, 1)]
    far = [(2 * r, 2 * c) for r, c in cross]
    r = (6, 6)  # a red place
    laplacian = seen[r] - np.mean(at(far, *r))
    assert red[r] == seen[r]
    assert green[r] == pytest.approx(np.mean(at(cross, *r)) + laplacian / 2)
    assert blue[r] == pytest.approx(np.mean(at(diagonal, *r)) + laplacian * 3 / 4)
    b = (7, 9)
    laplacian = seen[b] - np.mean(at(far, *b))
    assert blue[b] == seen[b]
    assert red[b] == pytest.approx(np.mean(at(diagonal, *b)) + laplacian * 3 / 4)
    for g, one, other in (((6, 7), red, blue), ((7, 6), blue, red)):  # green in a red row, in a blue row
        assert green[g] == seen[g]
        near_minus = 5 * seen[g] - np.sum(at(diagonal, *g))
        along = near_minus - np.sum(at([(0, -2), (0, 2)], *g)) + np.sum(at([(-2, 0), (2, 0)], *g)) / 2
        upright = near_minus - np.sum(at([(-2, 0), (2, 0)], *g)) + np.sum(at([(0, -2), (0, 2)], *g)) / 2
        assert one[g] == pytest.approx(np.mean(at([(0, -1), (0, 1)], *g)) + along / 8)
        assert other[g] == pytest.approx(np.mean(at([(-1, 0), (1, 0)], *g)) + upright / 8)


@pytest.mark.parametrize("size", [(16, 16), (15, 17)])
def test_demosaicing_a_gray_slope_is_exact(size):
    y, x = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in size), indexing="ij")
    slope = (0.02 * x + 0.01 * y + 0.1).expand(1, 3, *size)
    inside = (..., slice(2, -2), slice(2, -2))
    torch.testing.assert_close(demosaic(mosaic(slope))[inside], slope[inside])


def test_without_noise_the_picture_stays_as_it_was():
    picture = scene()
    torch.testing.assert_close(
        raw_noise(picture, every(0, 1), every(0, 1), seeded(), cameras_of(1)), picture, rtol=0, atol=1e-5
    )


def test_developed_noise_is_that_of_the_sensor_through_the_pipeline():
    """Green on a gray field: where it was measured, to first order, the sensor's deviation times gain and slope."""
    linear, shot, read = 0.2, 1e-4, 1e-7
    toned = linear ** (1 / 2.2)
    clean = torch.full((1, 3, 128, 128), 3 * toned**2 - 2 * toned**3)
    cameras = Cameras(torch.eye(3)[None], torch.tensor([[2.0, 1.25, 1.6]]))
    noise = raw_noise(clean, every(shot, 1), every(read, 1), seeded(), cameras) - clean
    slope = 6 * toned * (1 - toned) * toned / linear / 2.2
    expected = np.sqrt(shot * linear / 1.25 + read) * 1.25 * slope
    assert noise[0, 1, ::2, 1::2].std().item() == pytest.approx(expected, rel=0.05)
    assert correlation(noise[0, 0, :, 1:], noise[0, 0, :, :-1]) > 0.2


def test_noise_reduction_takes_colours_and_gray_apart():
    noise = torch.randn(1, 3, 64, 64, generator=seeded())
    left = reduce_noise(noise, every(0, 1), every(1, 1))
    torch.testing.assert_close(left.mean(dim=1), noise.mean(dim=1))
    colours = [x - x.mean(dim=1, keepdim=True) for x in (noise, left)]
    assert colours[1].std() < 0.4 * colours[0].std()
    torch.testing.assert_close(reduce_noise(noise, every(0, 1), every(0, 1)), noise)


# JPEG


def through_pillow(picture, quality, subsampling):
    file = io.BytesIO()
    pixels = (picture * 255).round().byte().permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality, subsampling=subsampling)
    decoded = np.asarray(Image.open(file), dtype=np.float32) / 255
    return torch.from_numpy(decoded).permute(2, 0, 1)


@pytest.mark.parametrize("subsample", [False, True], ids=["4:4:4", "4:2:0"])
@pytest.mark.parametrize("size", [(96, 112), (90, 117)])
def test_jpeg_is_what_pillow_makes(subsample, size):
    """A batch of qualities. What differs is coefficients that one rounds up and the other down: libjpeg counts in
    integers. Blocks over an edge may differ: what stands beyond it is the encoder's choice."""
    qualities = (30, 49, 50, 75, 90, 95, 100)
    picture = scene(*size).repeat(len(qualities), 1, 1, 1)
    ours = jpeg(picture, torch.tensor(qualities), subsample=subsample)
    for quality, result in zip(qualities, ours, strict=True):
        theirs = through_pillow(picture[0], quality, 2 if subsample else 0)
        # Of the large steps few are rounded otherwise, so there it shows that decoders keep 8 bits of each plane.
        assert db(result[:, :80, :96], theirs[:, :80, :96]) > (51 if quality <= 50 and not subsample else 43), quality
        assert db(result, picture[0]) == pytest.approx(db(theirs, picture[0]), abs=0.4), quality


def test_the_grid_of_blocks_can_be_moved():
    picture = scene(64, 80)
    inside = jpeg(picture, every(30, 1))
    cut = jpeg(picture[..., 3:, 5:], every(30, 1), offset=(3, 5))
    torch.testing.assert_close(cut[..., 5:, 3:], inside[..., 8:, 8:])
    assert db(jpeg(picture[..., 3:, 5:], every(30, 1))[..., 5:, 3:], inside[..., 8:, 8:]) < 40


def test_jpeg_takes_and_gives_pictures_of_8_bits():
    noisy = scene() + 0.3 * torch.randn(scene().shape, generator=seeded())
    result = jpeg(noisy, every(60, 1), subsample=True)
    assert result.min() == 0
    assert result.max() == 1
    torch.testing.assert_close(result * 255, (result * 255).round(), rtol=0, atol=1e-4)
    assert torch.equal(result, jpeg((noisy.clamp(0, 1) * 255).round() / 255, every(60, 1), subsample=True))


# The mix of a camera


def test_camera_noise_is_a_picture_of_8_bits():
    clean = scene().repeat(6, 1, 1, 1)
    noisy = camera_noise(clean, seeded(), CameraConfig(kind="camera"))
    assert noisy.min() >= 0
    assert noisy.max() <= 1
    torch.testing.assert_close(noisy * 255, (noisy * 255).round(), rtol=0, atol=1e-4)
    levels = [db(x, y) for x, y in zip(noisy, clean, strict=True)]
    assert 15 < min(levels) < max(levels) - 3
    assert max(levels) < 60


def test_each_part_of_the_mix_can_be_had_alone():
    clean = scene().repeat(4, 1, 1, 1)
    nothing = {"kind": "camera", "correlated_share": 0, "jpeg_share": 0, "noise_left": (0, 0)}
    torch.testing.assert_close(camera_noise(clean, seeded(), CameraConfig(**nothing)), clean, rtol=0, atol=1e-6)
    packed = camera_noise(clean, seeded(), CameraConfig(**{**nothing, "jpeg_share": 1, "jpeg_quality": (40, 40)}))
    expected = db(through_pillow(clean[0], 40, 0), clean[0])
    assert db(packed[0], clean[0]) == pytest.approx(expected, abs=1.5)
    level = {"correlated_share": 1, "correlated_sigma": (12, 12), "luma_grain": (0.8, 0.8)}
    gray = torch.full((4, 3, 128, 128), 0.5)
    correlated = camera_noise(gray, seeded(), CameraConfig(**{**nothing, **level})) - gray
    assert correlated.std().item() * 255 == pytest.approx(12, rel=0.03)
    assert correlation(correlated[..., 1:], correlated[..., :-1]) == pytest.approx(np.exp(-1 / (4 * 0.8**2)), abs=0.03)


def test_the_grid_of_a_camera_s_jpeg_lies_anywhere():
    """One quality and no noise: two ways of sub-sampling would make two pictures, a moving grid makes many."""
    nothing = {"noise_left": (0, 0), "correlated_share": 0, "jpeg_share": 1, "jpeg_quality": (40, 40)}
    settings = CameraConfig(kind="camera", **nothing)
    results = {camera_noise(scene(48, 48), seeded(i), settings).numpy().tobytes() for i in range(12)}
    assert len(results) > 6


@pytest.mark.parametrize("kind", ["camera", "correlated"])
def test_a_degradation_is_a_function_of_its_generator(kind):
    settings = {"camera": CameraConfig, "correlated": CorrelatedConfig}[kind](kind=kind)
    clean = scene(64, 64).repeat(3, 1, 1, 1)
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    before = clean.clone()
    first, target = degrade_photos(clean, seeded(5), settings)
    torch.manual_seed(9)
    assert torch.equal(degrade_photos(clean, seeded(5), settings)[0], first)
    assert not torch.equal(degrade_photos(clean, seeded(6), settings)[0], first)
    torch.set_rng_state(states[0])
    assert torch.equal(clean, before)
    edge = margin(settings)
    assert torch.equal(target, clean[..., edge : 64 - edge, edge : 64 - edge])
    assert first.shape == target.shape
    assert first.dtype == torch.float32
    assert np.array_equal(np.random.get_state()[1], states[1])
    assert random.getstate() == states[2]
    assert not torch.equal(first[0] - target[0], first[1] - target[1])


def test_a_picture_without_an_inside_is_refused():
    settings = CameraConfig(kind="camera")
    side = 2 * margin(settings)
    assert degrade_photos(torch.rand(1, 3, side + 1, side + 1), seeded(), settings)[0].shape == (1, 3, 1, 1)
    for shape in ((1, 3, side, 40), (3, 40, 40), (1, 1, 40, 40)):
        with pytest.raises(InputError, match=f"camera: .*above {side}, got"):
            degrade_photos(torch.rand(shape), seeded(), settings)


def test_the_kind_of_number_is_kept():
    for settings in (CameraConfig(kind="camera"), CorrelatedConfig(kind="correlated")):
        degraded, _ = degrade_photos(scene().double().repeat(4, 1, 1, 1), seeded(), settings)
        assert degraded.dtype == torch.float64


@pytest.mark.parametrize(
    ("settings", "nothing"),
    [(RainConfig(kind="rain"), {"dry_share": 1.0}), (BlurConfig(kind="blur", margin=8), {"sharp_share": 1.0})],
    ids=["rain", "blur"],
)
def test_rain_and_blur_leave_their_share_of_pictures_alone(settings, nothing):
    clean, edge = scene(64, 64).repeat(12, 1, 1, 1), margin(settings)
    degraded, target = degrade_photos(clean, seeded(3), settings)
    assert degraded.shape == target.shape == (12, 3, 64 - 2 * edge, 64 - 2 * edge)
    assert torch.equal(target, clean[..., edge : 64 - edge, edge : 64 - edge])
    changed = (degraded - target).abs().amax((1, 2, 3)) > 0.01
    assert 6 <= changed.sum() < 12
    assert torch.equal(degrade_photos(clean, seeded(3), settings)[0], degraded)
    untouched, target = degrade_photos(clean, seeded(3), settings.model_copy(update=nothing))
    assert torch.equal(untouched, target)


NO_BLUR = {"shake": 0.0, "straight": 0.0, "still": 1.0} | dict.fromkeys(
    ("framed_share", "varying_share", "foreground_share", "defocused_share", "sharp_share"), 0.0
)


def blur_of(read=(0.0, 0.0), **changes):
    settings = BlurConfig(kind="blur", margin=8, length=12, exposure=(1.0, 1.0), **{**NO_BLUR, "read": read, **changes})
    degraded, target = degrade_photos(scene(64, 64).repeat(8, 1, 1, 1), seeded(3), settings)
    return (degraded - target).square().mean().sqrt().item()


@pytest.mark.parametrize("changes", [{"shake": 1.0}, {"straight": 1.0}, {"defocused_share": 1.0}])
def test_each_share_of_a_recipe_blurs(changes):
    """Nothing moves and all is in focus but for what the recipe names; what is left are photons and 8 bits."""
    nothing = blur_of()
    assert nothing < 0.008
    assert blur_of(**changes) > 3 * nothing


def test_the_blur_of_a_recipe_has_its_noise():
    """Without a curve between light and stored values, the noise of black is that of the picture."""
    assert blur_of(read=(0.05, 0.05), linear_share=1.0) == pytest.approx(0.05, rel=0.15)


def test_every_number_of_a_recipe_arrives(monkeypatch):
    seen = []
    monkeypatch.setattr(
        "kithkin.data.degrade.apply_blur", lambda clean, exposure, kinds: seen.append(kinds) or (clean, clean)
    )
    shares = {"framed_share": 0.1, "varying_share": 0.2, "foreground_share": 0.3, "defocused_share": 0.4}
    motions = {"shake": 0.5, "straight": 0.6, "still": 0.7, "spline": 0.8}
    ranges = {"exposure": (0.25, 0.75), "span": (4, 9), "read": (0.01, 0.02)}
    settings = BlurConfig(kind="blur", margin=8, length=12, **shares, **motions, **ranges)
    for changed in (settings, settings.model_copy(update={"linear_share": 1.0})):
        degrade_photos(scene(64, 64), seeded(), changed)
    kinds = seen[0]
    assert (kinds.framed, kinds.varying, kinds.foreground, kinds.defocused) == (0.1, 0.2, 0.3, 0.4)
    assert (kinds.motions, kinds.margin, kinds.length) == ((0.5, 0.6, 0.7, 0.8), 8, 12)
    assert (kinds.exposure, kinds.span, kinds.read) == ((0.25, 0.75), (4, 9), (0.01, 0.02))
    assert kinds.curves == pytest.approx((0.5, 0.2, 0.3))
    assert seen[1].curves == (0, 0, 1)


def test_a_blur_without_any_motion_is_refused():
    with pytest.raises(ValueError, match="at least one motion needs a share"):
        BlurConfig(kind="blur", shake=0, straight=0, still=0)
