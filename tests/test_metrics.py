"""PSNR and SSIM against scikit-image, scipy, hand-computed values and plain loops."""

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import correlate
from skimage.color import rgb2ycbcr
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from kithkin.errors import InputError
from kithkin.metrics import PSNR_PROTOCOLS, SSIM_WINDOWS, psnr, ssim

PROTOCOLS, WINDOWS = list(PSNR_PROTOCOLS), list(SSIM_WINDOWS)


def picture(seed=0, height=37, width=29):
    """A smooth float picture in (0, 1), its channels unlike one another."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / 9
    channels = [np.sin(rng.uniform(1, 2) * y + rng.uniform(1, 2) * x + c) for c in range(3)]
    return 0.5 + 0.3 * np.stack(channels, axis=-1) + rng.uniform(-0.1, 0.1, (height, width, 3))


def noisy(image, sigma, seed=1):
    """Gaussian noise of sigma on the 0-255 scale; not clipped."""
    return image + np.random.default_rng(seed).normal(0, sigma / 255, image.shape)


def uint8(image):
    return np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)


def one_pixel(*levels):
    return np.array(levels, dtype=np.uint8).reshape(1, 1, 3)


def luma_by_psnr(levels, protocol):
    """Y of one colour, read back from its PSNR against black, whose Y is 16."""
    return 16 + 255 * 10 ** (-psnr(one_pixel(*levels), one_pixel(0, 0, 0), protocol=protocol) / 20)


# PSNR


@pytest.mark.parametrize("k", [1, 2, 10, 100])
@pytest.mark.parametrize("protocol", ["rgb", "rgb-uint8"])
def test_psnr_of_a_constant_difference_is_twenty_log_of_its_inverse(k, protocol):
    a = np.full((5, 4, 3), 50 / 255)
    assert psnr(a, a + k / 255, protocol=protocol) == pytest.approx(20 * math.log10(255 / k), rel=1e-12)


def test_only_equality_gives_infinity():
    a = np.full((4, 4, 3), 0.5)
    assert psnr(a, a + 1e-7) == pytest.approx(140, abs=1e-6)


def test_psnr_averages_the_squared_error_over_all_channels():
    a = np.zeros((2, 2, 3))
    b = a.copy()
    b[0, 0, 1] = 0.6  # mean squared error 0.36 / 12 = 0.03
    assert psnr(a, b) == pytest.approx(10 * math.log10(1 / 0.03), rel=1e-12)


def test_psnr_rgb_is_scikit_images_on_clamped_floats():
    a, b = picture(), noisy(picture(), 60)
    assert b.min() < 0
    assert b.max() > 1
    expected = peak_signal_noise_ratio(a, np.clip(b, 0, 1), data_range=1)
    assert psnr(a, b) == pytest.approx(expected, rel=1e-12)
    assert psnr(b, a) == pytest.approx(expected, rel=1e-12)


def test_psnr_rgb_uint8_is_scikit_images_on_rounded_images():
    a, b = picture(), noisy(picture(), 25)
    expected = peak_signal_noise_ratio(uint8(a), uint8(b))
    assert psnr(a, b, protocol="rgb-uint8") == pytest.approx(expected, rel=1e-12)
    assert psnr(a, b, protocol="rgb-uint8") != pytest.approx(psnr(a, b, protocol="rgb"), rel=1e-7)


def test_only_the_uint8_protocols_lose_what_is_below_half_a_level():
    a = np.full((3, 3, 3), 100 / 255)
    b = a + 0.4 / 255
    assert psnr(a, b, protocol="rgb") == pytest.approx(20 * math.log10(255 / 0.4))
    for protocol in ("rgb-uint8", "y-matlab", "y-unrounded"):
        assert psnr(a, b, protocol=protocol) == math.inf


def test_y_before_rounding_is_scikit_images():
    colours = np.random.default_rng(3).integers(1, 256, (100, 3))
    expected = rgb2ycbcr((colours / 255)[None])[0, :, 0]
    got = [luma_by_psnr(colour, "y-unrounded") for colour in colours]
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-9)


def test_y_after_rounding_is_the_nearest_whole_level():
    colours = np.random.default_rng(4).integers(1, 256, (100, 3))
    expected = np.floor(rgb2ycbcr((colours / 255)[None])[0, :, 0] + 0.5)
    got = [luma_by_psnr(colour, "y-matlab") for colour in colours]
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("colour", "luma"), [((2, 44, 141), 52.5), ((0, 204, 68), 125.5), ((123, 251, 249), 198.5)])
def test_a_tie_of_y_rounds_up_as_in_matlab(colour, luma):
    assert luma_by_psnr(colour, "y-unrounded") == pytest.approx(luma, abs=1e-9)
    assert luma_by_psnr(colour, "y-matlab") == pytest.approx(luma + 0.5, abs=1e-9)


def test_the_two_y_protocols_against_scikit_images_y():
    a, b = picture(), noisy(picture(), 3)
    y_a, y_b = rgb2ycbcr(uint8(a))[..., 0], rgb2ycbcr(uint8(b))[..., 0]
    unrounded = peak_signal_noise_ratio(y_a, y_b, data_range=255)
    rounded = peak_signal_noise_ratio(np.floor(y_a + 0.5), np.floor(y_b + 0.5), data_range=255)
    assert psnr(a, b, protocol="y-unrounded") == pytest.approx(unrounded, rel=1e-12)
    assert psnr(a, b, protocol="y-matlab") == pytest.approx(rounded, rel=1e-12)
    assert rounded < unrounded - 0.01  # the rounding adds error of its own


# SSIM against other implementations


def wang2d_by_scikit_image(a, b, data_range, channel_axis=-1):
    _, ssim_map = structural_similarity(
        a,
        b,
        data_range=data_range,
        channel_axis=channel_axis,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        full=True,
    )
    return ssim_map[5:-5, 5:-5].mean()


@pytest.mark.parametrize("sigma", [2, 15, 50])
def test_wang2d_is_scikit_images_gaussian_ssim_without_the_border(sigma):
    a, b = picture(), np.clip(noisy(picture(), sigma), 0, 1)
    assert ssim(a, b, window="wang2d") == pytest.approx(wang2d_by_scikit_image(a, b, data_range=1), abs=1e-10)


def test_wang2d_on_quantised_images_and_on_y():
    a, b = picture(), noisy(picture(), 15)
    levels_a, levels_b = np.float64(uint8(a)), np.float64(uint8(b))
    expected = wang2d_by_scikit_image(levels_a, levels_b, data_range=255)
    assert ssim(a, b, protocol="rgb-uint8") == pytest.approx(expected, abs=1e-10)

    y_a, y_b = (rgb2ycbcr(uint8(image))[..., 0] for image in (a, b))
    expected = wang2d_by_scikit_image(y_a, y_b, data_range=255, channel_axis=None)
    assert ssim(a, b, protocol="y-unrounded") == pytest.approx(expected, abs=1e-10)
    expected = wang2d_by_scikit_image(np.floor(y_a + 0.5), np.floor(y_b + 0.5), data_range=255, channel_axis=None)
    assert ssim(a, b, protocol="y-matlab") == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize(("protocol", "peak"), [("rgb", 1), ("rgb-uint8", 255)])
def test_matlab3d_is_one_dense_three_dimensional_window(protocol, peak):
    a, b = picture(height=17, width=13), np.clip(noisy(picture(height=17, width=13), 20), 0, 1)
    x, y = (a, b) if peak == 1 else (np.float64(uint8(a)), np.float64(uint8(b)))
    grid = np.mgrid[-5:6, -5:6, -5:6]
    kernel = np.exp(-(grid**2).sum(0) / (2 * 1.5**2))
    kernel /= kernel.sum()

    def blur(volume):
        return correlate(volume, kernel, mode="nearest")

    c1, c2 = (0.01 * peak) ** 2, (0.03 * peak) ** 2
    mu_x, mu_y = blur(x), blur(y)
    var_x, var_y, cov = blur(x * x) - mu_x**2, blur(y * y) - mu_y**2, blur(x * y) - mu_x * mu_y
    ssim_map = (2 * mu_x * mu_y + c1) * (2 * cov + c2) / ((mu_x**2 + mu_y**2 + c1) * (var_x + var_y + c2))
    assert ssim_map.shape == a.shape
    assert ssim(a, b, window="matlab3d", protocol=protocol) == pytest.approx(ssim_map.mean(), abs=1e-10)


@pytest.mark.parametrize("sigma", [2, 15, 50])
def test_skimage_float_is_scikit_images_default_with_a_data_range_of_two(sigma):
    a, b = picture(), np.clip(noisy(picture(), sigma), 0, 1)
    expected = structural_similarity(a, b, data_range=2, win_size=7, channel_axis=-1)
    assert ssim(a, b, window="skimage-float") == pytest.approx(expected, abs=1e-10)


def test_skimage_float_takes_quantised_images_and_y_as_floats_too():
    a, b = picture(), noisy(picture(), 15)
    expected = structural_similarity(uint8(a) / 255, uint8(b) / 255, data_range=2, win_size=7, channel_axis=-1)
    assert ssim(a, b, window="skimage-float", protocol="rgb-uint8") == pytest.approx(expected, abs=1e-10)
    y_a, y_b = (rgb2ycbcr(uint8(image))[..., 0] / 255 for image in (a, b))
    expected = structural_similarity(y_a, y_b, data_range=2, win_size=7)
    assert ssim(a, b, window="skimage-float", protocol="y-unrounded") == pytest.approx(expected, abs=1e-10)


def ssim_of_one_window(x, y, weights, data_range, correction=1.0):
    """SSIM by plain loops, of one channel that is just as large as the window."""
    size = len(weights)
    cells = [(weights[i] * weights[j], float(x[i, j]), float(y[i, j])) for i in range(size) for j in range(size)]
    mu_x, mu_y = sum(w * p for w, p, _ in cells), sum(w * q for w, _, q in cells)
    var_x = correction * sum(w * (p - mu_x) ** 2 for w, p, _ in cells)
    var_y = correction * sum(w * (q - mu_y) ** 2 for w, _, q in cells)
    cov = correction * sum(w * (p - mu_x) * (q - mu_y) for w, p, q in cells)
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    return (2 * mu_x * mu_y + c1) / (mu_x**2 + mu_y**2 + c1) * (2 * cov + c2) / (var_x + var_y + c2)


def test_one_window_by_hand():
    a, b = picture(height=11, width=11), picture(seed=5, height=11, width=11)
    bell = [math.exp(-(i**2) / 4.5) for i in range(-5, 6)]
    bell = [weight / sum(bell) for weight in bell]
    expected = sum(ssim_of_one_window(a[..., c], b[..., c], bell, data_range=1) for c in range(3)) / 3
    assert ssim(a, b, window="wang2d") == pytest.approx(expected, abs=1e-12)

    a, b = a[:7, :7], b[:7, :7]
    flat = [1 / 7] * 7
    expected = sum(ssim_of_one_window(a[..., c], b[..., c], flat, 2, correction=49 / 48) for c in range(3)) / 3
    assert ssim(a, b, window="skimage-float") == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("window", "data_range"), [("wang2d", 1), ("matlab3d", 1), ("skimage-float", 2)])
def test_flat_images_have_only_the_luminance_term(window, data_range):
    a, b = np.full((12, 12, 3), 0.25), np.full((12, 12, 3), 0.5)
    c1 = (0.01 * data_range) ** 2
    expected = (2 * 0.25 * 0.5 + c1) / (0.25**2 + 0.5**2 + c1)
    assert ssim(a, b, window=window) == pytest.approx(expected, abs=1e-10)


# Properties


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_equal_images_give_infinity_and_one(protocol):
    a = picture()
    assert psnr(a, a.copy(), protocol=protocol) == math.inf
    for window in WINDOWS:
        if not (window == "matlab3d" and protocol.startswith("y-")):
            assert ssim(a, a.copy(), window=window, protocol=protocol) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("window", WINDOWS)
def test_symmetric_and_falling_with_noise(window):
    a = picture()
    values, decibels = [], []
    for sigma in (1, 5, 15, 50):
        b = noisy(a, sigma)
        assert ssim(a, b, window=window) == pytest.approx(ssim(b, a, window=window), abs=1e-12)
        assert psnr(a, b) == pytest.approx(psnr(b, a), abs=1e-12)
        values.append(ssim(a, b, window=window))
        decibels.append(psnr(a, b))
    assert values == sorted(values, reverse=True)
    assert decibels == sorted(decibels, reverse=True)
    assert 0 < values[-1] < values[0] < 1


def test_the_windows_disagree():
    a, b = picture(), noisy(picture(), 25)
    values = {window: ssim(a, b, window=window) for window in WINDOWS}
    assert abs(values["wang2d"] - values["matlab3d"]) > 0.05
    assert abs(values["matlab3d"] - values["skimage-float"]) > 0.05
    assert values["skimage-float"] > values["wang2d"] + 0.05  # its larger constants forgive more


def test_the_order_of_the_channels_counts_where_they_are_mixed():
    a, b = picture(), noisy(picture(), 25)
    rolled = [2, 0, 1]
    assert psnr(a[..., rolled], b[..., rolled]) == pytest.approx(psnr(a, b), rel=1e-12)
    for window in ("wang2d", "skimage-float"):
        assert ssim(a[..., rolled], b[..., rolled], window=window) == pytest.approx(
            ssim(a, b, window=window), rel=1e-12
        )
    # The 3-D window is symmetric, so it bears a reversal; the channel in the middle must stay there.
    value = ssim(a, b, window="matlab3d")
    assert ssim(a[..., ::-1], b[..., ::-1], window="matlab3d") == pytest.approx(value, rel=1e-12)
    assert abs(ssim(a[..., rolled], b[..., rolled], window="matlab3d") - value) > 1e-6
    assert psnr(a[..., rolled], b[..., rolled], protocol="y-unrounded") != psnr(a, b, protocol="y-unrounded")


# Inputs


def test_arrays_and_tensors_of_every_kind_give_one_value():
    a, b = uint8(picture()), uint8(noisy(picture(), 15))
    expected = psnr(a, b), ssim(a, b)
    tensor = torch.from_numpy(b).permute(2, 0, 1)
    kinds = [b / 255, tensor, tensor[None], tensor.double() / 255, (b[::-1] / 255)[::-1], (b / 255).astype(">f8")]
    for kind in kinds:
        assert (psnr(a, kind), ssim(a, kind)) == pytest.approx(expected, rel=1e-12)
    leaf = (tensor.float() / 255).requires_grad_()
    assert (psnr(a, leaf), ssim(a, leaf)) == pytest.approx(expected, rel=1e-5)
    assert psnr(a, leaf, protocol="rgb-uint8") == pytest.approx(expected[0], rel=1e-12)
    for dtype in (torch.float16, torch.bfloat16):
        assert psnr(a, leaf.to(dtype)) == pytest.approx(expected[0], abs=0.05)
    assert isinstance(psnr(a, leaf), float)
    assert isinstance(ssim(a, leaf), float)


def test_the_images_are_left_as_they_were():
    for a in (noisy(picture(), 50), torch.from_numpy(noisy(picture(), 50)).permute(2, 0, 1).contiguous()):
        before = a.copy() if isinstance(a, np.ndarray) else a.clone()
        for protocol in PROTOCOLS:
            psnr(a, a, protocol=protocol)
            ssim(a, a, protocol=protocol)
        assert bool((a == before).all())


def test_overshoot_and_darkness_are_not_taken_for_the_0_255_scale():
    bright = np.ones((12, 12, 3))
    assert psnr(bright, bright * 1.9) == math.inf  # clamped
    assert psnr(bright, np.full((12, 12, 3), -300.0)) == 0
    diverged = np.full((12, 12, 3), 50.0)  # what a broken restorer returns is bad, not a mistake of the caller
    diverged[0, 0, 0] = -1
    assert psnr(bright, diverged) == pytest.approx(10 * math.log10(432))


GOOD = np.full((12, 12, 3), 0.5)


@pytest.mark.parametrize("function", [psnr, ssim])
@pytest.mark.parametrize(
    ("bad", "sentence"),
    [
        (GOOD.tolist(), r"b to be a numpy array .* got list; convert it first"),
        (GOOD[..., 0], r"the array b to be RGB, \(H, W, 3\), got shape \(12, 12\)"),
        (np.full((12, 12, 4), 0.5), r"got shape \(12, 12, 4\).*drop an alpha channel"),
        (np.full((3, 12, 12), 0.5), r"got shape \(3, 12, 12\); transpose"),
        (GOOD[None], r"got a batch of shape \(1, 12, 12, 3\); call \w+ once per image"),
        (torch.full((2, 3, 12, 12), 0.5), r"got a batch of shape \(2, 3, 12, 12\); call \w+ once per image"),
        (torch.full((12, 12, 3), 0.5), r"the tensor b to be RGB.* got shape \(12, 12, 3\); permute"),
        (torch.full((1, 1, 12, 12), 0.5), r"got shape \(1, 1, 12, 12\).*repeat a grey one"),
        (torch.tensor(0.5), r"got shape \(\)"),
        (GOOD.astype(np.uint16), r"got uint16; divide by the peak value"),
        (GOOD.astype(bool), r"got bool; divide"),
        (GOOD.astype(complex), r"got complex128; divide"),
        (torch.zeros((3, 12, 12), dtype=torch.int64), r"got torch.int64; divide"),
        (np.where(np.arange(432).reshape(12, 12, 3) == 5, np.nan, 0.5), r"finite values in b, got NaN or infinity"),
        (torch.full((3, 12, 12), math.inf), r"finite values in b, got NaN or infinity"),
        (GOOD * 255, r"got floats from 127\.5 to 127\.5; divide by the peak value, 255"),
        (GOOD[:, :11], r"one size, got height × width 12 × 12 for a and 12 × 11 for b"),
        (torch.full((3, 11, 12), 0.5), r"12 × 12 for a and 11 × 12 for b; pass the two images of one scene"),
    ],
)
def test_an_unusable_image_is_refused_on_either_side(function, bad, sentence):
    with pytest.raises(InputError, match=rf"^{function.__name__} expected .*{sentence}"):
        function(GOOD, bad)
    with pytest.raises(InputError, match=rf"^{function.__name__} expected "):
        function(bad, GOOD)


@pytest.mark.parametrize(("window", "side"), [("wang2d", 11), ("matlab3d", 11), ("skimage-float", 7)])
def test_an_image_must_hold_the_window(window, side):
    enough, narrow, low = GOOD[:side, :side], GOOD[:side, : side - 1], GOOD[: side - 1, :side]
    assert ssim(enough, enough, window=window) == pytest.approx(1)
    for small in (narrow, low):
        with pytest.raises(InputError, match=rf"^ssim expected images of at least {side} × {side} pixels, got .* crop"):
            ssim(small, small, window=window)
    with pytest.raises(InputError, match=r"^psnr expected images of at least 1 × 1 pixels, got height × width 0 × 12"):
        psnr(GOOD[:0], GOOD[:0])


@pytest.mark.parametrize("name", ["RGB", "", None, ["rgb"]])
def test_an_unknown_protocol_or_window_is_refused_with_the_known_ones(name):
    for function in (psnr, ssim):
        with pytest.raises(
            InputError, match=rf"^{function.__name__} expected protocol to be one of rgb, .*y-unrounded"
        ):
            function(GOOD, GOOD, protocol=name)
    with pytest.raises(InputError, match=r"^ssim expected window to be one of wang2d, matlab3d, skimage-float, got"):
        ssim(GOOD, GOOD, window=name)


@pytest.mark.parametrize("protocol", ["y-matlab", "y-unrounded"])
def test_matlab3d_refuses_one_channel(protocol):
    with pytest.raises(InputError, match=rf"window 'matlab3d', got '{protocol}', .* take window='wang2d'"):
        ssim(GOOD, GOOD, window="matlab3d", protocol=protocol)


def test_every_protocol_and_window_has_a_sentence_and_works():
    assert PROTOCOLS == ["rgb", "rgb-uint8", "y-matlab", "y-unrounded"]
    assert WINDOWS == ["wang2d", "matlab3d", "skimage-float"]
    for sentence in (*PSNR_PROTOCOLS.values(), *SSIM_WINDOWS.values()):
        assert sentence.endswith(".")
        assert "\n" not in sentence
