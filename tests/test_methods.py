"""Restorers behind one interface: what each computes, what is refused, and that the random state stays."""

import sys
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from kithkin.checkpoint import save_model
from kithkin.data.degrade import benchmark_noise
from kithkin.errors import CheckpointError, InputError, KithkinError
from kithkin.methods import open_method, run_method
from kithkin.metrics import psnr
from kithkin.model import KiT
from kithkin.model_config import KiTConfig
from kithkin.restoration import restore

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


def clean(height=32, width=32):
    """Smooth colours with an edge: what denoisers were made for."""
    y, x = np.mgrid[:height, :width] / 32
    planes = [0.3 + 0.3 * np.sin(3 * x), 0.5 + 0.3 * np.cos(2 * y), np.where(x + y > 1, 0.8, 0.2)]
    return np.stack(planes, axis=-1).astype(np.float32)


def write_onnx(path, shape, *, node="Mul", kind=None, out=None):
    """A network that halves its input, or the picture's sides, or takes the logarithm."""
    from onnx import TensorProto, helper

    kind = TensorProto.FLOAT if kind is None else kind
    given = helper.make_tensor_value_info("x", kind, shape)
    gives = helper.make_tensor_value_info("y", kind, out or shape)
    half = helper.make_tensor("half", kind, [1], [0.5])
    nodes = {
        "Mul": [helper.make_node("Mul", ["x", "half"], ["y"])],
        "AveragePool": [helper.make_node("AveragePool", ["x"], ["y"], kernel_shape=[2, 2], strides=[2, 2])],
        "Log": [helper.make_node("Log", ["x"], ["y"])],
    }[node]
    graph = helper.make_graph(nodes, "g", [given], [gives], initializer=[half])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, str(path))
    return path


