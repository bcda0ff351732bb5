"""One function a task, with the weights that ship."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch

from kithkin.containers import Restorable
from kithkin.model import KiT
from kithkin.restoration import restore
from kithkin.zoo import load_model


def denoise(
    image: Restorable,
    *,
    strength: float = 1.0,
    ensemble: int = 1,
    tile: str | int = "auto",
    device: str | None = None,
    progress: Callable[[float], None] | None = None,
) -> Restorable:
    """Remove noise from a picture, with the model ``denoise-real`` of ``kithkin.zoo.list_models``.

    It knows the noise of cameras and phones, and Gaussian noise. The weights are read at the first call and kept.

    Args:
        image: a path, a PIL image, a numpy array or a torch tensor, as in ``kithkin.restoration.restore``; the
            same comes back.
        strength: 0 returns the input, 1 the restored picture, anything between a mixture.
        ensemble, tile: as in ``kithkin.restoration.restore``.
        device: where the network runs, such as ``"cpu"``; None takes the GPU where there is one.
        progress: called with the finished fraction in [0, 1].

    Raises:
        InputError, ImageError, KithkinError: as ``kithkin.restoration.restore``.
    """
    return _run("denoise-real", device, image, strength=strength, ensemble=ensemble, tile=tile, progress=progress)


def derain(
    image: Restorable,
    *,
    strength: float = 1.0,
    ensemble: int = 1,
    tile: str | int = "auto",
    device: str | None = None,
    progress: Callable[[float], None] | None = None,
) -> Restorable:
    """Remove rain from a picture, with the model ``derain``; all else is as in ``denoise``."""
    return _run("derain", device, image, strength=strength, ensemble=ensemble, tile=tile, progress=progress)


def deblur(
    image: Restorable,
    *,
    strength: float = 1.0,
    ensemble: int = 1,
    uniform_blur: str | None = None,
    tile: str | int = "auto",
    device: str | None = None,
    progress: Callable[[float], None] | None = None,
) -> Restorable:
    """Remove a part of the blur of a camera that moved, up to about 20 pixels, with the model ``deblur``.

    Where the whole picture is blurred alike, as by a hand that shook, ``uniform_blur="light"`` takes far more of it
    away, see ``kithkin.restoration.restore``. All else is as in ``denoise``. What it does to which blur:
    docs/rain-and-blur.md.
    """
    options = {"strength": strength, "ensemble": ensemble, "uniform_blur": uniform_blur}
    return _run("deblur", device, image, tile=tile, progress=progress, **options)


def _run(task: str, device: str | None, image: Restorable, **options: Any) -> Restorable:
    return restore(_network(task, device or ("cuda" if torch.cuda.is_available() else "cpu")), image, **options)


@lru_cache(maxsize=4)
def _network(task: str, device: str) -> KiT:
    return load_model(task, device=device)
