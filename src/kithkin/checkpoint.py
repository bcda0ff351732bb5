"""Checkpoints: safetensors with the network's configuration in the header.

``read_model`` checks a file before it reads any weight: the format, the configuration, then names, types and shapes
(``outline``). ``kithkin.zoo`` also checks the sha256 of the models that ship.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from kithkin.errors import CheckpointError, InputError, KithkinError
from kithkin.files import replacing
from kithkin.layers import KNNLocalAttention
from kithkin.model import KiT
from kithkin.model_config import KiTConfig

FORMAT = "kithkin-1"
CONFIG_TENSOR = "kithkin.config"
"""Holds the configuration once more, as the bytes of its JSON: programs that pass only tensors on don't lose it."""
LONGEST_CONFIG = 2**16
STORED = ("F32", "F16", "BF16", "F64")
"""What weights may be stored in, as safetensors calls it."""


def save_model(
    model: KiT, path: str | Path, *, dtype: torch.dtype | None = None, metadata: dict[str, Any] | None = None
) -> None:
    """Write a network and its configuration to one safetensors file, atomically.

    Args:
        model: the network.
        path: of the file; an existing one is replaced.
        dtype: of the stored numbers, such as ``torch.float16``; None keeps theirs.
        metadata: further values for the header, anything JSON can hold.

    Raises:
        CheckpointError: the file can't be written.
        InputError: the metadata's keys are taken.
    """
    if metadata and metadata.keys() & {"format", "config"}:
        raise InputError("save_model: the header's keys format and config belong to kithkin; name yours otherwise")
    tensors = {name: x.detach().cpu().to(dtype or x.dtype).clone() for name, x in model.state_dict().items()}
    tensors[CONFIG_TENSOR] = torch.tensor(list(json.dumps(model.config.to_dict()).encode()), dtype=torch.uint8)
    header = {key: json.dumps(value) for key, value in (metadata or {}).items()}
    write_tensors(tensors, path, model_header(model.config) | header)


def model_header(config: KiTConfig) -> dict[str, str]:
    """What the header of a checkpoint must say of its network."""
    return {"format": FORMAT, "config": json.dumps(config.to_dict())}


def read_model(path: str | Path) -> KiT:
    """Build the network that a checkpoint holds, in float32 and evaluation mode, on the CPU.

    Raises:
        CheckpointError: missing, not a safetensors file, truncated, of another make, or not what its own
            configuration says.
    """
    with _opened(path) as file:
        header = file.metadata() or {}
        if header.get("format") != FORMAT:
            raise CheckpointError(f"{path} is a safetensors file, but not a kithkin checkpoint ({FORMAT})")
        try:
            model = outline(KiTConfig.from_dict(json.loads(header["config"])), _shapes_of(file))
            for module in model.modules():
                if isinstance(module, KNNLocalAttention):
                    module.rotations = torch.empty(tuple(module.rotations.shape), dtype=torch.float32, device="cpu")
                    module.redraw_rotations()
            # Copies, since what the file gives may lie in the file.
            weights = {name: file.get_tensor(name).to(torch.float32, copy=True) for name in model.state_dict()}
            model.load_state_dict(weights, assign=True)
        except (KeyError, TypeError, ValueError, RecursionError, InputError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise CheckpointError(f"{path}: the weights don't fit the configuration in the header: {reason}") from error
    return model.eval()


def outline(config: KiTConfig, shapes: Mapping[str, Sequence[int]]) -> KiT:
    """The network of a configuration on the meta device, where it needs no memory, once tensors of these shapes fit it:
    no configuration makes anything larger than the tensors that come with it.

    Raises:
        InputError: the tensors are of another network.
    """
    blocks = sum(map(len, config.words))
    if blocks > len(shapes):
        raise InputError(f"it has {blocks} blocks, there are {len(shapes)} tensors")
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        model = KiT(config)
    wanted = {name: list(x.shape) for name, x in model.state_dict().items()}
    for names, what in ((wanted.keys() - shapes.keys(), "missing"), (shapes.keys() - wanted.keys(), "not part of it")):
        if names:
            listed = ", ".join(sorted(names)[:3])
            raise InputError(f"{len(names)} tensors are {what}: {listed}{', …' if len(names) > 3 else ''}")
    for name, shape in wanted.items():
        if list(shapes[name]) != shape:
            raise InputError(f"{name} should be {shape}, it is {list(shapes[name])}")
    return model


def _shapes_of(file: Any) -> dict[str, list[int]]:
    """Of the weights in an open file, from its header alone."""
    shapes = {}
    for name in file.keys():  # noqa: SIM118
        if name == CONFIG_TENSOR:
            continue
        tensor = file.get_slice(name)
        if tensor.get_dtype() not in STORED:
            raise InputError(f"{name} is of {tensor.get_dtype()}, expected one of {', '.join(STORED)}")
        shapes[name] = tensor.get_shape()
    return shapes


def weights_of(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A checkpoint's tensors without the one that holds the configuration."""
    return {name: x for name, x in tensors.items() if name != CONFIG_TENSOR}


def config_of(tensors: Mapping[str, torch.Tensor]) -> KiTConfig | None:
    """The configuration that travels among a checkpoint's tensors; None in files older than that.

    Raises:
        CheckpointError: it is damaged.
    """
    if CONFIG_TENSOR not in tensors:
        return None
    stored = tensors[CONFIG_TENSOR]
    try:
        if stored.dtype != torch.uint8 or stored.numel() > LONGEST_CONFIG:
            raise ValueError(f"expected up to {LONGEST_CONFIG} bytes, got {stored.numel()} numbers of {stored.dtype}")
        return KiTConfig.from_dict(json.loads(bytes(stored.flatten().tolist())))
    except (ValueError, TypeError, RecursionError, InputError) as error:
        raise CheckpointError(f"the tensor {CONFIG_TENSOR} holds no configuration: {error}") from error


def write_tensors(tensors: dict[str, torch.Tensor], path: str | Path, header: dict[str, str]) -> None:
    """Write named tensors atomically, in a folder that is made if needed; raises CheckpointError where that fails."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as part:
            save_file({name: x.contiguous() for name, x in tensors.items()}, part, metadata=header)
            _sort_metadata(part)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} can't be written: {error}") from error


def read_tensors(path: str | Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The named tensors and the header of a safetensors file; raises CheckpointError where that fails."""
    with _opened(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118


@contextmanager
def _opened(path: str | Path) -> Iterator[Any]:
    """A safetensors file of which nothing but the header was read."""
    if not Path(path).is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        with safe_open(str(path), "pt") as file:
            yield file
    except (SafetensorError, OSError, RuntimeError, ValueError, OverflowError) as error:
        if isinstance(error, KithkinError):
            raise
        raise CheckpointError(f"{path} is not a readable safetensors file ({error}); is the copy complete?") from error


def _sort_metadata(path: Path) -> None:
    """safetensors writes the header's values in an order of chance; in order, equal networks make equal files."""
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header.get("__metadata__", {}).items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) <= size:
            file.seek(8)
            file.write(text.ljust(size))
