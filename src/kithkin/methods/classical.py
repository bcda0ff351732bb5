"""Filters without training: BM3D and non-local means, from the packages that keep them."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kithkin.errors import KithkinError
from kithkin.messages import both_ends, missing_extra
from kithkin.restorers import Progress, silent


@dataclass(frozen=True)
class Classical:
    """A filter of an image (H, W, 3) and its noise's standard deviation, both with white = 1, as a restorer.

    Attributes:
        sigma: noise level on the 0-255 scale; None estimates that of every picture.
    """

    name: str
    filter: Callable[[np.ndarray, float], np.ndarray]
    tell: Callable[[str], None]
    sigma: float | None = None
    stride = 1
    reach = None
    device = torch.device("cpu")

    def __call__(self, image: Tensor, progress: Progress = silent) -> Tensor:
        pixels = image.permute(1, 2, 0).contiguous().numpy()
        deviation = self._estimated(pixels) if self.sigma is None else self.sigma / 255
        if deviation <= 0:
            return image.clone()
        try:
            result = np.asarray(self.filter(pixels, deviation), dtype=np.float32)
        except Exception as error:
            raise KithkinError(f"failed ({both_ends(error)}); leave this picture out") from error
        return torch.from_numpy(result).permute(2, 0, 1)

    def _estimated(self, pixels: np.ndarray) -> float:
        self.tell(f"{self.name}: no noise level is given, so scikit-image estimates one from every picture")
        try:
            from skimage.restoration import estimate_sigma

            return float(estimate_sigma(pixels, channel_axis=-1, average_sigmas=True))
        except ImportError as error:  # also at the call, where scikit-image misses PyWavelets
            raise KithkinError(missing_extra(f"{self.name} without a noise level", "scikit-image", "eval")) from error


def bm3d(tell: Callable[[str], None]) -> Classical:
    """Colour BM3D (Dabov et al. 2007) with the normal profile of the package bm3d."""
    try:
        import bm3d
    except ImportError as error:
        raise KithkinError(missing_extra("bm3d", "bm3d", "bm3d")) from error

    profile = bm3d.BM3DProfile()
    # With several, sums are made in an order of chance, and the result differs in the fourth digit from run to run.
    profile.num_threads = 1

    def run(image: np.ndarray, deviation: float) -> np.ndarray:
        height, width = image.shape[:2]
        # The package refuses sides below its blocks' 8 pixels, and crashes with 8 by 8.
        more = ((0, max(16 - height, 0)), (0, max(16 - width, 0)), (0, 0))
        values = np.pad(image, more, mode="reflect").astype(np.float64)
        if np.ptp(values, axis=2).max() > 0:
            result = bm3d.bm3d_rgb(values, deviation, profile)
        else:  # it would scale the differences of the colours by their range, which is zero for gray
            gray = np.reshape(bm3d.bm3d(values[..., 0], deviation, profile), (*values.shape[:2], 1))
            result = np.repeat(gray, 3, axis=2)
        return result[:height, :width]

    return Classical("bm3d", run, tell)


def nlm(tell: Callable[[str], None]) -> Classical:
    """Non-local means (Buades et al. 2005) by scikit-image."""
    try:
        from skimage.restoration import denoise_nl_means
    except ImportError as error:
        raise KithkinError(missing_extra("nlm", "scikit-image", "eval")) from error

    def run(image: np.ndarray, deviation: float) -> np.ndarray:
        # Patches, window and h = 0.6 sigma: the fast variant in scikit-image's example "Non-local means denoising for
        # preserving textures".
        return denoise_nl_means(
            image, patch_size=5, patch_distance=6, h=0.6 * deviation, sigma=deviation, fast_mode=True, channel_axis=-1
        )

    return Classical("nlm", run, tell)
