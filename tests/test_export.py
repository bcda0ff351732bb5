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
from kithkin.export import FORMATS, _translate, check_parity, export_onnx, export_torch, open_exported
from kithkin.export._parity import _photograph
from kithkin.layers import GatedBlock, KNNLocalAttention, KNNTransformerBlock
from kithkin.methods import open_method, open_restorer, run_method
from kithkin.model import KiT
from kithkin.model_config import KiTConfig
from kithkin.ops.library import for_export
from kithkin.restoration import restore
from kithkin.restorers import Network, Unchanged
from kithkin.zoo import load_model

ROOT = Path(__file__).parent.parent
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


@pytest.fixture(scope="module", autouse=True)
def each_program_is_read_once():
    """PyTorch takes seconds to read one."""
    read, programs = torch.export.load, {}

    def load(path):
        data = Path(path).read_bytes()
        if data not in programs:
            programs[data] = read(path)
        return programs[data]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.export, "load", load)
        yield


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


def translated(module, x):
    """The result of a layer's translation to ONNX."""
    import onnxruntime

    with torch.no_grad(), for_export("operators"):
        proto = _translate(torch.export.export(module.eval(), (x,)))
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"image": x.numpy()})[0])


def seeded(layer, *arguments, **options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return layer(*arguments, **options)


def feature_map(height, width, channels=16):
    return torch.randn(1, height, width, channels, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("changes", "size"),
    [
        ({}, (66, 90)),
        ({"k": 1, "hash_features": "centered"}, (41, 30)),
        ({"k": 3, "patch_size": 3, "n_hashes": 3}, (41, 30)),
        ({"n_heads": 2, "n_hashes": 1, "n_buckets": 8, "share_query_key": True}, (66, 90)),
        ({"hash_features": "centered"}, (5, 9)),
        ({"n_heads": 4, "n_hashes": 3, "hash_features": "pooled", "hash_input": "query"}, (41, 30)),
    ],
    ids=str,
)
def test_exported_attention_is_that_of_the_reference(changes, size, monkeypatch):
    """In several blocks of chunks, the last of them not full, and with so few patches that the network hashes none."""
    monkeypatch.setattr("kithkin.export._onnx.BLOCK_ELEMENTS", 1 << 14)
    layer = seeded(KNNLocalAttention, 16, **{"n_hashes": 2, "backend": "blocked", **changes})
    x = feature_map(*size)
    found = [translated(layer, x)]
    with torch.no_grad(), for_export("steps"):
        found.append(torch.export.export(layer, (x,)).module()(x))
        layer.backend = "reference"
    with torch.no_grad():
        for result in found:
            torch.testing.assert_close(result, layer(x), rtol=1e-5, atol=1e-5)


def test_exported_attention_weighs_as_the_paper():
    """Its weights are unbounded and magnify what rounding leaves (decision D4): little in float64; and in float32,
    in which ONNX computes, as much as in the layer itself."""
    layer = seeded(KNNLocalAttention, 16, n_hashes=2, weighting="paper", backend="blocked")
    x = feature_map(24, 40)
    onnx = translated(layer, x)
    with torch.no_grad():
        single = layer(x)
    layer, x = layer.double(), x.double()
    with torch.no_grad(), for_export("steps"):
        program = torch.export.export(layer, (x,)).module()(x)
    layer.backend = "reference"
    with torch.no_grad():
        wanted = layer(x)
    torch.testing.assert_close(program, wanted, rtol=1e-6, atol=1e-6)
    assert (onnx - wanted).abs().max() < 2 * (single - wanted).abs().max()
    assert (onnx - wanted).abs().mean() < 2 * (single - wanted).abs().mean()


@pytest.mark.parametrize("block", [KNNTransformerBlock, GatedBlock])
@pytest.mark.parametrize("channels", [8, 24])
def test_blocks_in_onnx_are_those_of_the_network(block, channels):
    """With fewer channels than the kernels take, too."""
    module = seeded(block, channels)
    for attention in (m for m in module.modules() if isinstance(m, KNNLocalAttention)):
        attention.backend = "blocked"
    x = feature_map(13, 18, channels)
    found = translated(module, x)
    with torch.no_grad():
        torch.testing.assert_close(found, module(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_a_file_of_blocks_of_other_kinds_takes_any_size(suffix, tmp_path):
    """With few patches too, where the network does not hash and the file does."""
    model = network(blocks="c g a", full_width=6, n_stages=1, n_heads=2, hash_features="centered")
    write = {".onnx": export_onnx, ".pt2": export_torch}[suffix]
    write(model, tmp_path / f"net{suffix}")
    run = open_exported(tmp_path / f"net{suffix}")
    for size in ((97, 133), (33, 50), (9, 40), (70, 3), (1, 1)):
        image = picture(*size)
        with torch.inference_mode():
            wanted = model(image)
        torch.testing.assert_close(torch.from_numpy(run(image.numpy())), wanted, rtol=1e-5, atol=1e-5)
        assert (wanted - image).abs().max() > 0.02


def test_shipped_weights_in_onnx(tmp_path):
    """Of the paper's network; those of the other kind are in the package for darktable."""
    model = load_model("denoise-gaussian")
    export_onnx(model, tmp_path / "shipped.onnx")
    rows = check_parity(Network(model), tmp_path / "shipped.onnx", sizes=[(97, 133)])
    assert rows[0].max_difference < 1e-4
    image = torch.from_numpy(_photograph(97, 133))
    with torch.inference_mode():
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


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_a_file_takes_any_height_and_width(exported, suffix):
    model, folder = exported
    rows = check_parity(model, folder / f"small{suffix}")
    assert len({(row.height, row.width) for row in rows}) >= 4
    assert sum(row.height % 4 > 0 or row.width % 4 > 0 for row in rows) >= 2
    assert all(row.psnr > 100 and row.max_difference < 1e-5 for row in rows)


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_a_file_takes_small_pictures(exported, suffix):
    model, folder = exported
    run = open_exported(folder / f"small{suffix}")
    for size in ((1, 1), (3, 70), (40, 1), (16, 16), (17, 5)):
        image = picture(*size)
        with torch.inference_mode():
            wanted = model(image).numpy()
        np.testing.assert_allclose(run(image.numpy()), wanted, atol=1e-5, err_msg=str(size))


def test_parity_takes_any_restorer(exported):
    _, folder = exported
    restorer = open_restorer(str(folder / "small.onnx")).network
    assert all(row.psnr > 100 for row in check_parity(restorer, folder / "small.pt2", sizes=[(40, 56), (17, 70)]))
    with pytest.raises(KithkinError, match=r"another picture .* dB"):
        check_parity(Unchanged(), folder / "small.onnx")


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


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
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


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
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


@pytest.mark.parametrize("to", ["onnx", "torch"])
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
    assert re.search("tracing .* takes about half a minute\n.*compared with PyTorch\n", printed.stderr)
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
