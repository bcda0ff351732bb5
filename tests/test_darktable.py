"""The package for darktable, read as darktable reads it.

``Package`` is written from what darktable 5.6 does (the sources that ``kithkin.export._darktable`` names): how it
installs a file, checks it against a repository's list, opens the network and runs it in tiles.
"""

import hashlib
import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from kithkin.cli import app
from kithkin.errors import CheckpointError, InputError
from kithkin.export import check_parity, export_darktable, open_exported
from kithkin.export._darktable import write_package
from kithkin.export._parity import _photograph
from kithkin.model import KiT
from kithkin.model_config import KiTConfig
from kithkin.restoration import restore
from kithkin.zoo import list_models, load_model

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
OVERLAP = 64  # darktable's, of a tile on each of its sides


class Package:
    """A package as darktable installs and runs it."""

    def __init__(self, path: Path) -> None:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            self.id = names[0].split("/")[0]
            assert self.id == path.stem  # by which a release names the file
            assert self.id not in ("", ".", "..")
            assert all(name.split("/")[0] == self.id and "\\" not in name for name in names)
            self.config = json.loads(archive.read(f"{self.id}/config.json"))
            self.network = archive.read(f"{self.id}/model.onnx")
        for key in ("id", "name", "description", "task", "backend", "version"):
            assert isinstance(self.config[key], str), key
        assert (self.config["id"], self.config["task"], self.config["backend"]) == (self.id, "denoise", "onnx")
        assert re.fullmatch(r"\d+\.\d+", self.config["version"])
        assert self.config.get("num_inputs", 1) == 1

    def check_listed(self, path: Path, index: Path) -> None:
        """As a download from a repository is checked."""
        entry = json.loads(index.read_text())["models"][self.id]
        assert entry["sha256"] == f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"
        assert entry["size"] == path.stat().st_size
        assert all(entry[key] == self.config[key] for key in ("version", "name", "description", "task"))
        assert entry.get("license") == self.config.get("model_card", {}).get("license")

    def open(self, tile: int, threads: int = 1):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads  # darktable lets onnxruntime choose
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        for name, size in (("batch_size", 1), ("batch", 1), ("height", tile), ("width", tile)):
            options.add_free_dimension_override_by_name(name, size)
        session = onnxruntime.InferenceSession(self.network, options, providers=["CPUExecutionProvider"])
        (taken,), (given,) = session.get_inputs(), session.get_outputs()
        assert (taken.name, taken.type, taken.shape[:2]) == ("input", "tensor(float)", [1, 3])
        assert (given.name, given.type, given.shape[:2]) == ("output", "tensor(float)", [1, 3])
        return lambda batch: session.run(["output"], {"input": batch})[0]

    def restore(self, linear: np.ndarray, tile: int) -> np.ndarray:
        """Linear values (H, W, 3) with the primaries of sRGB, tile by tile, mirrored beyond the border."""
        run, step = self.open(tile), tile - 2 * OVERLAP
        height, width = linear.shape[:2]
        out = np.empty_like(linear)
        for top in range(0, height, step):
            for left in range(0, width, step):
                rows, columns = (
                    _mirrored(np.arange(start - OVERLAP, start - OVERLAP + tile), size)
                    for start, size in ((top, height), (left, width))
                )
                batch = _encoded(linear[rows][:, columns].clip(None, 1)).transpose(2, 0, 1)[None]
                result = _decoded(run(np.ascontiguousarray(batch))[0].transpose(1, 2, 0))
                valid = result[OVERLAP : OVERLAP + step, OVERLAP : OVERLAP + step]
                part = out[top : top + step, left : left + step]
                part[:] = valid[: part.shape[0], : part.shape[1]]
        return out


def _mirrored(places: np.ndarray, size: int) -> np.ndarray:
    places = np.abs(places)
    return np.where(places >= size, 2 * size - 2 - places, places).clip(0, size - 1)


def _encoded(linear: np.ndarray) -> np.ndarray:
    positive = linear.clip(0)
    return np.where(positive <= 0.0031308, 12.92 * positive, 1.055 * positive ** (1 / 2.4) - 0.055).astype(np.float32)


def _decoded(values: np.ndarray) -> np.ndarray:
    positive = values.clip(0)
    return np.where(positive <= 0.04045, positive / 12.92, ((positive + 0.055) / 1.055) ** 2.4).astype(np.float32)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A small network, and a package of it that names no licence."""
    path = tmp_path_factory.mktemp("small") / "denoise-mine.dtmodel"
    model = KiT(KiTConfig(width=8, n_stages=1, blocks="g g g", full_width=4)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    export_darktable(model, path)
    return model, path


@pytest.fixture(scope="module")
def default(tmp_path_factory):
    """The default model's package, from the command."""
    folder = tmp_path_factory.mktemp("default")
    path = folder / "denoise-kithkin-small.dtmodel"
    printed = CliRunner().invoke(app, ["export", "--to", "darktable", "-o", str(path), "--json"])
    assert printed.exit_code == 0, printed.output
    assert all(row["psnr"] > 100 and row["max_difference"] < 1e-4 for row in json.loads(printed.stdout)["parity"])
    return path


