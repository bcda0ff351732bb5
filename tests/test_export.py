"""Exported networks: the graph against the network, the files against PyTorch, and what runs them."""

import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import kithkin
from kithkin.checkpoint import save_model
from kithkin.cli import app
from kithkin.errors import CheckpointError, InputError, KithkinError
from kithkin.export import FORMATS, check_parity, export_onnx, export_torch, open_exported
from kithkin.export._graph import Graph
from kithkin.export._parity import _photograph
from kithkin.methods import open_method, run_method
from kithkin.model import KiT, KiTConfig
from kithkin.restoration import restore
from kithkin.zoo import load_model

ROOT = Path(__file__).parent.parent
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


def network(**changes):
    """A small network that changes its input much: an untrained one returns it."""
    model = KiT(KiTConfig(**{"width": 8, "depth": 1, "n_hashes": 2, **changes})).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model


def picture(height, width, seed=1):
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"k": 1},
        {"k": 3, "patch_size": 3},
        {"n_heads": 2, "n_hashes": 1},
        {"n_buckets": 8},
        {"hash_features": "centered"},
        {"hash_features": "pooled", "hash_input": "query"},
        {"stem_stride": 1, "n_stages": 2, "share_query_key": True},
    ],
    ids=str,
)
def test_the_graph_is_the_network(changes):
    """With few patches too, where the network does not hash and the graph does."""
    model = network(**changes).set_backend("reference")
    with torch.inference_mode():
        for size in ((97, 133), (33, 50), (9, 40), (1, 1)):
            image = picture(*size)
            found, wanted = Graph(model)(image), model(image)
            torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
            assert (wanted - image).abs().max() > 0.02


def test_the_graph_is_the_network_in_the_weighting_of_the_paper():
    """Its weights are unbounded and magnify what rounding leaves (decision D4); in float64 little is left."""
    model = network(weighting="paper").double().set_backend("reference")
    image = picture(33, 50).double()
    with torch.inference_mode():
        torch.testing.assert_close(Graph(model)(image), model(image), rtol=1e-6, atol=1e-6)


def test_the_graph_has_no_branch_on_a_value():
    """One round of rotations fewer changes the result: they are used, all of them."""
    model = network()
    image = picture(97, 133)
    with torch.inference_mode():
        before = Graph(model)(image)
        model.redraw_rotations(torch.Generator().manual_seed(3))
        assert (Graph(model)(image) - before).abs().max() > 1e-3
        model.redraw_rotations()
        assert torch.equal(Graph(model)(image), before)


@pytest.mark.parametrize("name", ["denoise", "derain"])
def test_the_graph_of_shipped_weights(name):
    model = load_model(name)
    image = torch.from_numpy(_photograph(97, 133))
    with torch.inference_mode():
        difference = Graph(model)(image) - model(image)
    assert difference.abs().max() < 1e-4
    assert (model(image) - image).abs().max() > 0.05


