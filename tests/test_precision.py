"""The precision that a network restores in: what is chosen, what it costs, what is said, and what is put back."""

import json
import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from torch import nn
from typer.testing import CliRunner

from kithkin.checkpoint import save_model
from kithkin.cli.restore import restore as restore_command
from kithkin.cluster import Task
from kithkin.cluster._together import restore_together
from kithkin.cluster._worker import Worker, WorkerConfig
from kithkin.errors import InputError
from kithkin.images import Picture
from kithkin.methods import ModelMethod, open_method
from kithkin.metrics import psnr
from kithkin.model import KiT
from kithkin.model_config import KiTConfig
from kithkin.precision import settled_precision
from kithkin.restoration import restore
from kithkin.restore_files import Job, RestoreOptions, restore_files
from kithkin.tasks import denoise

app = typer.Typer()
app.command("restore")(restore_command)


def network(seed=0, **config):
    """A small network with random weights, whose residual is a fraction of the picture."""
    model = KiT(KiTConfig(**config)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
        for parameter in model.head.conv3.parameters():
            parameter *= 0.05
    return model


GATED = network(width=16, n_stages=1, blocks="g g g", full_width=8)
QUIET = {"note": lambda sentence: None}  # of machines that don't multiply bfloat16
PAPER = network(width=8, depth=1, n_hashes=1)
IMAGE = 0.3 + 0.4 * torch.rand(3, 40, 52, generator=torch.Generator().manual_seed(1))


@pytest.fixture(params=[True, False], ids=["multiplied", "not multiplied"])
def able(request, monkeypatch):
    monkeypatch.setattr("kithkin.precision.multiplies_bfloat16", lambda device: request.param)
    return request.param


def in_float32(model, image=IMAGE):
    with torch.inference_mode():
        return model(image[None])[0].clamp(0, 1)


def in_bfloat16(model, image=IMAGE):
    with torch.autocast("cpu", torch.bfloat16):
        return in_float32(model, image)


# What is chosen


def test_auto_is_bfloat16_where_the_device_multiplies_it_and_the_network_has_blocks(able):
    expected = "bfloat16" if able else "float32"
    assert (settled_precision("auto", GATED), settled_precision("auto", PAPER)) == (expected, "float32")
    assert torch.equal(restore(GATED, IMAGE), (in_bfloat16 if able else in_float32)(GATED))
    assert torch.equal(restore(PAPER, IMAGE), in_float32(PAPER))
    assert not torch.equal(in_bfloat16(GATED), in_float32(GATED))


def test_the_device_that_is_asked_about_is_the_networks(monkeypatch):
    monkeypatch.setattr("kithkin.precision.multiplies_bfloat16", lambda device: torch.device(device).type == "cuda")
    assert settled_precision("auto", GATED) == "float32"
    assert settled_precision("auto", GATED, "cuda") == "bfloat16"


@pytest.mark.parametrize("model", [GATED, PAPER], ids=["gated", "paper"])
def test_what_is_asked_for_is_taken(model):
    half = restore(model, IMAGE, precision="bfloat16", **QUIET)
    assert half.dtype == torch.float32
    assert torch.equal(half, in_bfloat16(model))
    assert torch.equal(restore(model, IMAGE, precision="float32"), in_float32(model))


def test_weights_that_are_not_float32_keep_their_type():
    model = network(width=8, depth=1, n_hashes=1).bfloat16()
    assert settled_precision("auto", model) == settled_precision("bfloat16", model) == "bfloat16"
    with torch.inference_mode():
        want = model(IMAGE[None].bfloat16())[0].float().clamp(0, 1)
    assert torch.equal(restore(model, IMAGE), want)
    with pytest.raises(InputError, match="needs weights in float32, these are in bfloat16"):
        restore(model, IMAGE, precision="float32")
    assert settled_precision("auto", model.double()) == "float64"


@pytest.mark.parametrize("precision", ["half", "BFLOAT16", None, torch.bfloat16])
def test_other_precisions_are_refused(precision):
    for call in (
        lambda: restore(GATED, IMAGE, precision=precision),
        lambda: restore(GATED, IMAGE, precision=precision, strength=0),
        lambda: denoise(IMAGE, precision=precision),
        lambda: RestoreOptions(precision=precision),
        lambda: open_method("input", precision=precision),
    ):
        with pytest.raises(InputError, match="precision must be one of auto, float32, bfloat16, got "):
            call()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_network_that_cleans_computes_as_the_one_that_deblurs(monkeypatch, precision):
    monkeypatch.setattr("kithkin.deconvolution.removal._cleaner", lambda device: PAPER)
    composed = RestoreOptions(uniform_blur="light", precision=precision).compose(GATED, **QUIET)
    cleaner = composed.cleaner.restorer
    assert (cleaner.model, cleaner.precision) == (PAPER, precision)


# What it costs


@pytest.mark.parametrize("seed", range(3))
def test_the_loss_is_what_8_bits_allow(seed):
    """Each layer rounds what it makes to 8 bits, by at most 2⁻⁹ of it; at the worst, the errors of all layers add."""
    model = network(seed, width=16, n_stages=1, blocks="g g g", full_width=8)
    layers = sum(isinstance(layer, nn.Conv2d | nn.Linear) for layer in model.modules())
    whole, half = restore(model, IMAGE, precision="float32"), restore(model, IMAGE, precision="bfloat16", **QUIET)
    residual = (whole - IMAGE).square().mean().sqrt().item()
    found = psnr(half.permute(1, 2, 0).numpy(), whole.permute(1, 2, 0).numpy(), protocol="rgb")
    assert -20 * math.log10(layers * 2**-9 * residual) < found < -20 * math.log10(2**-12 * residual)


# What is put back


def test_autocast_is_as_it_was_and_changes_nothing():
    want = in_float32(GATED), in_bfloat16(GATED)
    restore(GATED, IMAGE, precision="bfloat16", **QUIET)
    assert not torch.is_autocast_enabled("cpu")
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(restore(GATED, IMAGE, precision="float32"), want[0])
        assert torch.equal(restore(GATED, IMAGE, precision="bfloat16", **QUIET), want[1])
        assert torch.is_autocast_enabled("cpu")
        assert torch.is_autocast_cache_enabled()
        GATED(IMAGE[None]).sum().backward()  # copies of weights, made in inference mode, would have no gradients
    GATED.zero_grad()

    class Broken(KiT):
        def forward(self, image):
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        restore(Broken(GATED.config), IMAGE, precision="bfloat16", **QUIET)
    assert not torch.is_autocast_enabled("cpu")


# What is said and recorded

SLOW = "precision bfloat16 on cpu, which has no instructions for its products, and takes about 10 times as long"


def test_bfloat16_that_is_slow_is_said_where_it_was_asked_for(able):
    said = []
    restore(GATED, IMAGE, precision="bfloat16", note=said.append)
    assert [sentence.startswith(SLOW) for sentence in said] == ([] if able else [True])
    for precision in ("auto", "float32"):
        restore(GATED, IMAGE, precision=precision, note=said.append)
    restore(GATED, IMAGE, precision="bfloat16", strength=0, note=said.append)
    assert len(said) == int(not able)
    if not able:
        with pytest.warns(UserWarning, match="about 10 times as long as in float32; use auto or float32"):
            restore(GATED, IMAGE, precision="bfloat16")


def test_files_are_restored_in_it_and_the_record_says_so(able, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_model(GATED, "gated.safetensors")
    pixels = np.rint(IMAGE.permute(1, 2, 0).numpy() * 255).astype(np.uint8)
    for name in "abcde":
        Image.fromarray(pixels).save(f"{name}.png")
    results = {}
    for precision in ("auto", "float32", "bfloat16"):
        given = ["-o", precision, "--precision", precision, "--json", "-m", "gated.safetensors", "--device", "cpu"]
        found = CliRunner().invoke(app, [*(f"{name}.png" for name in "abcde"), *given])
        assert found.exit_code == 0, found.output
        expected = precision if precision != "auto" else "bfloat16" if able else "float32"
        assert {json.loads(line)["precision"] for line in found.stdout.splitlines()} == {expected}
        assert found.stderr.count(SLOW) == int(precision == "bfloat16" and not able)  # once, of five pictures
        results[precision] = Path(precision, "a-restored.png").read_bytes()
    assert results["auto"] == results["bfloat16" if able else "float32"]
    assert results["float32"] != results["bfloat16"]
    again = CliRunner().invoke(app, ["a.png", "-o", "auto", "--json", "-m", "gated.safetensors", "--device", "cpu"])
    assert json.loads(again.stdout)["precision"] is None  # skipped
    refused = CliRunner().invoke(app, ["a.png", "--precision", "half"])
    assert refused.exit_code == 2
    assert "--precision must be one of auto, float32, bfloat16, got 'half'" in refused.stderr


@pytest.mark.filterwarnings("ignore:precision bfloat16")  # of a CPU that has no instructions for it
def test_paths_and_tasks_pass_it_on(tmp_path, monkeypatch):
    pixels = np.rint(IMAGE.permute(1, 2, 0).numpy() * 255).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    want = restore(GATED, pixels, precision="bfloat16", preset="natural", **QUIET)
    monkeypatch.setattr("kithkin.tasks._network", lambda task, device: GATED)
    path = denoise(tmp_path / "a.png", device="cpu", precision="bfloat16")
    np.testing.assert_array_equal(np.asarray(Image.open(path)), want)
    assert not np.array_equal(denoise(pixels, device="cpu", precision="float32"), want)


def test_a_worker_gives_the_bytes_of_restore_files_in_the_precision_that_it_is_told(tmp_path, monkeypatch):
    for name in "ab":
        Image.fromarray(np.rint(IMAGE.permute(1, 2, 0).numpy() * 255).astype(np.uint8)).save(tmp_path / f"{name}.png")
    monkeypatch.setattr("kithkin.cluster._worker.torch.set_num_threads", lambda count: None)
    both = torch.stack([IMAGE, IMAGE.flip(2)])
    pictures = [Picture(image.permute(1, 2, 0).contiguous().numpy()) for image in both]
    for precision, run in (("float32", in_float32), ("bfloat16", in_bfloat16)):
        options, out = RestoreOptions(precision=precision, overwrite=True), tmp_path / f"{precision}.png"
        (outcome,) = restore_files(GATED, [Job(tmp_path / "a.png", out)], options=options)
        assert outcome.precision == precision
        want = out.read_bytes()
        task = Task(str(tmp_path / "b.png"), str(out))
        (found,) = Worker(GATED, WorkerConfig(options, "cpu", 1)).restore([task])
        assert found.status == "written"
        assert out.read_bytes() == want
        together = restore_together(GATED, pictures, RestoreOptions(precision=precision))
        expected = run(lambda image: GATED(both)[1:], both[1])
        np.testing.assert_array_equal(together[1].pixels, expected.permute(1, 2, 0).numpy())


def test_a_method_is_float32_unless_asked_and_its_name_says_otherwise(able, tmp_path):
    save_model(GATED, tmp_path / "gated.safetensors")
    plain, half, auto = (
        open_method(tmp_path / "gated.safetensors", **way)
        for way in ({}, {"precision": "bfloat16"}, {"precision": "auto"})
    )
    assert (plain.name, half.name) == ("gated.safetensors", "gated.safetensors (bfloat16)")
    assert plain.identity != half.identity
    assert (auto.name, auto.identity) == ((half if able else plain).name, (half if able else plain).identity)
    assert plain.identity == ModelMethod(plain.model).identity
    image = IMAGE.permute(1, 2, 0).contiguous().numpy()
    np.testing.assert_array_equal(plain(image), in_float32(plain.model).permute(1, 2, 0).numpy())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        np.testing.assert_array_equal(half(image), in_bfloat16(half.model).permute(1, 2, 0).numpy())
