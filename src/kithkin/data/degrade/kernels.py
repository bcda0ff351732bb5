"""Blur kernels: paths of a shaking or moving camera, rendered; discs out of focus.

A kernel is not negative, sums to one and has its centroid at its middle pixel, so a blurred picture stays where it was.

Sources: Boracchi and Foi, "Modeling the performance of image restoration from motion blur", 2012, for random paths,
with the parameters of DeblurGAN (Kupyn et al. 2018); Chakrabarti, "A neural approach to blind motion deblurring",
2016, for splines.
"""

import math

import numpy as np
import torch
from torch import Tensor

from kithkin.data.degrade.draws import Draws, single

STEPS = 250
"""Of a path. DeblurGAN takes 2,000; what happens in a step is scaled so that a path of fewer steps looks the same."""
_STEPS_OF_THE_SOURCE = 2000
_POINTS = 6
"""That a spline goes through."""
_PULL, _JOLT, _TREMOR = 0.7, 0.2, 10.0
"""Largest pull back to the start, rate of jolts and trembling of a hand: each path draws its own share of these."""


def shake_paths(anxiety: np.ndarray, length: float, draws: Draws) -> np.ndarray:
    """Random paths of a camera in a hand: constant speed, a direction that trembles, is pulled back to the start and is
    now and then thrown about by a jolt.

    Args:
        anxiety: (N,) how restless the hand is; DeblurGAN draws from 0.003 to 0.01.
        length: of a path, in pixels.
        draws: of N paths.

    Returns:
        (N, STEPS, 2) float32, down and right in pixels from the start.
    """
    merged = _STEPS_OF_THE_SOURCE / STEPS
    pull, jolts, tremor, turn = draws.uniform("hand", 4).T
    # Steps first: a walk takes a row of numbers, one for each path, at every step.
    trembling = np.ascontiguousarray(single(draws.normal("tremor", 2 * STEPS)).view(np.complex64).T)
    trembling *= single(anxiety * tremor * _TREMOR * math.sqrt(merged))
    happens, aside = draws.uniform("jolts", 2 * STEPS).reshape(-1, 2, STEPS).transpose(1, 2, 0)
    # A jolt adds twice the velocity, backwards within half a radian.
    thrown = 1 - 2 * np.exp(1j * (aside - 0.5))
    turned = np.where(happens < anxiety * jolts * _JOLT * merged, thrown, 1).astype(np.complex64)
    start = np.exp(2j * math.pi * turn).astype(np.complex64)
    places = _walk(turned, trembling, single(anxiety * pull * _PULL * merged), start, length / STEPS)
    return places.view(np.float32).reshape(-1, STEPS, 2)


def _walk(turned: np.ndarray, tremors: np.ndarray, pull: np.ndarray, velocity: np.ndarray, step: float) -> np.ndarray:
    """The places (N, STEPS) of walkers in the complex plane, from turns and tremors (STEPS, N) of their velocities."""
    places = np.empty_like(tremors)
    place = np.zeros_like(velocity)
    for i, (turn, tremor) in enumerate(zip(turned, tremors, strict=True)):
        velocity = velocity * turn + tremor - pull * place
        velocity = velocity / np.abs(velocity)
        place = place + step * velocity
        places[i] = place
    return np.ascontiguousarray(places.T)


def linear_paths(length: np.ndarray, turn: np.ndarray) -> np.ndarray:
    """Straight paths of constant speed.

    Args:
        length: (N,) in pixels.
        turn: (N,) direction in turns.

    Returns:
        (N, STEPS, 2), as ``shake_paths``.
    """
    times = np.linspace(0, 1, STEPS)
    direction = np.stack([np.sin(2 * math.pi * turn), np.cos(2 * math.pi * turn)], axis=-1)
    return single((length[:, None] * times)[..., None] * direction[:, None])


def spline_paths(span: np.ndarray, draws: Draws) -> np.ndarray:
    """Curves through six random points, with the same time from each to the next: they linger where they turn, as
    recorded hands do, while ``shake_paths`` never slow down.

    Args:
        span: (N,) side of the square in which the points lie, in pixels.
        draws: of N paths.

    Returns:
        (N, STEPS, 2), as ``shake_paths``.
    """
    return single(span[:, None, None] * splines(draws.uniform("points", 2 * _POINTS).reshape(-1, _POINTS, 2)))


