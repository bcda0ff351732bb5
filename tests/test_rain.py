"""Rain: what is drawn has the density, size, direction and brightness that the settings say."""

import math
from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from kithkin.data.degrade import rain
from kithkin.data.degrade.draws import Draws
from kithkin.data.degrade.rain import (
    HEAVY,
    LIGHT,
    LOOKS,
    RainLook,
    RainSettings,
    add_rain,
    blend,
    draw_rain,
    seeds,
    streak_kernels,
    streak_layers,
    streaks_of,
)
from kithkin.data.transfer import moved
from kithkin.errors import InputError

DRY = RainLook(density=(0, 0))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def photographs(count=3, side=96):
    """Smooth pictures of 8 bits, with black and white in them."""
    y, x = torch.meshgrid(torch.linspace(0, 1, side), torch.linspace(0, 1, side), indexing="ij")
    waves = torch.stack([0.5 + 0.6 * torch.sin(3 * x * (i + 1) + 5 * y * c) for i in range(count) for c in (1, 2, 3)])
    return (waves.view(count, 3, side, side).clamp(0, 1) * 255).round() / 255


def alone(look, **settings):
    return RainSettings((look,), (1.0,), **settings)


def one(**values):
    """The rain of pictures that are described by numbers, one layer each."""
    count = max(len(v) if isinstance(v, list) else 1 for v in values.values())
    numbers = dict.fromkeys(rain.Rain._fields, 0.0) | {"length": 20.0, "width": 2.0, "strength": 0.1, "radius": 4.0}
    numbers |= {"density": 0.01, "gray": 1.0, "screened": 1.0} | values
    arrays = {name: np.broadcast_to(np.array(v, np.float32), count) for name, v in numbers.items()}
    layered = {name: x[:, None] for name, x in arrays.items() if name in rain.Rain._fields[:7]}
    return rain.Rain(**arrays | layered)


def layers_of(numbers, size):
    """(B, H, W), the only layer of each picture."""
    count = len(numbers.density)
    streaks = streaks_of(numbers, Draws.of_step(0, 0, range(count)), [np.arange(count)])
    return streak_layers(moved(streaks, "cpu"), size, 60)


def kernels_of(length, width, angle):
    reach = math.ceil(max(length) / 2 + 1.5 * max(width) + 1)
    return streak_kernels(*(torch.tensor(x).float() for x in (length, width, angle)), reach)


def structure_angle(field):
    """Degrees from the vertical of what a field shows, positive where it falls to the left: the direction in which
    the Fourier power is least spread, from second moments."""
    power = np.abs(np.fft.fft2(field - field.mean())) ** 2
    fy, fx = np.meshgrid(np.fft.fftfreq(field.shape[0]), np.fft.fftfreq(field.shape[1]), indexing="ij")
    inner = np.hypot(fy, fx) < 0.25
    xx, yy, xy = ((power * a * b)[inner].sum() for a, b in ((fx, fx), (fy, fy), (fx, fy)))
    return math.degrees(0.5 * math.atan2(2 * xy, xx - yy))


# Seeds and kernels


@pytest.mark.parametrize("density", [0.005, 0.03, 0.5])
def test_seeds_lie_on_the_asked_fraction_of_pixels(density):
    found = seeds(torch.tensor([density]), (1000, 1000), torch.tensor([[3, 4]], dtype=torch.int32))[0]
    assert (found > 0).float().mean().item() == pytest.approx(density, abs=4 * math.sqrt(density / 1e6))
    bright = found[found > 0]
    assert bright.min() >= 0.5
    assert bright.max() <= 1
    assert bright.mean().item() == pytest.approx(0.75, abs=0.01)


