"""Blur: kernels that keep energy and place, and a picture that is the sum of what the shutter saw."""

import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.interpolate
import scipy.ndimage
import scipy.signal
import scipy.stats
import torch
from scipy.io import savemat

from kithkin.data.degrade.blur import (
    add_blur,
    blurred,
    foreground_mask,
    gamma_from_light,
    gamma_to_light,
    srgb_from_light,
    srgb_to_light,
)
from kithkin.data.degrade.exposure import Blur, BlurSettings, draw_blur, draw_paths, node_paths, render_blur
from kithkin.data.degrade.fields import as_draws
from kithkin.data.degrade.kernels import (
    STEPS,
    disc_kernels,
    exposed,
    linear_paths,
    render_paths,
    shake_paths,
    shrunk,
    spectrum,
    spline_paths,
    splines,
)
from kithkin.data.transfer import moved
from kithkin.errors import InputError

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))

from deblur_kodak import load_kernels

PLAIN = BlurSettings(
    varying=0, foreground=0, defocused=0, highlights=(0, 0), shot=(0, 0), read=(0, 0), curves=(0, 0, 1), quantised=False
)
"""Motion alone, of stored values."""
MARGIN = PLAIN.margin


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def draws_of(count, seed=0):
    return as_draws(generator(seed), count)


def pictures(count=2, height=48, width=40):
    """Random pictures with margins, of middle brightness."""
    return torch.rand(count, 3, height + 2 * MARGIN, width + 2 * MARGIN, generator=generator(7)) * 0.5 + 0.2


def kernels_of(settings, count=40):
    reach = settings.margin - 2.0
    paths = shrunk(draw_blur(draws_of(count), settings).path, reach)
    return torch.from_numpy(render_paths(paths, settings.margin)).double()


def numbers(count, **changes):
    """A blur that does nothing, but for the changes."""
    still, none = np.zeros((count, STEPS, 2), np.float32), np.zeros(count, np.float32)
    flags, curve, whole = none > 0, np.full(count, 2), none + math.inf
    blur = Blur(still, still, np.zeros((count, 2), np.float32), flags, flags, whole, none, curve, none, none, none)
    return blur._replace(**{name: np.asarray(value) for name, value in changes.items()})


def through(light, blur, mask=None):
    """Pictures of light by a blur; ``mask`` for those with a moving part."""
    size = (light.shape[2] - 2 * MARGIN, light.shape[3] - 2 * MARGIN)
    mask = light[:0, :1] if mask is None else mask
    return blurred(light, moved(render_blur(blur, size, MARGIN), "cpu"), MARGIN, mask)


# Kernels


@pytest.mark.parametrize(
    "motions", [(1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)], ids=["shake", "straight", "none", "spline"]
)
@pytest.mark.parametrize("framed", [0, 1])
def test_kernels_sum_to_one_about_their_middle(motions, framed):
    kernels = kernels_of(replace(PLAIN, motions=motions, framed=framed))
    steps = torch.arange(-MARGIN, MARGIN + 1).double()
    assert kernels.min() >= 0
    torch.testing.assert_close(kernels.sum((1, 2)), torch.ones(len(kernels)).double(), atol=1e-5, rtol=0)
    for axis in (1, 2):
        assert (kernels.sum(axis) @ steps).abs().max() < 1e-3


def test_a_still_camera_has_a_kernel_of_one_pixel():
    kernels = kernels_of(replace(PLAIN, motions=(0, 0, 1, 0)), 1)
    assert kernels[0, MARGIN, MARGIN] == 1


def test_places_are_spread_bilinearly():
    path = np.array([[[0.25, -0.5], [-0.25, 0.5]]])
    expected = torch.zeros(5, 5)
    expected[2, 1], expected[2, 2], expected[3, 1], expected[3, 2] = 0.375, 0.375, 0.125, 0.125
    expected = (expected + expected.flip(0, 1)) / 2
    np.testing.assert_allclose(render_paths(path, 2)[0], expected)


