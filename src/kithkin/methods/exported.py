"""Networks from files, ONNX, TorchScript and torch.export, as restorers."""

import hashlib
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kithkin.errors import CheckpointError, InputError, KithkinError
from kithkin.export import FileNetwork, open_exported, open_onnx
from kithkin.messages import both_ends
from kithkin.restorers import Progress, out_of_memory, silent, warn
from kithkin.tiles import OVERLAP

SCRIPTED = (".pt", ".ts", ".torchscript")
UNPACKED_BYTES, UNPACKED_RATIO = 2**26, 8
"""What an archive may unpack to: so much, or its own size so many times. Tensors lie in it unpacked."""

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Exported:
    """A network from a file as a restorer. Pictures are extended by reflection to what it takes.

    Attributes:
        path: of the file, which a copy in another process opens again.
        network: what it runs.
        size: (height, width) that it takes alone; None for any.
        stride: sides are multiples of it.
        device: where it runs.
    """

    path: Path
    network: FileNetwork
    size: tuple[int | None, int | None] = (None, None)
    stride: int = 1
    device: torch.device = CPU
    reach = OVERLAP

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(open_file, f"{self.path.absolute()}@{self.stride}", device=str(self.device), tell=warn), ()

    def __call__(self, image: Tensor, progress: Progress = silent) -> Tensor:
        sides = [
            max(-(-side // self.stride) * self.stride, fixed or 0)
            for side, fixed in zip(image.shape[1:], self.size, strict=True)
        ]
        more = [(0, whole - side) for whole, side in zip(sides, image.shape[1:], strict=True)]
        batch = np.pad(image.numpy(), [(0, 0), *more], mode="reflect")[None]
        height, width = sides
        try:
            result = self.network(batch)
        except Exception as error:
            if out_of_memory(error):
                raise KithkinError(f"not enough memory for {width} x {height} pixels; take smaller tiles") from error
            raise KithkinError(
                f"the network does not take {width} x {height} pixels ({both_ends(error)}); where it needs sides "
                f"that are multiples of 8, say so behind its path: {self.path.name}@8"
            ) from error
        if result.shape != batch.shape:
            raise KithkinError(f"expected an output of shape {batch.shape}, got {result.shape}; it can't be compared")
        return torch.from_numpy(result[0].astype(np.float32))[:, : image.shape[1], : image.shape[2]]


def open_file(spec: str, *, device: str, tell: Callable[[str], None]) -> Exported | None:
    """The network of a file, for which ``@8`` may stand behind its path; None where its ending is another.

    Raises:
        InputError, CheckpointError, KithkinError: as ``kithkin.methods.open_method``.
    """
    path, multiple = split_multiple(spec)
    suffix = path.suffix.lower()
    if suffix == ".onnx":
        network, size = open_onnx(path, extra="eval")
        return Exported(path, network, size, multiple)
    if suffix not in (".pt2", *SCRIPTED):
        return None
    if path.is_file():
        tell(f"{path.name}: opening this file runs the code in it, with your rights; open only files that you trust")
        check_archive(path)
    if suffix == ".pt2":
        return Exported(path, open_exported(path), stride=multiple)
    return Exported(path, open_scripted(path, device), stride=multiple, device=torch.device(device))


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


def open_scripted(path: Path, device: str) -> FileNetwork:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; check the path")
    try:
        module = torch.jit.load(str(path), map_location=device).eval()
    except Exception as error:
        raise CheckpointError(
            f"{path} is not a TorchScript file ({both_ends(error)}); export the network with torch.jit.trace or "
            "torch.jit.script, a file of weights alone is not enough"
        ) from error

    def run(batch: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            result = module(torch.from_numpy(batch).to(device))
        if not isinstance(result, torch.Tensor):
            raise TypeError(f"its output is {type(result).__name__}, not one tensor")
        return result.float().cpu().numpy()

    return run
