"""One function for each task, with the weights that ship."""

from functools import lru_cache
from typing import Unpack

import torch

from kithkin.containers import Restorable
from kithkin.model import KiT
from kithkin.restoration import restore
from kithkin.restore_options import Options, RestoreOptions
from kithkin.restorers import Progress
from kithkin.zoo import load_model


def denoise(
    image: Restorable, *, device: str | None = None, progress: Progress | None = None, **options: Unpack[Options]
) -> Restorable:
    """Remove camera noise and film grain from a picture, with the model ``denoise`` of ``kithkin.zoo.list_models``.

    A little grain and texture stays (the preset ``natural``); ``preset="strong"`` removes all noise that the network
    finds. The weights are read at the first call and kept.

    Args:
        image: a path, a PIL image, a numpy array or a torch tensor, as in ``kithkin.restoration.restore``; the
            same comes back.
        device: where the network runs, such as ``"cpu"``; None takes the GPU where there is one.
        progress: called with the finished fraction in [0, 1].
        options: fields of ``kithkin.RestoreOptions``, such as ``strength=0.5``, ``ensemble=4`` or ``tile=512``.

    Raises:
        InputError, ImageError, KithkinError: as ``kithkin.restoration.restore``.
    """
    return _run("denoise", device, image, progress=progress, **options)


def derain(
    image: Restorable, *, device: str | None = None, progress: Progress | None = None, **options: Unpack[Options]
) -> Restorable:
    """Remove rain from a picture, with the model ``derain``, in full; all else is as in ``denoise``."""
    return _run("derain", device, image, progress=progress, **options)


def deblur(
    image: Restorable, *, device: str | None = None, progress: Progress | None = None, **options: Unpack[Options]
) -> Restorable:
    """Remove some of the blur of a camera that moved by up to about 20 pixels, with the model ``deblur``.

    If the whole picture is blurred in the same way, as by a shaking hand, the experimental option
    ``uniform_blur="light"`` removes far more of it, see ``kithkin.RestoreOptions``. All else is as in ``denoise``.
    What it does to which blur: docs/explanation/rain-and-blur.md.
    """
    return _run("deblur", device, image, progress=progress, **options)


def _run(
    task: str, device: str | None, image: Restorable, *, progress: Progress | None, **options: Unpack[Options]
) -> Restorable:
    options["preset"] = RestoreOptions(**options).for_model(task, task).preset
    network = _network(task, device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return restore(network, image, progress=progress, **options)


@lru_cache(maxsize=4)
def _network(task: str, device: str) -> KiT:
    return load_model(task, device=device)
