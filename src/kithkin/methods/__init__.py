"""Restorers by name, so that our networks and other methods are measured by the same code.

A method is opened by a spec, see ``open_method``, and called through ``run_method``, which checks its output.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Protocol, cast

import numpy as np
import torch

from kithkin.containers import BEYOND
from kithkin.errors import InputError, KithkinError
from kithkin.methods.classical import bm3d, nlm
from kithkin.methods.exported import SCRIPTED, digest, open_file
from kithkin.model import KiT
from kithkin.precision import settled_precision
from kithkin.restore_options import RestoreOptions, split_suffix
from kithkin.restorers import Note, Restorer, Tiled, Unchanged, restore_image, warn
from kithkin.zoo import OpenedModel, find_model, open_model, split_grouping

FILTERS = ("input", "bm3d", "nlm")
WHOLE = RestoreOptions(tile="off", precision="float32")
"""How our networks are measured: every picture whole, the same on every machine."""


class Method(Protocol):
    """A way to restore a picture.

    Attributes:
        name: what tables print.
        needs_sigma: whether it wants the noise level; given none, it estimates one.
        identity: tells methods of one name apart: a digest of the weights, or a package's version.
    """

    @property
    def name(self) -> str: ...

    @property
    def needs_sigma(self) -> bool: ...

    @property
    def identity(self) -> str: ...

    def __call__(self, image: np.ndarray, *, sigma: float | None = None) -> np.ndarray:
        """Restore (H, W, 3) float32, which may leave [0, 1] as noise that isn't clipped does.

        ``sigma`` is the noise level on the 0-255 scale. Returns (H, W, 3) float32, not necessarily clamped.
        """
        ...


def open_method(
    spec: str | Path,
    *,
    device: str = "cpu",
    tile: str | int = "off",
    precision: str = "float32",
    note: Callable[[str], None] | None = None,
) -> Method:
    """Open what a spec names.

    Args:
        spec: a name or task from ``kithkin models``, or a checkpoint's path; behind it may stand k and h that are not
            its own, ``[k=8,h=2]``, then ``+light`` or ``+stored``, the ``uniform_blur`` of ``kithkin.RestoreOptions``,
            then ``+2``, ``+4`` or ``+8``, its ``ensemble``;
            ``"input"``, which changes nothing;
            ``"bm3d"``, colour BM3D (Dabov et al. 2007) with the normal profile of the package bm3d;
            ``"nlm"``, non-local means (Buades et al. 2005) by scikit-image;
            a path ending in ``.onnx`` (run by onnxruntime on the CPU), in ``.pt2`` (torch.export, on the CPU), or in
            ``.pt``, ``.ts`` or ``.torchscript`` (TorchScript): a network from (1, 3, H, W) float32 to the same. Behind
            it may stand ``@8``: pictures are then extended by reflection to multiples of 8, for networks that take no
            other sizes. A network of one fixed size restores overlapping tiles of that size.
        device: where networks run, ONNX excepted.
        tile: ``"off"``, ``"auto"`` or a side in pixels, as in ``kithkin.RestoreOptions``, for networks.
        precision: of our networks, as in ``kithkin.RestoreOptions``, but float32 by default, so that values don't
            depend on the machine. The name of a method that computes in bfloat16 says so.
        note: called once with a sentence where a noise level must be estimated, and before a file is opened whose code
            runs (TorchScript, torch.export): open only files that you trust. None makes it a warning.

    Raises:
        InputError: the spec names nothing, the file is no such network, or its inputs are others.
        CheckpointError: the checkpoint or the file can't be read.
        KithkinError: a package is missing; the message has the install line.
    """
    options = RestoreOptions(tile=tile, precision=precision)
    peer = _open_peer(str(spec), device, options, note or warn)
    if peer is not None:
        return peer
    text, asked = split_suffix(str(spec))
    options = replace(options, **asked)
    plain, grouping = split_grouping(text)
    if grouping and Path(plain).suffix.lower() in (".onnx", ".pt2", *SCRIPTED):
        raise InputError(f"open_method: {spec}: k and h are fixed in such a file; export the model with others")
    card = find_model(plain)
    if card is None and not Path(plain).is_file():
        raise InputError(
            f"open_method: {str(spec)!r} is no method: expected {', '.join(FILTERS)}, a name from `kithkin models`, or "
            f"the path of a checkpoint, an .onnx or TorchScript file ({', '.join(SCRIPTED)}); check the spelling"
        )
    if card is not None and options.task not in (None, card.task):
        raise InputError(
            f"open_method: {options.suffix} is for models that {options.task}, {card.name} is for {card.task}; "
            "leave it out"
        )
    opened = open_model(text, device=device)
    precision = settled_precision(precision, opened.network)
    computed = f" ({precision})" if precision != "float32" else ""
    options = replace(options, precision=precision)
    return ModelMethod(opened.network, f"{opened.name}{options.suffix}{computed}", options)


def open_restorer(spec: str, *, device: str = "cpu", note: Note | None = None) -> OpenedModel[KiT | Restorer]:
    """Open what ``kithkin.restore`` takes.

    Args:
        spec: as of ``open_method``, but for what stands behind a model's name to choose options.
        device, note: as of ``open_method``.

    Raises:
        InputError, CheckpointError, KithkinError: as ``open_method``, and ``kithkin.load_model``.
    """
    peer = _open_peer(spec, device, WHOLE, note or warn)
    return OpenedModel(peer.restorer, peer.name) if peer else OpenedModel(*open_model(spec, device=device))


def _open_peer(spec: str, device: str, options: RestoreOptions, note: Note) -> "NamedRestorer | None":
    """What a spec names beside our networks, else None; the options are asked for tiles alone."""
    tell = _once(note)
    if spec == "input":
        return NamedRestorer("input", Unchanged())
    if spec == "bm3d":
        return NamedRestorer("bm3d", bm3d(tell), version("bm3d"), needs_sigma=True)
    if spec == "nlm":
        return NamedRestorer("nlm", nlm(tell), version("scikit-image"), needs_sigma=True)
    network = open_file(spec, device=device, tell=tell)
    if network is None:
        return None
    side = options.side(network.device)
    side = side and max(side // network.stride, 1) * network.stride
    identity = hashlib.sha256(f"{digest(network.path)} {side} {network.stride}".encode()).hexdigest()[:12]
    exact = (network.size[0] or side, network.size[1] or side)
    restorer = network if exact == (None, None) else Tiled(network, exact=exact)
    return NamedRestorer(network.path.name, restorer, identity)


def _once(tell: Note) -> Note:
    told = set()

    def tell_once(sentence: str) -> None:
        if sentence not in told:
            told.add(sentence)
            tell(sentence)

    return tell_once


def run_method(
    method: Method, image: np.ndarray, *, sigma: float | None = None, picture: str = "the picture"
) -> np.ndarray:
    """Restore a picture and check what comes out.

    Args:
        method: from ``open_method``, or anything else that is a ``Method``.
        image: (H, W, 3) float32; values may leave [0, 1].
        sigma: the noise level on the 0-255 scale, where it is known.
        picture: its name, for the messages.

    Returns:
        (H, W, 3) float32.

    Raises:
        InputError: the image has another shape or type, or sigma is out of range.
        KithkinError: the method failed, or gave another shape or NaN; the message names both.
    """
    where = f"{method.name} on {picture}"
    if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape or image.dtype != np.float32:
        raise InputError(f"{where}: expected (H, W, 3) float32, not empty, got {image.shape} {image.dtype}; convert it")
    if sigma is not None and not 0 <= sigma <= 255:
        raise InputError(f"{where}: expected sigma from 0 to 255, got {sigma}; it is on the 0-255 scale")
    try:
        result = method(image, sigma=sigma)
    except KithkinError as error:
        raise type(error)(f"{where}: {error}") from error
    if not isinstance(result, np.ndarray) or result.shape != image.shape:
        shape = getattr(result, "shape", type(result).__name__)
        raise KithkinError(f"{where}: expected an output of shape {image.shape}, got {shape}; it can't be compared")
    if not np.isfinite(result).all():
        raise KithkinError(f"{where}: the output holds NaN or infinite values; check the method and its weights")
    return result.astype(np.float32, copy=False)


@dataclass(frozen=True)
class NamedRestorer:
    """A restorer that needs nothing around it; one that has a ``sigma`` is told the noise level by that."""

    name: str
    restorer: Restorer
    identity: str = ""
    needs_sigma: bool = False

    def __call__(self, image: np.ndarray, *, sigma: float | None = None) -> np.ndarray:
        restorer = replace(self.restorer, sigma=sigma) if self.needs_sigma else self.restorer  # type: ignore[type-var]
        planes = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
        return np.ascontiguousarray(restorer(planes).permute(1, 2, 0).numpy())


@dataclass(frozen=True)
class ModelMethod:
    """One of our networks, whose results are clamped to [0, 1] as ``kithkin.restore`` does.

    Attributes:
        model: the network.
        name: what tables print.
        options: how it restores.
    """

    model: KiT
    name: str = "model"
    options: RestoreOptions = WHOLE
    needs_sigma: bool = False

    @property
    def identity(self) -> str:
        depends_on = self.options.identity(settled_precision(self.options.precision, self.model))
        weights = hashlib.sha256(json.dumps([self.model.config.to_dict(), *depends_on]).encode())
        for values in self.model.state_dict().values():
            weights.update(values.detach().cpu().contiguous().view(torch.uint8).numpy())
        return weights.hexdigest()[:12]

    def __call__(self, image: np.ndarray, *, sigma: float | None = None) -> np.ndarray:
        restored: np.ndarray = restore_image(self.options.compose(self.model, note=_note), image, note=_note)
        return restored


def _note(sentence: str) -> None:
    """A warning, but for what a measurement knows: noise that isn't clipped goes beyond [0, 1]."""
    if sentence != BEYOND:
        warn(sentence)


def as_method(restorer: Method | KiT | Restorer) -> Method:
    """A method by itself, a network or another restorer as one."""
    if isinstance(restorer, KiT):
        return ModelMethod(restorer)
    named = hasattr(restorer, "identity")
    return cast(Method, restorer) if named else NamedRestorer(type(restorer).__name__, cast(Restorer, restorer))
