"""Blur that is the same all over a picture: its kernel, found from the picture alone, and the picture without it.

A camera that shook blurs a whole picture with about one kernel. A network sees a part of the picture at a time, and
knows such a kernel only roughly; the picture as a whole determines it well. Nothing here is learnt, and nothing is from
the paper of KiT.

Sources: the kernel is found from coarse to fine, in turns with a picture of few edges (Xu, Zheng and Jia, "Unnatural L0
sparse representation for natural image deblurring", CVPR 2013; in the form of Pan, Hu, Su and Yang, "Deblurring text
images via L0-regularized intensity and gradient prior", CVPR 2014, without its term for intensities); the noise level
after Immerkær, "Fast noise variance estimation", 1996; borders that nobody saw are filled in by the blurred estimate
(as in Almeida and Figueiredo, "Deconvolving images with unknown boundaries using the alternating direction method of
multipliers", 2013).
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from kithkin.data.degrade.kernels import spectrum
from kithkin.errors import InputError
from kithkin.restore_options import check_curve

SIZE = 35
"""Side of the kernels that are looked for, in pixels."""
SMALLEST = 7
"""Side of the smallest square that kernels are looked for in: smoothed, they reach two pixels beyond it, where their
noise is told."""
WINDOW = 512
"""Side of the part of a picture, its middle, that a kernel is found from, in pixels."""
QUIETEST = 2.0
"""Noise level, on the 0-255 scale, below which no picture is believed to be: rounding and JPEG leave as much."""


class Curve(NamedTuple):
    """What is taken to have been blurred, and how far a kernel found so is believed.

    Attributes:
        power: of stored values, that was blurred.
        caution: times the noise that the picture has, as the deconvolution sees it.
        unexplained: what ``unexplained`` must not exceed.
        far: how far, squared, the picture without its blur may lie from what a network makes of it, where the
            network's change (but for the noise) counts 1.
        share: of the picture without its blur in the result, the rest is the network's.
    """

    power: float
    caution: float
    unexplained: float
    far: float
    share: float


# The numbers were chosen on validation photographs. Light needs more caution: its noise is not the same everywhere, it
# is clipped, and what rings around a bright edge shows in the dark beside it.
CURVES = {"stored": Curve(1.0, 1.0, 2.5, 3.5, 0.75), "light": Curve(2.2, 2.0, 5.0, 2.5, 0.5)}
"""By name: most test sets are blurred as stored, and so are linear pictures; a camera blurs light."""

_SHRINK = math.sqrt(0.5)
_SMALLEST_RADIUS = 2
_ROUNDS = 4
"""Turns of picture and kernel at each size."""
_EDGES = 4e-3
"""Squared height of the edges that are kept at first, where pictures are in [0, 1]; each turn takes 1.1 times less."""
_FEWEST_EDGES = 1e-4
_SMOOTH, _SMOOTHEST = 8.0, 30.0
"""Weight of the kernel's squares against the squares of the picture's differences, and that for the last kernel."""
_FAINT = 0.1
"""From coarse to fine, values below this share of the largest one, both of the smoothed kernel, are dropped as well."""
_SURE = 5.0
"""What is kept of a kernel, smoothed, stands this many times out of its noise, at least."""
_SMALL_PART = 0.03
"""Connected parts with less than this share of a kernel's sum are dropped."""
_PLACING = 6
"""Turns of picture and kernel, at the last size, in which the faint parts are kept."""
_PLACING_EDGES, _LAST_EDGES = 2e-3, 5e-4
"""Squared height of the edges that are kept in these turns, and for the last kernel."""
_FILLS = 4
"""How often the borders are filled in."""


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
    check_curve(curve)
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