SMALL = {"n_stages": 1}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A small network, its checkpoint, and both files."""
    folder = tmp_path_factory.mktemp("exported")
    model = network(**SMALL)
    save_model(model, folder / "small.safetensors")
    state = torch.random.get_rng_state()
    export_onnx(model, folder / "small.onnx")
    export_torch(model, folder / "small.pt2")
    assert torch.equal(torch.random.get_rng_state(), state)
    return model, folder


@pytest.mark.parametrize("suffix", FORMATS.values())
def test_a_file_takes_any_height_and_width(exported, suffix):
    model, folder = exported
    rows = check_parity(model, folder / f"small{suffix}")
    assert len({(row.height, row.width) for row in rows}) >= 4
    assert sum(row.height % 4 > 0 or row.width % 4 > 0 for row in rows) >= 2
    assert all(row.psnr > 100 and row.max_difference < 1e-5 for row in rows)


@pytest.mark.parametrize("size", [(1, 1), (3, 70), (16, 16), (17, 5)])
def test_onnx_takes_small_pictures(exported, size):
    model, folder = exported
    image = picture(*size)
    with torch.inference_mode():
        wanted = model(image).numpy()
    np.testing.assert_allclose(open_exported(folder / "small.onnx")(image.numpy()), wanted, atol=1e-5)


def test_a_program_of_torch_export_says_what_is_too_small(exported):
    _, folder = exported
    with pytest.raises(Exception, match="17"):  # one patch of the bottleneck and a pixel
        open_exported(folder / "small.pt2")(picture(16, 40).numpy())


def test_half_halves_the_file_and_stays_near(exported):
    import onnx

    from kithkin.export import _halve_constants

    model, folder = exported
    proto = onnx.load(folder / "small.onnx")
    _halve_constants(proto)
    onnx.checker.check_model(proto)
    onnx.save(proto, folder / "half.onnx")
    whole, halved = (
        sum(len(constant.raw_data) for constant in onnx.load(folder / name).graph.initializer)
        for name in ("small.onnx", "half.onnx")
    )
    assert halved < 0.52 * whole
    rows = check_parity(model, folder / "half.onnx", least=30)
    assert all(row.max_difference > 1e-5 for row in rows)


def test_the_file_says_what_it_is(exported):
    import onnx

    model, folder = exported
    proto = onnx.load(folder / "small.onnx")
    onnx.checker.check_model(proto)
    described = {entry.key: entry.value for entry in proto.metadata_props}
    assert KiTConfig.from_dict(json.loads(described["config"])) == model.config
    assert [i.name for i in proto.graph.input] == ["image"]
    assert [o.name for o in proto.graph.output] == ["restored"]
    assert {node.domain for node in proto.graph.node} == {""}  # nothing that only one runtime knows


@pytest.mark.parametrize("suffix", FORMATS.values())
def test_the_file_does_not_tell_where_it_was_made(exported, suffix):
    path = exported[1] / f"small{suffix}"
    data = path.read_bytes()
    if suffix == ".pt2":
        with zipfile.ZipFile(path) as archive:
            data = b"".join(archive.read(name) for name in archive.namelist())
    for place in (str(Path(kithkin.__file__).parent), str(Path(torch.__file__).parent), str(path.parent)):
        assert place.encode() not in data


def test_another_network_fails_the_parity_check(exported):
    _, folder = exported
    other = network(**SMALL)
    torch.nn.init.zeros_(other.decoder[0][0].attention.value_proj.weight)
    with pytest.raises(KithkinError, match=r"another picture .* dB"):
        check_parity(other, folder / "small.onnx")


@pytest.mark.parametrize("suffix", FORMATS.values())
def test_exported_networks_are_evaluated_as_methods(exported, suffix):
    model, folder = exported
    image = picture(40, 56)[0].permute(1, 2, 0).contiguous().numpy()
    method = open_method(folder / f"small{suffix}", tile=64)
    found = run_method(method, image)
    np.testing.assert_allclose(found.clip(0, 1), restore(model, image, tile="off"), atol=1e-5)
    assert run_method(method, np.tile(image, (3, 3, 1))).shape == (120, 168, 3)


def test_the_example_restores_without_torch(exported, tmp_path):
    model, folder = exported
    pixels = np.random.default_rng(0).integers(0, 256, (90, 600, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "in.png")
    script = ROOT / "examples/restore_onnx.py"
    code = "import runpy, sys\nsys.modules['torch'] = sys.modules['kithkin'] = None\n"
    code += f"sys.argv = {['x', str(folder / 'small.onnx'), str(tmp_path / 'in.png'), str(tmp_path / 'out.png')]}\n"
    code += f"runpy.run_path({str(script)!r}, run_name='__main__')"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    found = np.asarray(Image.open(tmp_path / "out.png")).astype(int)
    assert found.shape == pixels.shape
    for tile, alone in ((slice(0, 512), slice(0, 480)), (slice(480, 600), slice(512, 600))):
        wanted = np.zeros(pixels.shape, int)
        wanted[:, tile] = restore(model, pixels[:, tile], tile="off")
        assert np.abs(found - wanted)[:, alone].max() <= 1  # where no other tile overlaps it


def run_example(*arguments):
    script = ROOT / "examples/restore_onnx.py"
    return subprocess.run([sys.executable, str(script), *map(str, arguments)], capture_output=True, text=True)


def test_the_example_keeps_gray_transparency_and_16_bits(exported, tmp_path, monkeypatch):
    _, folder = exported
    monkeypatch.syspath_prepend(ROOT / "examples")
    import onnxruntime
    import restore_onnx

    session = onnxruntime.InferenceSession(str(folder / "small.onnx"), providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    for mode, channels in (("L", 1), ("LA", 2), ("RGB", 3), ("RGBA", 4)):
        pixels = rng.integers(0, 256, (70, 90, channels), dtype=np.uint8)
        restored = restore_onnx.restore_picture(session, Image.fromarray(pixels.squeeze()))
        assert (restored.mode, restored.size) == (mode, (90, 70))
        if mode.endswith("A"):
            np.testing.assert_array_equal(np.asarray(restored)[..., -1], pixels[..., -1])
    deep = rng.integers(0, 65536, (70, 90), dtype=np.uint16)
    restored = restore_onnx.restore_picture(session, Image.fromarray(deep))
    assert restored.mode == "I;16"
    assert len(np.unique(np.asarray(restored) % 257)) > 200


def test_the_example_says_how_it_is_used_and_what_is_lost(exported, tmp_path):
    _, folder = exported
    used = run_example()
    assert used.returncode == 1
    assert "usage: python restore_onnx.py NETWORK.onnx IN OUT" in used.stderr
    assert "Traceback" not in used.stderr
    missing = run_example(folder / "small.onnx", tmp_path / "none.png", tmp_path / "out.png")
    assert (missing.returncode, len(missing.stderr.splitlines())) == (1, 1)
    pixels = np.random.default_rng(0).integers(0, 256, (70, 70, 4), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "in.png")
    lost = run_example(folder / "small.onnx", tmp_path / "in.png", tmp_path / "out.jpg")
    assert lost.returncode == 0, lost.stderr
    assert "holds no transparency" in lost.stderr
    assert Image.open(tmp_path / "out.jpg").mode == "RGB"


def call(*arguments):
    return CliRunner().invoke(app, ["export", *(str(a) for a in arguments)])


@pytest.mark.parametrize("to", FORMATS)
def test_the_command_writes_checks_and_reports(exported, tmp_path, monkeypatch, to):
    """The export itself, which takes its time, is the fixture's."""
    import kithkin.export

    _, folder = exported
    made = folder / f"small{FORMATS[to]}"
    monkeypatch.setattr(kithkin.export, f"export_{to}", lambda model, path, **options: shutil.copy(made, path))
    target = tmp_path / f"net{FORMATS[to]}"
    arguments = (folder / "small.safetensors", "--to", to, "-o", target)
    printed = call(*arguments)
    assert printed.exit_code == 0, printed.output
    assert re.search("tracing .* takes a minute or two\n.*compared with PyTorch\n", printed.stderr)
    assert len(re.findall(r"^\d+ x \d+ +[\d.e-]+ +\d+\.\d dB$", printed.output, re.M)) == 4
    again = call(*arguments)
    assert isinstance(again.exception, InputError)
    assert "--overwrite" in str(again.exception)
    if to == "onnx":
        values = json.loads(call(*arguments, "--overwrite", "--json").stdout)
        assert values["bytes"] == target.stat().st_size
        assert all(row["psnr"] > 100 for row in values["parity"])


