"""Checkpoints: what is written comes back bit for bit, and what can't be read says so."""

import json
import os
import pickle
import struct
import time
import tracemalloc

import pytest
import torch
import torch._dynamo  # a dispatch mode imports it, and its memory is not what is measured here
from safetensors.torch import safe_open, save, save_file
from torch.utils._python_dispatch import TorchDispatchMode

import kithkin.checkpoint
from kithkin.checkpoint import (
    CONFIG_TENSOR,
    FORMAT,
    config_of,
    read_model,
    read_tensors,
    save_model,
    weights_of,
    write_tensors,
)
from kithkin.errors import CheckpointError
from kithkin.model import KiT
from kithkin.model_config import KiTConfig

CHOICES = [{}, {"share_query_key": True}, {"n_heads": 2, "weighting": "paper"}, {"n_buckets": 8, "rotation_seed": 7}]


def network(seed=0, **choices):
    torch.manual_seed(seed)
    model = KiT(KiTConfig(**{"width": 8, "depth": 1, "n_hashes": 1, "n_stages": 1, **choices}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    return model


def header_of(path):
    with safe_open(str(path), "pt") as file:
        return file.metadata()


def bits(tensor):
    return tensor.detach().contiguous().view(torch.uint8)


def same_bits(first, second):
    return first.keys() == second.keys() and all(
        first[name].dtype == second[name].dtype and torch.equal(bits(first[name]), bits(second[name])) for name in first
    )


# There and back


@pytest.mark.parametrize("choices", CHOICES, ids=str)
def test_a_network_comes_back_bit_for_bit(tmp_path, choices):
    model = network(**choices)
    save_model(model, tmp_path / "a.safetensors")
    again = read_model(tmp_path / "a.safetensors")
    assert same_bits(again.state_dict(), model.state_dict())
    assert again.config == model.config
    image = torch.rand(1, 3, 37, 41)
    assert torch.equal(again(image), model.eval()(image))  # the rotations too


def test_odd_numbers_come_back_bit_for_bit(tmp_path):
    model = network()
    odd = torch.tensor([-0.0, 1e-45, -1e-40, 3.4e38, float("inf"), float("-inf"), float("nan"), 1 / 3])
    model.stem.conv1.bias.data = odd.clone()
    save_model(model, tmp_path / "a.safetensors")
    assert torch.equal(bits(read_model(tmp_path / "a.safetensors").stem.conv1.bias), bits(odd))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_network_in_half_the_bytes(tmp_path, dtype):
    model = network()
    save_model(model, tmp_path / "whole.safetensors")
    save_model(model, tmp_path / "half.safetensors", dtype=dtype)
    stored, _ = read_tensors(tmp_path / "half.safetensors")
    assert same_bits(weights_of(stored), {name: x.to(dtype) for name, x in model.state_dict().items()})
    again = read_model(tmp_path / "half.safetensors")
    assert same_bits(again.state_dict(), {name: x.to(dtype).float() for name, x in model.state_dict().items()})
    sizes = [(tmp_path / name).stat().st_size for name in ("half.safetensors", "whole.safetensors")]
    assert sizes[0] < 0.6 * sizes[1]
    assert {p.dtype for p in model.parameters()} == {torch.float32}  # the network itself stays as it was


def test_half_the_bytes_written_again_are_the_same(tmp_path):
    save_model(network(), tmp_path / "a.safetensors", dtype=torch.float16)
    save_model(read_model(tmp_path / "a.safetensors"), tmp_path / "b.safetensors", dtype=torch.float16)
    (first, header), (second, header_again) = (read_tensors(tmp_path / f"{name}.safetensors") for name in "ab")
    assert same_bits(first, second)
    assert header == header_again


def test_the_same_network_makes_the_same_file(tmp_path):
    """Byte for byte: what ships is named by its digest, and whoever writes it again must get that digest."""
    metadata = {"task": "denoise", "step": 3, "seconds": 1.5, "data": ["a", "b"]}
    contents = set()
    for _ in range(6):
        save_model(network(), tmp_path / "a.safetensors", metadata=metadata)
        contents.add((tmp_path / "a.safetensors").read_bytes())
    assert len(contents) == 1


def test_what_is_read_is_ready_to_use(tmp_path):
    model = network().train()
    save_model(model, tmp_path / "a.safetensors")
    again = read_model(str(tmp_path / "a.safetensors"))
    assert model.training
    assert not any(module.training for module in again.modules())
    assert {p.dtype for p in again.parameters()} == {torch.float32}
    assert {p.device.type for p in again.parameters()} == {"cpu"}


def test_the_configuration_travels_in_the_header(tmp_path):
    model = network(n_heads=2, weighting="paper")
    save_model(model, tmp_path / "a.safetensors", metadata={"task": "denoise", "seen": [1, 2.5, None]})
    header = header_of(tmp_path / "a.safetensors")
    assert header["format"] == FORMAT
    assert json.loads(header["config"]) == model.config.to_dict()
    assert json.loads(header["task"]) == "denoise"
    assert json.loads(header["seen"]) == [1, 2.5, None]


def test_a_network_in_training_rotations_is_read_with_the_fixed_ones(tmp_path):
    model, image = network(k=2).eval(), torch.rand(1, 3, 48, 48)
    expected = model(image)
    model.redraw_rotations(torch.Generator().manual_seed(1))
    save_model(model, tmp_path / "a.safetensors")
    assert torch.equal(read_model(tmp_path / "a.safetensors")(image), expected)


def test_tensors_of_any_kind_come_back(tmp_path):
    tensors = {"a": torch.arange(6).view(2, 3).t(), "b": torch.zeros(0, 3), "c": torch.tensor(1.5, dtype=torch.float64)}
    write_tensors(tensors, tmp_path / "x.safetensors", {"note": "ünïcode"})
    found, header = read_tensors(tmp_path / "x.safetensors")
    assert header == {"note": "ünïcode"}
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) and found[name].dtype == tensors[name].dtype for name in tensors)


