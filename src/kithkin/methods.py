"""Restorers behind one interface, so that ours and its peers are measured by the same code.

A method is opened by a spec, see :func:`open_method`, and called through :func:`run_method`, which checks its output.
"""

import hashlib
import json
import math
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from kithkin.errors import CheckpointError, InputError, KithkinError
from kithkin.model import KiT
from kithkin.restoration import CPU_TILE, CUDA_TILE, OVERLAP, check_tiling, out_of_memory, restore
from kithkin.zoo import find_model, load_model

INSTALL = 'pip install "kithkin[eval]"'
CLASSICAL = ("input", "bm3d", "nlm")
SCRIPTED = (".pt", ".ts", ".torchscript")

Network = Callable[[np.ndarray], np.ndarray]
"""(1, 3, H, W) float32 -> what a network makes of it."""


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
        spec: a name or task from ``kithkin models``, or a checkpoint's path;
            ``"input"``, which changes nothing;
            ``"bm3d"``, colour BM3D (Dabov et al. 2007) with the normal profile of the package bm3d;
            ``"nlm"``, non-local means (Buades et al. 2005) by scikit-image;
            a path ending in ``.onnx`` (run by onnxruntime on the CPU), or in ``.pt``, ``.ts`` or ``.torchscript``
            (TorchScript): a network from (1, 3, H, W) float32 to the same. Behind it may stand ``@8``: pictures are
            then extended by reflection to multiples of 8, for networks that take no other sizes. A network of one
            fixed size restores overlapping tiles of that size.
        device: where networks run, ONNX excepted.
        tile: ``"off"``, ``"auto"`` or a side in pixels, as in :func:`kithkin.restoration.restore`, for networks.
        note: called once with a sentence where a noise level must be estimated; None makes it a warning.

    Raises:
        InputError: the spec names nothing, the file is no such network, or its inputs are others.
        CheckpointError: the checkpoint or the file can't be read.
        KithkinError: a package is missing; the message has the install line.
    """
    check_tiling(tile, OVERLAP)
    text = str(spec)
    tell = _once(note or (lambda sentence: warnings.warn(sentence, stacklevel=2)))
    if text == "input":
        return _Identity()
    if text == "bm3d":
        return _Classical("bm3d", _bm3d_filter(), _sigma_estimator("bm3d"), tell, "bm3d")
    if text == "nlm":
        return _Classical("nlm", _nlm_filter(), _sigma_estimator("nlm"), tell, "scikit-image")
    path, multiple = _split(text)
    suffix = path.suffix.lower()
    if suffix == ".onnx":
        network, fixed = _onnx(path)
        return _Exported(path.name, network, fixed, _largest(tile, "cpu", multiple), multiple, _digest(path))
    if suffix in SCRIPTED:
        largest = _largest(tile, device, multiple)
        return _Exported(path.name, _scripted(path, device), (None, None), largest, multiple, _digest(path))
    card = find_model(text)
    if card is None and not Path(text).is_file():
        raise InputError(
            f"open_method: {text!r} is no method: expected {', '.join(CLASSICAL)}, a name from `kithkin models`, or "
            f"the path of a checkpoint, an .onnx or TorchScript file ({', '.join(SCRIPTED)}); check the spelling"
        )
    return ModelMethod(load_model(text, device=device), card.name if card else Path(text).name, tile)


def run_method(
    method: Method, image: np.ndarray, *, sigma: float | None = None, picture: str = "the picture"
) -> np.ndarray:
    """Restore a picture and check what comes out.

    Args:
        method: from :func:`open_method`, or anything else that is a :class:`Method`.
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
        tile: as in :func:`kithkin.restoration.restore`.
    """

    model: KiT
    name: str = "model"
    tile: str | int = "off"
    needs_sigma: bool = False

    @property
    def identity(self) -> str:
        weights = hashlib.sha256(json.dumps([self.model.config.to_dict(), self.tile]).encode())
        for values in self.model.state_dict().values():
            weights.update(values.detach().cpu().contiguous().view(torch.uint8).numpy())
        return weights.hexdigest()[:12]

    def __call__(self, image: np.ndarray, *, sigma: float | None = None) -> np.ndarray:
        return restore(self.model, image, tile=self.tile)


@dataclass(frozen=True)
class _Classical:
    """A filter of an image and its noise's standard deviation, both with white = 1."""

    name: str
    filter: Callable[[np.ndarray, float], np.ndarray]
    estimate: Callable[[np.ndarray], float]
    tell: Callable[[str], None]
    package: str
    needs_sigma: bool = True

    @property
    def identity(self) -> str:
        return version(self.package)

    def __call__(self, image: np.ndarray, *, sigma: float | None = None) -> np.ndarray:
        if sigma is None:
            self.tell(f"{self.name}: no noise level is given, so scikit-image estimates one from every picture")
            deviation = self.estimate(image)
        else:
            deviation = sigma / 255
        if deviation <= 0:
            return image.copy()
        try:
            return np.asarray(self.filter(image, deviation), dtype=np.float32)
        except Exception as error:
            raise KithkinError(f"failed ({_line(error)}); leave this picture out") from error


