"""A network as one file for other runtimes: ONNX, or a program of torch.export. Neither needs kithkin to run."""

import copy
import io
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from kithkin.errors import InputError, KithkinError
from kithkin.export._graph import Graph
from kithkin.export._parity import LEAST_PSNR, Parity, check_parity, open_exported, smallest_side
from kithkin.files import write_whole
from kithkin.model import KiT

__all__ = ["FORMATS", "LEAST_PSNR", "Parity", "check_parity", "export_onnx", "export_torch", "open_exported"]

FORMATS = {"onnx": ".onnx", "torch": ".pt2"}
OPSET = 20  # the first with GELU


def export_onnx(model: KiT, path: str | Path, *, half: bool = False) -> None:
    """Write a network as an ONNX file of opset 20: ``image`` (1, 3, H, W) float32 in [0, 1] to ``restored``, the same
    shape, not clamped, for any H and W. The hash rotations are constants of the graph.

    Args:
        model: the network; left as it is.
        path: of the file; an existing one is replaced.
        half: store weights and rotations in float16, which halves the file. They are computed with in float32.

    Raises:
        InputError: the network has ``n_pairs``, for which there is no graph.
        KithkinError: the file can't be written, or the packages onnx and onnxscript are missing.
    """
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise KithkinError(
            f'export_onnx needs the packages onnx and onnxscript ({error}); pip install "kithkin[export]"'
        ) from error
    with _quiet():
        program = torch.onnx.export(
            _trace(model),
            opset_version=OPSET,
            input_names=["image"],
            output_names=["restored"],
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    proto = program.model_proto
    for node in proto.graph.node:  # the exporter's own remarks, with the paths of this machine
        del node.metadata_props[:]
    if half:
        _halve_constants(proto)
    for key, value in {"producer": "kithkin", "config": json.dumps(model.config.to_dict())}.items():
        proto.metadata_props.add(key=key, value=value)
    write_whole(path, proto.SerializeToString())


def export_torch(model: KiT, path: str | Path) -> None:
    """Write a network as a program of torch.export, for ``torch.export.load(path).module()``: (1, 3, H, W) float32 in
    [0, 1] to the same, not clamped, for H and W above the pixels of ``smallest_side``.

    Args:
        model: the network; left as it is.
        path: of the file, ``.pt2`` by custom; an existing one is replaced.

    Raises:
        InputError: the network has ``n_pairs``, for which there is no graph.
        KithkinError: the file can't be written.
    """
    buffer = io.BytesIO()
    with _quiet():
        torch.export.save(_trace(model, smallest_side(model.config)), buffer)
    write_whole(path, buffer.getvalue())


def _trace(model: KiT, least: int | None = None) -> torch.export.ExportedProgram:
    if model.config.n_pairs is not None:
        raise InputError(
            f"export: there is no graph for n_pairs={model.config.n_pairs}; export a network that attends to all pairs"
        )
    graph = Graph(copy.deepcopy(model).cpu().float().eval())
    side = smallest_side(model.config)
    example = torch.zeros(1, 3, 2 * side + 3, 3 * side + 40)
    free = torch.export.Dim.DYNAMIC(min=least)
    # Without this, a length that may be 1 becomes a condition on the picture's size.
    with torch.no_grad(), torch.fx.experimental._config.patch(backed_size_oblivious=True):  # type: ignore[attr-defined]
        program = torch.export.export(graph, (example,), dynamic_shapes=({2: free, 3: free},))
    for node in program.graph.nodes:  # it names the paths of this machine
        node.meta.pop("stack_trace", None)
    return program


def _halve_constants(proto: Any) -> None:
    """Store the large constants in float16, each followed by a cast, which runtimes fold when they load the file."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    casts = []
    for constant in proto.graph.initializer:
        values = numpy_helper.to_array(constant)
        if values.dtype != np.float32 or values.size < 16:
            continue
        name = constant.name
        constant.CopyFrom(numpy_helper.from_array(values.astype(np.float16), f"{name}.half"))
        casts.append(helper.make_node("Cast", [f"{name}.half"], [name], to=TensorProto.FLOAT))
    nodes = [*casts, *proto.graph.node]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without PyTorch's remarks on packages that are not needed and on its own insides."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        logger.setLevel(level)
