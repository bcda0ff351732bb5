"""kithkin inside other programs: spandrel, the Hugging Face Hub, ComfyUI."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from kithkin.checkpoint import read_tensors, save_model, write_tensors
from kithkin.errors import CheckpointError, KithkinError
from kithkin.model import KiT
from kithkin.model_config import KiTConfig
from kithkin.restoration import restore
from kithkin.zoo import find_model, list_models, load_model

ROOT = Path(__file__).parent.parent
# No value is the default's but those of the other kind of network, and few can be told from the shapes of the weights.
UNUSUAL = KiTConfig(
    width=8,
    n_stages=2,
    depth=1,
    ffn_ratio=1.5,
    stem_stride=1,
    share_query_key=True,
    patch_size=2,
    k=3,
    n_hashes=2,
    n_buckets=6,
    n_heads=2,
    weighting="paper",
    hash_input="query",
    hash_features="centered",
    rotation_seed=7,
)


def changed(model):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "unusual.safetensors"
    save_model(changed(KiT(UNUSUAL)), path)
    return path


def test_every_choice_can_be_read_from_the_tensors_alone(checkpoint):
    from kithkin.integrations.spandrel import detect, read_state

    chosen = {key: value for key, value in UNUSUAL.to_dict().items() if key not in ("blocks", "full_width")}
    assert all(value != getattr(KiTConfig(), key) for key, value in chosen.items())
    tensors, _ = read_tensors(checkpoint)
    assert detect(tensors)
    config, weights = read_state(tensors)
    assert config == UNUSUAL
    assert weights.keys() == KiT(UNUSUAL).state_dict().keys()


@pytest.mark.parametrize("name", list_models())
def test_shipped_weights_are_known_without_their_header(name):
    from kithkin.integrations.spandrel import read_state

    card = list_models()[name]
    config, weights = read_state(read_tensors(card.path)[0])
    assert config == load_model(name).config
    weights["head.conv3.bias"] = weights["head.conv3.bias"] + 1
    with pytest.raises(CheckpointError, match="save_model"):
        read_state(weights)


def test_checkpoints_without_the_tensor_are_read_as_before(checkpoint, tmp_path):
    tensors, header = read_tensors(checkpoint)
    del tensors["kithkin.config"]
    write_tensors(tensors, tmp_path / "old.safetensors", header)
    found, wanted = (load_model(path).state_dict() for path in (tmp_path / "old.safetensors", checkpoint))
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[key], wanted[key]) for key in found)


def test_a_damaged_configuration_is_named(checkpoint):
    from kithkin.integrations.spandrel import read_state

    tensors, _ = read_tensors(checkpoint)
    tensors["kithkin.config"] = tensors["kithkin.config"][:-3]
    with pytest.raises(CheckpointError, match=r"kithkin\.config"):
        read_state(tensors)


WITH_SPANDREL = """
import importlib.util, sys, types
if importlib.util.find_spec("torchvision") is None:
    # spandrel imports three names of torchvision for two architectures that are not ours; here they stay None.
    for name in ("torchvision", "torchvision.transforms", "torchvision.transforms.functional", "torchvision.ops"):
        module = types.ModuleType(name)
        for function in ("rotate", "normalize", "InterpolationMode", "functional"):
            setattr(module, function, None)
        module.__path__ = []
        sys.modules[name] = module
