"""Estimate the kernel of a picture whose blur is the same everywhere, from the picture alone."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from kithkin.data.degrade.kernels import spectrum
from kithkin.deconvolution import constants
from kithkin.deconvolution.inverse import closed, difference_spectra, gradient_power
from kithkin.errors import InputError


def estimate_kernel(image: Tensor, *, size: int = constants.SIZE) -> Tensor:
    """Find the kernel of a picture whose blur is the same everywhere.

    There is always an answer; whether the picture has such a blur is another question, see ``unexplained``. A picture
    without edges has a kernel of one point.

    Args:
        image: (C, H, W), floating in [0, 1]; of a picture larger than ``WINDOW`` the middle is looked at.
        size: side of the kernel in pixels, an odd number from 7; what lies farther than half of it from the centroid
            is not found.

    Returns:
        (size, size) float32, not negative, of sum 1, its centroid within a pixel of its middle.

    Raises:
        InputError: the size is another, or the picture is smaller than twice the kernel.
    """
    if isinstance(size, bool) or not isinstance(size, int) or size < constants.SMALLEST or size % 2 == 0:
        raise InputError(
            f"estimate_kernel: size must be an odd number of pixels from {constants.SMALLEST}, got {size!r}"
        )
    if image.ndim != 3 or min(image.shape[1:]) < 2 * size:
        raise InputError(
            f"estimate_kernel: expected (C, H, W) of at least {2 * size} pixels a side, got {tuple(image.shape)}"
        )
    top, left = (max(0, (side - constants.WINDOW) // 2) for side in image.shape[1:])
    gray = image[:, top : top + constants.WINDOW, left : left + constants.WINDOW].float().mean(0)
    gray = closed(gray, size)
    edges = constants.EDGES
    kernel = gray.new_zeros(3, 3)
    kernel[1, :2] = 0.5
    for scale, radius in _sizes(size // 2):
        small = _resized(gray, [round(side * scale) for side in gray.shape])
        kernel = _centred(_resized(kernel, [2 * radius + 1] * 2).clamp(min=0))
        for _ in range(constants.ROUNDS):
            kernel = _kernel_between(_few_edges(small, kernel, edges), small, radius, faint=constants.FAINT)
            edges = max(edges / constants.EDGES_FALL, constants.FEWEST_EDGES)
    # A camera that lingered leaves most of the kernel in one place, and a faint path. Without the path the centroid,
    # and with it the picture, lies some pixels beside its place. A picture of few edges has no ghosts along the path.
    for _ in range(constants.PLACING):
        kernel = _centred(_kernel_between(_few_edges(gray, kernel, constants.PLACING_EDGES), gray, size // 2))
    return _kernel_between(_few_edges(gray, kernel, constants.LAST_EDGES), gray, size // 2, smooth=constants.SMOOTHEST)


def _sizes(radius: int) -> Iterator[tuple[float, int]]:
    """Scales of the picture and radii of the kernel, the smallest first, the last of them 1 and `radius`."""
    steps = max(0, math.ceil(math.log(max(radius / constants.SMALLEST_RADIUS, 1)) / -math.log(constants.SHRINK) - 1e-9))
    for step in range(steps, -1, -1):
        yield constants.SHRINK**step, max(1, round(radius * constants.SHRINK**step))


def _few_edges(blurred: Tensor, kernel: Tensor, edges: float) -> Tensor:
    """The picture x that minimises |k * x - blurred|² + edges · (number of pixels where grad x is not 0), by half
    quadratic splitting."""
    height, width = blurred.shape
    size = (height, width)
    transfer = spectrum(kernel, size)
    across, down = difference_spectra(size)
    known, power = transfer.conj() * torch.fft.rfft2(blurred), transfer.abs() ** 2
    steep = gradient_power(size)
    picture, weight = blurred, 2 * edges
    while weight < constants.STEEPEST:
        x, y = _differences(picture)
        kept = x.square() + y.square() >= edges / weight
        slopes = across.conj() * torch.fft.rfft2(x * kept) + down.conj() * torch.fft.rfft2(y * kept)
        picture = torch.fft.irfft2((known + weight * slopes) / (power + weight * steep), s=size)
        weight *= 2
    return picture


def _kernel_between(
    sharp: Tensor, blurred: Tensor, radius: int, *, faint: float = 0.0, smooth: float = constants.SMOOTH
) -> Tensor:
    """The kernel k that minimises |k * grad sharp - grad blurred|² + smooth · |k|², where, smoothed, it stands out
    of its noise and has more than the share `faint` of its largest value; without small parts."""
    given = [torch.fft.rfft2(part) for part in _differences(sharp)]
    wanted = [torch.fft.rfft2(part) for part in _differences(blurred)]
    shared = sum(a.conj() * b for a, b in zip(given, wanted, strict=True))
    power = sum(a.abs() ** 2 for a in given)
    whole = torch.fft.irfft2(shared / (power + smooth), s=sharp.shape)
    around = whole.roll((2 * radius, 2 * radius), (0, 1))[: 4 * radius + 1, : 4 * radius + 1]
    row = around.new_tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
    local = F.conv2d(around[None, None], torch.outer(row, row)[None, None], padding=2)[0, 0]
    inside = (slice(radius, 3 * radius + 1),) * 2
    beside = torch.ones_like(local, dtype=torch.bool)
    beside[inside] = False
    noise = local[beside].abs().median() / 0.6745
    kernel, local = around[inside].clamp(min=0), local[inside]
    kernel = kernel * (local > torch.maximum(constants.SURE * noise, faint * local.max()))
    if kernel.max() <= 0:
        kernel[radius, radius] = 1.0
    kernel = kernel * _large_parts(kernel)
    return kernel / kernel.sum()


def _large_parts(kernel: Tensor) -> Tensor:
    """Where the connected parts lie that have a share of the sum which isn't small, and the largest in any case."""
    positive = kernel > 0
    labels = kernel.new_tensor(range(1, kernel.numel() + 1)).view_as(kernel) * positive
    while True:
        grown = F.max_pool2d(labels[None, None], 3, stride=1, padding=1)[0, 0] * positive
        if torch.equal(grown, labels):
            break
        labels = grown
    index = labels.long()
    sums = kernel.new_zeros(kernel.numel() + 1).index_add(0, index.flatten(), kernel.flatten())
    return positive & (sums[index] >= min(constants.SMALL_PART * kernel.sum(), sums.max()))


def _centred(kernel: Tensor) -> Tensor:
    """A kernel moved by whole pixels so that its centroid is in the middle, and scaled to sum 1; what is moved out of
    its square is cut off."""
    kernel = kernel / kernel.sum()
    side = len(kernel)
    places = kernel.new_tensor(range(side)) - (side - 1) / 2
    steps = [-round(float((kernel.sum(1 - axis) * places).sum())) for axis in (0, 1)]
    moved = F.pad(kernel, [side] * 4).roll(steps, (0, 1))[side:-side, side:-side]
    return moved / moved.sum()


def _resized(plane: Tensor, size: list[int]) -> Tensor:
    if list(plane.shape) == size:
        return plane
    return F.interpolate(plane[None, None], size=size, mode="bilinear", antialias=True)[0, 0]


def _differences(plane: Tensor) -> tuple[Tensor, Tensor]:
    """To the next pixel, across and down; the last one's is the first."""
    return plane.roll(-1, 1) - plane, plane.roll(-1, 0) - plane
