"""The measure of the RealBlur test sets: their blurred and sharp pictures come from two cameras, so a restored picture
is brought to the brightness and the place of the sharp one before it is compared."""

import math
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import torch

from kithkin.errors import InputError, KithkinError
from kithkin.messages import missing_extra
from kithkin.metrics._measures import ImageArray, image_pair, ssim_map

_WINDOW = "wang2d"
_CROP = 5
"""Pixels on each side where the 11 x 11 window of the SSIM does not fit."""


@dataclass(frozen=True, eq=False)
class Aligned:
    """A restored picture brought to its target.

    Attributes:
        output, target: (H, W, 3) float32, about [0, 1], not clamped; 0 outside the mask.
        mask: (H, W) bool, where the moved output has pixels.
        warp: (3, 3) float32, from a pixel (x, y, 1) of the target to the output's.
        gain: what the output was multiplied by.
    """

    output: np.ndarray
    target: np.ndarray
    mask: np.ndarray
    warp: np.ndarray
    gain: float


def align_realblur(output: ImageArray, target: ImageArray) -> Aligned:
    """Bring a restored picture to the brightness and the place of its target, as the RealBlur tables are made.

    The output z is multiplied by Σxz / Σz², which fits it to the target x best. A homography between the two in gray is
    found by ECC from the identity on (100 iterations, no early stop, Gaussian filter of 5 pixels). By it the output is
    moved onto the target with cubic interpolation, reflected at its border; a picture of ones, moved with the nearest
    pixel and 0 beyond the border, is the mask.

    Args:
        output, target: RGB images of one size, as ``kithkin.metrics.psnr`` takes them. Published outputs were
            rounded to uint8.

    Raises:
        InputError: an image is not usable, as for ``psnr``; or no alignment exists, as for a flat picture or two that
            show different things.
        KithkinError: OpenCV is not installed.

    Source: evaluation_RealBlur_ecc.py of rimchang/RealBlur (Rim et al. 2020), which MPRNet and Restormer follow. It
    asks for OpenCV 4.2.0; other versions may differ in the last digits.
    """
    cv2 = _opencv()
    z, x = (planes.permute(1, 2, 0).float().numpy() for planes in image_pair("align_realblur", output, target, 11))
    energy = float(np.sum(z * z, dtype=np.float64))
    if energy == 0:
        raise InputError("align_realblur: the output is black, so nothing can be aligned; check the restored picture")
    gain = float(np.sum(x * z, dtype=np.float64)) / energy
    scaled = np.ascontiguousarray(z * np.float32(gain))
    warp = _homography(cv2, scaled, np.ascontiguousarray(x))
    size = (x.shape[1], x.shape[0])
    moved = cv2.warpPerspective(
        scaled, warp, size, flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REFLECT
    )
    ones = cv2.warpPerspective(
        np.ones(x.shape[:2], np.float32), warp, size, flags=cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP, borderValue=0
    )
    mask = ones > 0
    if not mask[_CROP:-_CROP, _CROP:-_CROP].any():
        raise _unlike("they would not overlap")
    return Aligned(moved * mask[..., None], x * mask[..., None], mask, warp, gain)


def masked_psnr(aligned: Aligned) -> float:
    """PSNR over the mask and all channels, peak 1, in dB; `math.inf` for equal pictures."""
    difference = aligned.output.astype(np.float64) - aligned.target
    error = float(np.square(difference).sum()) / (3 * int(aligned.mask.sum()))
    return -10 * math.log10(error) if error > 0 else math.inf


def masked_ssim(aligned: Aligned) -> float:
    """SSIM over the mask: the map of the window `wang2d` with a data range of 1, 5 pixels cropped on each side, as a
    mean over the mask and the channels.

    At the mask's edge the windows hold the zeros beyond it, in both pictures alike.
    """
    output, target = (torch.from_numpy(pixels).permute(2, 0, 1).double() for pixels in (aligned.output, aligned.target))
    mask = torch.from_numpy(aligned.mask)[_CROP:-_CROP, _CROP:-_CROP]
    return ssim_map(target, output, _WINDOW, data_range=1.0)[:, mask].mean().item()


def _homography(cv2: Any, output: np.ndarray, target: np.ndarray) -> np.ndarray:
    gray = [cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY) for pixels in (target, output)]
    criteria = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 100, 0)
    start = np.eye(3, dtype=np.float32)
    try:
        _, warp = cv2.findTransformECC(*gray, start, cv2.MOTION_HOMOGRAPHY, criteria, None, 5)
    except cv2.error as error:
        raise _unlike(str(error.err or error)) from error
    if not np.isfinite(warp).all():
        raise _unlike("the homography is not finite")
    return warp


def _unlike(reason: str) -> InputError:
    return InputError(
        f"align_realblur: the output can't be aligned with the target ({' '.join(reason.split())}); both must show the "
        "same scene, with some structure in it: check that they are a pair"
    )


def _opencv() -> ModuleType:
    try:
        import cv2
    except ImportError as error:
        raise KithkinError(missing_extra("align_realblur", "OpenCV (opencv-python-headless)", "eval")) from error
    return cv2