@pytest.mark.parametrize(("length", "turn"), [(12.0, 0.0), (30.0, 0.25), (25.0, 0.11)])
def test_a_straight_kernel_is_an_even_line_in_its_direction(length, turn):
    path = linear_paths(np.array([length]), np.array([turn]))
    path = exposed(path, np.ones(1), np.full(1, math.inf))
    kernel, steps = render_paths(path, 20)[0].astype(float), np.arange(-20, 21)
    along = np.add.outer(steps * math.sin(2 * math.pi * turn), steps * math.cos(2 * math.pi * turn))
    across = np.add.outer(steps * math.cos(2 * math.pi * turn), -steps * math.sin(2 * math.pi * turn))
    # Bilinear spreading adds at most a quarter of a pixel to each second moment.
    assert (kernel * along**2).sum() == pytest.approx(length**2 / 12, abs=0.01 * length**2 / 12 + 0.25)
    assert (kernel * across**2).sum() < 0.25


def test_an_exposure_is_a_part_of_the_path():
    path = linear_paths(np.array([40.0]), np.zeros(1))
    seen = exposed(path, np.array([0.25]), np.full(1, math.inf))[0, :, 1]
    assert (seen.max() - seen.min()).item() == pytest.approx(10, rel=0.01)
    assert seen.mean().item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("count", [1, 2, 10, 125])
def test_frames_are_instants_of_equal_time(count):
    path = linear_paths(np.array([40.0]), np.zeros(1))
    seen = exposed(path, np.ones(1), np.array([float(count)]))[0, :, 1]
    places, times = np.unique(seen, return_counts=True)
    assert len(places) == count
    assert np.abs(times - STEPS / count).max() < 1
    expected = ((np.arange(count) + 0.5) / count - 0.5) * 40
    np.testing.assert_allclose(places, expected, atol=0.2, rtol=0)


def shaken(anxiety):
    """(N, STEPS) paths of hands, in the complex plane."""
    return shake_paths(anxiety, 60.0, draws_of(len(anxiety))).view(np.complex64)[..., 0]


def test_a_hand_moves_at_constant_speed():
    path = shaken(np.random.default_rng(0).random(20) * 0.01)
    np.testing.assert_allclose(np.abs(np.diff(path, axis=1)), 60 / STEPS, atol=1e-4, rtol=0)


def test_a_calm_hand_moves_straight_in_any_direction():
    ends = shaken(np.zeros(400))[:, -1]
    np.testing.assert_allclose(np.abs(ends), 60.0, atol=1e-3, rtol=0)
    assert np.abs(ends.mean()) < 9  # three standard errors


def test_a_spline_goes_through_its_points_in_equal_times_and_bends_as_catmull_and_rom():
    points = 30 * np.random.default_rng(0).random((6, 2))
    at = np.linspace(0, 5, STEPS)
    # Cubic pieces with these slopes at the points; at both ends the curve leaves straight.
    slopes = np.stack([points[1] - points[0], *(points[2:] - points[:-2]) / 2, points[5] - points[4]])
    expected = scipy.interpolate.CubicHermiteSpline(np.arange(6), points, slopes)(at)
    np.testing.assert_allclose(splines(points[None])[0], expected, atol=1e-4)
    paths = spline_paths(np.full(500, 30.0), draws_of(500))
    knots = paths[:, np.linspace(0, STEPS - 1, 6).round().astype(int)]
    # The points are even in their square: of mean 15 and variance 75.
    np.testing.assert_allclose(knots.mean((0, 1)), 15, atol=0.8)
    np.testing.assert_allclose(knots.var((0, 1)), 75, rtol=0.06)


