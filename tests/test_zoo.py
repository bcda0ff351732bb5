"""The weights that ship, their cards, and what happens when a file is not what its card says."""

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from kithkin import cli, restore, zoo
from kithkin.checkpoint import save_model
from kithkin.config import load_config
from kithkin.data.degrade import noise_example
from kithkin.errors import CheckpointError, InputError
from kithkin.images import read_picture
from kithkin.metrics import psnr
from kithkin.model import KiT
from kithkin.model_config import KiTConfig
from kithkin.names import RENAMED, TASKS, RenamedWarning
from kithkin.ops import available_backends

MODELS = list(zoo.list_models())
EXAMPLE = Path(__file__).parent.parent / "examples" / "dog-noisy.png"


def test_every_task_has_a_default():
    assert {card.task for card in zoo.list_models().values()} == TASKS.keys()
    for task in TASKS:
        assert sum(card.default for card in zoo.list_models().values() if card.task == task) == 1


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


@pytest.mark.parametrize("name", ["denoise-small", "denoise-tiny"])
def test_white_under_the_noise_of_a_file_stays_white(name):
    """A file clips noise, so that the mean of noisy white lies below white. The denoisers have learned that."""
    noisy, _ = noise_example("luminance25", np.ones((64, 64, 3), np.float32), 0)
    assert noisy.max() == 1
    assert 255 * (1 - noisy.mean()) > 9
    restored = restore(zoo.load_model(name), noisy)
    assert 255 * (1 - restored[8:-8, 8:-8].mean()) < 1.5


def test_a_task_names_its_default():
    by_task, by_name = zoo.load_model("denoise-gaussian"), zoo.load_model(zoo.find_model("denoise-gaussian").name)
    assert all(torch.equal(a, b) for a, b in zip(by_task.parameters(), by_name.parameters(), strict=True))


def test_old_names_answer_with_a_note():
    for old, new in RENAMED.items():
        with pytest.warns(RenamedWarning, match=f"{old} is {new} now"):
            assert zoo.find_model(old) == zoo.find_model(new) is not None
    assert not RENAMED.keys() & zoo.list_models().keys()
    with pytest.warns(RenamedWarning, match="denoise-fast"):
        assert load_config("denoise-fast") == load_config("denoise-tiny")
    assert cli._format_warning("said", RenamedWarning, "zoo.py", 1) == "kithkin: said\n"


def test_denoiser_removes_noise_from_a_picture_it_can_not_know():
    rows, columns = torch.meshgrid(torch.arange(96.0), torch.arange(96.0), indexing="ij")
    clean = torch.stack([(rows / 13).sin(), (columns / 17).cos(), ((rows + columns) / 23).sin()]) * 0.3 + 0.5
    noisy = clean + torch.randn(clean.shape, generator=torch.Generator().manual_seed(0)) * (25 / 255)
    with torch.inference_mode():
        restored = zoo.load_model("denoise-gaussian")(noisy[None])[0]
    assert (restored - clean).square().mean() < (noisy - clean).square().mean() / 10


def test_shipped_weights_restore_alike_on_every_backend():
    """A noisy photograph, large enough that patches are hashed in every stage but the bottleneck."""
    noisy = read_picture(EXAMPLE).pixels[100:260, 200:360]
    image = torch.from_numpy(noisy.copy()).permute(2, 0, 1)[None]
    model = zoo.load_model("denoise-gaussian")
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
    with pytest.raises(CheckpointError, match="denoise-gaussian-tiny"):
        zoo.load_model("denoize")


def test_a_damaged_weight_file_is_refused(tmp_path, monkeypatch):
    card = zoo.find_model("denoise-gaussian")
    for ending in ("toml", "safetensors"):
        shutil.copy(card.path.with_suffix(f".{ending}"), tmp_path)
    monkeypatch.setattr(zoo, "_WEIGHTS", tmp_path)
    assert zoo.load_model("denoise-gaussian")
    copy = tmp_path / card.path.name
    data = bytearray(copy.read_bytes())
    data[-1] ^= 1
    copy.write_bytes(data)
    with pytest.raises(CheckpointError, match=hashlib.sha256(data).hexdigest()):
        zoo.load_model("denoise-gaussian")
    copy.unlink()
    with pytest.raises(CheckpointError, match="missing"):
        zoo.load_model("denoise-gaussian")