def estimate_kernel(image: Tensor, *, size: int = SIZE) -> Tensor:
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
    if isinstance(size, bool) or not isinstance(size, int) or size < SMALLEST or size % 2 == 0:
        raise InputError(f"estimate_kernel: size must be an odd number of pixels from {SMALLEST}, got {size!r}")
    if image.ndim != 3 or min(image.shape[1:]) < 2 * size:
        raise InputError(
            f"estimate_kernel: expected (C, H, W) of at least {2 * size} pixels a side, got {tuple(image.shape)}"
        )
    top, left = (max(0, (side - WINDOW) // 2) for side in image.shape[1:])
    gray = image[:, top : top + WINDOW, left : left + WINDOW].float().mean(0)
    gray = _closed(gray, size)
    edges = _EDGES
    kernel = torch.zeros(3, 3)
    kernel[1, :2] = 0.5
    for scale, radius in _sizes(size // 2):
        small = _resized(gray, [round(side * scale) for side in gray.shape])
        kernel = _centred(_resized(kernel, [2 * radius + 1] * 2).clamp(min=0))
        for _ in range(_ROUNDS):
            kernel = _kernel_between(_few_edges(small, kernel, edges), small, radius, faint=_FAINT)
            edges = max(edges / 1.1, _FEWEST_EDGES)
    # A camera that lingered leaves most of the kernel in one place, and a faint path. Without the path the centroid,
    # and with it the picture, lies some pixels beside its place. A picture of few edges has no ghosts along the path.
    for _ in range(_PLACING):
        kernel = _centred(_kernel_between(_few_edges(gray, kernel, _PLACING_EDGES), gray, size // 2))
    return _kernel_between(_few_edges(gray, kernel, _LAST_EDGES), gray, size // 2, smooth=_SMOOTHEST)


def deconvolve(image: Tensor, kernel: Tensor, *, sigma: float) -> Tensor:
    """Undo a known blur: the picture x that minimises |k * x - image|² + w |grad x|² + 0.0001 |x|².

    The weight w grows with the variance of the noise.

    Args:
        image: (C, H, W), floating in [0, 1] but for noise.
        kernel: (n, n) with n odd, of sum 1.
        sigma: noise level of the picture, on the 0-255 scale.

    Returns:
        (C, H, W) float32, not clamped. Noise is not removed: where the kernel keeps little, it is made larger.
    """
    margin = kernel.shape[-1]
    height, width = image.shape[1:]
    inside = (slice(0, height), slice(0, width))
    rows, columns = _closed(image[0].float(), margin).shape
    size = (rows, columns)
    transfer = spectrum(kernel.float(), size)
    weight = max((sigma / 25.5) ** 2, 1e-3)
    inverse = transfer.conj() / (transfer.abs() ** 2 + weight * _gradient_power(size) + 1e-4)
    result = torch.empty(image.shape, dtype=torch.float32)
    for plane, out in zip(image.float(), result, strict=True):
        wide = _closed(plane, margin)
        for fill in range(_FILLS):
            sharp = torch.fft.irfft2(torch.fft.rfft2(wide) * inverse, s=size)
            if fill + 1 < _FILLS:
                wide = torch.fft.irfft2(torch.fft.rfft2(sharp) * transfer, s=size)
                wide[inside] = plane
        out.copy_(sharp[inside])
    return result


def unexplained(image: Tensor, sharp: Tensor, kernel: Tensor, *, sigma: float, power: float = 1.0) -> float:
    """How much of a picture a kernel leaves unexplained: the mean square of k * sharp - image, in that of the noise.

    Args:
        image, sharp: (C, H, W), floating in [0, 1] but for noise.
        kernel: (n, n) with n odd, of sum 1.
        sigma: noise level of ``image``, on the 0-255 scale.
        power: the power of stored values that was blurred.

    Returns:
        About 1 where the blur is the kernel's everywhere and ``sharp`` is the picture without it. Pixels whose blur
        reaches beyond the borders are left out.
    """
    margin = kernel.shape[-1] // 2
    height, width = image.shape[1:]
    inside = (slice(margin, height - margin), slice(margin, width - margin))
    transfer = spectrum(kernel.float(), (height, width))
    left = 0.0
    for plane, clear in zip(image.float(), sharp.float(), strict=True):
        waves = torch.fft.rfft2(clear.clamp(0, 1) ** power) * transfer
        again = torch.fft.irfft2(waves, s=(height, width)).clamp(0, 1) ** (1 / power)
        left += float((again[inside] - plane[inside]).square().mean())
    return left / len(image) / (sigma / 255) ** 2


def noise_level(image: Tensor) -> float:
    """The standard deviation of the noise of a (C, H, W) picture in [0, 1], on the 0-255 scale; at least ``QUIETEST``.

    It is told from what a mask leaves of the picture that takes out planes and straight edges; in a blurred picture
    little else is left.
    """
    mask = torch.tensor([[1.0, -2.0, 1.0], [-2.0, 4.0, -2.0], [1.0, -2.0, 1.0]])
    left = F.conv2d(image.float()[:, None], mask[None, None]).abs().mean()
    return max(255 * math.sqrt(math.pi / 2) / 6 * float(left), QUIETEST)


def _sizes(radius: int) -> Iterator[tuple[float, int]]:
    """Scales of the picture and radii of the kernel, the smallest first, the last of them 1 and `radius`."""
    steps = max(0, math.ceil(math.log(max(radius / _SMALLEST_RADIUS, 1)) / -math.log(_SHRINK) - 1e-9))
    for step in range(steps, -1, -1):
        yield _SHRINK**step, max(1, round(radius * _SHRINK**step))


def _few_edges(blurred: Tensor, kernel: Tensor, edges: float) -> Tensor:
    """The picture x that minimises |k * x - blurred|² + edges · (number of pixels where grad x is not 0), by half
    quadratic splitting."""
    height, width = blurred.shape
    size = (height, width)
    transfer = spectrum(kernel, size)
    across, down = _difference_spectra(size)
    known, power = transfer.conj() * torch.fft.rfft2(blurred), transfer.abs() ** 2
    steep = _gradient_power(size)
    picture, weight = blurred, 2 * edges
    while weight < 1e3:
        x, y = _differences(picture)
        kept = x.square() + y.square() >= edges / weight
        slopes = across.conj() * torch.fft.rfft2(x * kept) + down.conj() * torch.fft.rfft2(y * kept)
        picture = torch.fft.irfft2((known + weight * slopes) / (power + weight * steep), s=size)
        weight *= 2
    return picture


def _kernel_between(
    sharp: Tensor, blurred: Tensor, radius: int, *, faint: float = 0.0, smooth: float = _SMOOTH
) -> Tensor:
    """The kernel k that minimises |k * grad sharp - grad blurred|² + smooth · |k|², where, smoothed, it stands out
    of its noise and has more than the share `faint` of its largest value; without small parts."""
    given = [torch.fft.rfft2(part) for part in _differences(sharp)]
    wanted = [torch.fft.rfft2(part) for part in _differences(blurred)]
    shared = sum(a.conj() * b for a, b in zip(given, wanted, strict=True))
    power = sum(a.abs() ** 2 for a in given)
    whole = torch.fft.irfft2(shared / (power + smooth), s=sharp.shape)
    around = whole.roll((2 * radius, 2 * radius), (0, 1))[: 4 * radius + 1, : 4 * radius + 1]
    row = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
    local = F.conv2d(around[None, None], torch.outer(row, row)[None, None], padding=2)[0, 0]
    inside = (slice(radius, 3 * radius + 1),) * 2
    beside = torch.ones_like(local, dtype=torch.bool)
    beside[inside] = False
    noise = local[beside].abs().median() / 0.6745
    kernel, local = around[inside].clamp(min=0), local[inside]
    kernel = kernel * (local > torch.maximum(_SURE * noise, faint * local.max()))
    if kernel.max() <= 0:
        kernel[radius, radius] = 1.0
    kernel = kernel * _large_parts(kernel)
    return kernel / kernel.sum()


def _large_parts(kernel: Tensor) -> Tensor:
    """Where the connected parts lie that have a share of the sum which isn't small, and the largest in any case."""
    there = kernel > 0
    labels = torch.arange(1.0, kernel.numel() + 1).view_as(kernel) * there
    while True:
        grown = F.max_pool2d(labels[None, None], 3, stride=1, padding=1)[0, 0] * there
        if torch.equal(grown, labels):
            break
        labels = grown
    index = labels.long()
    sums = torch.zeros(kernel.numel() + 1).index_add(0, index.flatten(), kernel.flatten())
    return there & (sums[index] >= min(_SMALL_PART * kernel.sum(), sums.max()))


def _centred(kernel: Tensor) -> Tensor:
    """A kernel moved by whole pixels so that its centroid is in the middle, and scaled to sum 1; what is moved out of
    its square is cut off."""
    kernel = kernel / kernel.sum()
    side = len(kernel)
    places = torch.arange(side) - (side - 1) / 2
    steps = [-round(float((kernel.sum(1 - axis) * places).sum())) for axis in (0, 1)]
    moved = F.pad(kernel, [side] * 4).roll(steps, (0, 1))[side:-side, side:-side]
    return moved / moved.sum()


def _closed(plane: Tensor, margin: int) -> Tensor:
    """Extend (H, W) below and to the right, by `margin` pixels at least, so that it goes on into its other end."""
    height, width = plane.shape
    right = _fast(width + margin) - width
    below = _fast(height + margin) - height
    ramp = torch.arange(1, right + 1) / (right + 1)
    plane = torch.cat([plane, torch.lerp(plane[:, -1:], plane[:, :1], ramp)], dim=1)
    ramp = (torch.arange(1, below + 1) / (below + 1))[:, None]
    return torch.cat([plane, torch.lerp(plane[-1:], plane[:1], ramp)], dim=0)


def _fast(length: int) -> int:
    """The next even length that has no prime factor above 5, for which Fourier transforms are quick."""
    while True:
        rest = length
        for factor in (2, 3, 5):
            while rest % factor == 0:
                rest //= factor
        if rest == 1 and length % 2 == 0:
            return length
        length += 1


def _resized(plane: Tensor, size: list[int]) -> Tensor:
    if list(plane.shape) == size:
        return plane
    return F.interpolate(plane[None, None], size=size, mode="bilinear", antialias=True)[0, 0]


def _differences(plane: Tensor) -> tuple[Tensor, Tensor]:
    """To the next pixel, across and down; the last one's is the first."""
    return plane.roll(-1, 1) - plane, plane.roll(-1, 0) - plane


def _difference_spectra(size: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    across = torch.exp(2j * math.pi * torch.fft.rfftfreq(size[1])) - 1
    down = torch.exp(2j * math.pi * torch.fft.fftfreq(size[0])) - 1
    return across[None], down[:, None]


def _gradient_power(size: tuple[int, ...]) -> Tensor:
    across, down = _difference_spectra(size)
    return across.abs() ** 2 + down.abs() ** 2