def save_scripted(module, path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(module).save(str(path))
    return path


class Sides(torch.nn.Module):
    """Gives the longer side of what it is shown, in every pixel."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.full_like(x, max(x.shape[2], x.shape[3]))


class Last(torch.nn.Module):
    """Gives the last row that it is shown in every row."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, :, -1:].expand_as(x)


class Strict(torch.nn.Module):
    """Takes only sides that are multiples of 8, as networks with three halvings do; adds a tenth."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert x.shape[2] % 8 == 0 and x.shape[3] % 8 == 0, "sizes don't match"  # noqa: PT018
        return x + 0.1


@pytest.fixture(scope="module")
def scripted(tmp_path_factory):
    return save_scripted(Strict(), tmp_path_factory.mktemp("scripted") / "strict.pt")


def test_input_changes_nothing_and_shares_nothing():
    image = clean() * 3 - 1
    result = run_method(open_method("input"), image, sigma=25)
    np.testing.assert_array_equal(result, image)
    assert not np.shares_memory(result, image)


def test_a_checkpoint_is_restored_as_restore_does(tmp_path):
    model = KiT(KiTConfig(width=8, depth=1, n_hashes=1)).eval()
    torch.nn.init.normal_(model.head.conv3.weight, std=0.05, generator=torch.Generator().manual_seed(0))
    save_model(model, tmp_path / "mine.safetensors")
    noisy = benchmark_noise(clean(40, 48), 50)
    method = open_method(tmp_path / "mine.safetensors")
    assert (method.name, method.needs_sigma) == ("mine.safetensors", False)
    np.testing.assert_allclose(run_method(method, noisy), restore(model, noisy, tile="off"), atol=1e-6)
    assert open_method("denoise-gaussian").name == "denoise-gaussian-tiny"


def test_a_models_passes_stand_behind_its_name(tmp_path):
    model = KiT(KiTConfig(width=8, depth=1, n_hashes=1)).eval()
    torch.nn.init.normal_(model.head.conv3.weight, std=0.05, generator=torch.Generator().manual_seed(0))
    for name in ("mine.safetensors", "mine+4"):
        save_model(model, tmp_path / name)
    noisy = benchmark_noise(clean(40, 48), 50)
    one, four = (open_method(f"{tmp_path / 'mine.safetensors'}{passes}") for passes in ("", "+4"))
    assert four.name == "mine.safetensors+4"
    assert four.identity != one.identity
    want = restore(model, noisy, tile="off", ensemble=4)
    np.testing.assert_allclose(run_method(four, noisy), want, atol=1e-6)
    assert np.abs(run_method(one, noisy) - want).max() > 1e-4
    assert open_method(tmp_path / "mine+4").name == "mine+4"  # a file of that name is itself
    with pytest.raises(InputError, match=r"denoise-gaussian\+3"):
        open_method("denoise-gaussian+3")


def test_k_and_h_stand_behind_a_models_name(tmp_path):
    one, other = open_method("denoise-gaussian"), open_method("denoise-gaussian[k=8,h=1]+4")
    assert other.name == "denoise-gaussian-tiny[k=8,h=1]+4"
    assert (other.model.config.k, other.model.config.n_hashes, other.options.ensemble) == (8, 1, 4)
    assert open_method("denoise-gaussian[k=8,h=1]").identity not in (one.identity, other.identity)
    assert open_method("denoise-gaussian[k=4]").identity == one.identity  # its own k
    for spec, said in {
        "bm3d[h=2]": "is no method",
        "denoize[h=2]": "is no method",
        f"{tmp_path / 'a.onnx'}[h=2]": "fixed in such a file",
    }.items():
        with pytest.raises(InputError, match=said):
            open_method(spec)


@pytest.mark.parametrize(("spec", "gain"), [("bm3d", 7), ("nlm", 4)])
def test_classical_filters_gain_decibels_and_leave_the_random_state(spec, gain):
    pytest.importorskip({"bm3d": "bm3d", "nlm": "skimage"}[spec])
    image = clean()
    noisy = benchmark_noise(image, 25)
    method = open_method(spec)
    assert method.needs_sigma
    before = np.random.get_state()[1].copy()
    result = run_method(method, noisy, sigma=25)
    assert (np.random.get_state()[1] == before).all()
    assert result.dtype == np.float32
    assert psnr(result, image) > psnr(noisy, image) + gain
    np.testing.assert_array_equal(run_method(method, noisy, sigma=0), noisy)
    part = noisy[:16, :16]
    once, again, more = (run_method(method, part, sigma=sigma) for sigma in (25, 25, 75))
    np.testing.assert_array_equal(once, again)
    assert np.std(more) < np.std(once)  # more is taken out where more is said to be there


def test_bm3d_takes_gray_and_tiny_pictures():
    pytest.importorskip("bm3d")
    gray = np.repeat(benchmark_noise(clean(), 25)[..., :1], 3, axis=2)
    result = run_method(open_method("bm3d"), gray, sigma=25)
    np.testing.assert_array_equal(result[..., 0], result[..., 2])
    assert run_method(open_method("bm3d"), benchmark_noise(clean(8, 8), 25), sigma=25).shape == (8, 8, 3)


@pytest.mark.parametrize("spec", ["bm3d", "nlm"])
def test_without_a_noise_level_it_is_estimated_and_said_once(spec):
    pytest.importorskip({"bm3d": "bm3d", "nlm": "skimage"}[spec])
    image = np.full((24, 24, 3), 0.5, np.float32)
    noisy = benchmark_noise(image, 25)
    told = []
    method = open_method(spec, note=told.append)
    blind = run_method(method, noisy)
    run_method(method, noisy[:16, :16])
    assert len(told) == 1
    assert "estimates" in told[0]
    assert psnr(blind, image) > psnr(noisy, image) + 6


def test_without_a_listener_the_estimate_is_a_warning():
    pytest.importorskip("skimage")
    with pytest.warns(UserWarning, match="estimates"):
        run_method(open_method("nlm"), benchmark_noise(clean(), 25))


def test_onnx_of_any_size(tmp_path):
    method = open_method(write_onnx(tmp_path / "half.onnx", [1, 3, "h", "w"]))
    image = clean(33, 47) * 4 - 2
    assert method.name == "half.onnx"
    np.testing.assert_allclose(run_method(method, image), image / 2, atol=1e-7)


@pytest.mark.parametrize("size", [(10, 24), (24, 24), (33, 100), (1, 200)])
@pytest.mark.parametrize("shape", [[1, 3, 24, 24], [1, 3, "h", 24], ["b", 3, 24, 40]])
def test_onnx_of_a_fixed_size_covers_every_picture(tmp_path, shape, size):
    method = open_method(write_onnx(tmp_path / "half.onnx", shape))
    image = clean(*size)
    np.testing.assert_allclose(run_method(method, image), image / 2, atol=1e-6)


def test_tiles_are_blended_and_no_larger_than_asked_for(tmp_path, scripted):
    image = clean(100, 150)
    method = open_method(f"{scripted}@8", tile=64)
    np.testing.assert_allclose(run_method(method, image), image + np.float32(0.1), atol=1e-5)
    path = save_scripted(Sides(), tmp_path / "sides.torchscript")
    np.testing.assert_allclose(run_method(open_method(path, tile=64), image), 64, rtol=1e-5)
    np.testing.assert_allclose(run_method(open_method(path, tile="auto"), image), 150, rtol=1e-5)


def test_what_a_result_depends_on_tells_networks_of_files_apart(scripted):
    places = [(scripted, "off"), (scripted, 64), (scripted, 96), (f"{scripted}@8", 64), (f"{scripted}@16", 64)]
    assert len({open_method(spec, tile=tile).identity for spec, tile in places}) == len(places)
    assert open_method(scripted, tile=64).identity == open_method(scripted, tile=64).identity


def test_a_multiple_extends_by_reflection(tmp_path, scripted):
    image = clean(21, 30)
    with pytest.raises(KithkinError, match=r"strict.pt on a.png: .*30 x 21.*strict.pt@8"):
        run_method(open_method(scripted), image, picture="a.png")
    np.testing.assert_allclose(run_method(open_method(f"{scripted}@8"), image), image + np.float32(0.1), atol=1e-6)
    with pytest.raises(InputError, match="multiple"):
        open_method(f"{scripted}@0")
    # With three rows and a multiple of 4, the last row is the reflected one, row 1.
    last = save_scripted(Last(), tmp_path / "last.ts")
    image = clean(3, 8)
    result = run_method(open_method(f"{last}@4"), image)
    np.testing.assert_array_equal(result, np.broadcast_to(image[1:2], image.shape))


@pytest.mark.parametrize(
    ("shape", "kind", "said"),
    [([1, 1, "h", "w"], None, r"\(1, 3, H, W\)"), ([1, 3, "h", "w"], "DOUBLE", "double"), ([3, "h", "w"], None, "h")],
)
def test_onnx_with_another_input_is_refused(tmp_path, shape, kind, said):
    path = write_onnx(tmp_path / "other.onnx", shape, kind=kind and getattr(onnx.TensorProto, kind))
    with pytest.raises(InputError, match=said):
        open_method(path)


def test_wrong_outputs_are_named(tmp_path):
    smaller = write_onnx(tmp_path / "smaller.onnx", [1, 3, "h", "w"], node="AveragePool", out=[1, 3, "i", "j"])
    with pytest.raises(KithkinError, match=r"smaller.onnx on a.png: .*\(1, 3, 16, 16\)"):
        run_method(open_method(smaller), clean(), picture="a.png")
    log = write_onnx(tmp_path / "log.onnx", [1, 3, "h", "w"], node="Log")
    with pytest.raises(KithkinError, match=r"log.onnx on b.png: .*NaN"):
        run_method(open_method(log), clean() - 1, picture="b.png")

    class Flat:
        name, needs_sigma = "flat", False

        def __call__(self, image, *, sigma=None):
            return image[..., 0]

    with pytest.raises(KithkinError, match=r"flat on c.png: .*\(32, 32\)"):
        run_method(Flat(), clean(), picture="c.png")


def test_wrong_requests_are_refused(tmp_path):
    for spec, kind in {
        "bm4d": InputError,
        tmp_path / "no.safetensors": InputError,
        tmp_path / "no.onnx": CheckpointError,
        tmp_path / "no.pt": CheckpointError,
    }.items():
        with pytest.raises(kind):
            open_method(spec)
    for name in ("text.onnx", "text.pt", "text.safetensors"):
        (tmp_path / name).write_text("no network")
        with pytest.raises(CheckpointError, match=name):
            open_method(tmp_path / name)
    torch.save({"weights": torch.zeros(3)}, tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match="weights alone"):
        open_method(tmp_path / "weights.pt")
    method = open_method("input")
    for image in (clean()[..., 0], clean().astype(np.float64), clean()[:0]):
        with pytest.raises(InputError, match="float32"):
            run_method(method, image)
    for sigma in (-1, 256, float("nan")):
        with pytest.raises(InputError, match="0-255"):
            run_method(method, clean(), sigma=sigma)


@pytest.mark.parametrize(
    ("spec", "package", "extra"),
    [("bm3d", "bm3d", "bm3d"), ("nlm", "skimage.restoration", "eval"), ("net.onnx", "onnxruntime", "eval")],
)
def test_a_missing_package_is_named_with_the_install_line(monkeypatch, spec, package, extra):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(KithkinError, match=rf'pip install "kithkin\[{extra}\]"'):
        open_method(spec)


def peak_memory():
    """The most bytes that this process held since the last call."""
    held = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    Path("/proc/self/clear_refs").write_text("5")
    return int(held.split()[1]) * 1024


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_a_few_bytes_of_onnx_do_not_ask_for_gigabytes_when_they_are_opened(tmp_path):
    from onnx import TensorProto, helper

    sides = helper.make_tensor("sides", TensorProto.INT64, [1], [2**28])
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, "h", "w"]) for name in "xy")
    nodes = [
        helper.make_node("ConstantOfShape", ["sides"], ["zeros"]),
        helper.make_node("ReduceMax", ["zeros"], ["most"], keepdims=0),
        helper.make_node("Add", ["x", "most"], ["y"]),
    ]
    graph = helper.make_graph(nodes, "g", [x], [y], initializer=[sides])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, str(tmp_path / "few.onnx"))
    peak_memory()
    before = peak_memory()
    open_method(tmp_path / "few.onnx")
    assert peak_memory() - before < 2**28


def test_onnx_of_a_fixed_size_beyond_any_picture_is_refused(tmp_path):
    path = write_onnx(tmp_path / "vast.onnx", [1, 3, 100000, 64])
    with pytest.raises(InputError, match="64 x 100000 pixels alone"):
        open_method(path)


def test_programs_are_announced_before_their_code_runs(tmp_path, scripted, monkeypatch):
    said = []
    monkeypatch.setattr(torch.jit, "load", lambda *args, **options: said.append("loaded") or Strict())
    open_method(scripted, note=said.append)
    assert said == [
        "strict.pt: opening this file runs the code in it, with your rights; open only files that you trust",
        "loaded",
    ]


@pytest.mark.parametrize("name", ["bomb.pt", "bomb.pt2"])
def test_an_archive_that_unpacks_to_far_more_than_its_size_is_refused(tmp_path, name):
    with zipfile.ZipFile(tmp_path / name, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("bomb/data.pkl", bytes(70_000_000))
    with (
        pytest.raises(CheckpointError, match=r"unpack to 70000000, which no network needs"),
        pytest.warns(match="trust"),
    ):
        open_method(tmp_path / name)
