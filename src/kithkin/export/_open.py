"""Opening exported files: ONNX, alone or in a package, by onnxruntime, programs of torch.export by PyTorch."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kithkin.errors import CheckpointError, InputError, KithkinError
from kithkin.export._darktable import read_network
from kithkin.messages import both_ends, missing_extra

LARGEST_FIXED = 8192
"""Pixels of a side that a network may insist on: a picture is extended to it, however small."""
FOLDED_BYTES = 2**26
"""Of a constant that onnxruntime makes when it opens a file: a few bytes may ask for gigabytes of them."""

FileNetwork = Callable[[np.ndarray], np.ndarray]
"""(1, 3, H, W) float32 -> what a network makes of it."""


def open_exported(path: str | Path) -> FileNetwork:
    """The network of an exported file, by its ending: ``.onnx``, ``.dtmodel``, else a program of torch.export.

    Raises:
        InputError, CheckpointError, KithkinError: as ``open_onnx``.
    """
    path = Path(path)
    return open_onnx(path)[0] if path.suffix.lower() in (".onnx", ".dtmodel") else _open_program(path)


def open_onnx(path: Path, extra: str = "export") -> tuple[FileNetwork, tuple[int | None, int | None]]:
    """The network of an ONNX file, and its height and width where they are fixed.

    Args:
        path: of the file, or of a package of darktable's.
        extra: of this package that brings onnxruntime, for the message where it is missing.

    Raises:
        InputError: the network takes something other than one picture.
        CheckpointError: the file can't be opened.
        KithkinError: onnxruntime is missing.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise KithkinError(missing_extra(path.name, "onnxruntime", extra)) from error
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; check the path")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4  # what goes wrong is said by the exception
    options.add_session_config_entry("optimization.constant_folding_max_output_size_in_bytes", str(FOLDED_BYTES))
    try:
        source = read_network(path) if path.suffix.lower() == ".dtmodel" else str(path)
        session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise CheckpointError(f"{path}: onnxruntime can't open it ({both_ends(error)}); export it again") from error
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


def _open_program(path: Path) -> FileNetwork:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; check the path")
    try:
        program = torch.export.load(str(path)).module()
    except Exception as error:
        raise CheckpointError(f"{path} is no program of torch.export ({error}); export it again") from error

    def run(batch: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return program(torch.from_numpy(batch)).numpy()

    return run
