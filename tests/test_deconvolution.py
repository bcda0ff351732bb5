"""Uniform blur: a kernel found from the picture alone, undone, and taken only where it explains the picture."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from typer.testing import CliRunner

from kithkin import restore_options
from kithkin.cli import app
from kithkin.deconvolution import (
    CURVES,
    QUIETEST,
    SIZE,
    deconvolve,
    estimate_kernel,
    noise_level,
    remove_uniform_blur,
    unexplained,
)
from kithkin.errors import InputError
from kithkin.methods import open_method
from kithkin.restoration import restore
from kithkin.tasks import deblur, denoise, derain
from kithkin.zoo import load_model

MARGIN = 20
KERNELS = {}


def kernel_of(picture):
    """``estimate_kernel``, which takes seconds, once for each picture."""
    key = tuple(picture.shape), picture.numpy().tobytes()
    if key not in KERNELS:
        KERNELS[key] = estimate_kernel(picture)
    return KERNELS[key].clone()


@pytest.fixture(autouse=True)
def found_once(monkeypatch):
    monkeypatch.setattr("kithkin.deconvolution.removal.estimate_kernel", kernel_of)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def discs(height=256, width=240, seed=0):
    """(3, height, width): overlapping discs of random colours, with margins on every side."""
    draw = generator(seed)
    picture = torch.full((3, height + 2 * MARGIN, width + 2 * MARGIN), 0.5)
    y, x = torch.meshgrid(*(torch.arange(float(side)) for side in picture.shape[1:]), indexing="ij")
    for _ in range(160):
        top, left = (float(torch.randint(side, (), generator=draw)) for side in picture.shape[1:])
        radius = 4 + 26 * float(torch.rand((), generator=draw))
        inside = (radius - ((y - top) ** 2 + (x - left) ** 2).sqrt()).clamp(0, 1)
        picture = torch.lerp(picture, torch.rand(3, 1, 1, generator=draw) * 0.8 + 0.1, inside)
    return picture


def inner(picture):
    return picture[..., MARGIN:-MARGIN, MARGIN:-MARGIN]


def centred(kernel):
    places = torch.arange(len(kernel)) - len(kernel) // 2
    steps = [-round(float((kernel.sum(1 - axis) * places).sum())) for axis in (0, 1)]
    return kernel.roll(steps, (0, 1))


def lingering(side=SIZE):
    """Most of this kernel is in one place, four tenths are a long faint path; its centroid is in the middle."""
    kernel, middle = torch.zeros(side, side), side // 2
    for step in range(22):
        kernel[middle - 11 + step, middle - 7 + step * 2 // 3] = 0.4 / 22
    kernel[middle - 12 : middle - 9, middle - 8 : middle - 5] += 0.6 / 9
    return centred(kernel)


def hook(side=SIZE):
    """A kernel like a hand's: down, and to the right, where it lingers; its centroid is in the middle."""
    kernel = torch.zeros(side, side)
    middle = side // 2
    kernel[middle - 6 : middle + 5, middle - 3 : middle - 1] = 1.0
    kernel[middle + 3 : middle + 5, middle - 3 : middle + 5] = 1.5
    return centred(kernel / kernel.sum())


