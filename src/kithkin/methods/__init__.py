"""Restorers behind one interface, so that ours and its peers are measured by the same code.

A method is opened by a spec, see ``open_method``, and called through ``run_method``, which checks its output.
"""

import hashlib
import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from kithkin.containers import BEYOND
from kithkin.deconvolution import CURVES
from kithkin.errors import InputError, KithkinError
from kithkin.export import open_exported
from kithkin.methods.classical import Classical, bm3d_filter, nlm_filter, once, sigma_estimator
from kithkin.methods.exported import (
    SCRIPTED,
    Exported,
    check_archive,
    digest,
    largest_tile,
    open_onnx,
    open_scripted,
    split_multiple,
)
from kithkin.model import KiT
from kithkin.restoration import CLEANER, restore
from kithkin.restore_options import OVERLAP, PASSES, check_tiling
from kithkin.zoo import find_model, load_model

CLASSICAL = ("input", "bm3d", "nlm")


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
    spec: str | Path, *, device: str = "cpu", tile: str | int = "off", note: Callable[[str], None] | None = None
) -> Method:
    """Open what a spec names.

    Args:
        spec: a name or task from ``kithkin models``, or a checkpoint's path; behind it may stand ``+2``, ``+4`` or
            ``+8``, the passes over turned and mirrored copies whose mean is taken (``kithkin.ensemble``), or before
            that ``+light`` or ``+stored``, the ``uniform_blur`` of ``kithkin.restoration.restore``;
            ``"input"``, which changes nothing;
            ``"bm3d"``, colour BM3D (Dabov et al. 2007) with the normal profile of the package bm3d;
            ``"nlm"``, non-local means (Buades et al. 2005) by scikit-image;
            a path ending in ``.onnx`` (run by onnxruntime on the CPU), in ``.pt2`` (torch.export, on the CPU), or in
            ``.pt``, ``.ts`` or ``.torchscript`` (TorchScript): a network from (1, 3, H, W) float32 to the same. Behind
            it may stand ``@8``: pictures are then extended by reflection to multiples of 8, for networks that take no
            other sizes. A network of one fixed size restores overlapping tiles of that size.
        device: where networks run, ONNX excepted.
        tile: ``"off"``, ``"auto"`` or a side in pixels, as in ``kithkin.restoration.restore``, for networks.
        note: called once with a sentence where a noise level must be estimated, and before a file is opened whose code
            runs (TorchScript, torch.export): open only files that you trust. None makes it a warning.

    Raises:
        InputError: the spec names nothing, the file is no such network, or its inputs are others.
        CheckpointError: the checkpoint or the file can't be read.
        KithkinError: a package is missing; the message has the install line.
    """
    check_tiling(tile, OVERLAP)
    text = str(spec)
    tell = once(note or (lambda sentence: warnings.warn(sentence, stacklevel=2)))
    if text == "input":
        return _Identity()
    if text == "bm3d":
        return Classical("bm3d", bm3d_filter(), sigma_estimator("bm3d"), tell, "bm3d")
    if text == "nlm":
        return Classical("nlm", nlm_filter(), sigma_estimator("nlm"), tell, "scikit-image")
    path, multiple = split_multiple(text)
    suffix = path.suffix.lower()
    if suffix == ".onnx":
        network, fixed = open_onnx(path)
        return Exported(path.name, network, fixed, largest_tile(tile, "cpu", multiple), multiple, digest(path))
    if suffix == ".pt2":
        largest = largest_tile(tile, "cpu", multiple)
        _say_before(path, tell)
        check_archive(path)
        return Exported(path.name, open_exported(path), (None, None), largest, multiple, digest(path))
    if suffix in SCRIPTED:
        largest = largest_tile(tile, device, multiple)
        _say_before(path, tell)
        return Exported(path.name, open_scripted(path, device), (None, None), largest, multiple, digest(path))
    named = text
    text, ensemble = _passes(text)
    text, curve = _curve(text)
    card = find_model(text)
    if card is None and not Path(text).is_file():
        raise InputError(
            f"open_method: {named!r} is no method: expected {', '.join(CLASSICAL)}, a name from `kithkin models`, or "
            f"the path of a checkpoint, an .onnx or TorchScript file ({', '.join(SCRIPTED)}); check the spelling"
        )
    if curve is not None and card is not None and card.task != "deblur":
        raise InputError(
            f"open_method: +{curve} is for models that deblur, {card.name} is for {card.task}; leave it out"
        )
    name = (card.name if card else Path(text).name) + (f"+{curve}" if curve else "")
    name += f"+{ensemble}" if ensemble > 1 else ""
    return ModelMethod(load_model(text, device=device), name, tile, ensemble, curve)


def _say_before(path: Path, tell: Callable[[str], None]) -> None:
    if path.is_file():
        tell(f"{path.name}: opening this file runs the code in it, with your rights; open only files that you trust")


def _passes(spec: str) -> tuple[str, int]:
    """A model's spec without its passes, and how many they are."""
    model, plus, passes = spec.rpartition("+")
    known = plus and not Path(spec).is_file() and passes in map(str, PASSES)
    return (model, int(passes)) if known else (spec, 1)


def _curve(spec: str) -> tuple[str, str | None]:
    """A model's spec without the curve of a uniform blur, and that curve."""
    model, plus, curve = spec.rpartition("+")
    known = plus and not Path(spec).is_file() and curve in CURVES
    return (model, curve) if known else (spec, None)


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
class _Identity:
    name: str = "input"
    needs_sigma: bool = False
    identity: str = ""

    def __call__(self, image: np.ndarray, *, sigma: float | None = None) -> np.ndarray:
        return image.copy()


@dataclass(frozen=True)
class ModelMethod:
    """One of our networks.

    Attributes:
        model: the network.
        name: what tables print.
        tile, ensemble, uniform_blur: as in ``kithkin.restoration.restore``.
    """

    model: KiT
    name: str = "model"
    tile: str | int = "off"
    ensemble: int = 1
    uniform_blur: str | None = None
    needs_sigma: bool = False

    @property
    def identity(self) -> str:
        way: list[object] = [self.tile, self.ensemble]
        if self.uniform_blur is not None:
            cleaner = find_model(CLEANER)
            way += [self.uniform_blur, *CURVES[self.uniform_blur], cleaner.sha256 if cleaner else ""]
        weights = hashlib.sha256(json.dumps([self.model.config.to_dict(), *way]).encode())
        for values in self.model.state_dict().values():
            weights.update(values.detach().cpu().contiguous().view(torch.uint8).numpy())
        return weights.hexdigest()[:12]

    def __call__(self, image: np.ndarray, *, sigma: float | None = None) -> np.ndarray:
        return restore(
            self.model, image, tile=self.tile, ensemble=self.ensemble, uniform_blur=self.uniform_blur, note=_note
        )


def _note(sentence: str) -> None:
    """A warning, but for what a measurement knows: noise that isn't clipped goes beyond [0, 1]."""
    if sentence != BEYOND:
        warnings.warn(sentence, stacklevel=2)