def test_darktable_installs_and_checks_the_package(default):
    package = Package(default)
    package.check_listed(default, default.with_name("versions.json"))
    card = package.config["model_card"]
    assert card["license"] == "Apache-2.0"
    assert "CLIC2025" in card["training_data"]
    assert "Unsplash" in card["training_data_license"]


@pytest.mark.slow
@pytest.mark.parametrize("tile", [256, 384])
def test_in_darktables_tiles_it_restores_as_kithkin_does(default, tile):
    """But near the picture's border, where darktable mirrors the picture and the network adds zeros."""
    noisy = _photograph(300, 340)[0].transpose(1, 2, 0)
    found = _encoded(Package(default).restore(_decoded(noisy), tile))
    wanted = restore(load_model("denoise"), noisy, tile="off")
    inside = (found - wanted)[OVERLAP:-OVERLAP, OVERLAP:-OVERLAP]
    assert 10 * np.log10(1 / np.mean(inside**2)) > 70
    assert np.abs(wanted - noisy).mean() > 0.05


MEMORY = """
import resource, sys
from pathlib import Path
import numpy as np
from test_darktable import Package
side = int(sys.argv[2])
run, image = Package(Path(sys.argv[1])).open(side), np.random.default_rng(0).random((1, 3, side, side), np.float32)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for _ in range(2):
    run(image)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e3)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss counts other units elsewhere")
def test_a_tile_of_1024_pixels_takes_less_than_a_gigabyte(default):
    """Measured at half the side: memory grows with the pixels. The second tile takes more than the first."""
    run = subprocess.run(
        [sys.executable, "-c", MEMORY, str(default), "512"], capture_output=True, text=True, cwd=Path(__file__).parent
    )
    assert run.returncode == 0, run.stderr
    assert 4 * float(run.stdout) < 1000


def test_a_package_of_ones_own_names_no_licence(small):
    model, path = small
    package = Package(path)
    package.check_listed(path, path.with_name("versions.json"))
    assert "model_card" not in package.config
    assert all(row.psnr > 100 for row in check_parity(model, path, sizes=[(40, 56)]))


def test_the_list_keeps_other_models(small, tmp_path):
    index = tmp_path / "versions.json"
    index.write_text('{"schema": 1, "later": true, "models": {"upscale-other": {"version": "2.0"}}}')
    network = Package(small[1]).network
    for _ in range(2):
        write_package(network, tmp_path / "denoise-mine.dtmodel", "1.0", None)
    listed = json.loads(index.read_text())
    assert listed["models"].keys() == {"upscale-other", "denoise-mine"}
    assert (listed["later"], listed["models"]["upscale-other"]) == (True, {"version": "2.0"})
    assert (tmp_path / "denoise-mine.dtmodel").read_bytes() == small[1].read_bytes()


def test_every_card_begins_with_the_licence_of_the_weights(tmp_path):
    for name, card in list_models().items():
        path = tmp_path / f"{name}.dtmodel"
        write_package(b"", path, "1.0", card)
        assert Package(path).config["model_card"]["license"] == "Apache-2.0"


@pytest.mark.parametrize("content", ["no JSON", "[]", '{"models": []}', '{"schema": 1}'])
def test_a_file_that_is_no_list_stays(content, tmp_path):
    index = tmp_path / "versions.json"
    index.write_text(content)
    with pytest.raises(InputError, match="no list of models"):
        export_darktable(KiT(KiTConfig(width=8, depth=1)), tmp_path / "denoise-mine.dtmodel")
    assert index.read_text() == content
    assert list(tmp_path.iterdir()) == [index]


def test_names_that_are_no_id_are_refused(tmp_path):
    for name in ("my model", "-x", "a[k=8]", "ü"):
        with pytest.raises(InputError, match="choose another name"):
            export_darktable(KiT(KiTConfig(width=8, depth=1)), tmp_path / f"{name}.dtmodel")
    with pytest.raises(InputError, match=r"such as 1\.0"):
        export_darktable(KiT(KiTConfig(width=8, depth=1)), tmp_path / "denoise-mine.dtmodel", version="2")
    printed = CliRunner().invoke(app, ["export", "denoise-gaussian[k=8,h=2]", "--to", "darktable"])
    assert isinstance(printed.exception, InputError)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_package_is_named(tmp_path):
    (tmp_path / "bad.dtmodel").write_bytes(b"PK no package")
    with zipfile.ZipFile(tmp_path / "empty.dtmodel", "w") as archive:
        archive.writestr("empty/config.json", "{}")
    for name in ("bad", "empty"):
        with pytest.raises(CheckpointError, match=f"{name}.dtmodel"):
            open_exported(tmp_path / f"{name}.dtmodel")
