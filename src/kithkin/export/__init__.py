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
from unittest.mock import patch

import torch
from torch import Tensor, nn

from kithkin.errors import KithkinError
from kithkin.export._open import FileNetwork, open_exported, open_onnx
from kithkin.export._parity import LEAST_PSNR, Parity, check_parity
from kithkin.files import write_whole
from kithkin.messages import missing_extra
from kithkin.model import KiT
from kithkin.ops.library import ceil_div, for_export

__all__ = [
    "FORMATS",
    "LEAST_PSNR",
    "FileNetwork",
    "Parity",
    "check_parity",
    "export_onnx",
    "export_torch",
    "open_exported",
    "open_onnx",
]

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
        KithkinError: the file can't be written, or the packages onnx and onnxscript are missing.
    """
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise KithkinError(missing_extra("export_onnx", "onnx and onnxscript", "export")) from error
    proto = _translate(_trace(model, "operators"))
    if half:
        _halve_constants(proto)
    for key, value in {"producer": "kithkin", "config": json.dumps(model.config.to_dict())}.items():
        proto.metadata_props.add(key=key, value=value)
    write_whole(path, proto.SerializeToString())


def export_torch(model: KiT, path: str | Path) -> None:
    """Write a network as a program of torch.export, for ``torch.export.load(path).module()``: (1, 3, H, W) float32 in
    [0, 1] to the same, not clamped, for any H and W.

    Args:
        model: the network; left as it is.
        path: of the file, ``.pt2`` by custom; an existing one is replaced.

    Raises:
        KithkinError: the file can't be written.
    """
    buffer = io.BytesIO()
    with _quiet():
        torch.export.save(_trace(model, "steps"), buffer)
    write_whole(path, buffer.getvalue())


class _AnySize(nn.Module):
    """A network for a picture of any size: its sides are extended to multiples of the network's stride.

    By reflection, or by the border where one side is too small to reflect, as the network itself does it.
    """

    def __init__(self, model: KiT) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).cpu().float().eval().set_backend("blocked")

    def forward(self, image: Tensor) -> Tensor:
        sides, multiple = image.shape[2:], self.model.config.stride
        places = [torch.arange(ceil_div(side, multiple) * multiple) for side in sides]
        lasts = [torch.scalar_tensor(side - 1, dtype=torch.int64) for side in sides]
        reflects = torch.logical_and(*(place[-1] <= 2 * last for place, last in zip(places, lasts, strict=True)))
        extended = image
        for dim, place, last in zip((2, 3), places, lasts, strict=True):
            source = torch.where(reflects, last - (place - last).abs(), torch.minimum(place, last))
            extended = extended.index_select(dim, source)
        return self.model(extended)[:, :, : sides[0], : sides[1]]


def _trace(model: KiT, form: str) -> torch.export.ExportedProgram:
    """The network for any height and width, see ``kithkin.ops.library.for_export``."""
    side = 2 * model.config.stride * model.config.patch_size
    open_ = torch.export.Dim.DYNAMIC(min=1)
    # A side may be 1, which PyTorch otherwise takes for a case of its own. Its cache of shapes costs time.
    oblivious = torch.fx.experimental._config.patch(backed_size_oblivious=True)  # type: ignore[attr-defined]
    with torch.no_grad(), for_export(form), oblivious, torch._dynamo.config.patch(fake_tensor_cache_enabled=False):
        program = torch.export.export(
            _AnySize(model), (torch.zeros(1, 3, side + 3, side + 5),), dynamic_shapes=({2: open_, 3: open_},)
        )
    for node in program.graph.nodes:  # it names the paths of this machine
        node.meta.pop("stack_trace", None)
    return program


def _translate(traced: torch.export.ExportedProgram) -> Any:
    """The ONNX model of a trace of operators."""
    from kithkin.export._onnx import TRANSLATIONS, tidy

    # PyTorch would trace all again to decompose it, and optimize what runtimes optimize when they load a file. That
    # takes twice as long as all else, and what our networks consist of has translations as it is.
    with _quiet(), patch.object(traced, "run_decompositions", lambda *_: traced):
        program = torch.onnx.export(
            traced,
            custom_translation_table=TRANSLATIONS,
            opset_version=OPSET,
            input_names=["image"],
            output_names=["restored"],
            dynamo=True,
            optimize=False,
            verbose=False,
        )
        assert program is not None
        tidy(program.model)
    return program.model_proto


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
    """Without the remarks of PyTorch and its exporter on packages that are not needed and on their own insides."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
