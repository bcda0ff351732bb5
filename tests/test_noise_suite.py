"""The fixed examples of noise that a run validates with and that `kithkin eval --protocol noises` measures."""

import numpy as np
import pytest
from PIL import Image

from kithkin.data.degrade import NOISES, benchmark_noise, noise_example
from kithkin.errors import InputError
from kithkin.evaluation import evaluate
from kithkin.methods import open_method
from kithkin.metrics import psnr

FLAT = np.full((160, 160, 3), 0.5, np.float32)


def picture(height=48, width=56):
    y, x = np.mgrid[0:height, 0:width] / 15
    waves = np.stack([0.5 + 0.2 * np.sin(x + 2 * y + 2 * c) for c in range(3)], axis=2)
    return (np.rint(waves * 255) / 255).astype(np.float32)


def noise_of(name, clean=FLAT, index=0):
    degraded, target = noise_example(name, clean, index)
    return (degraded.astype(np.float64) - target) * 255


def correlation(a, b):
    return np.corrcoef(a.ravel(), b.ravel())[0, 1]


@pytest.mark.parametrize("name", NOISES)
def test_an_example_follows_from_its_name_and_its_place(name):
    clean = picture()
    before = clean.copy()
    degraded, target = noise_example(name, clean, 3)
    again, _ = noise_example(name, clean, 3)
    assert np.array_equal(degraded, again)
    assert np.array_equal(clean, before)
    assert degraded.shape == target.shape == clean.shape
    assert degraded.dtype == target.dtype == np.float32
    white = name.startswith("white")
    assert np.array_equal(noise_example(name, clean, 4)[0], degraded) == white  # published: seed 0 for every picture
    assert np.allclose(degraded * 255, np.rint(degraded * 255), atol=1e-3) != white
    neutral = "gray" in name
    for side in (degraded, target):
        assert (np.ptp(side, axis=2).max() == 0) == neutral
    assert np.array_equal(target, clean) != neutral
    assert 8 < psnr(degraded, target, protocol="rgb") < 50


def test_white_noise_is_the_published_one():
    for name, sigma in (("white25", 25), ("white50", 50)):
        assert np.array_equal(noise_example(name, picture(), 7)[0], benchmark_noise(picture(), sigma))


def test_each_example_is_what_its_name_says():
    gray, film, both, luminance = (noise_of(name) for name in ("gray25", "film25", "gray-film25", "luminance25"))
    for noise in (gray, film, both, luminance):
        assert noise.std() == pytest.approx(25, rel=0.04)
    assert abs(correlation(gray[:, 1:], gray[:, :-1])) < 0.03
    assert correlation(luminance[..., 0], luminance[..., 2]) > 0.999
    for grained in (film, both):  # of a kernel of 0.8 pixels
        assert correlation(grained[:, 1:], grained[:, :-1]) == pytest.approx(np.exp(-1 / (4 * 0.64)), abs=0.04)
    assert correlation(film[..., 0], film[..., 2]) == pytest.approx(0.7, abs=0.04)
    resized = [correlation(x[:, 1:], x[:, :-1]) for x in (noise_of("resized25", index=i) for i in range(8))]
    assert np.ptp(resized) > 0.3
    assert noise_of("jpeg25", index=1).std() < 24.5  # a JPEG takes some of it away


def test_one_half_has_more_noise_than_the_other():
    noise = noise_of("halves10-50")
    assert noise[:, :80].std() == pytest.approx(10, rel=0.04)
    assert noise[:, 80:].std() == pytest.approx(50, rel=0.04)


def test_another_name_is_refused():
    with pytest.raises(InputError, match="there are white25"):
        noise_example("fog", picture(), 0)


def test_an_evaluation_has_a_row_for_each(tmp_path):
    pictures = [picture(), picture(40, 40)[:, ::-1]]
    for i, clean in enumerate(pictures):
        Image.fromarray(np.rint(clean * 255).astype(np.uint8)).save(tmp_path / f"{i}.png")
    report = evaluate(open_method("input"), tmp_path, "noises")
    assert list(report.means()) == list(NOISES)
    assert len(report.rows) == 2 * len(NOISES)
    for row in report.rows:
        index = int(row.image[0])
        degraded, target = noise_example(row.condition, pictures[index], index)
        degraded, target = (np.rint(x.clip(0, 1) * 255).astype(np.uint8) for x in (degraded, target))
        assert row.psnr == pytest.approx(psnr(degraded, target, protocol="rgb-uint8"), abs=1e-6), row
