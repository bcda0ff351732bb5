"""RealBlur's measure: pictures moved and dimmed by scipy are found again, and the masked values are scikit-image's."""

import builtins
import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, map_coordinates
from skimage.metrics import structural_similarity

from kithkin.errors import InputError, KithkinError
from kithkin.evaluation.protocols import PROTOCOLS, scores
from kithkin.metrics import Aligned, align_realblur, masked_psnr, masked_ssim, psnr

pytest.importorskip("cv2")

HEIGHT, WIDTH = 120, 160


def scene(seed=0):
    """A picture with structure of several sizes, (H, W, 3) in [0.05, 0.95]."""
    rng = np.random.default_rng(seed)
    noise = [gaussian_filter(rng.normal(size=(HEIGHT, WIDTH, 3)), (s, s, 0)) * s for s in (3, 8, 20)]
    values = sum(noise)
    return 0.05 + 0.9 * (values - values.min()) / np.ptp(values)


def wrong(image):
    """A restored picture with an error of its own: smooth, so that interpolation does not blur it away."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    return image + 0.04 * np.sin(x / 9)[..., None] * np.cos(y / 7)[..., None]


def moved(image, *, turn=0.0, shift=(0.0, 0.0), gain=1.0):
    """The image turned about its middle by degrees, shifted by (x, y) pixels, and dimmed."""
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(float)
    middle_x, middle_y = (WIDTH - 1) / 2, (HEIGHT - 1) / 2
    dx, dy = x - middle_x - shift[0], y - middle_y - shift[1]
    cos, sin = math.cos(math.radians(turn)), math.sin(math.radians(turn))
    places = [sin * dx + cos * dy + middle_y, cos * dx - sin * dy + middle_x]
    planes = [map_coordinates(image[..., c], places, order=3, mode="nearest") for c in range(3)]
    return gain * np.stack(planes, axis=-1)


def values(output, target):
    aligned = align_realblur(output, target)
    return masked_psnr(aligned), masked_ssim(aligned)


@pytest.mark.parametrize(
    "motion",
    [
        {"gain": 0.7},
        {"shift": (3.3, -2.6)},
        {"turn": 3},
        {"turn": -1, "shift": (-2.4, 1.7), "gain": 0.8},
    ],
    ids=str,
)
def test_a_moved_and_dimmed_picture_scores_as_if_it_were_not(motion):
    target, output = scene(), wrong(scene())
    still, away = values(output, target), values(moved(output, **motion), target)
    assert away[0] == pytest.approx(still[0], abs=0.25)
    assert away[1] == pytest.approx(still[1], abs=0.005)
    assert psnr(moved(output, **motion), target) < still[0] - 8


def test_what_it_found():
    target = scene()
    found = align_realblur(moved(target, shift=(7, 4), gain=0.8), target)
    np.testing.assert_allclose(found.warp / found.warp[2, 2], [[1, 0, 7], [0, 1, 4], [0, 0, 1]], atol=0.1)
    # The least squares gain is that of the two pictures as they lie, so the shift costs it a little.
    assert found.gain == pytest.approx(1 / 0.8, rel=0.05)
    # Pixels of the target whose place in the output is beyond its right and lower border.
    expected = np.zeros((HEIGHT, WIDTH), dtype=bool)
    expected[: HEIGHT - 4, : WIDTH - 7] = True
    assert np.array_equal(found.mask, expected)
    assert not found.output[~expected].any()
    assert not found.target[~expected].any()
    assert np.array_equal(found.target[expected], target.astype(np.float32)[expected])


def test_the_gain_is_the_least_squares_one_and_goes_to_the_output():
    target = scene()
    output = 0.6 * target + np.random.default_rng(1).normal(0, 0.05, target.shape)
    found = align_realblur(output, target)
    best = np.linalg.lstsq(output.reshape(-1, 1), target.ravel(), rcond=None)[0][0]
    assert found.gain == pytest.approx(best, rel=1e-6)
    dimmed = align_realblur(0.6 * target, target)
    assert np.abs(dimmed.output - target * dimmed.mask[..., None]).max() < 1e-3


def test_values_outside_the_mask_do_not_count():
    target, output = scene(), moved(scene(), shift=(7, 4))
    spoilt = target.copy()
    spoilt[-4:, :] = 1 - target[-4:, :]
    a, b = align_realblur(output, target), align_realblur(output, spoilt)
    assert masked_psnr(b) == pytest.approx(masked_psnr(a), abs=0.5)  # the gain alone feels them


def hand_made(seed=0):
    rng = np.random.default_rng(seed)
    target = scene().astype(np.float32)
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[3:-9, 12:-2] = True
    output = (target + rng.normal(0, 0.05, target.shape)).astype(np.float32)
    return Aligned(output * mask[..., None], target * mask[..., None], mask, np.eye(3, dtype=np.float32), 1.0)


def test_masked_psnr_is_the_psnr_of_the_masked_pixels():
    aligned = hand_made()
    assert masked_psnr(aligned) == pytest.approx(psnr_of(aligned), abs=1e-9)
    same = Aligned(aligned.target, aligned.target, aligned.mask, aligned.warp, 1.0)
    assert masked_psnr(same) == math.inf
    assert masked_ssim(same) == pytest.approx(1, abs=1e-12)


def psnr_of(aligned):
    errors = [
        float(aligned.output[y, x, c]) - float(aligned.target[y, x, c])
        for y, x in np.argwhere(aligned.mask)
        for c in range(3)
    ]
    return 10 * math.log10(len(errors) / math.fsum(e * e for e in errors))


@pytest.mark.parametrize("source", ["hand made", "found"])
def test_masked_ssim_is_scikit_images_map_weighted_by_the_mask(source):
    aligned = hand_made() if source == "hand made" else align_realblur(moved(wrong(scene()), shift=(7, 4)), scene())
    _, full = structural_similarity(
        aligned.target.astype(np.float64),
        aligned.output.astype(np.float64),
        channel_axis=-1,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=1.0,
        full=True,
    )
    weights = aligned.mask[5:-5, 5:-5, None].repeat(3, axis=2)
    per_channel = (full[5:-5, 5:-5] * weights).sum((0, 1)) / weights.sum((0, 1))
    assert masked_ssim(aligned) == pytest.approx(per_channel.mean(), abs=1e-9)


def test_tensors_arrays_and_bytes_give_the_same():
    target, output = (np.rint(255 * image).astype(np.uint8) for image in (scene(), moved(scene(), shift=(2, 1))))
    expected = values(output, target)
    tensor = torch.from_numpy(output).permute(2, 0, 1)
    for kind in (output / 255, tensor, tensor[None].float() / 255):
        assert values(kind, target) == pytest.approx(expected, abs=1e-3)


def test_the_protocol_rounds_the_output_first():
    target, output = np.rint(255 * scene()).astype(np.uint8), moved(wrong(scene()), shift=(2, 1)).astype(np.float32)
    rounded = np.rint(255 * np.clip(output, 0, 1)).astype(np.uint8)
    assert scores(PROTOCOLS["realblur"], output, target) == values(rounded, target)
    assert scores(PROTOCOLS["realblur"], rounded, target) == values(rounded, target)


def test_pictures_that_cannot_be_aligned_are_refused():
    flat = np.full((HEIGHT, WIDTH, 3), 0.5)
    with pytest.raises(InputError, match=r"can't be aligned with the target \(.+\); both must show the same scene"):
        align_realblur(flat, scene())
    with pytest.raises(InputError, match="can't be aligned"):
        align_realblur(scene(), flat)
    with pytest.raises(InputError, match="the output is black"):
        align_realblur(0 * flat, scene())
    with pytest.raises(InputError, match="one size, got height × width 120 × 160 for a and 119 × 160 for b"):
        align_realblur(scene(), scene()[1:])
    with pytest.raises(InputError, match="at least 11 × 11"):
        align_realblur(scene()[:10], scene()[:10])


def test_without_opencv_the_install_line_is_said(monkeypatch):
    real = builtins.__import__

    def missing(name, *rest):
        if name == "cv2":
            raise ImportError("no cv2")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(KithkinError, match=r'pip install "kithkin\[eval\]"'):
        align_realblur(scene(), scene())