def test_kernels_sum_to_one_and_are_centred():
    kernels = kernels_of([15.0, 60.0, 33.3, 1.0], [1.0, 5, 2, 1], [-30.0, 0, 77, 10]).double()
    steps = torch.arange(kernels.shape[1]) - kernels.shape[1] // 2
    torch.testing.assert_close(kernels.sum((1, 2)), torch.ones(4).double(), atol=1e-6, rtol=0)
    assert kernels.min() >= 0
    for axis in (1, 2):
        assert (kernels.sum(axis) @ steps.double()).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("length", "width", "angle"), [(15, 1.5, 0), (60, 5, 30), (40, 2, -75), (30, 1, 45), (20, 3, 90)]
)
def test_kernels_have_the_spread_of_a_line(length, width, angle):
    """Second moments: length² / 12 of an even line (with ends that fade over the width, + width² / 12) along it, and
    width² / (8 log 2) of a Gaussian across it. The direction is that of the larger."""
    kernel = kernels_of([length], [width], [angle])[0].double().numpy()
    steps = np.arange(len(kernel)) - len(kernel) // 2
    xx, yy = kernel.sum(0) @ steps**2, kernel.sum(1) @ steps**2
    xy = steps @ kernel @ steps
    values, vectors = np.linalg.eigh(np.array([[yy, xy], [xy, xx]]))
    assert values[1] == pytest.approx((length**2 + width**2) / 12, rel=0.02)
    assert values[0] == pytest.approx(width**2 / (8 * math.log(2)), rel=0.06)
    down, right = vectors[:, 1]
    turned = math.degrees(math.atan2(-right, down))  # a fall to the left is positive
    assert (turned - angle + 90) % 180 - 90 == pytest.approx(0, abs=0.5)


@pytest.mark.parametrize(("length", "width"), [(20, 2), (50, 4)])
def test_the_energy_of_a_kernel_is_that_of_an_even_line(length, width):
    """Sum of squares of an even line with a Gaussian profile: 1 / (length width) sqrt(2 log 2 / pi), less the ends."""
    kernel = kernels_of([length], [width], [20])
    expected = math.sqrt(2 * math.log(2) / math.pi) / (length * width)
    assert kernel.square().sum().item() == pytest.approx(expected, rel=1.1 * width / length / 3)


# Layers


@pytest.mark.parametrize("density", [0.005, 0.03])
@pytest.mark.parametrize(("length", "width"), [(15.0, 1.0), (60.0, 4.0)])
def test_thresholds_are_in_standard_deviations_whatever_the_streaks(density, length, width):
    """Far below the mean nothing is cut off: mean and deviation come out as asked."""
    layers = layers_of(one(density=density, length=length, width=width, threshold=[-30.0] * 4), (512, 512))
    assert layers.mean().item() == pytest.approx(3.0, abs=0.04)
    assert layers.std().item() == pytest.approx(0.1, rel=0.06)


def test_a_dense_layer_is_bright_where_a_normal_variable_exceeds_the_threshold():
    layer = layers_of(one(density=0.5, length=40.0, width=4.0, threshold=[1.0] * 4), (512, 512))
    assert (layer > 0).float().mean().item() == pytest.approx(0.1587, abs=0.015)


@pytest.mark.parametrize("angle", [-60.0, -30.0, 0.0, 12.0, 45.0])
def test_streaks_fall_as_asked(angle):
    layer = layers_of(one(angle=[angle], length=30.0), (256, 256))[0]
    assert structure_angle(layer.double().numpy()) == pytest.approx(angle, abs=2)


def test_a_streak_falls_to_the_left_where_the_angle_is_positive():
    kernel = kernels_of([30], [1.5], [30])[0]
    half = len(kernel) // 2
    assert kernel[half + 8 :, :half].sum() > 0.2
    assert kernel[half + 8 :, half + 1 :].sum() < 0.01


def test_a_stronger_layer_is_proportionally_brighter():
    weak, strong = (layers_of(one(strength=s), (64, 64)) for s in (0.1, 0.2))
    assert weak.max() > 0
    torch.testing.assert_close(strong, 2 * weak)