def test_splines_linger_where_recorded_hands_do_and_are_seen_whole():
    settings = replace(PLAIN, motions=(0, 0, 0, 1), framed=0, span=(20, 20), exposure=(0.01, 0.01))
    speed = np.linalg.norm(np.diff(draw_paths(draws_of(200), settings), axis=1), axis=2)
    # Two points of a square lie 0.52 sides apart in the mean; six of them make a way of five such pieces, and a bit.
    assert 5 * 0.52 * 20 < speed.sum(1).mean() < 5 * 0.52 * 20 * 1.3
    assert np.median(np.quantile(speed, 0.1, axis=1) / speed.mean(1)) < 0.5


def walks_of_the_source(anxiety, count, rng, length=60.0, steps=2000):
    """The paths of Boracchi and Foi with DeblurGAN's parameters, step by step as published: a change of the velocity
    by a jolt, a Gaussian tremor and a pull to the start, then the velocity brought back to constant speed."""
    speed = length / (steps - 1)
    pull, tremor, jolts = 0.7 * rng.random(count), 10 * rng.random(count), 0.2 * rng.random(count)
    velocity = speed * np.exp(2j * np.pi * rng.random(count))
    path = np.zeros((steps, count), complex)
    for i in range(1, steps):
        jolt = 2 * velocity * np.exp(1j * (np.pi + rng.random(count) - 0.5)) * (rng.random(count) < jolts * anxiety)
        noise = rng.normal(size=count) + 1j * rng.normal(size=count)
        velocity = velocity + jolt + anxiety * (tremor * noise - pull * path[i - 1]) * speed
        velocity *= speed / abs(velocity)
        path[i] = path[i - 1] + velocity
    return path.T


@pytest.mark.parametrize("anxiety", [0.003, 0.01])
def test_paths_of_fewer_steps_have_the_statistics_of_the_source(anxiety):
    """The spread about the mean, and how far the end is from the start, over a thousand hands each."""
    count = 1000
    ours = shaken(np.full(count, anxiety))
    theirs = walks_of_the_source(anxiety, count, np.random.default_rng(0))
    for measure in (lambda p: np.abs(p - p.mean(1, keepdims=True)).std(1), lambda p: abs(p[:, -1] - p[:, 0])):
        a, b = measure(ours), measure(theirs)
        assert scipy.stats.ks_2samp(a, b).pvalue > 1e-3


def test_too_long_paths_are_made_to_fit():
    path = np.array([[[0.0, 0.0], [8.0, -20.0]], [[0.0, 0.0], [1.0, 2.0]]])
    np.testing.assert_allclose(shrunk(path, 10.0), [[[0.0, 0], [4, -10]], [[0, 0], [1, 2]]])


@pytest.mark.parametrize("radius", [1.5, 4.0, 9.3])
def test_a_disc_is_even_and_as_large_as_asked(radius):
    kernel, steps = disc_kernels(torch.tensor([radius]), 12)[0].double(), torch.arange(-12, 13).double()
    assert kernel.sum().item() == pytest.approx(1)
    assert 1 / kernel.max().item() == pytest.approx(math.pi * radius**2, rel=0.08)
    assert (kernel.sum(0) @ steps**2).item() == pytest.approx(radius**2 / 4, rel=0.08)
    torch.testing.assert_close(kernel, kernel.T)
    assert disc_kernels(torch.zeros(1), 3)[0, 3, 3] == 1


def test_a_product_of_spectra_is_a_convolution_of_scipy():
    picture, kernel = (
        torch.rand(20, 31, generator=generator()).double(),
        torch.rand(7, 7, generator=generator(1)).double(),
    )
    expected = scipy.ndimage.convolve(picture.numpy(), kernel.numpy(), mode="wrap")
    result = torch.fft.irfft2(torch.fft.rfft2(picture) * spectrum(kernel, (20, 31)), s=(20, 31))
    torch.testing.assert_close(result, torch.from_numpy(expected))


# Blurred pictures


