"""Networks from files: ONNX and TorchScript."""

import hashlib
import math
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kithkin.errors import CheckpointError, InputError, KithkinError
from kithkin.methods._picture import missing, on_one_line, reflected
from kithkin.restoration import CUDA_TILE, out_of_memory
from kithkin.restore_options import CPU_TILE, OVERLAP

SCRIPTED = (".pt", ".ts", ".torchscript")
LARGEST_FIXED = 8192
"""Pixels of a side that a network may insist on: a picture is extended to it, however small."""
FOLDED_BYTES = 2**26
"""Of a constant that onnxruntime makes when it opens a file: a few bytes may ask for gigabytes of them."""
UNPACKED_BYTES, UNPACKED_RATIO = 2**26, 8
"""What an archive may unpack to: so much, or its own size so many times. Tensors lie in it unpacked."""

Network = Callable[[np.ndarray], np.ndarray]
"""(1, 3, H, W) float32 -> what a network makes of it."""


@dataclass(frozen=True)
class Exported:
    """A network from a file: ``fixed`` is the (height, width) that it takes, None for any; ``largest`` of a tile;
    ``weights`` the digest of the file."""

    name: str
    network: Network
    fixed: tuple[int | None, int | None]
    largest: int | None
    multiple: int
    weights: str
    needs_sigma: bool = False

    @property
    def identity(self) -> str:
        """Of the file and of what else its results depend on."""
        return hashlib.sha256(f"{self.weights} {self.largest} {self.multiple}".encode()).hexdigest()[:12]

    def __call__(self, image: np.ndarray, *, sigma: float | None = None) -> np.ndarray:
        height, width = image.shape[:2]
        tall = self.fixed[0] or min(height, self.largest or height)
        wide = self.fixed[1] or min(width, self.largest or width)
        extended = reflected(image, max(tall, height), max(wide, width))
        total = np.zeros_like(extended)
        weights = np.zeros((*extended.shape[:2], 1), np.float32)
        ramp = np.minimum.outer(_ramp(tall), _ramp(wide))[..., None]
        for top in _starts(extended.shape[0], tall):
            for left in _starts(extended.shape[1], wide):
                place = np.s_[top : top + tall, left : left + wide]
                total[place] += ramp * self._tile(extended[place])
                weights[place] += ramp
        return (total / weights)[:height, :width]

    def _tile(self, tile: np.ndarray) -> np.ndarray:
        height, width = (-(-side // self.multiple) * self.multiple for side in tile.shape[:2])
        batch = np.ascontiguousarray(reflected(tile, height, width).transpose(2, 0, 1)[None])
        try:
            result = self.network(batch)
        except Exception as error:
            if out_of_memory(error):
                raise KithkinError(f"not enough memory for {width} x {height} pixels; take smaller tiles") from error
            raise KithkinError(
                f"the network does not take {width} x {height} pixels ({on_one_line(error)}); where it needs sides "
                f"that are multiples of 8, say so behind its path: {self.name}@8"
            ) from error
        if result.shape != batch.shape:
            raise KithkinError(f"expected an output of shape {batch.shape}, got {result.shape}; it can't be compared")
        return result[0].transpose(1, 2, 0)[: tile.shape[0], : tile.shape[1]].astype(np.float32)


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:12]


def split_multiple(text: str) -> tuple[Path, int]:
    """A path and the multiple behind it, 1 where there is none."""
    found = re.fullmatch(r"(.+\.\w+)@(\d+)", text)
    if not found:
        return Path(text), 1
    if not 1 <= int(found[2]) <= 1024:
        raise InputError(f"open_method: {text}: expected a multiple from 1 to 1024 behind @, got {found[2]}")
    return Path(found[1]), int(found[2])


def largest_tile(tile: str | int, device: str, multiple: int) -> int | None:
    """The largest side of a tile, a multiple; None for the whole picture."""
    if tile == "off":
        return None
    auto = CUDA_TILE if device.startswith("cuda") else CPU_TILE
    return max((auto if tile == "auto" else int(tile)) // multiple, 1) * multiple


def check_archive(path: Path) -> None:
    """Refuse a zip archive that unpacks to far more than its size; raises CheckpointError. Other files pass."""
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is a damaged archive ({error}); export the network again") from error
    if unpacked > max(UNPACKED_BYTES, UNPACKED_RATIO * path.stat().st_size):
        raise CheckpointError(
            f"{path} holds {path.stat().st_size} bytes that unpack to {unpacked}, which no network needs; "
            "export the network again"
        )


def _starts(length: int, side: int) -> list[int]:
    """Where tiles of one side begin that cover a length and share OVERLAP pixels, or a quarter of small ones."""
    step = side - min(OVERLAP, side // 4)
    count = max(1, math.ceil((length - side) / step) + 1)
    return [round(i * (length - side) / max(count - 1, 1)) for i in range(count)]


def _ramp(side: int) -> np.ndarray:
    """Weights that rise from the border over the overlap, to blend tiles; a whole picture's cancel out."""
    distance = np.minimum(np.arange(side), np.arange(side)[::-1]) + 1
    return np.minimum(distance, max(1, min(OVERLAP, side // 4))).astype(np.float32)


def open_onnx(path: Path) -> tuple[Network, tuple[int | None, int | None]]:
    """The network of an ONNX file, and its height and width where they are fixed."""
    try:
        import onnxruntime
    except ImportError as error:
        raise missing(path.name, "onnxruntime", error) from error
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; check the path")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4  # what goes wrong is said by the exception
    options.add_session_config_entry("optimization.constant_folding_max_output_size_in_bytes", str(FOLDED_BYTES))
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise CheckpointError(f"{path}: onnxruntime can't open it ({on_one_line(error)}); export it again") from error
    inputs = session.get_inputs()
    shape: list[Any] = list(inputs[0].shape) if len(inputs) == 1 else []
    fits = len(shape) == 4 and all(not isinstance(s, int) or s == want for s, want in zip(shape, (1, 3), strict=False))
    if not fits or inputs[0].type != "tensor(float)":
        found = ", ".join(f"{i.name} {i.shape} {i.type}" for i in inputs)
        raise InputError(f"{path}: expected one input (1, 3, H, W) of float32, got {found}; export it so")
    name = inputs[0].name

    def run(batch: np.ndarray) -> np.ndarray:
        return np.asarray(session.run(None, {name: batch})[0])

    height, width = (side if isinstance(side, int) else None for side in shape[2:])
    if not all(1 <= (side or 1) <= LARGEST_FIXED for side in (height, width)):
        raise InputError(
            f"{path}: takes pictures of {width} x {height} pixels alone, expected sides from 1 to {LARGEST_FIXED}; "
            "export it for any size"
        )
    return run, (height, width)


def open_scripted(path: Path, device: str) -> Network:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; check the path")
    check_archive(path)
    try:
        module = torch.jit.load(str(path), map_location=device).eval()
    except Exception as error:
        raise CheckpointError(
            f"{path} is not a TorchScript file ({on_one_line(error)}); export the network with torch.jit.trace or "
            "torch.jit.script, a file of weights alone is not enough"
        ) from error

    def run(batch: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            result = module(torch.from_numpy(batch).to(device))
        if not isinstance(result, torch.Tensor):
            raise TypeError(f"its output is {type(result).__name__}, not one tensor")
        return result.float().cpu().numpy()

    return run
