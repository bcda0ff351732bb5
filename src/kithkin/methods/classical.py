"""Filters without training: BM3D and non-local means, from the packages that keep them."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version

import numpy as np

from kithkin.errors import KithkinError
from kithkin.methods._picture import missing, on_one_line, reflected


@dataclass(frozen=True)
class Classical:
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
            raise KithkinError(f"failed ({on_one_line(error)}); leave this picture out") from error


def once(tell: Callable[[str], None]) -> Callable[[str], None]:
    told = set()

    def tell_once(sentence: str) -> None:
        if sentence not in told:
            told.add(sentence)
            tell(sentence)

    return tell_once


def bm3d_filter() -> Callable[[np.ndarray, float], np.ndarray]:
    try:
        import bm3d
    except ImportError as error:
        raise missing("bm3d", "bm3d", error, extra="bm3d") from error

    profile = bm3d.BM3DProfile()
    # With several, sums are made in an order of chance, and the result differs in the fourth digit from run to run.
    profile.num_threads = 1

    def run(image: np.ndarray, deviation: float) -> np.ndarray:
        height, width = image.shape[:2]
        # The package refuses sides below its blocks' 8 pixels, and crashes with 8 by 8.
        values = reflected(image, max(height, 16), max(width, 16)).astype(np.float64)
        if np.ptp(values, axis=2).max() > 0:
            result = bm3d.bm3d_rgb(values, deviation, profile)
        else:  # it would scale the differences of the colours by their range, which is zero for gray
            gray = np.reshape(bm3d.bm3d(values[..., 0], deviation, profile), (*values.shape[:2], 1))
            result = np.repeat(gray, 3, axis=2)
        return result[:height, :width]

    return run


def nlm_filter() -> Callable[[np.ndarray, float], np.ndarray]:
    try:
        from skimage.restoration import denoise_nl_means
    except ImportError as error:
        raise missing("nlm", "scikit-image", error) from error

    def run(image: np.ndarray, deviation: float) -> np.ndarray:
        # Patches, window and h = 0.6 sigma: the fast variant in scikit-image's example "Non-local means denoising for
        # preserving textures".
        return denoise_nl_means(
            image, patch_size=5, patch_distance=6, h=0.6 * deviation, sigma=deviation, fast_mode=True, channel_axis=-1
        )

    return run


def sigma_estimator(who: str) -> Callable[[np.ndarray], float]:
    def run(image: np.ndarray) -> float:
        try:
            from skimage.restoration import estimate_sigma

            return float(estimate_sigma(image, channel_axis=-1, average_sigmas=True))
        except ImportError as error:  # also at the call, where scikit-image misses PyWavelets
            raise missing(f"{who} without a noise level", "scikit-image", error) from error

    return run