def test_an_even_blur_is_a_direct_convolution():
    clean = pictures().double()
    degraded, target = add_blur(clean, generator(3), PLAIN)
    paths = draw_blur(draws_of(2, 3), PLAIN).path
    kernels = render_paths(shrunk(paths, MARGIN - 2.0), MARGIN).astype(float)
    for i in range(2):
        for c in range(3):
            direct = scipy.signal.convolve2d(clean[i, c].numpy(), kernels[i], mode="valid")
            np.testing.assert_allclose(degraded[i, c].numpy(), direct, atol=1e-6)
    torch.testing.assert_close(target, clean[..., MARGIN:-MARGIN, MARGIN:-MARGIN], rtol=0, atol=0)


def test_out_of_focus_and_moved_is_two_convolutions():
    clean = pictures(1).double()
    path = shrunk(draw_paths(draws_of(1), PLAIN), 20.0)
    result = through(clean, numbers(1, path=path, disc=np.array([3.0], np.float32)))
    motion, disc = render_paths(path, MARGIN)[0].astype(float), disc_kernels(torch.tensor([3.0]), 5)[0].double().numpy()
    once = scipy.signal.convolve2d(clean[0, 0].numpy(), disc, mode="same")
    twice = scipy.signal.convolve2d(once, motion, mode="valid")
    np.testing.assert_allclose(result[0, 0].numpy(), twice, atol=1e-5)


def test_a_blurred_point_keeps_its_place_and_its_light():
    point = torch.zeros(8, 3, 2 * MARGIN + 65, 2 * MARGIN + 65)
    point[..., MARGIN + 32, MARGIN + 32] = 1
    settings = replace(PLAIN, defocused=1, length=50)
    degraded, _ = add_blur(point, generator(), settings)
    place = torch.arange(65) - 32.0
    # The margin leaves the light within these 65 pixels. Clipping keeps values of -1e-9 from being negative.
    torch.testing.assert_close(degraded.sum((2, 3)), torch.ones(8, 3), atol=1e-4, rtol=0)
    for axis in (2, 3):
        assert (degraded.sum(axis) @ place).abs().max() < 1e-2


def smooth(side):
    y, x = np.mgrid[0:side, 0:side]
    return 0.5 + 0.2 * np.sin(x / 7) * np.cos(y / 9) + 0.2 * np.sin(x / 11 + y / 13)


@pytest.mark.parametrize("turn", [(0.0, 0.07), (0.06, 0.0), (0.05, -0.05)], ids=["roll", "zoom", "both"])
def test_a_varying_blur_is_nearly_the_average_of_warped_frames(turn):
    """Frames are resampled one by one: what is at p (from the middle) has moved to p + s(t) + t (z p + r J p) at the
    time t, J p = (right, -down), and the exposure is their mean. Blended kernels come near to that."""
    side = 64 + 2 * MARGIN
    clean, middle = smooth(side), (side - 1) / 2
    down, right = np.mgrid[0:side, 0:side] - middle
    zoom, roll = turn
    frames = []
    for t in np.linspace(-0.48, 0.48, 25):
        moved = [down - t * (8 + zoom * down + roll * right), right - t * (4 + zoom * right - roll * down)]
        frames.append(scipy.ndimage.map_coordinates(clean, np.stack(moved) + middle, order=3, mode="nearest"))
    expected = np.mean(frames, axis=0)[MARGIN:-MARGIN, MARGIN:-MARGIN]
    times = (np.arange(STEPS) + 0.5) / STEPS - 0.5
    path = (times[:, None] * np.array([8.0, 4.0]))[None]
    picture = torch.from_numpy(clean)[None, None].expand(1, 3, -1, -1)
    varying, even = (through(picture, numbers(1, path=path, turn=[turn], varying=[v])) for v in (True, False))
    wanted = expected - even[0, 0].numpy()
    got = (varying - even)[0, 0].numpy()
    assert np.abs(got - wanted).mean() < 0.3 * np.abs(wanted).mean()
    assert np.corrcoef(got.ravel(), wanted.ravel())[0, 1] > 0.95


