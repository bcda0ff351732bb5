"""The Python API: what goes in comes out, whatever holds the picture; and what importing it costs."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import kithkin
from kithkin import blending, load_model
from kithkin.errors import ImageError, InputError
from kithkin.images import Picture, read_picture, write_picture
from kithkin.model import KiT
from kithkin.model_config import KiTConfig
from kithkin.restoration import restore

RNG = np.random.default_rng(5)


def changing_network():
    model = KiT(KiTConfig(width=8, depth=1, n_hashes=1, n_stages=1)).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model


MODEL = changing_network()


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32", "float64"])
@pytest.mark.parametrize("channels", [1, 2, 4])
def test_gray_and_alpha_channels_of_arrays(dtype, channels):
    top = np.iinfo(dtype).max if np.dtype(dtype).kind == "u" else 1
    image = (RNG.random((9, 13, channels)) * top).astype(dtype)
    result = restore(MODEL, image)
    assert (result.shape, result.dtype) == (image.shape, image.dtype)
    if channels == 4:
        np.testing.assert_array_equal(result[..., :3], restore(MODEL, image[..., :3]))
    else:
        np.testing.assert_array_equal(result[..., 0], restore(MODEL, image[..., 0]))
    if channels != 1:
        np.testing.assert_array_equal(result[..., -1], image[..., -1])
    assert (result[..., 0] != image[..., 0]).any()
    assert result.flags.c_contiguous


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("lead", [(), (2,)])
def test_gray_and_alpha_channels_of_tensors(dtype, channels, lead):
    values = torch.rand(*lead, channels, 9, 13, generator=torch.Generator().manual_seed(3))
    image = (values if dtype.is_floating_point else values * torch.iinfo(dtype).max).to(dtype)
    result = restore(MODEL, image)
    assert (result.shape, result.dtype, result.device) == (image.shape, dtype, image.device)
    if channels == 4:
        assert torch.equal(result[..., 3, :, :], image[..., 3, :, :])
        assert torch.equal(result[..., :3, :, :], restore(MODEL, image[..., :3, :, :].clone()))
    if channels == 1:  # as an array of the same values
        first = image.reshape(-1, 9, 13)[0].numpy()
        if dtype != torch.float16:
            np.testing.assert_array_equal(result.reshape(-1, 9, 13)[0].numpy(), restore(MODEL, first))
    assert not torch.equal(result, image)


@pytest.mark.parametrize("kind", [str, Path])
def test_a_path_gives_the_path_of_the_result(tmp_path, kind):
    pixels = RNG.random((12, 15, 3), dtype=np.float32)
    write_picture(Picture(pixels, depth=16, alpha=np.full((12, 15), 0.5, np.float32)), tmp_path / "photo.png")
    before = (tmp_path / "photo.png").read_bytes()
    steps = []
    result = restore(MODEL, kind(tmp_path / "photo.png"), strength=0.5, progress=steps.append)
    assert type(result) is type(kind(tmp_path))
    assert Path(result) == tmp_path / "photo-restored.png"
    assert (tmp_path / "photo.png").read_bytes() == before
    picture = read_picture(result)
    assert picture.depth == 16
    assert picture.alpha is not None
    wanted = restore(MODEL, read_picture(tmp_path / "photo.png"), strength=0.5)
    np.testing.assert_allclose(picture.pixels, wanted.pixels, atol=0.51 / 65535)
    assert steps[-1] == 1.0
    with pytest.raises(ImageError, match="exists already"):
        restore(MODEL, kind(tmp_path / "photo.png"))


def test_paths_that_are_no_pictures(tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(ImageError, match=r"text\.png"):
        restore(MODEL, tmp_path / "text.png")
    with pytest.raises(ImageError, match=r"none\.png"):
        restore(MODEL, str(tmp_path / "none.png"))
    with pytest.raises(InputError, match="is a folder"):
        restore(MODEL, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["text.png"]


@pytest.mark.parametrize(("task", "preset"), [("denoise", "natural"), ("derain", "strong"), ("deblur", "strong")])
def test_a_task_is_restoring_with_its_model(task, preset):
    image = RNG.integers(0, 256, (24, 33, 3), dtype=np.uint8)
    function = getattr(kithkin, task)
    found = function(image, device="cpu", strength=0.75)
    wanted = restore(kithkin.load_model(task), image, strength=0.75, preset=preset)
    np.testing.assert_array_equal(found, wanted)
    assert function(Image.fromarray(image[..., 0]), device="cpu").mode == "L"
    with pytest.raises(InputError, match="strength"):
        function(image, strength=2)


def test_denoise_removes_noise_and_reads_the_weights_once(monkeypatch):
    import kithkin.tasks

    y, x = np.mgrid[:64, :64] / 64
    clean = np.stack([0.3 + 0.4 * x, 0.6 - 0.3 * y, np.where(x > y, 0.8, 0.3)], -1)
    noisy = clean + 25 / 255 * RNG.standard_normal(clean.shape)
    first = kithkin.denoise(noisy, device="cpu")
    assert np.square(first - clean).mean() < np.square(noisy - clean).mean() / 10
    monkeypatch.setattr(kithkin.tasks, "load_model", lambda *a, **k: pytest.fail("the weights were read again"))
    np.testing.assert_array_equal(kithkin.denoise(noisy, device="cpu"), first)


@pytest.mark.parametrize("name", ["denoise-tiny", "deblur-tiny", "denoise-gaussian-tiny[k=2]"])
@pytest.mark.parametrize("default", ["float64", "another device"])
def test_defaults_that_a_caller_set_in_torch_change_nothing(name, default):
    rng = np.random.default_rng(0)
    image = rng.random((9, 10, 3)).repeat(8, 0).repeat(8, 1).astype(np.float32)
    image[:, 4:] = sum(image[:, 4 - i : 80 - i] for i in range(5)) / 5  # for the uniform blur

    def results():
        blending._transform.cache_clear()
        network = load_model(name)
        asked = {"uniform_blur": "stored"} if name == "deblur-tiny" else {"preset": "natural"}
        return [
            restore(network, image[:8], tile=64, overlap=16),
            restore(network, image[:, :72, 0], note=str, **asked),
        ]

    expected = results()
    # The meta device stands in for a GPU.
    torch.set_default_dtype(torch.float64) if default == "float64" else torch.set_default_device("meta")
    try:
        found = results()
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
        blending._transform.cache_clear()
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


def imported_by(code):
    script = f"import json, sys\n{code}\nprint(json.dumps(sorted(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(json.loads(run.stdout.splitlines()[-1]))


def test_importing_the_package_brings_nothing_beyond_the_standard_library():
    """So it costs a small part of what `import torch` costs."""
    new = {name.partition(".")[0] for name in imported_by("import kithkin") - imported_by("")}
    assert new - set(sys.stdlib_module_names) == {"kithkin"}


def test_help_imports_nothing_heavy():
    code = "import io, contextlib\nfrom kithkin.cli import app\n"
    code += "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):\n    app(['--help'])\n"
    heavy = {"torch", "numpy", "PIL", "tifffile", "safetensors", "pydantic", "scipy", "onnx", "onnxruntime"}
    assert not heavy & imported_by(code)


def test_the_type_checker_and_the_runtime_agree_on_the_public_names():
    text = Path(kithkin.__file__).read_text(encoding="utf-8")
    for name, module in kithkin._MODULE_OF.items():
        assert f"{name} as {name}" in text, name
        assert getattr(kithkin, name) is getattr(sys.modules[f"kithkin.{module}"], name)