def test_darkening_takes_the_mean_away():
    plain, without = (layers_of(one(darkening=d, density=0.03), (64, 64)) for d in (0.0, 1.0))
    torch.testing.assert_close(without, plain - plain.mean())
    assert without.min() < 0


def test_the_variation_is_slow_and_about_one():
    even, uneven = (layers_of(one(variation=[v] * 8, threshold=-30.0), (64, 64)) for v in (0.0, 1.0))
    factor = uneven / even
    assert factor.min() >= 0
    assert factor.max() <= 2.001
    assert factor.mean().item() == pytest.approx(1, abs=0.15)
    assert factor.diff(dim=-1).abs().max() < 0.2


def test_drops_cover_the_asked_fraction():
    keys = Draws.of_step(0, 0, range(8)).keys("drops")
    drops = rain.Drops(*(np.full(8, x, np.float32) for x in (0.03, 5.0, 0.1)), keys)
    layer = rain.drop_layers(moved(drops, "cpu"), (256, 256), 11)
    assert (layer > 0.2 * layer.max()).float().mean().item() == pytest.approx(0.03, rel=0.2)


# Blending


def test_a_screen_is_the_product_of_what_is_left():
    picture, layer = torch.rand(2, 3, 8, 8, generator=generator()), torch.rand(2, 1, 8, 8, generator=generator(1))
    result = blend(picture, layer, torch.ones(2), torch.ones(2))
    torch.testing.assert_close(1 - result, (1 - picture) * (1 - layer))


def test_added_light_is_a_clipped_sum_and_alpha_a_mixture():
    picture, layer = torch.rand(2, 3, 8, 8, generator=generator()), torch.rand(2, 1, 8, 8, generator=generator(1))
    result = blend(picture, layer, torch.tensor([1.0, 0.8]), torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(result[0], (picture[0] + layer[0]).clamp(max=1))
    torch.testing.assert_close(result[1], torch.lerp(picture[1], torch.full_like(picture[1], 0.8), layer[1]))


# The whole


@pytest.mark.parametrize("look", LOOKS)
def test_rain_stays_in_range_and_leaves_the_target(look):
    clean = photographs()
    before = clean.clone()
    degraded, target = add_rain(clean, generator(), alone(LOOKS[look]))
    assert target is clean
    torch.testing.assert_close(clean, before, rtol=0, atol=0)
    assert degraded.shape == clean.shape
    assert degraded.min() >= 0
    assert degraded.max() <= 1
    assert all((degraded[i] != clean[i]).any() for i in range(len(clean)))
    assert torch.equal(degraded * 255, (degraded * 255).round())


@pytest.mark.parametrize("blends", [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0)])
@pytest.mark.parametrize("look", [LIGHT, replace(HEAVY, veil=(0, 0))])
def test_added_and_screened_rain_only_brightens(look, blends):
    clean = photographs()
    degraded, _ = add_rain(clean, generator(), alone(look, blends=blends))
    assert (degraded >= clean - 1e-6).all()


def test_no_seed_no_rain():
    clean = photographs()
    torch.testing.assert_close(add_rain(clean, generator(), alone(DRY))[0], clean, rtol=0, atol=1e-7)
    torch.testing.assert_close(add_rain(clean, generator(), alone(replace(LIGHT, layers=(0, 0))))[0], clean)


def test_a_veil_goes_towards_its_light():
    clean = photographs()
    veil = replace(DRY, veil=(0.5, 0.5), light=(0.8, 0.8))
    degraded, _ = add_rain(clean, generator(), alone(veil, quantised=False))
    opacity = (degraded - clean) / (0.8 - clean)
    seen = opacity[(clean - 0.8).abs() > 0.1]
    assert seen.min() > 0.249
    assert seen.max() < 0.501
    assert seen.max() - seen.min() > 0.05