def test_places_move_as_the_picture_turns():
    blur = numbers(1, turn=[[0.0, 0.02]])
    paths = node_paths(blur, (100, 60), np.array([30.0]))[0]
    way = (paths[:, -1] - paths[:, 0]) * STEPS / (STEPS - 1)
    corners = 0.02 * np.array([[-30.0, 50.0], [30.0, 50.0], [-30.0, -50.0], [30.0, -50.0]])
    np.testing.assert_allclose(way[[0, 2, 6, 8]], corners, atol=1e-4, rtol=0)
    assert np.abs(way[4]).max() == 0


@pytest.mark.parametrize(
    "changes", [{}, {"varying": 1}, {"foreground": 1}, {"defocused": 1, "varying": 1, "foreground": 1}]
)
def test_what_is_even_stays_as_it_is(changes):
    settings = replace(PLAIN, curves=(1, 1, 0), **changes)
    clean = torch.full((3, 3, 100, 110), 0.4)
    degraded, target = add_blur(clean, generator(), settings)
    torch.testing.assert_close(degraded, target, atol=1e-4, rtol=0)


def test_blur_is_linear_in_light():
    first, second = pictures(2).double(), pictures(2).double().flip(-1)
    one, two, both = (
        add_blur(x, generator(5), replace(PLAIN, varying=0.5, foreground=0.5))[0]
        for x in (first, second, 0.3 * first + 0.7 * second)
    )
    torch.testing.assert_close(both, 0.3 * one + 0.7 * two)


def test_light_stays_in_the_margin_whatever_moves():
    """Paths of 200 pixels, and a disc: a wide white frame, as far outside as the margin, can't reach the middle."""
    path = 200 * np.square(np.linspace(0, 1, STEPS))[None, :, None] * np.array([0.6, 0.8])
    path = path - path.mean(1, keepdims=True)
    clean = torch.zeros(1, 3, 400, 400)
    clean[..., :8, :] = clean[..., -8:, :] = clean[..., :8] = clean[..., -8:] = 1
    mask = torch.zeros(1, 1, 400, 400)
    mask[..., 150:, :] = 1
    for flags in ({}, {"varying": [True]}, {"foreground": [True]}):
        disc = np.array([3.0], np.float32)
        blur = numbers(1, path=path, front=path, disc=disc, turn=[[0.01, 0.02]], **flags)
        result = through(clean, blur, mask if "foreground" in flags else None)
        assert result[..., 8:-8, 8:-8].abs().max() < 1e-5
    point = torch.zeros(1, 3, 400, 400)
    point[..., 200, 200] = 1
    front = through(point, numbers(1, front=path, foreground=[True]), mask)[0, 0].double()
    steps = torch.arange(len(front)).double() - (200 - MARGIN)
    assert front.sum().item() == pytest.approx(1, abs=1e-4)
    assert max(abs(front.sum(1 - axis) @ steps).item() for axis in (0, 1)) < 0.01


def test_a_moving_part_covers_the_background():
    clean = pictures(1).double()
    back, front = (shrunk(p[None], 20.0) for p in draw_paths(draws_of(2), PLAIN))
    blur = numbers(1, path=back, front=front, foreground=[True])
    mask = torch.zeros(1, 1, *clean.shape[2:]).double()
    mask[..., : MARGIN + 20] = 1
    result = through(clean, blur, mask)[0, 0].numpy()
    kernels = [render_paths(p, MARGIN)[0].astype(float) for p in (back, front)]
    scene, cover = clean[0, 0].numpy(), mask[0, 0].numpy()
    behind, before, alpha = (
        scipy.signal.convolve2d(x, k, mode="valid")
        for x, k in ((scene, kernels[0]), (scene * cover, kernels[1]), (cover, kernels[1]))
    )
    np.testing.assert_allclose(result, before + (1 - alpha) * behind, atol=1e-5)
    assert alpha.min() < 0.01
    assert alpha.max() > 0.99


