"""The weights that ship, their cards, and what happens when a file is not what its card says."""

import hashlib
import shutil
from pathlib import Path

import pytest
import torch

from kithkin import zoo
from kithkin.checkpoint import save_model
from kithkin.errors import CheckpointError, InputError
from kithkin.images import read_picture
from kithkin.metrics import psnr
from kithkin.model import KiT, KiTConfig
from kithkin.ops import available_backends

MODELS = list(zoo.list_models())
EXAMPLE = Path(__file__).parent.parent / "examples" / "dog-noisy.png"


def test_a_denoiser_ships():
    assert zoo.find_model("denoise") is not None
    assert sum(card.default for card in zoo.list_models().values() if card.task == "denoise") == 1


@pytest.mark.parametrize("name", MODELS)
def test_shipped_weights_are_sound(name):
    card = zoo.list_models()[name]
    assert card.name == name
    assert card.path.stat().st_size < 8e6
    model = zoo.load_model(name)
    assert not model.training
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in model.parameters())
    assert card.sources
    assert card.measured


def test_a_task_names_its_default():
    by_task, by_name = zoo.load_model("denoise"), zoo.load_model(zoo.find_model("denoise").name)
    assert all(torch.equal(a, b) for a, b in zip(by_task.parameters(), by_name.parameters(), strict=True))


def test_denoiser_removes_noise_from_a_picture_it_can_not_know():
    rows, columns = torch.meshgrid(torch.arange(96.0), torch.arange(96.0), indexing="ij")
    clean = torch.stack([(rows / 13).sin(), (columns / 17).cos(), ((rows + columns) / 23).sin()]) * 0.3 + 0.5
    noisy = clean + torch.randn(clean.shape, generator=torch.Generator().manual_seed(0)) * (25 / 255)
    with torch.inference_mode():
        restored = zoo.load_model("denoise")(noisy[None])[0]
    assert (restored - clean).square().mean() < (noisy - clean).square().mean() / 10


def test_shipped_weights_restore_alike_on_every_backend():
    """A noisy photograph, large enough that patches are hashed in every stage but the bottleneck."""
    noisy = read_picture(EXAMPLE).pixels[100:260, 200:360]
    image = torch.from_numpy(noisy.copy()).permute(2, 0, 1)[None]
    model = zoo.load_model("denoise")
    with torch.inference_mode():
        truth = model.set_backend("reference")(image)
        for name, reason in available_backends().items():
            if reason is None and name != "triton":  # its interpreter takes minutes
                assert psnr(model.set_backend(name)(image), truth, protocol="rgb") > 70, name


def test_a_path_is_taken_as_a_checkpoint(tmp_path):
    path = tmp_path / "own.safetensors"
    save_model(KiT(KiTConfig(width=8, depth=1)), path)
    assert zoo.load_model(path).config.width == 8


def test_an_unknown_name_is_refused_with_those_there_are():
    with pytest.raises(CheckpointError, match="denoise-tiny"):
        zoo.load_model("denoize")


def test_a_damaged_weight_file_is_refused(tmp_path, monkeypatch):
    card = zoo.find_model("denoise")
    for ending in ("toml", "safetensors"):
        shutil.copy(card.path.with_suffix(f".{ending}"), tmp_path)
    monkeypatch.setattr(zoo, "_folder", lambda: tmp_path)
    assert zoo.load_model("denoise")
    copy = tmp_path / card.path.name
    data = bytearray(copy.read_bytes())
    data[-1] ^= 1
    copy.write_bytes(data)
    with pytest.raises(CheckpointError, match=hashlib.sha256(data).hexdigest()):
        zoo.load_model("denoise")
    copy.unlink()
    with pytest.raises(CheckpointError, match="missing"):
        zoo.load_model("denoise")


def test_a_card_with_an_unknown_key_is_refused(tmp_path, monkeypatch):
    card = zoo.find_model("denoise")
    text = card.path.with_suffix(".toml").read_text(encoding="utf-8")
    (tmp_path / "x.toml").write_text('colour = "blue"\n' + text, encoding="utf-8")
    monkeypatch.setattr(zoo, "_folder", lambda: tmp_path)
    with pytest.raises(InputError, match="colour"):
        zoo.list_models()