def test_rain_is_a_function_of_the_generator_alone():
    clean, settings = photographs(), RainSettings()
    state = torch.get_rng_state()
    first, again, other = (add_rain(clean, generator(seed), settings)[0] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_picture_does_not_see_the_others_in_its_batch():
    clean, settings = photographs(), RainSettings()
    changed = torch.cat([clean[:1], 1 - clean[1:]])
    first, second = (add_rain(x, generator(), settings)[0] for x in (clean, changed))
    assert torch.equal(first[0], second[0])
    same = add_rain(clean[:1].expand(2, -1, -1, -1), generator(), settings)[0]
    assert not torch.equal(same[0], same[1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_dtype_is_kept(dtype):
    clean = photographs()
    degraded, target = add_rain(clean.to(dtype), generator(), RainSettings(quantised=False))
    expected, _ = add_rain(clean.to(dtype).float(), generator(), RainSettings(quantised=False))
    assert degraded.dtype == target.dtype == dtype
    torch.testing.assert_close(degraded.float(), expected, rtol=0, atol=1e-2 if dtype == torch.bfloat16 else 1e-3)


@pytest.mark.parametrize("size", [(1, 1), (40, 150), (17, 3)])
def test_pictures_may_be_smaller_than_a_streak(size):
    clean = torch.full((2, 3, *size), 0.3)
    assert add_rain(clean, generator(), RainSettings())[0].shape == clean.shape


def test_shares_are_those_of_the_settings():
    draws = Draws.of_step(0, 0, range(4000))
    layers = draw_rain(draws, RainSettings((DRY, replace(LIGHT, layers=(1, 3))), (1.0, 3.0))).density > 0
    counts = np.bincount(layers.sum(1), minlength=4) / 4000
    np.testing.assert_allclose(counts, 0.25, atol=0.03)
    blending = draw_rain(draws, RainSettings(blends=(1, 1, 2)))
    assert blending.screened.mean() == pytest.approx(0.75, abs=0.03)
    assert (blending.gray < 1).mean() == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("name", ["length", "width", "threshold", "strength", "darkening", "veil", "light", "radius"])
def test_numbers_are_drawn_from_their_range(name):
    drawn = getattr(draw_rain(Draws.of_step(0, 0, range(2000)), alone(HEAVY)), name)
    low, high = getattr(HEAVY, name)
    assert low <= drawn.min() < low + 0.05 * (high - low) + 1e-6
    assert high - 0.05 * (high - low) - 1e-6 < drawn.max() <= high + 1e-4


def test_light_rain_is_as_strong_as_that_of_rain100l():
    """Those have 26 to 27 dB on Y (of 219 grays) on average; this is over a gray of middle brightness."""
    clean = torch.full((64, 3, 128, 128), 0.4)
    degraded, _ = add_rain(clean, generator(), alone(LIGHT))
    psnr = -10 * ((degraded - clean) * 219 / 255).square().mean((1, 2, 3)).log10()
    assert 25 < psnr.mean() < 28


@pytest.mark.parametrize(
    ("name", "value"),
    [("density", (0.03, 0.01)), ("density", (0, 2)), ("length", (0, 5)), ("lean", -1.0), ("layers", (1, 99))],
)
def test_a_look_out_of_range_is_refused(name, value):
    with pytest.raises(InputError, match=f"RainLook: {name} lies within"):
        RainLook(**{name: value})
    assert name in {field.name for field in fields(RainLook)}


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(InputError, match="every look has a share"):
        RainSettings((LIGHT,), (1.0, 2.0))
    with pytest.raises(InputError, match="blends"):
        RainSettings(blends=(0, 0, 0))


@pytest.mark.parametrize(
    "clean", [torch.zeros(3, 8, 8), torch.zeros(1, 1, 8, 8), torch.zeros(1, 3, 8, 8, dtype=torch.uint8)]
)
def test_other_tensors_are_refused(clean):
    with pytest.raises(InputError, match=r"add_rain: pictures are \(B, 3, H, W\)"):
        add_rain(clean, generator(), RainSettings())