def test_masks_are_about_half_of_a_picture_and_have_clear_edges():
    masks = foreground_mask(torch.from_numpy(draws_of(32).keys("mask")), (128, 128))
    assert masks.mean().item() == pytest.approx(0.5, abs=0.1)
    assert ((masks > 0.01) & (masks < 0.99)).float().mean() < 0.25
    assert masks.diff(dim=-1).abs().max() < 0.5


# Light


CURVES = [(srgb_to_light, srgb_from_light), (gamma_to_light, gamma_from_light), (lambda x: x, lambda x: x)]


def test_light_is_averaged_and_not_stored_values():
    """Fine black and white lines, blurred across, have half the light of white: 188 of 255 by the sRGB curve, 0.5 to
    the power of 1 / 2.2 with a gamma of 2.2, one half where stored values are averaged."""
    lines = (torch.arange(100) % 2).float().expand(1, 3, 100, 100)
    path = (np.linspace(-12, 12, STEPS)[:, None] * np.array([0.0, 1.0]))[None]
    for (to_light, from_light), expected in zip(CURVES, (188 / 255, 0.5 ** (1 / 2.2), 0.5), strict=True):
        light = through(to_light(lines), numbers(1, path=path))
        assert from_light(light).mean().item() == pytest.approx(expected, abs=0.003)


@pytest.mark.parametrize(("to_light", "from_light"), CURVES)
def test_curves_are_inverse(to_light, from_light):
    stored = torch.linspace(0, 1, 256).view(1, 1, 16, 16).expand(1, 3, -1, -1)
    torch.testing.assert_close(from_light(to_light(stored)), stored, atol=1e-5, rtol=0)


def test_clipped_highlights_are_brighter_than_white():
    """A white line 4 wide, 8 pixels of blur across: half of white without, all of it with twice the light. What is
    blurred as stored was clipped before."""
    clean = torch.zeros(1, 3, 100, 100)
    clean[..., 48:52] = 1
    gamma, stored = (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)
    for curves, highlights, expected in (
        (gamma, 0, 0.5 ** (1 / 2.2)),
        (gamma, 0.5, 0.75 ** (1 / 2.2)),
        (gamma, 1, 1.0),
        (stored, 0, 0.5),
        (stored, 1, 0.5),
    ):
        both = (highlights, highlights)
        settings = replace(PLAIN, motions=(0, 1, 0, 0), length=8, exposure=(1, 1), highlights=both, curves=curves)
        seed = next(s for s in range(500) if is_across(s, settings))
        degraded, target = add_blur(clean, generator(seed), settings)
        assert degraded[..., 17:19].mean().item() == pytest.approx(expected, abs=0.03)
        assert target.max() == 1


def is_across(seed, settings):
    return np.abs(draw_blur(draws_of(1, seed), settings).path[0, :, 0]).max() < 0.4


@pytest.mark.parametrize(("shot", "read"), [(2e-3, 0.0), (0.0, 0.02), (1e-3, 0.01)])
def test_noise_has_the_variance_of_photons_and_reading(shot, read):
    clean = torch.full((1, 3, 264, 264), 0.4)
    degraded, _ = add_blur(clean, generator(), replace(PLAIN, shot=(shot, shot), read=(read, read)))
    assert degraded.var().item() == pytest.approx(shot * 0.4 + read**2, rel=0.03)


# The whole


def test_pictures_stay_in_range_with_8_bits():
    clean = (torch.rand(4, 3, 100, 120, generator=generator()) * 255).round() / 255
    degraded, target = add_blur(clean, generator(), BlurSettings())
    assert degraded.shape == target.shape == (4, 3, 100 - 64, 120 - 64)
    assert degraded.min() >= 0
    assert degraded.max() <= 1
    assert torch.equal(degraded * 255, (degraded * 255).round())