def splines(inner: np.ndarray) -> np.ndarray:
    """(N, STEPS, 2) Catmull and Rom's splines through points (N, P, 2): at each point in the direction from the one
    before to the one after."""
    before, after = 2 * inner[:, :1] - inner[:, 1:2], 2 * inner[:, -1:] - inner[:, -2:-1]
    points = np.concatenate([before, inner, after], axis=1)
    time = np.linspace(0, inner.shape[1] - 1, STEPS)
    first = np.minimum(np.floor(time), inner.shape[1] - 2).astype(np.int64)
    t = (time - first)[:, None]
    a, b, c, d = (points[:, first + i] for i in range(4))
    curve: np.ndarray = b + 0.5 * t * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * b - a - 3 * c + d)))
    return curve


def instants(frames: np.ndarray, steps: int = STEPS) -> np.ndarray:
    """(N, steps) the times from 0 to 1, at equal distances, at which ``frames`` (N,) instants, each seen for the same
    time, show their picture; infinite for all that lies between."""
    n = np.minimum(frames, steps)[:, None]
    times: np.ndarray = (np.floor((np.arange(steps) + 0.5) / steps * n) + 0.5) / n
    return times


def exposed(paths: np.ndarray, exposure: np.ndarray, frames: np.ndarray) -> np.ndarray:
    """What a shutter sees of a path, from its start, moved so that its mean lies at 0.

    Args:
        paths: (N, S, 2).
        exposure: (N,) fraction of the path, from 0 to 1.
        frames: (N,) number of instants that are seen, each for the same time; infinite for all that lies between.

    Returns:
        (N, S, 2) float32, places at equal times.
    """
    steps = paths.shape[1]
    where = instants(frames, steps) * exposure[:, None] * (steps - 1)
    before = np.minimum(np.floor(where), steps - 2)
    low, high = (np.take_along_axis(paths, (before + i).astype(np.int64)[..., None], axis=1) for i in (0, 1))
    seen = low + (high - low) * (where - before)[..., None]
    return single(seen - seen.mean(axis=1, keepdims=True))


def shrunk(paths: np.ndarray, reach: np.ndarray | float) -> np.ndarray:
    """The paths (…, S, 2), those that leave a square of ``reach`` pixels to each side made smaller until they fit."""
    farthest = np.maximum(np.abs(paths).max(axis=(-2, -1), keepdims=True), 1e-9)
    return single(paths * np.minimum(reach / farthest, 1))


def render_paths(paths: np.ndarray, radius: int) -> np.ndarray:
    """Kernels of paths: each instant is spread over the four pixels about it, bilinearly.

    Args:
        paths: (N, S, 2) down and right from the middle, in pixels, less than ``radius`` to each side, of mean 0.
        radius: of the kernels.

    Returns:
        (N, K, K) float32 with K = 2 radius + 1; sum 1, centroid in the middle.
    """
    count, side = len(paths), 2 * radius + 1
    corner = np.floor(paths)
    right = paths - corner
    first = ((corner[..., 0] + radius) * side + corner[..., 1] + radius).astype(np.int64)
    first += (np.arange(count) * side * side)[:, None]
    down, across = (np.stack([1 - right[..., i], right[..., i]]) for i in (0, 1))
    places = np.stack([first + i * side + j for i in (0, 1) for j in (0, 1)])
    weights = np.stack([down[i] * across[j] for i in (0, 1) for j in (0, 1)])
    kernels = np.bincount(places.ravel(), weights.ravel(), minlength=count * side * side)
    return single(kernels.reshape(count, side, side) / paths.shape[1])


def disc_kernels(disc: Tensor, radius: int) -> Tensor:
    """Kernels of a lens out of focus: even discs with rims one pixel soft.

    Args:
        disc: (N,) radii of the discs, in pixels; 0 is in focus.
        radius: of the kernels, at least 1 more than that of any disc.

    Returns:
        (N, K, K) with K = 2 radius + 1, sum 1.
    """
    steps = torch.arange(-radius, radius + 1, device=disc.device, dtype=disc.dtype)
    kernels = (disc.view(-1, 1, 1) + 0.5 - torch.hypot(steps.view(-1, 1), steps)).clamp_(0, 1)
    return kernels / kernels.sum((1, 2), keepdim=True)


def spectrum(kernels: Tensor, size: tuple[int, int]) -> Tensor:
    """Fourier coefficients (…, H, W // 2 + 1) of kernels (…, K, K), K odd, with their middle at the first pixel: times
    those of a picture, they blur it as on a torus, where it is."""
    height, width = size
    side = kernels.shape[-1]
    padded = torch.nn.functional.pad(kernels, (0, width - side, 0, height - side))
    return torch.fft.rfft2(padded.roll((-(side // 2), -(side // 2)), (-2, -1)))
