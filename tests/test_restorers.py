"""Restorers: what each says of itself, what is composed of them, and that everything takes any."""

import pickle
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from kithkin.cli import app
from kithkin.cluster import Task
from kithkin.cluster._worker import Worker, WorkerConfig
from kithkin.evaluation import evaluate
from kithkin.methods import open_method, open_restorer, run_method
from kithkin.model import KiT
from kithkin.model_config import KiTConfig
from kithkin.restoration import restore
from kithkin.restore_options import RestoreOptions
from kithkin.restorers import Blend, Ensemble, Network, Tiled, Unchanged
from kithkin.tiles import OVERLAP


class Brighter(torch.nn.Module):
    """Takes only sides that are multiples of 8; what it adds depends on the pixels around."""

    def __init__(self):
        super().__init__()
        self.mean = torch.nn.AvgPool2d(3, stride=1, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert x.shape[2] % 8 == 0 and x.shape[3] % 8 == 0, "sizes don't match"  # noqa: PT018
        return 0.9 * x + 0.1 * self.mean(x)


@pytest.fixture
def spec(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(Brighter()).save(str(tmp_path / "brighter.pt"))
    return f"{tmp_path / 'brighter.pt'}@8"


def opened(name):
    return open_restorer(name, note=lambda sentence: None).network


def photo(height=90, width=120):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_what_each_says_of_itself(spec):
    network = Network(KiT(KiTConfig(width=8, depth=1, n_stages=1)))
    assert (network.stride, network.reach, network.device.type) == (network.model.config.stride, OVERLAP, "cpu")
    assert (opened(spec).stride, opened(spec).reach) == (8, OVERLAP)
    assert Ensemble(Blend(network, 0.5, 0.5), 2).stride == network.stride
    assert Blend(Tiled(network, 64), 0.5, 0.5).reach is None  # cut already


def test_options_compose_no_more_than_they_ask_for():
    model = KiT(KiTConfig(width=8, depth=1, n_stages=1))
    plain = RestoreOptions(tile=128, overlap=8).compose(model)
    assert isinstance(plain, Tiled)
    assert (plain.restorer, plain.side, plain.overlap) == (Network(model), 128, 8)
    whole = RestoreOptions(tile="off", ensemble=2, strength=0.5).compose(model)
    assert isinstance(whole, Blend)
    assert (whole.restorer.side, whole.restorer.restorer) == (None, Ensemble(Network(model), 2))
    assert RestoreOptions(strength=0).compose(model) == Unchanged()


@pytest.mark.parametrize("channels", [1, 3])
def test_the_order_of_tiles_changes_nothing(channels):
    torch.manual_seed(0)
    network = Network(KiT(KiTConfig(width=8, depth=1, n_stages=1)))
    image = torch.rand(channels, 150, 200)
    plain = Tiled(network, 64, 16)
    want, tiles, fractions = plain(image), [], []
    watch = lambda tile, piece: tiles.append((tile, piece.shape))  # noqa: E731
    backwards = replace(plain, choose=lambda waiting: waiting[-1], watch=watch)
    assert torch.equal(backwards(image, fractions.append), want)
    assert fractions == sorted(fractions)
    assert (fractions[0], fractions[-1]) == (0, 1)
    assert all(shape == (channels, tile.height, tile.width) for tile, shape in tiles)
    assert (tiles[-1][0].left, tiles[-1][0].top) == (0, 0)
    covered = torch.zeros(150, 200)
    for tile, _ in tiles:
        covered[tile.top : tile.top + tile.height, tile.left : tile.left + tile.width] += 1
    assert covered.min() == 1


@pytest.mark.parametrize("tile", ["off", 64])
def test_restore_takes_any(spec, tile):
    pytest.importorskip("skimage")
    image = photo()
    want = torch.nn.functional.avg_pool2d(torch.from_numpy(image).permute(2, 0, 1).float(), 3, 1, 1).permute(1, 2, 0)
    want = 0.9 * image + 0.1 * want.numpy()
    inner = np.s_[4:-10, 4:-10]  # beyond it the picture is extended to 96 x 120, and seen with zeros around
    found = restore(opened(spec), image, tile=tile)
    assert np.abs(found[inner] - want[inner]).max() < (0.51 if tile == "off" else 6)
    gray = restore(opened(spec), image[..., 0], tile=tile, strength=0.5)
    assert (gray.shape, gray.dtype) == ((90, 120), np.uint8)
    by_nlm = run_method(open_method("nlm", note=lambda sentence: None), image / np.float32(255))
    np.testing.assert_allclose(restore(opened("nlm"), image, tile=tile), 255 * by_nlm.clip(0, 1), atol=0.51)


def test_the_command_the_workers_and_measurements_take_any(spec, tmp_path):
    Image.fromarray(photo(48, 56)).save(tmp_path / "a.png")
    want = restore(opened(spec), photo(48, 56))
    out = tmp_path / "b.png"
    said = CliRunner().invoke(app, ["restore", str(tmp_path / "a.png"), "-o", str(out), "-m", spec, "--device", "cpu"])
    assert said.exit_code == 0, said.output
    assert "open only files that you trust" in said.stderr
    np.testing.assert_array_equal(np.asarray(Image.open(out)), want)
    refused = CliRunner().invoke(app, ["restore", str(tmp_path / "a.png"), "-m", spec, "--backend", "reference"])
    assert (refused.exit_code, "has no attention" in refused.stderr) == (2, True)
    with pytest.warns(match="open only files that you trust"):
        copy = pickle.loads(pickle.dumps(opened(spec)))  # as it comes to another process
    worker = Worker(copy, WorkerConfig(RestoreOptions(overwrite=True), "cpu", 1, batch=4))
    tasks = [Task(str(tmp_path / "a.png"), str(tmp_path / f"{i}.png")) for i in range(2)]
    assert {result.status for result in worker.restore(tasks)} == {"written"}
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "1.png")), want)
    report = evaluate(Unchanged(), tmp_path, "gaussian", sigmas=(25,), limit=1)
    assert (report.method, report.rows[0].psnr) == ("Unchanged", report.rows[0].psnr_input)


def test_a_server_takes_any_and_looks_for_neighbours_in_our_networks_alone():
    pytest.importorskip("fastapi")
    pytest.importorskip("skimage")
    from fastapi.testclient import TestClient

    from kithkin.images import Picture, encode_picture
    from kithkin.web import create_app, served_models

    data = encode_picture(Picture(photo(24, 24) / np.float32(255)), "a.png")
    with TestClient(create_app(served_models(["nlm"])), base_url="http://127.0.0.1") as client:
        assert client.post("/restore", files={"picture": ("a.png", data)}).status_code == 200
        refused = client.post("/neighbors", files={"picture": ("a.png", data)}, data={"x": "1", "y": "1"})
    assert (refused.status_code, "none of kithkin's networks" in refused.json()["detail"]) == (422, True)