@dataclass(frozen=True)
class _Exported:
    """A network from a file: ``fixed`` is the (height, width) that it takes, None for any; ``largest`` of a tile."""

    name: str
    network: Network
    fixed: tuple[int | None, int | None]
    largest: int | None
    multiple: int
    identity: str
    needs_sigma: bool = False

    def __call__(self, image: np.ndarray, *, sigma: float | None = None) -> np.ndarray:
        height, width = image.shape[:2]
        tall = self.fixed[0] or min(height, self.largest or height)
        wide = self.fixed[1] or min(width, self.largest or width)
        extended = _reflected(image, max(tall, height), max(wide, width))
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
        batch = np.ascontiguousarray(_reflected(tile, height, width).transpose(2, 0, 1)[None])
        try:
            result = self.network(batch)
        except Exception as error:
            if out_of_memory(error):
                raise KithkinError(f"not enough memory for {width} x {height} pixels; take smaller tiles") from error
            raise KithkinError(
                f"the network does not take {width} x {height} pixels ({_line(error)}); where it needs sides that are "
                f"multiples of 8, say so behind its path: {self.name}@8"
            ) from error
        if result.shape != batch.shape:
            raise KithkinError(f"expected an output of shape {batch.shape}, got {result.shape}; it can't be compared")
        return result[0].transpose(1, 2, 0)[: tile.shape[0], : tile.shape[1]].astype(np.float32)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:12]


def _once(tell: Callable[[str], None]) -> Callable[[str], None]:
    told = set()

    def tell_once(sentence: str) -> None:
        if sentence not in told:
            told.add(sentence)
            tell(sentence)

    return tell_once


def _line(error: BaseException) -> str:
    """An exception's text on one line, the middle of a long one left out: TorchScript says the reason at the end."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:100]} ... {text[-200:]}"


def _split(text: str) -> tuple[Path, int]:
    """A path and the multiple behind it, 1 where there is none."""
    found = re.fullmatch(r"(.+\.\w+)@(\d+)", text)
    if not found:
        return Path(text), 1
    if not 1 <= int(found[2]) <= 1024:
        raise InputError(f"open_method: {text}: expected a multiple from 1 to 1024 behind @, got {found[2]}")
    return Path(found[1]), int(found[2])


def _largest(tile: str | int, device: str, multiple: int) -> int | None:
    """The largest side of a tile, a multiple; None for the whole picture."""
    if tile == "off":
        return None
    auto = CUDA_TILE if device.startswith("cuda") else CPU_TILE
    return max((auto if tile == "auto" else int(tile)) // multiple, 1) * multiple


def _reflected(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Extend below and to the right by reflection, as often as it takes."""
    return np.pad(image, ((0, height - image.shape[0]), (0, width - image.shape[1]), (0, 0)), mode="reflect")


