"""PSNR and SSIM by named protocol.

Two papers' "PSNR" or "SSIM" can be different measures: on the same restored SIDD images the three SSIM windows below
give about .92, .96 and .97. So every value here is computed under a named protocol (and, for SSIM, a named window), and
that name belongs beside the value wherever it is printed.

Images are RGB. A numpy array is (H, W, 3); a torch tensor is (3, H, W) or (1, 3, H, W), on any device. Both hold
floats in [0, 1] or uint8, and the two images of a call may differ in kind. All arithmetic is in float64 on the CPU.
"""

import math
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F

from kithkin.errors import InputError

ImageArray: TypeAlias = np.ndarray | torch.Tensor

PSNR_PROTOCOLS: dict[str, str] = {
    "rgb": "RGB clamped to [0, 1] and not quantised, peak 1, over all channels (SIDD).",
    "rgb-uint8": "RGB clamped and rounded to uint8, peak 255, over all channels (Gaussian colour noise, GoPro, HIDE).",
    "y-matlab": "Y of MATLAB's rgb2ycbcr on uint8 images, rounded to uint8, peak 255 (the Rain13k tests).",
    "y-unrounded": "Y of MATLAB's rgb2ycbcr on uint8 images, not rounded, peak 255 (not what the Rain13k tables use).",
}

SSIM_WINDOWS: dict[str, str] = {
    "wang2d": "11x11 Gaussian (sigma 1.5) on each channel, valid region, population covariance (Wang et al. 2004).",
    "matlab3d": "11x11x11 Gaussian (sigma 1.5) over the RGB volume, borders replicated (MATLAB's ssim of H x W x 3).",
    "skimage-float": "7x7 mean on each channel, valid region, sample covariance, data range twice the peak "
    "(scikit-image's old default on floats).",
}

# The constants of Wang et al. 2004, Sec. III-C; every window here keeps them.
_K1, _K2 = 0.01, 0.03


class _Window(NamedTuple):
    taps: tuple[float, ...]  # the window along one axis: odd in number, symmetric, summing to 1
    volume: bool  # slide along the channels too, and replicate every border, instead of staying in the valid region
    range_in_peaks: float  # the data range L of the SSIM constants, in units of the protocol's peak
    sample_covariance: bool  # divide by n - 1 instead of n