def test_what_the_command_refuses(tmp_path):
    for arguments, said in (
        (("--to", "onnx", "-o", tmp_path / "net.pt2"), r"\.onnx"),
        (("--to", "torch", "--half"), "--half"),
        (("nothing", "--to", "onnx"), "neither"),
        (("--to", "onnx", "-o", "/dev/null/net.onnx"), "can't be written: /dev/null is no folder"),
    ):
        assert re.search(said, str(call(*arguments).exception)), arguments
    assert call("--to", "paper").exit_code == 2
    assert list(tmp_path.iterdir()) == []


def test_what_has_no_graph_is_refused(tmp_path):
    with pytest.raises(InputError, match="n_pairs"):
        export_onnx(network(n_pairs=4), tmp_path / "net.onnx")


def test_missing_packages_and_damaged_files_are_named(tmp_path, monkeypatch):
    for suffix in FORMATS.values():
        (tmp_path / f"text{suffix}").write_text("no network")
        with pytest.raises(CheckpointError, match=f"text{suffix}"):
            open_exported(tmp_path / f"text{suffix}")
        with pytest.raises(CheckpointError, match="no such file"):
            open_exported(tmp_path / f"none{suffix}")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(KithkinError, match=r"kithkin\[export\]"):
        open_exported(tmp_path / "text.onnx")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(KithkinError, match=r"kithkin\[export\]"):
        export_onnx(network(), tmp_path / "net.onnx")