@pytest.mark.parametrize("curves", [(1, 0, 0), (0, 1, 0), (0, 0, 1)])
def test_no_exposure_no_blur(curves):
    clean = (torch.rand(2, 3, 100, 100, generator=generator()) * 255).round() / 255
    degraded, target = add_blur(clean, generator(), replace(PLAIN, exposure=(0, 0), curves=curves, quantised=True))
    torch.testing.assert_close(degraded, target, atol=1e-6, rtol=0)


@pytest.mark.parametrize("curves", [(1, 0, 0), (0, 1, 0)])
def test_brighter_highlights_keep_the_colours_of_what_is_not_blurred(curves):
    """Of orange only the red is clipped."""
    clean = torch.tensor([1.0, 0.5, 0.2]).view(1, 3, 1, 1).expand(1, 3, 100, 100)
    still = replace(PLAIN, motions=(0, 0, 1, 0), highlights=(1, 1), curves=curves)
    degraded, target = add_blur(clean, generator(), still)
    torch.testing.assert_close(degraded, target, atol=1e-5, rtol=0)


def test_numbers_are_drawn_from_their_ranges_and_apart_from_each_other():
    settings = BlurSettings(varying=0.5, foreground=0.4, defocused=0.3, framed=0.2, roll=2.0, zoom=0.01)
    blur = draw_blur(draws_of(4000), settings)
    grows, turns = blur.turn.T
    for drawn, most in ((grows, 0.01), (turns, math.radians(2))):
        assert np.abs(drawn).max() == pytest.approx(most, rel=0.01)
        assert abs(drawn.mean()) < 0.05 * most
    assert abs(np.corrcoef(blur.turn.T)[0, 1]) < 0.06  # four standard errors
    flags = np.stack([blur.varying, blur.foreground, blur.disc > 0, np.isfinite(blur.frames)])
    np.testing.assert_allclose(flags.mean(1), [0.5, 0.4, 0.3, 0.2], atol=0.035, rtol=0)
    assert np.abs(np.corrcoef(flags) - np.eye(4)).max() < 0.06
    framed = blur.frames[np.isfinite(blur.frames)]
    assert (framed.min(), framed.max()) == settings.frames


def test_all_of_a_picture_is_seen_in_the_same_frames():
    """The background, a moving part, and what turns at the corners."""
    settings = replace(PLAIN, motions=(1, 0, 0, 0), varying=1, foreground=1, framed=1)
    blur = draw_blur(draws_of(20), settings)
    nodes = node_paths(blur, (128, 128), np.full(20, 30.0))
    for i, frames in enumerate(blur.frames.astype(int).tolist()):
        for path in (blur.path[i], blur.front[i], nodes[i, 0], nodes[i, 4]):
            assert len(np.unique(path.round(3), axis=0)) == frames
    assert np.abs(nodes.mean(2)).max() < 1e-3