def blur(wide, kernel, *, sigma=2.0, gamma=1.0, seed=1):
    """The inner part of a picture, blurred (as a convolution, not a correlation), with noise."""
    light = F.conv2d((wide**gamma)[:, None], kernel.flip(0, 1)[None, None], padding=len(kernel) // 2)[:, 0]
    seen = inner(light.clamp(0, 1) ** (1 / gamma))
    return seen + torch.randn(seen.shape, generator=generator(seed)) * sigma / 255


def decibels(a, b):
    return float(-10 * (a - b).square().mean().log10())


@pytest.fixture(scope="module")
def shaken():
    """A clean picture, its kernel, and the picture blurred by it."""
    wide, kernel = discs(), hook()
    return inner(wide), kernel, blur(wide, kernel)


def test_the_kernel_of_a_shaken_picture_is_found():
    kernel = hook()
    alike, mirrored = [], []
    for seed in range(3):
        found = estimate_kernel(blur(discs(400, 380, seed), kernel))
        alike.append(F.cosine_similarity(found.flatten(), kernel.flatten(), dim=0))
        mirrored.append(F.cosine_similarity(found.flip(0, 1).flatten(), kernel.flatten(), dim=0))
    assert sum(alike) / 3 > 0.89
    assert max(mirrored) < 0.5


def test_a_kernel_is_not_negative_of_sum_one_and_its_centroid_in_the_middle(shaken):
    found = kernel_of(shaken[2])
    assert found.shape == (SIZE, SIZE)
    assert found.dtype == torch.float32
    assert found.min() >= 0
    assert float(found.sum()) == pytest.approx(1, abs=1e-5)
    places = torch.arange(SIZE) - SIZE // 2
    for axis in (0, 1):
        assert abs(float((found.sum(1 - axis) * places).sum())) < 1


@pytest.mark.parametrize("seed", range(2))
def test_a_picture_under_a_kernel_that_lingers_comes_to_lie_in_its_place(seed):
    """The path takes the centroid, and with it the place, away from where most of the kernel is."""
    kernel, wide = lingering(), discs(300, 320, seed)
    seen = blur(wide, kernel)
    found = estimate_kernel(seen)
    waves = [torch.fft.rfft2(one, s=(2 * SIZE, 2 * SIZE)) for one in (found, kernel)]
    best = int(torch.fft.irfft2(waves[0].conj() * waves[1], s=(2 * SIZE, 2 * SIZE)).argmax())
    for off in divmod(best, 2 * SIZE):
        assert min(off, 2 * SIZE - off) <= 1
    sharp = deconvolve(seen, found, sigma=2.0)
    assert decibels(sharp, inner(wide)) > decibels(seen, inner(wide)) + 3


def test_a_large_picture_s_middle_tells_its_kernel():
    """What lies outside of the window changes nothing."""
    wide = torch.rand(1, 600, 620, generator=generator())
    other = wide.clone()
    other[:, :40], other[:, :, -40:] = 0, 1
    assert torch.equal(estimate_kernel(wide, size=7), estimate_kernel(other, size=7))


def test_a_picture_without_edges_has_a_kernel_of_one_point():
    kernel = estimate_kernel(torch.full((3, 80, 80), 0.4), size=9)
    assert float(kernel[4, 4]) == 1
    assert float(kernel.sum()) == 1


@pytest.mark.parametrize("period", [2, 3, 5])
@pytest.mark.parametrize("height", [2, 8, 32])
def test_faint_textures_have_a_kernel_as_well(period, height):
    y, x = torch.meshgrid(torch.arange(96), torch.arange(100), indexing="ij")
    for pattern in (x % period, (x + y) % period, (x % period) * (y % period)):
        kernel = estimate_kernel((124 + height * pattern / period)[None] / 255)
        assert kernel.isfinite().all()
        assert float(kernel.sum()) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("size", [0, 1, 3, 5, 8, -7, 9.0, True, None])
def test_other_sizes_are_refused(size):
    with pytest.raises(InputError, match="size must be an odd number of pixels from 7"):
        estimate_kernel(torch.rand(3, 99, 99), size=size)


@pytest.mark.parametrize("shape", [(3, 69, 200), (3, 200, 69), (100, 100), (1, 3, 100, 100)])
def test_a_picture_too_small_for_the_kernel_is_refused(shape):
    with pytest.raises(InputError, match="at least 70 pixels a side"):
        estimate_kernel(torch.rand(shape))


def test_a_known_kernel_is_undone(shaken):
    clean, kernel, blurred = shaken
    sharp = deconvolve(blurred, kernel, sigma=2.0)
    assert sharp.shape == clean.shape
    assert decibels(sharp, clean) > decibels(blurred, clean) + 5
    # Up to its borders, of which nobody saw the other side.
    strip = (..., slice(0, 12), slice(None))
    assert decibels(sharp[strip], clean[strip]) > decibels(blurred[strip], clean[strip]) + 2


def test_a_picture_is_moved_back_to_where_the_kernel_took_it_from():
    clean = inner(discs())
    step = torch.zeros(5, 5)
    step[2, 4] = 1  # Two pixels to the right.
    moved = deconvolve(clean.roll(2, 2), step, sigma=0.0)
    middle = (..., slice(40, -40), slice(40, -40))
    assert decibels(moved[middle], clean[middle]) > decibels(clean.roll(2, 2)[middle], clean[middle]) + 10


def test_a_kernel_of_one_point_changes_little():
    clean = inner(discs())
    point = torch.zeros(5, 5)
    point[2, 2] = 1
    assert decibels(deconvolve(clean, point, sigma=0.0), clean) > 45


def test_more_noise_is_weighed_against_more(shaken):
    clean, kernel, _ = shaken
    noisy = blur(discs(), kernel, sigma=10.0)
    assert decibels(deconvolve(noisy, kernel, sigma=10.0), clean) > decibels(deconvolve(noisy, kernel, sigma=1), clean)


@pytest.mark.parametrize("curve", CURVES)
def test_the_right_kernel_leaves_the_noise_alone_unexplained(curve):
    wide, kernel, gamma = discs(), hook(), CURVES[curve].power
    seen = blur(wide, kernel, sigma=4.0, gamma=gamma)
    clean = inner(wide)
    assert unexplained(seen, clean, kernel, sigma=4.0, power=gamma) == pytest.approx(1, abs=0.1)
    assert unexplained(seen, clean, kernel.mT, sigma=4.0, power=gamma) > 3
    assert unexplained(seen, clean, kernel, sigma=8.0, power=gamma) == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize("sigma", [3.0, 10.0, 25.0])
def test_the_noise_level_of_a_blurred_picture_is_found(sigma):
    seen = blur(discs(), hook(), sigma=sigma)
    assert noise_level(seen) == pytest.approx(sigma, rel=0.06)


def test_no_picture_is_believed_to_be_quieter_than_jpeg_leaves_it():
    assert noise_level(torch.full((3, 50, 50), 0.5)) == QUIETEST


def test_a_uniform_blur_is_removed(shaken):
    clean, _, blurred = shaken
    halfway = torch.lerp(blurred, clean, 0.5)
    sharp = remove_uniform_blur(blurred, halfway, lambda picture: picture, curve="stored")
    assert decibels(sharp, clean) > decibels(blurred, clean) + 3


@pytest.mark.parametrize("curve", CURVES)
def test_what_comes_out_is_a_mean_of_both(shaken, curve, monkeypatch):
    clean, _, blurred = shaken
    halfway = torch.lerp(blurred, clean, 0.5).double()
    same = lambda picture: picture  # noqa: E731
    share = CURVES[curve].share
    assert 0 < share < 1
    monkeypatch.setitem(CURVES, curve, CURVES[curve]._replace(far=1e9))
    mean = remove_uniform_blur(blurred, halfway, same, curve=curve)
    monkeypatch.setitem(CURVES, curve, CURVES[curve]._replace(share=1.0))
    sharp = remove_uniform_blur(blurred, halfway, same, curve=curve)
    torch.testing.assert_close(mean, (1 - share) * halfway.float() + share * sharp)


@pytest.mark.parametrize("curve", CURVES)
def test_a_kernel_that_does_not_explain_the_picture_is_refused(curve, monkeypatch):
    """Whatever the network says: half of this picture is sharp, and what smooths the other half doesn't explain it."""
    wide = discs()
    half = blur(wide, hook()).clamp(0, 1)
    half[:, :, 120:] = inner(wide)[:, :, 120:]
    monkeypatch.setitem(CURVES, curve, CURVES[curve]._replace(far=1e9))
    smooth = lambda picture: F.avg_pool2d(picture, 7, 1, 3, count_include_pad=False)  # noqa: E731
    assert remove_uniform_blur(half, inner(wide), smooth, curve=curve) is None
    monkeypatch.setitem(CURVES, curve, CURVES[curve]._replace(unexplained=1e9))
    assert remove_uniform_blur(half, inner(wide), smooth, curve=curve) is not None


def test_a_picture_half_of_which_is_sharp_is_left_to_the_network():
    wide, model, said = discs(), load_model("deblur-tiny"), []
    half = blur(wide, hook()).clamp(0, 1)
    half[:, :, 120:] = inner(wide)[:, :, 120:]
    assert torch.equal(restore(model, half, uniform_blur="light", note=said.append), restore(model, half))
    assert said == ["no blur that is the same everywhere was found: restored by the model alone"]


def test_a_result_far_from_the_network_s_is_left(shaken):
    _, _, blurred = shaken
    assert remove_uniform_blur(blurred, blurred, lambda picture: picture, curve="stored") is None


def test_a_small_picture_is_left():
    small = torch.rand(3, 69, 90)
    assert remove_uniform_blur(small, small, lambda picture: picture) is None


@pytest.mark.parametrize("curve", ["srgb", "", None, 2.2, ["light"]])
def test_other_curves_are_refused(curve):
    with pytest.raises(InputError, match="uniform_blur must be stored or light"):
        remove_uniform_blur(torch.rand(3, 90, 90), torch.rand(3, 90, 90), lambda picture: picture, curve=curve)


@pytest.mark.parametrize("curve", CURVES)
def test_restoring_with_a_uniform_blur_beats_the_network_alone(curve):
    wide = discs()
    clean, model = inner(wide), load_model("deblur-tiny")
    seen = blur(wide, hook(), gamma=CURVES[curve].power).clamp(0, 1)
    alone, both = restore(model, seen), restore(model, seen, uniform_blur=curve)
    assert decibels(both, clean) > decibels(alone, clean) + 2
    assert torch.equal(deblur(seen, uniform_blur=curve, device="cpu"), both)


def test_gray_and_16_bits_come_back_as_they_were():
    wide = discs()
    seen = blur(wide, hook()).clamp(0, 1)[1].mul(65535).round().to(torch.int32).numpy().astype(np.uint16)
    model = load_model("deblur-tiny")
    result = restore(model, seen, uniform_blur="stored")
    assert result.shape == seen.shape
    assert result.dtype == np.uint16
    clean = inner(wide)[1].numpy()
    values = [torch.from_numpy((pixels / 65535).astype(np.float32)) for pixels in (result, seen)]
    assert decibels(values[0], torch.from_numpy(clean)) > decibels(values[1], torch.from_numpy(clean)) + 3


@pytest.mark.parametrize("curve", CURVES)
@pytest.mark.parametrize("seed", range(3))
def test_a_sharp_picture_is_left_to_the_network_and_said_so(curve, seed):
    clean, model, said = inner(discs(seed=seed)), load_model("deblur-tiny"), []
    result = restore(model, clean, uniform_blur=curve, note=said.append)
    assert torch.equal(result, restore(model, clean))
    assert said == ["no blur that is the same everywhere was found: restored by the model alone"]


@pytest.mark.parametrize(
    ("picture", "why"), [(torch.rand(3, 69, 90), "it is too small"), (torch.full((3, 90, 90), 0.5), "no blur that")]
)
def test_why_there_is_no_uniform_blur_is_said(picture, why):
    model, said, steps = load_model("deblur-tiny"), [], []
    result = restore(model, picture, uniform_blur="stored", note=said.append, progress=steps.append)
    assert torch.equal(result, restore(model, picture))
    assert len(said) == 1
    assert said[0].startswith(why)
    assert steps == sorted(steps)
    assert steps[-1] == 1


def test_the_network_s_result_stays_where_the_memory_does_not_suffice(shaken, monkeypatch):
    def full(*_, **__):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    model, said = load_model("deblur-tiny"), []
    monkeypatch.setattr("kithkin.deconvolution.removal.deconvolve", full)
    result = restore(model, shaken[2], uniform_blur="stored", note=said.append)
    assert torch.equal(result, restore(model, shaken[2]))
    assert said == ["not enough memory to find a blur that is the same everywhere: restored by the model alone"]


def test_models_for_something_else_are_refused(tmp_path):
    with pytest.raises(
        InputError, match=r"\+light is for models that deblur, denoise-gaussian-tiny is for denoise-gaussian"
    ):
        open_method("denoise-gaussian-tiny+light")
    Image.new("RGB", (90, 90)).save(tmp_path / "photo.png")
    said = CliRunner().invoke(app, ["restore", str(tmp_path / "photo.png"), "--uniform-blur", "light"])
    assert said.exit_code == 2
    assert "--uniform-blur is for models that deblur, denoise-small is for denoise" in said.output
    assert [path.name for path in tmp_path.iterdir()] == ["photo.png"]
    for task in (denoise, derain):
        with pytest.raises(InputError, match=f"`uniform_blur` is for models that deblur, {task.__name__} is for"):
            task(np.zeros((90, 90, 3), np.uint8), uniform_blur="light")


def test_a_method_names_its_curve():
    method = open_method("deblur-tiny+stored+2")
    assert (method.name, method.options.uniform_blur, method.options.ensemble) == ("deblur-tiny+stored+2", "stored", 2)
    plain = open_method("deblur-tiny")
    assert plain.options.uniform_blur is None
    assert len({method.identity, plain.identity, open_method("deblur-tiny+light").identity}) == 3
    seen = blur(discs(), hook()).clamp(0, 1).permute(1, 2, 0).contiguous().numpy()
    np.testing.assert_array_equal(
        open_method("deblur-tiny+stored")(seen), restore(plain.model, seen, uniform_blur="stored")
    )


def test_the_curves_that_options_take_are_those_there_are():
    """The names are checked where PyTorch isn't loaded."""
    assert set(restore_options.CURVES) == set(CURVES)