import spandrel, torch
from kithkin import load_model
from kithkin.integrations.spandrel import install
install()
install()
ids = [support.architecture.id for support in spandrel.MAIN_REGISTRY]
assert ids.count("KiT") == 1, ids
for path in sys.argv[1:]:
    found = spandrel.ModelLoader().load_from_file(path)
    assert found.architecture.id == "KiT", found.architecture.id
    assert (found.scale, found.input_channels, found.purpose) == (1, 3, "Restoration")
    model = load_model(path)
    assert found.model.config == model.config
    image = torch.rand(1, 3, 37, 51, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        wanted = model(image).clamp(0, 1)
    assert torch.equal(found(image), wanted)
print("loaded", len(sys.argv) - 1)
"""


def test_spandrel_loads_checkpoints_and_shipped_weights(checkpoint):
    """The real package. Where torchvision is missing, which spandrel imports but our path never calls, a stand-in
    without any function takes its place."""
    if importlib.util.find_spec("spandrel") is None:
        pytest.skip("spandrel is not installed")
    paths = [str(checkpoint), str(list_models()["denoise-gaussian-tiny"].path)]
    run = subprocess.run([sys.executable, "-c", WITH_SPANDREL, *paths], capture_output=True, text=True)
    if "ModuleNotFoundError" in run.stderr and "kithkin" not in run.stderr.splitlines()[-1]:
        pytest.skip(f"spandrel can't be imported: {run.stderr.splitlines()[-1]}")
    assert run.stdout.strip() == "loaded 2", run.stderr


def test_without_spandrel_the_install_line_is_said(monkeypatch):
    from kithkin.integrations.spandrel import install

    monkeypatch.setitem(sys.modules, "spandrel", None)
    with pytest.raises(KithkinError, match="pip install spandrel"):
        install()


def test_a_folder_for_the_hub(tmp_path):
    pytest.importorskip("huggingface_hub")
    from kithkin.integrations.hub import HubKiT

    model = changed(KiT(UNUSUAL))
    HubKiT.of(model).save_pretrained(tmp_path / "folder")
    assert {"config.json", "model.safetensors"} <= {path.name for path in (tmp_path / "folder").iterdir()}
    image = torch.rand(3, 20, 30, generator=torch.Generator().manual_seed(0))
    for found in (
        HubKiT.from_pretrained(str(tmp_path / "folder")),
        load_model(tmp_path / "folder/model.safetensors"),
    ):
        assert found.config == UNUSUAL
        assert not found.training
        assert torch.equal(restore(found, image), restore(model, image))


def test_without_huggingface_hub_the_install_line_is_said(monkeypatch):
    from kithkin.integrations import hub

    hub._hub_class.cache_clear()
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(KithkinError, match=r"kithkin\[hub\]"):
        hub.HubKiT  # noqa: B018
    with pytest.raises(AttributeError):
        hub.Other  # noqa: B018


def test_the_node_for_comfyui():
    spec = importlib.util.spec_from_file_location("kithkin_node", ROOT / "examples/comfyui/__init__.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (node,) = module.NODE_CLASS_MAPPINGS.values()
    assert module.NODE_DISPLAY_NAME_MAPPINGS.keys() == module.NODE_CLASS_MAPPINGS.keys()
    models, first = node.INPUT_TYPES()["required"]["model"]
    assert models == sorted(list_models())
    assert first["default"] == find_model("denoise").name
    for channels in (3, 4):
        images = torch.rand(2, 20, 33, channels, generator=torch.Generator().manual_seed(0))
        defaults = {key: kind[1]["default"] for key, kind in node.INPUT_TYPES()["required"].items() if len(kind) > 1}
        (found,) = getattr(node(), node.FUNCTION)(image=images, **{**defaults, "model": "denoise-gaussian-tiny"})
        assert (found.shape, found.dtype) == (images.shape, torch.float32)
        for before, after in zip(images.numpy(), found.numpy(), strict=True):
            np.testing.assert_array_equal(after, restore(load_model("denoise-gaussian-tiny"), before))
        amounts = {"luma": 0.3, "chroma": 0.8, "strength": 0.5}
        arguments = {"image": images[:1], **defaults, "model": "denoise-gaussian-tiny", **amounts}
        (found,) = getattr(node(), node.FUNCTION)(**arguments)
        wanted = restore(load_model("denoise-gaussian-tiny"), images[0].numpy(), **amounts)
        np.testing.assert_array_equal(found[0].numpy(), wanted)
