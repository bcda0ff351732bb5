"""Remove the blur from a picture, if one kernel explains it."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn

from kithkin.deconvolution.constants import CURVES, SIZE
from kithkin.deconvolution.inverse import deconvolve, noise_level, unexplained
from kithkin.deconvolution.kernel import estimate_kernel
from kithkin.errors import InputError
from kithkin.model import KiT
from kithkin.restorers import Composition, Note, Progress, Restorer, out_of_memory, share, silent, warn
from kithkin.zoo import load_model

CLEANER = "denoise-small"
"""The model that cleans a picture whose uniform blur was undone."""


@dataclass(frozen=True)
class UniformDeblur(Composition):
    """A picture whose blur is one kernel everywhere, without it; as the restorer leaves it where there is none.

    Attributes:
        cleaner: removes noise; it works twice.
        curve: what was blurred, a name in ``CURVES``.
        note: told why a picture was left to the restorer.
    """

    cleaner: Restorer
    curve: str = "light"
    note: Note = warn

    @property
    def reach(self) -> None:
        return None

    def __call__(self, image: Tensor, progress: Progress = silent) -> Tensor:
        parts = (share(progress, i, 3) for i in range(3))
        restored = self.restorer(image, next(parts))
        sharp = None
        try:
            clean = lambda picture: self.cleaner(picture, next(parts))  # noqa: E731
            sharp = remove_uniform_blur(image, restored, clean, curve=self.curve)
            why = "it is too small" if too_small(image) else "no blur that is the same everywhere was found"
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            why = "not enough memory to find a blur that is the same everywhere"
        if sharp is None:
            self.note(f"{why}: restored by the model alone")
        progress(1.0)
        return restored if sharp is None else sharp


def load_cleaner(model: KiT | Restorer) -> KiT:
    """``CLEANER`` on the device of a network or of another restorer."""
    device = next(model.parameters(), torch.empty(0)).device if isinstance(model, nn.Module) else model.device
    return _cleaner(str(device))


@lru_cache(maxsize=2)
def _cleaner(device: str) -> KiT:
    return load_model(CLEANER, device=device).eval()


def remove_uniform_blur(
    image: Tensor, restored: Tensor, clean: Callable[[Tensor], Tensor], *, curve: str = "light"
) -> Tensor | None:
    """Take the blur from a picture, if one kernel explains it.

    Args:
        image: (C, H, W), floating in [0, 1].
        restored: (C, H, W), what a deblurring network makes of it: what comes out must not lie far from that.
        clean: removes the noise of a (C, H, W) picture in [0, 1] and returns such a picture.
        curve: what was blurred, a name in ``CURVES``.

    Returns:
        (C, H, W) float32, not clamped; None where the picture is too small, or where its blur doesn't seem to be one.

    Raises:
        InputError: there is no such curve.
    """
    if not isinstance(curve, str) or curve not in CURVES:
        raise InputError(f"uniform_blur must be {' or '.join(CURVES)}, got {curve!r}; a camera's blur is of light")
    if too_small(image):
        return None
    image, restored, of = image.float(), restored.float(), CURVES[curve]
    sigma = noise_level(image)
    light = image if of.power == 1 else image.clamp(0, 1) ** of.power
    kernel = estimate_kernel(light)
    if kernel.max() == 1:
        return None
    sharp = clean(deconvolve(light, kernel, sigma=of.caution * sigma).clamp_(0, 1) ** (1 / of.power))
    if unexplained(image, sharp, kernel, sigma=sigma, power=of.power) > of.unexplained:
        return None
    # What the network did but for the noise; a cleaner that smoothes a sharp picture must not count as that.
    moved = min((restored - other).square().mean() for other in (image, clean(image.clamp(0, 1))))
    if (sharp - restored).square().mean() > of.far * moved:
        return None
    return torch.lerp(restored, sharp, of.share)


def too_small(image: Tensor) -> bool:
    """Whether a (C, H, W) picture is too small for a kernel to be found."""
    return min(image.shape[1:]) < 2 * SIZE