def test_blur_is_a_function_of_the_generator_alone():
    clean, state = pictures(), torch.get_rng_state()
    first, again, other = (add_blur(clean, generator(seed), BlurSettings())[0] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_picture_does_not_see_the_others_in_its_batch():
    clean = pictures(3)
    changed = torch.cat([clean[:1], 1 - clean[1:]])
    first, second = (add_blur(x, generator(), BlurSettings(varying=1, foreground=1))[0] for x in (clean, changed))
    torch.testing.assert_close(first[0], second[0], rtol=0, atol=1.01 / 255)
    same = add_blur(clean[:1].expand(2, -1, -1, -1), generator(), BlurSettings())[0]
    assert not torch.equal(same[0], same[1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_the_dtype_is_kept(dtype):
    clean = pictures().to(dtype)
    degraded, target = add_blur(clean, generator(), BlurSettings(quantised=False))
    expected, _ = add_blur(clean.float(), generator(), BlurSettings(quantised=False))
    assert degraded.dtype == target.dtype == dtype
    torch.testing.assert_close(degraded.float(), expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    "clean", [torch.zeros(1, 3, 64, 100), torch.zeros(3, 100, 100), torch.zeros(1, 3, 100, 100, dtype=torch.uint8)]
)
def test_other_tensors_are_refused(clean):
    with pytest.raises(InputError, match=r"add_blur: pictures are \(B, 3, H, W\).*margins of 32"):
        add_blur(clean, generator(), BlurSettings())


@pytest.mark.parametrize(
    "values",
    [
        {"margin": 4},
        {"exposure": (0, 2)},
        {"frames": (0, 3)},
        {"disc": (3, 1)},
        {"motions": (0, 0, 0, 0)},
        {"motions": (1, 0, 0)},
        {"span": (4, 3)},
        {"curves": (-1, 1, 1)},
    ],
    ids=lambda values: next(iter(values)),
)
def test_settings_that_make_no_sense_are_refused(values):
    with pytest.raises(InputError, match=f"BlurSettings: {next(iter(values))}"):
        BlurSettings(**values)


# Published kernels


def found(count=3):
    rng = np.random.default_rng(0)
    return [rng.random((5 + 2 * i, 7)) for i in range(count)]


def in_hdf5(path, matrices):
    """A file as MATLAB 7.3 writes it: HDF5 behind 512 bytes of text, columns first, the cells by reference."""
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w", userblock_size=512) as file:
        cells = [file.create_dataset(f"#refs#/{i}", data=matrix.T) for i, matrix in enumerate(matrices)]
        file["kernels"] = np.array([[cell.ref] for cell in cells], dtype=h5py.ref_dtype)
    with path.open("r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file")


def in_mat5(path, matrices):
    cells = np.empty((1, len(matrices)), object)
    cells[0] = matrices
    savemat(path, {"kernels": cells})


@pytest.mark.parametrize("write", [in_hdf5, in_mat5])
def test_kernels_are_read_and_sum_to_one(write, tmp_path):
    write(tmp_path / "kernels.mat", found())
    kernels = load_kernels(tmp_path / "kernels.mat")
    assert len(kernels) == 3
    for kernel, matrix in zip(kernels, found(), strict=True):
        np.testing.assert_allclose(kernel, matrix / matrix.sum())


def test_files_without_kernels_are_refused(tmp_path):
    with pytest.raises(InputError, match="is not a file"):
        load_kernels(tmp_path / "none.mat")
    (tmp_path / "text.mat").write_text("no kernels here, but enough text to look like a header" * 20)
    savemat(tmp_path / "other.mat", {"matrix": np.ones((3, 3))})
    (tmp_path / "empty.mat").write_bytes(b"")
    savemat(tmp_path / "packed.mat", {"kernels": np.ones((40, 40))}, do_compression=True)
    packed = bytearray((tmp_path / "packed.mat").read_bytes())
    packed[140:] = bytes(255 - byte for byte in packed[140:])
    (tmp_path / "packed.mat").write_bytes(packed)
    for name in ("text.mat", "other.mat", "empty.mat", "packed.mat"):
        with pytest.raises(InputError, match="is no MATLAB file with a list 'kernels'"):
            load_kernels(tmp_path / name)
    for matrix in (-np.ones((3, 3)), np.zeros((3, 3)), np.ones((0, 3)), np.full((3, 3), np.nan)):
        in_mat5(tmp_path / "matrix.mat", [matrix, np.ones((3, 3))])
        with pytest.raises(InputError, match="no kernel"):
            load_kernels(tmp_path / "matrix.mat")
    savemat(tmp_path / "none.mat", {"kernels": np.empty((1, 0), object)})
    with pytest.raises(InputError, match="is empty"):
        load_kernels(tmp_path / "none.mat")
