"""A network as one file for other runtimes: ONNX, alone or in a package for darktable, or a program of torch.export.
None needs kithkin to run."""

import copy
import io
import json
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from kithkin.errors import InputError, KithkinError
from kithkin.export._darktable import check_id, read_index, write_package
from kithkin.export._open import FileNetwork, open_exported, open_onnx
from kithkin.export._parity import LEAST_PSNR, Parity, check_parity
from kithkin.files import write_whole
from kithkin.messages import missing_extra
from kithkin.model import KiT
from kithkin.ops.library import ceil_div, for_export
from kithkin.zoo import ModelCard

__all__ = [
    "FORMATS",
    "LEAST_PSNR",
    "FileNetwork",
    "Parity",
    "check_parity",
    "export_darktable",
    "export_onnx",
    "export_torch",
    "open_exported",
    "open_onnx",
]

FORMATS = {"onnx": ".onnx", "torch": ".pt2", "darktable": ".dtmodel"}
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
    write_whole(path, _model_proto("export_onnx", model, half, ("image", "restored")).SerializeToString())


def export_darktable(
    model: KiT, path: str | Path, *, version: str = "1.0", card: ModelCard | None = None, half: bool = False
) -> None:
    """Write a network as a package for the neural restore of darktable 5.6, and enter it in the file ``versions.json``
    beside it, which a repository for darktable publishes. Other models that are listed there stay.

    The network takes ``input`` (1, 3, H, W) float32 in [0, 1], encoded as sRGB, and gives ``output`` of the same shape.

    Args:
        model: the network; left as it is.
        path: of the package, ``ID.dtmodel``: darktable knows the model by this id. An existing file is replaced.
        version: ``X.Y``; darktable offers an update where a repository lists a higher one than it has.
        card: tells darktable's users the licence and the training photographs; None tells them nothing.
        half: as ``export_onnx`` takes it.

    Raises:
        InputError: the name is no id for darktable, the version is none, or the list beside it is something else.
        KithkinError: a file can't be written, or the packages onnx and onnxscript are missing.
    """
    path = Path(path)
    check_id(path)
    if not re.fullmatch(r"\d+\.\d+", version, re.ASCII):
        raise InputError(f"export_darktable: version must be two numbers such as 1.0, got {version!r}")
    read_index(path)  # before time is spent
    proto = _model_proto("export_darktable", model, half, ("input", "output"))
    # darktable fixes dimensions that are called "height" and "width" to its tile. onnxruntime then keeps a buffer of
    # every shape until its last use: 2.5 GB for tiles of 1024 pixels, where free dimensions take 1 GB.
    for value in (proto.graph.input[0], proto.graph.output[0]):
        for dimension, name in zip(value.type.tensor_type.shape.dim[2:], ("rows", "columns"), strict=True):
            dimension.dim_param = name
    write_package(proto.SerializeToString(), path, version, card)


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


def _model_proto(who: str, model: KiT, half: bool, names: tuple[str, str]) -> Any:
    """The ONNX model, with these names for input and output; ``who`` needs the packages for it."""
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise KithkinError(missing_extra(who, "onnx and onnxscript", "export")) from error
    proto = _translate(_trace(model, "operators"), names)
    if half:
        _halve_constants(proto)
    for key, value in {"producer": "kithkin", "config": json.dumps(model.config.to_dict())}.items():
        proto.metadata_props.add(key=key, value=value)
    return proto


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


def _translate(traced: torch.export.ExportedProgram, names: tuple[str, str] = ("image", "restored")) -> Any:
    """The ONNX model of a trace of operators, with these names for input and output."""
    from kithkin.export._onnx import TRANSLATIONS, tidy

    # PyTorch would trace all again to decompose it, and optimize what runtimes optimize when they load a file. That
    # takes twice as long as all else, and what our networks consist of has translations as it is.
    with _quiet(), patch.object(traced, "run_decompositions", lambda *_: traced):
        program = torch.onnx.export(
            traced,
            custom_translation_table=TRANSLATIONS,
            opset_version=OPSET,
            input_names=names[:1],
            output_names=names[1:],
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