def _starts(length: int, side: int) -> list[int]:
    """Where tiles of one side begin that cover a length and share OVERLAP pixels, or a quarter of small ones."""
    step = side - min(OVERLAP, side // 4)
    count = max(1, math.ceil((length - side) / step) + 1)
    return [round(i * (length - side) / max(count - 1, 1)) for i in range(count)]


def _ramp(side: int) -> np.ndarray:
    """Weights that rise from the border over the overlap, to blend tiles; a whole picture's cancel out."""
    distance = np.minimum(np.arange(side), np.arange(side)[::-1]) + 1
    return np.minimum(distance, max(1, min(OVERLAP, side // 4))).astype(np.float32)


def _missing(who: str, package: str, error: ImportError) -> KithkinError:
    return KithkinError(f"{who} needs the package {package}, which can't be imported ({_line(error)}); {INSTALL}")


def _bm3d_filter() -> Callable[[np.ndarray, float], np.ndarray]:
    try:
        import bm3d
    except ImportError as error:
        raise _missing("bm3d", "bm3d", error) from error

    profile = bm3d.BM3DProfile()
    # With several, sums are made in an order of chance, and the result differs in the fourth digit from run to run.
    profile.num_threads = 1

    def run(image: np.ndarray, deviation: float) -> np.ndarray:
        height, width = image.shape[:2]
        # The package refuses sides below its blocks' 8 pixels, and crashes with 8 by 8.
        values = _reflected(image, max(height, 16), max(width, 16)).astype(np.float64)
        if np.ptp(values, axis=2).max() > 0:
            result = bm3d.bm3d_rgb(values, deviation, profile)
        else:  # it would scale the differences of the colours by their range, which is zero for gray
            gray = np.reshape(bm3d.bm3d(values[..., 0], deviation, profile), (*values.shape[:2], 1))
            result = np.repeat(gray, 3, axis=2)
        return result[:height, :width]

    return run


def _nlm_filter() -> Callable[[np.ndarray, float], np.ndarray]:
    try:
        from skimage.restoration import denoise_nl_means
    except ImportError as error:
        raise _missing("nlm", "scikit-image", error) from error

    def run(image: np.ndarray, deviation: float) -> np.ndarray:
        # Patches, window and h = 0.6 sigma: the fast variant in scikit-image's example "Non-local means denoising for
        # preserving textures".
        return denoise_nl_means(
            image, patch_size=5, patch_distance=6, h=0.6 * deviation, sigma=deviation, fast_mode=True, channel_axis=-1
        )

    return run


def _sigma_estimator(who: str) -> Callable[[np.ndarray], float]:
    def run(image: np.ndarray) -> float:
        try:
            from skimage.restoration import estimate_sigma

            return float(estimate_sigma(image, channel_axis=-1, average_sigmas=True))
        except ImportError as error:  # also at the call, where scikit-image misses PyWavelets
            raise _missing(f"{who} without a noise level", "scikit-image", error) from error

    return run


def _onnx(path: Path) -> tuple[Network, tuple[int | None, int | None]]:
    """The network of an ONNX file, and its height and width where they are fixed."""
    try:
        import onnxruntime
    except ImportError as error:
        raise _missing(path.name, "onnxruntime", error) from error
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; check the path")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4  # what goes wrong is said by the exception
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise CheckpointError(f"{path}: onnxruntime can't open it ({_line(error)}); export it again") from error
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
    return run, (height, width)


def _scripted(path: Path, device: str) -> Network:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; check the path")
    try:
        module = torch.jit.load(str(path), map_location=device).eval()
    except Exception as error:
        raise CheckpointError(
            f"{path} is not a TorchScript file ({_line(error)}); export the network with torch.jit.trace or "
            "torch.jit.script, a file of weights alone is not enough"
        ) from error

    def run(batch: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            result = module(torch.from_numpy(batch).to(device))
        if not isinstance(result, torch.Tensor):
            raise TypeError(f"its output is {type(result).__name__}, not one tensor")
        return result.float().cpu().numpy()

    return run