def test_reading_leaves_the_global_random_state_alone(tmp_path):
    save_model(network(), tmp_path / "a.safetensors")
    before = torch.get_rng_state()
    read_model(tmp_path / "a.safetensors")
    assert torch.equal(torch.get_rng_state(), before)


# What can't be read


def refused(path):
    with pytest.raises(CheckpointError) as caught:
        read_model(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_a_missing_file(tmp_path):
    assert "no such file" in refused(tmp_path / "a.safetensors")


def test_a_folder(tmp_path):
    refused(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"abc",
        b"\x00" * 8,
        b"\xff" * 64,
        b"<html>404</html>" * 9,
        pickle.dumps({"a": 1}),
        struct.pack("<Q", 2) + b"[]",
    ],
    ids=["empty", "3 bytes", "zeros", "ones", "html", "pickle", "a list"],
)
def test_a_file_of_something_else(tmp_path, content):
    (tmp_path / "a.safetensors").write_bytes(content)
    refused(tmp_path / "a.safetensors")


def test_a_file_of_torch_save(tmp_path):
    torch.save(network().state_dict(), tmp_path / "a.pth")
    refused(tmp_path / "a.pth")


@pytest.mark.parametrize("kept", [1, 7, 8, 9, 500, -1000, -1])
def test_a_truncated_file(tmp_path, kept):
    path = tmp_path / "a.safetensors"
    save_model(network(), path)
    path.write_bytes(path.read_bytes()[:kept])
    refused(path)


def test_a_damaged_header(tmp_path):
    path = tmp_path / "a.safetensors"
    save_model(network(), path)
    content = bytearray(path.read_bytes())
    content[20:40] = b"\xfe" * 20
    path.write_bytes(content)
    refused(path)


@pytest.mark.parametrize("header", [None, {}, {"format": "pt"}, {"format": "kithkin-0"}], ids=str)
def test_safetensors_of_another_make(tmp_path, header):
    save_file({"weight": torch.zeros(3)}, tmp_path / "a.safetensors", metadata=header)
    assert "not a kithkin checkpoint" in refused(tmp_path / "a.safetensors")


def rewritten(path, *, change=None, **header):
    """The checkpoint with other tensors or another header; None removes a key of the header."""
    tensors, before = read_tensors(path)
    after = {key: value for key, value in {**before, **header}.items() if value is not None}
    path.write_bytes(save((change or (lambda same: same))(tensors), metadata=after))


@pytest.mark.parametrize(
    "config",
    [
        None,
        "",
        "{",
        "null",
        "3",
        "[1]",
        '"width"',
        '{"widht": 8}',
        '{"width": 0}',
        '{"width": "8"}',
        '{"width": 8.5}',
        '{"width": null}',
        '{"weighting": "sum"}',
        '{"width": 16}',
        "{}",
    ],
)
def test_a_configuration_that_is_missing_wrong_or_of_another_network(tmp_path, config):
    path = tmp_path / "a.safetensors"
    save_model(network(), path)
    rewritten(path, config=config)
    refused(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: {name: x for name, x in tensors.items() if name != "stem.conv1.bias"},
        lambda tensors: {**tensors, "one.too.many": torch.zeros(1)},
        lambda tensors: {**tensors, "stem.conv1.bias": torch.zeros(9)},
        lambda tensors: {**tensors, "stem.conv1.weight": tensors["stem.conv1.weight"].flatten()},
        lambda tensors: {},
    ],
    ids=["missing", "extra", "longer", "flat", "none"],
)
def test_tensors_that_do_not_fit(tmp_path, change):
    path = tmp_path / "a.safetensors"
    save_model(network(), path)
    rewritten(path, change=change)
    assert "don't fit" in refused(path)


# All or nothing