def test_a_card_with_an_unknown_key_is_refused(tmp_path, monkeypatch):
    card = zoo.find_model("denoise-gaussian")
    text = card.path.with_suffix(".toml").read_text(encoding="utf-8")
    (tmp_path / "x.toml").write_text('colour = "blue"\n' + text, encoding="utf-8")
    monkeypatch.setattr(zoo, "_WEIGHTS", tmp_path)
    with pytest.raises(InputError, match="colour"):
        zoo.list_models()


def test_k_and_h_are_free_at_test_time(tmp_path):
    """The same weights, with the rotations that a network of that k and h has; its name says so."""
    image = torch.rand(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    plain = zoo.load_model("denoise-gaussian")
    random_state = torch.get_rng_state()
    changed = zoo.load_model("denoise-gaussian", k=8, n_hashes=3)
    assert torch.equal(torch.get_rng_state(), random_state)
    named = zoo.open_model("denoise-gaussian[ h=3, k=8]")
    assert (changed.config.k, changed.config.n_hashes) == (8, 3)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), changed.parameters(), strict=True))
    with torch.inference_mode():
        assert torch.equal(changed(image), named.network(image))
        assert not torch.allclose(changed(image), plain(image))
    assert named.name == "denoise-gaussian-tiny[k=8,h=3]"
    assert named.remark == "denoise-gaussian-tiny runs with k = 8 instead of 4, h = 3 instead of 2"
    save_model(changed, tmp_path / "own.safetensors")
    own = zoo.open_model(f"{tmp_path / 'own.safetensors'}[k=8]")
    assert (own.name, own.remark, own.network.config) == ("own.safetensors", None, changed.config)
    assert zoo.open_model(tmp_path / "own.safetensors", n_hashes=2).name == "own.safetensors[h=2]"


def test_a_network_without_attention_has_no_k_and_h(tmp_path):
    path = tmp_path / "plain.safetensors"
    save_model(KiT(KiTConfig(width=8, full_width=4, n_stages=1, blocks="c c c")), path)
    assert zoo.open_model(f"{path}[k=4]").name == "plain.safetensors"  # what its configuration says already
    with pytest.raises(InputError, match="plain.safetensors has no k-NN attention"):
        zoo.load_model(path, n_hashes=1)
    with pytest.raises(InputError, match="no k or h to change"):
        zoo.regrouped(zoo.load_model(path), k=2, n_hashes=2)


def test_a_file_with_brackets_in_its_name_is_itself(tmp_path):
    path = tmp_path / "own[h=8]"
    save_model(KiT(KiTConfig(width=8, depth=1, n_hashes=1)), path)
    assert zoo.load_model(path).config.n_hashes == 1
    assert zoo.load_model(f"{path}[h=2]").config.n_hashes == 2


@pytest.mark.parametrize(
    ("spec", "arguments", "said"),
    [
        ("denoise-gaussian[k=0]", {}, r"denoise-gaussian\[k=0\]: k must be a whole number from 1 to 1048576, got 0"),
        ("denoise-gaussian[h=257]", {}, "h must be a whole number from 1 to 256, got 257"),
        ("denoise-gaussian", {"n_hashes": -1}, "h must be .* got -1"),
        ("denoise-gaussian", {"k": 2.0}, "k must be .* got 2.0"),
        ("denoise-gaussian", {"k": True}, "k must be .* got True"),
        ("denoise-gaussian[h=2]", {"n_hashes": 2}, "an argument does too"),
        ("denoise-gaussian[h=two]", {}, "got 'h=two'"),
        ("denoise-gaussian[k=4,k=8]", {}, "got 'k=8'"),
        ("denoise-gaussian[m=4]", {}, r"such as denoise-gaussian\[k=8,h=2\], got 'm=4'"),
        ("denoise-gaussian[]", {}, "got ''"),
    ],
)
def test_a_k_or_h_that_can_not_be_is_refused(spec, arguments, said):
    with pytest.raises(InputError, match=said):
        zoo.load_model(spec, **arguments)


def test_an_unknown_name_with_brackets_is_refused_as_one_without():
    with pytest.raises(CheckpointError, match="^denoize is neither a model"):
        zoo.load_model("denoize[h=2]")
