"""Evaluation: the published noise, the rows, the means."""

import numpy as np
import pytest
import torch

from kithkin.data import benchmark_noise
from kithkin.errors import InputError
from kithkin.evaluation import PROTOCOLS, evaluate
from kithkin.images import Picture, write_picture
from kithkin.metrics import psnr, ssim
from kithkin.model import KiT, KiTConfig

SMALL = KiTConfig(width=8, depth=1, n_hashes=1)


@pytest.fixture(scope="module")
def changing():
    """A network that changes its input."""
    model = KiT(SMALL).eval()
    torch.nn.init.normal_(model.head.conv3.weight, std=0.05, generator=torch.Generator().manual_seed(0))
    return model


def photo(path, seed, size=(40, 48)):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.RandomState(seed).randint(0, 256, (*size, 3)).astype(np.float32) / 255
    write_picture(Picture(pixels), path)
    return np.rint(pixels * 255).astype(np.uint8)


def test_benchmark_noise_is_the_published_one():
    clean = np.random.RandomState(5).rand(7, 9, 3)
    before = np.random.get_state()[1].copy()
    found = benchmark_noise(clean, 25)
    assert (np.random.get_state()[1] == before).all()
    state = np.random.get_state()
    np.random.seed(0)
    expected = clean + np.random.normal(0, 25 / 255, clean.shape)
    np.random.set_state(state)
    np.testing.assert_array_equal(found, expected.astype(np.float32))


def test_gaussian_rows_are_what_the_protocol_says(tmp_path, changing):
    pictures = {f"{name}.png": photo(tmp_path / f"{name}.png", i) for i, name in enumerate("ba")}
    report = evaluate(changing, tmp_path, sigmas=(15, 50))
    assert [(row.image, row.condition) for row in report.rows] == [
        (image, f"sigma {sigma}") for image in ("a.png", "b.png") for sigma in (15, 50)
    ]
    for row in report.rows:
        clean = pictures[row.image]
        noisy = benchmark_noise(clean / 255, float(row.condition.split()[1]))
        with torch.inference_mode():
            restored = changing(torch.from_numpy(noisy).permute(2, 0, 1)[None])
        rounded = (restored[0].clamp(0, 1) * 255).round().to(torch.uint8)
        assert row.psnr == pytest.approx(psnr(rounded, clean, protocol="rgb-uint8"), abs=1e-4)
        assert row.ssim == pytest.approx(ssim(rounded, clean, window="wang2d", protocol="rgb-uint8"), abs=1e-5)
        assert row.psnr_input == pytest.approx(psnr(noisy, clean, protocol="rgb-uint8"))
    means = report.means()["sigma 50"]
    assert means["images"] == 2
    assert means["psnr"] == pytest.approx(np.mean([r.psnr for r in report.rows if r.condition == "sigma 50"]))


def test_noise_is_not_clipped_before_the_network(tmp_path):
    photo(tmp_path / "a.png", 0)
    seen = []

    class Spy(KiT):
        def forward(self, image):
            seen.append(image)
            return super().forward(image)

    evaluate(Spy(SMALL).eval(), tmp_path, sigmas=(50,))
    assert seen[0].min() < 0
    assert seen[0].max() > 1


def test_pairs_are_found_by_their_folders_and_rain_is_measured_on_y(tmp_path):
    source = photo(tmp_path / "input/x.png", 1)
    target = photo(tmp_path / "target/x.png", 2)
    model = KiT(SMALL).eval()  # untrained: returns its input
    plain = evaluate(model, tmp_path)
    assert plain.protocol.name == "rgb"
    assert plain.rows[0].psnr == pytest.approx(psnr(source, target, protocol="rgb-uint8"))
    rain = evaluate(model, tmp_path, "rain").rows[0]
    assert rain.psnr == pytest.approx(psnr(source, target, protocol="y-matlab"))
    assert rain.ssim == pytest.approx(ssim(source, target, window="wang2d", protocol="y-matlab"))


def test_report_is_plain_values_and_is_told_row_by_row(tmp_path):
    for i in range(3):
        photo(tmp_path / f"{i}.png", i)
    told = []
    report = evaluate(KiT(SMALL).eval(), tmp_path, sigmas=(25,), limit=2, report=lambda row, total: told.append(total))
    assert told == [2, 2]
    values = report.to_dict()
    assert values["protocol"]["name"] == "gaussian"
    assert [row["image"] for row in values["images"]] == ["0.png", "1.png"]
    assert values["means"]["sigma 25"]["images"] == 2


def test_wrong_requests_are_refused(tmp_path):
    photo(tmp_path / "a.png", 0)
    model = KiT(SMALL).eval()
    for wrong in ({"protocol": "psnr"}, {"sigmas": ()}, {"sigmas": (-1.0,)}, {"limit": 0}, {"protocol": "rain"}):
        with pytest.raises(InputError):
            evaluate(model, tmp_path, **wrong)
    with pytest.raises(InputError, match="not a folder"):
        evaluate(model, tmp_path / "missing")
    assert all(name == protocol.name for name, protocol in PROTOCOLS.items())