def _gaussian_taps(size: int, sigma: float) -> tuple[float, ...]:
    weights = [math.exp(-((i - size // 2) ** 2) / (2 * sigma**2)) for i in range(size)]
    return tuple(weight / math.fsum(weights) for weight in weights)


_WINDOWS: dict[str, _Window] = {
    "wang2d": _Window(_gaussian_taps(11, 1.5), volume=False, range_in_peaks=1, sample_covariance=False),
    "matlab3d": _Window(_gaussian_taps(11, 1.5), volume=True, range_in_peaks=1, sample_covariance=False),
    # scikit-image took float images to lie in [-1, 1], so it guessed a data range of 2 for images in [0, 1].
    "skimage-float": _Window((1 / 7,) * 7, volume=False, range_in_peaks=2, sample_covariance=True),
}


def psnr(a: ImageArray, b: ImageArray, *, protocol: str = "rgb") -> float:
    """Peak signal-to-noise ratio of two images, 10 log10(peak² / mean squared error), in dB.

    The mean is over all pixels, and over all channels that the protocol keeps; no border is cropped. Values outside
    [0, 1] are clamped, in both images.

    Args:
        a, b: RGB images of one size: numpy (H, W, 3) or torch (3, H, W) / (1, 3, H, W), float in [0, 1] or uint8.
        protocol: a key of `PSNR_PROTOCOLS`, which says the colour space, the quantisation and the peak.

    Returns:
        The PSNR in dB; `math.inf` when the two images are equal under the protocol.

    Raises:
        InputError: the protocol is unknown; an image has another type, dtype, layout or size, is a batch of several
            images or empty, holds NaN or infinity, or looks like floats on the 0-255 scale.

    Source: the evaluation code of SIDD (Abdelhamed et al. 2018), of Restormer (Zamir et al. 2022; `rgb-uint8` and
    `y-matlab`) and of KAIR (`rgb-uint8`).
    """
    _check_name("psnr", "protocol", protocol, PSNR_PROTOCOLS)
    planes_a, planes_b = image_pair("psnr", a, b, smallest=1)
    (signal_a, peak), (signal_b, _) = _signal(planes_a, protocol), _signal(planes_b, protocol)
    error = (signal_a - signal_b).square_().mean().item()
    return 10 * math.log10(peak**2 / error) if error > 0 else math.inf


def ssim(a: ImageArray, b: ImageArray, *, window: str = "wang2d", protocol: str = "rgb") -> float:
    """Mean structural similarity of two images, with K1 = 0.01 and K2 = 0.03; 1 for equal images.

    The windows, of which no two give the same value:

    - `wang2d`: 11×11 Gaussian of sigma 1.5 in one channel at a time, only where the whole window fits (5 pixels less
      on each side), population covariance, mean over the map and the channels. This is Wang's ssim_index.m.
    - `matlab3d`: MATLAB's `ssim` on an H×W×3 array, which it takes for a volume: one 11×11×11 Gaussian of sigma 1.5
      that slides along the channels too, population covariance, mean over a map of full size H×W×3. Beyond each
      border, the channel axis included, the outermost value is repeated: 5 more copies of R before R and of B after
      B. So every value mixes the three channels, and reordering the channels changes the result.
    - `skimage-float`: scikit-image's default before it asked for a data range: 7×7 mean in one channel at a time,
      covariance divided by n - 1, 3 pixels cropped on each side, mean over the map and the channels, and the constants
      of a data range of 2 for images in [0, 1] (twice the peak, whatever the protocol), which forgive more.

    Args:
        a, b: as in `psnr`; each side at least as long as the window: 11 pixels, or 7 for `skimage-float`. MATLAB
            itself takes smaller ones for `matlab3d`, where most of what it sees is padding.
        window: a key of `SSIM_WINDOWS`.
        protocol: a key of `PSNR_PROTOCOLS`. It says the colour space and the quantisation, and its peak is the data
            range; the Y protocols leave one channel, which `matlab3d` does not take.

    Returns:
        The mean SSIM, at most 1; it can be negative.

    Raises:
        InputError: as in `psnr`; also for an unknown window, an image smaller than the window, or `matlab3d` with a
            Y protocol.

    Source: Wang, Bovik, Sheikh and Simoncelli, "Image quality assessment: from error visibility to structural
    similarity", 2004; MATLAB's ssim and scikit-image's structural_similarity for the other two windows.
    """
    _check_name("ssim", "window", window, SSIM_WINDOWS)
    _check_name("ssim", "protocol", protocol, PSNR_PROTOCOLS)
    spec = _WINDOWS[window]
    if spec.volume and protocol.startswith("y-"):
        raise InputError(
            f"ssim expected a three-channel protocol with window {window!r}, got {protocol!r}, which leaves one "
            "channel; take window='wang2d' for Y, or protocol='rgb' or 'rgb-uint8'."
        )
    planes_a, planes_b = image_pair("ssim", a, b, smallest=len(spec.taps))
    (signal_a, peak), (signal_b, _) = _signal(planes_a, protocol), _signal(planes_b, protocol)
    return ssim_map(signal_a, signal_b, window, data_range=peak).mean().item()


def _signal(planes: torch.Tensor, protocol: str) -> tuple[torch.Tensor, float]:
    """What a protocol compares: (3, H, W) in [0, 1] -> the float64 channels it keeps, and its peak."""
    planes = planes.clamp(0, 1)
    if protocol == "rgb":
        return planes, 1.0
    # A tie goes to the even level, as in numpy's round and rint, which wrote the images that the tables measure.
    levels = (planes * 255).round_()
    if protocol == "rgb-uint8":
        return levels, 255.0
    # 255,000 Y is an exact integer, so the rounding meets its ties (Y = 52.5, 125.5, 198.5) exactly; MATLAB
    # rounds those up, where torch.round would take them to the even neighbour.
    luma = (levels[0] * 65_481 + levels[1] * 128_553 + levels[2] * 24_966 + 16 * 255_000)[None]
    return (luma / 255_000 if protocol == "y-unrounded" else ((luma + 127_500) / 255_000).floor_()), 255.0


def ssim_map(a: torch.Tensor, b: torch.Tensor, window: str, data_range: float) -> torch.Tensor:
    """SSIM at every position (Wang et al. 2004, Eq. 13).

    Args:
        a, b: (C, H, W) float64.
        window: a key of `SSIM_WINDOWS`.
        data_range: L of the constants, before the window's own factor.

    Returns:
        (C, H', W') float64; smaller than the images where the window stays in the valid region.
    """
    spec = _WINDOWS[window]
    c1, c2 = (_K1 * data_range * spec.range_in_peaks) ** 2, (_K2 * data_range * spec.range_in_peaks) ** 2
    count = len(spec.taps) ** 2
    scale = count / (count - 1) if spec.sample_covariance else 1.0
    # The formula needs the two variances only as their sum, so the squares are filtered together.
    moments = (a, b, a * a + b * b, a * b)
    maps = []
    for channel in range(a.shape[0]):
        mean_a, mean_b, squares, products = (_local_mean(moment, channel, spec) for moment in moments)
        mean_squares, mean_products = mean_a * mean_a + mean_b * mean_b, mean_a * mean_b
        variances = scale * (squares - mean_squares)
        covariance = scale * (products - mean_products)
        luminance = (2 * mean_products + c1) / (mean_squares + c1)
        maps.append((2 * covariance + c2) / (variances + c2) * luminance)
    return torch.stack(maps)


def _local_mean(volume: torch.Tensor, channel: int, window: _Window) -> torch.Tensor:
    """The windowed mean around every position of one channel of a (C, H, W) volume."""
    # One plane at a time: it stays in the cache between the taps, several times faster than whole volumes.
    plane = volume[channel]
    if window.volume:
        radius, last = len(window.taps) // 2, volume.shape[0] - 1
        shares = [0.0] * volume.shape[0]
        for offset, tap in enumerate(window.taps, start=-radius):
            shares[min(max(channel + offset, 0), last)] += tap
        plane = torch.tensordot(torch.tensor(shares, dtype=torch.float64), volume, dims=1)
        plane = F.pad(plane[None], (radius,) * 4, mode="replicate")[0]
    return _filter(_filter(plane, window.taps, dim=0), window.taps, dim=1)


def _filter(plane: torch.Tensor, taps: tuple[float, ...], dim: int) -> torch.Tensor:
    """Correlate along one axis with symmetric taps, where they fit whole: that axis gets len(taps) - 1 shorter."""
    # torch's float64 convolution is some ten times slower than these sums of shifted views.
    middle, length = len(taps) // 2, plane.shape[dim] - len(taps) + 1
    out = plane.narrow(dim, middle, length) * taps[middle]
    for i in range(middle):
        mirrored = plane.narrow(dim, i, length) + plane.narrow(dim, len(taps) - 1 - i, length)
        out.add_(mirrored, alpha=taps[i])
    return out


def _check_name(who: str, what: str, name: str, known: dict[str, str]) -> None:
    if not isinstance(name, str) or name not in known:
        raise InputError(f"{who} expected {what} to be one of {', '.join(known)}, got {name!r}; name one of these.")


def image_pair(who: str, a: ImageArray, b: ImageArray, smallest: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Both images as float64 (3, H, W) on the CPU, checked; not clamped."""
    planes_a, planes_b = _planes(who, "a", a), _planes(who, "b", b)
    if planes_a.shape != planes_b.shape:
        (height_a, width_a), (height_b, width_b) = planes_a.shape[1:], planes_b.shape[1:]
        raise InputError(
            f"{who} expected two images of one size, got height × width {height_a} × {width_a} for a and "
            f"{height_b} × {width_b} for b; pass the two images of one scene, cropped alike."
        )
    height, width = planes_a.shape[1:]
    if min(height, width) < smallest:
        raise InputError(
            f"{who} expected images of at least {smallest} × {smallest} pixels, got height × width "
            f"{height} × {width}; pass larger images, or measure a crop that is large enough."
        )
    return planes_a, planes_b


def _planes(who: str, name: str, image: ImageArray) -> torch.Tensor:
    if isinstance(image, torch.Tensor):
        planes = _tensor_planes(who, name, image.detach())
    elif isinstance(image, np.ndarray):
        planes = _array_planes(who, name, image)
    else:
        raise InputError(
            f"{who} expected {name} to be a numpy array (H, W, 3) or a torch tensor (3, H, W), got "
            f"{type(image).__name__}; convert it first, for example with numpy.asarray."
        )
    if not bool(torch.isfinite(planes).all()):
        raise InputError(
            f"{who} expected finite values in {name}, got NaN or infinity; look for the step that made them, since no "
            "PSNR or SSIM exists for such an image."
        )
    # Clamping would turn a 0-255 picture into a white one, and two of those would score as equal. Noise, overshoot and
    # a diverged network's output, which goes below 0 as well, are clamped and measured.
    if planes.numel() > 0 and planes.min() >= 0 and planes.mean() > 2:
        raise InputError(
            f"{who} expected {name} to be floats in [0, 1] or uint8, got floats from {planes.min().item():g} to "
            f"{planes.max().item():g}; divide by the peak value, 255 for an 8-bit picture."
        )
    return planes


def _tensor_planes(who: str, name: str, image: torch.Tensor) -> torch.Tensor:
    shape = tuple(image.shape)
    if len(shape) == 4 and shape[0] != 1:
        raise _batch_error(who, name, shape)
    if len(shape) not in (3, 4) or shape[-3] != 3:
        raise InputError(
            f"{who} expected the tensor {name} to be RGB, (3, H, W) or (1, 3, H, W), got shape {shape}; permute "
            "(H, W, 3) with .permute(2, 0, 1), drop an alpha channel, or repeat a grey one three times."
        )
    if image.dtype != torch.uint8 and not image.is_floating_point():
        raise _dtype_error(who, name, image.dtype)
    # To the CPU before float64: some devices have no float64.
    planes = image.reshape(shape[-3:]).cpu().to(torch.float64)
    return planes / 255 if image.dtype == torch.uint8 else planes


def _array_planes(who: str, name: str, image: np.ndarray) -> torch.Tensor:
    if image.ndim == 4:
        raise _batch_error(who, name, image.shape)
    if image.ndim != 3 or image.shape[2] != 3:
        raise InputError(
            f"{who} expected the array {name} to be RGB, (H, W, 3), got shape {image.shape}; transpose (3, H, W) with "
            ".transpose(1, 2, 0), drop an alpha channel, or repeat a grey one three times."
        )
    if image.dtype != np.uint8 and not np.issubdtype(image.dtype, np.floating):
        raise _dtype_error(who, name, image.dtype)
    # A C-ordered copy, because torch takes no negative strides and no foreign byte order.
    planes = torch.from_numpy(image.transpose(2, 0, 1).astype(np.float64, order="C"))
    return planes / 255 if image.dtype == np.uint8 else planes


def _batch_error(who: str, name: str, shape: tuple[int, ...]) -> InputError:
    return InputError(
        f"{who} expected one image as {name}, got a batch of shape {tuple(shape)}; call {who} once per image and "
        "average the values, as the published protocols do."
    )


def _dtype_error(who: str, name: str, dtype: object) -> InputError:
    return InputError(
        f"{who} expected {name} to be floats in [0, 1] or uint8, got {dtype}; divide by the peak value "
        "(65535 for 16-bit integers) to get floats in [0, 1]."
    )