class PulledPlugError(BaseException):
    """Not an Exception, as KeyboardInterrupt."""


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), PulledPlugError()], ids=["disk full", "killed"]
)
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, error):
    path = tmp_path / "a.safetensors"
    save_model(network(seed=1), path)
    before = path.read_bytes()

    def half_way(tensors, filename, metadata=None):
        with open(filename, "wb") as file:
            file.write(b"half of it")
        raise error

    monkeypatch.setattr(kithkin.checkpoint, "save_file", half_way)
    with pytest.raises(CheckpointError if isinstance(error, OSError) else PulledPlugError) as caught:
        save_model(network(seed=2), path)
    assert isinstance(error, PulledPlugError) or (str(path) in str(caught.value) and "space" in str(caught.value))
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.safetensors"]


def test_a_first_write_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("no")

    monkeypatch.setattr(kithkin.checkpoint, "save_file", refuse)
    with pytest.raises(CheckpointError):
        save_model(network(), tmp_path / "a.safetensors")
    assert os.listdir(tmp_path) == []


def test_an_existing_file_is_replaced_and_folders_are_made(tmp_path):
    path = tmp_path / "deep" / "er" / "a.safetensors"
    save_model(network(seed=1), path)
    save_model(network(seed=2), path)
    assert same_bits(read_model(path).state_dict(), network(seed=2).state_dict())
    assert os.listdir(path.parent) == ["a.safetensors"]


def test_where_no_file_can_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "file" / "a.safetensors", tmp_path / "folder"):
        with pytest.raises(CheckpointError) as caught:
            save_model(network(), path)
        assert str(path) in str(caught.value)
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]
    assert (tmp_path / "file").read_text() == "in the way"


def test_others_may_read_what_the_umask_lets_them(tmp_path):
    save_model(network(), tmp_path / "a.safetensors")
    (tmp_path / "plain").write_text("")
    modes = [(tmp_path / name).stat().st_mode for name in ("a.safetensors", "plain")]
    assert modes[0] == modes[1]


# Few bytes, much memory


class Largest(TorchDispatchMode):
    """The bytes of the largest tensor that is made outside the meta device while it is on."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for made in out if isinstance(out, list | tuple) else [out]:
            if isinstance(made, torch.Tensor) and made.device.type != "meta":
                self.bytes = max(self.bytes, made.numel() * made.element_size())
        return out


GREEDY = [
    {"width": 512},
    {"width": 2**40},
    {"n_hashes": 256, "n_buckets": 2**14},
    {"n_hashes": 30000},
    {"n_stages": 10**9},
    {"depth": 10**9},
    {"depth": 256, "n_stages": 8},
    {"patch_size": 2**31},
    {"n_buckets": 2**60},
    {"ffn_ratio": 1e308},
    {"width": 1024, "n_stages": 8},
]


@pytest.mark.parametrize("config", [*map(json.dumps, GREEDY), '{"ffn_ratio": Infinity}', '{"width": NaN}'])
def test_a_few_bytes_can_not_ask_for_much_memory(tmp_path, config):
    few = tmp_path / "few.safetensors"
    few.write_bytes(save({}, metadata={"format": FORMAT, "config": config}))
    whole = tmp_path / "whole.safetensors"
    save_model(network(), whole)
    rewritten(whole, config=config)
    for path in (few, whole):
        start = time.perf_counter()
        tracemalloc.start()
        try:
            with Largest() as largest:
                refused(path)
            assert tracemalloc.get_traced_memory()[1] < 20e6  # of NumPy, and of Python's own objects
        finally:
            tracemalloc.stop()
        assert largest.bytes < 1e6
        assert time.perf_counter() - start < 5


def test_the_hash_rotations_of_a_tiny_network_are_bounded(tmp_path):
    """No weight depends on their number."""
    path = tmp_path / "a.safetensors"
    save_model(network(), path)
    most = {"n_hashes": 256, "n_buckets": 8192}
    rewritten(path, config=json.dumps({**network().config.to_dict(), **most}))
    assert "lower n_hashes, n_buckets or patch_size" in refused(path)


@pytest.mark.parametrize("config", ["[" * 10**5, '{"a":' * 10**5, '{"width": ' + "9" * 5000 + "}"], ids=len)
def test_a_configuration_that_no_parser_takes(tmp_path, config):
    path = tmp_path / "a.safetensors"
    save_model(network(), path)
    rewritten(path, config=config)
    assert "don't fit" in refused(path)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64], ids=str)
def test_weights_that_are_no_real_numbers(tmp_path, dtype):
    path = tmp_path / "a.safetensors"
    save_model(network(), path)
    rewritten(path, change=lambda tensors: {**tensors, "stem.conv1.bias": torch.zeros(8, dtype=dtype)})
    assert "expected one of F32" in refused(path)


def test_the_configuration_among_the_tensors_is_short():
    assert config_of({}) is None
    assert config_of({CONFIG_TENSOR: torch.tensor(list(b'{"width": 16}'), dtype=torch.uint8)}) == KiTConfig(width=16)
    for stored in (torch.zeros(2**16 + 1, dtype=torch.uint8), torch.zeros(8), torch.full((9,), ord("["))):
        with pytest.raises(CheckpointError, match="no configuration"):
            config_of({CONFIG_TENSOR: stored})
