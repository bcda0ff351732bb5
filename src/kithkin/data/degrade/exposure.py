"""What blurs a batch, drawn on the host: paths, kernels, and which pictures get what."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from kithkin.data.degrade.draws import Draws, between, choose, single
from kithkin.data.degrade.kernels import (
    STEPS,
    exposed,
    instants,
    linear_paths,
    render_paths,
    shake_paths,
    shrunk,
    spline_paths,
)
from kithkin.data.transfer import Numbers
from kithkin.errors import InputError

Range = tuple[float, float]

NODES = 3
"""Kernels along each side of a picture whose kernel varies. Two would blur its middle as far as its corners."""


@dataclass(frozen=True)
class BlurSettings:
    """What blur a batch gets; each picture draws every number from its range.

    Attributes:
        margin: pixels on every side of the clean pictures that are blurred into the rest, and cut off. Paths that reach
            farther than this less 2 and less the disc are made smaller.
        motions: shares of a shaking hand, a straight motion, none and a spline through random points.
        anxiety: how restless the hand is.
        length: of the path of a full exposure, in pixels; not of splines.
        span: side of the square in which the points of a spline lie, in pixels.
        exposure: fraction of the path that is seen; splines are seen whole.
        framed: share of pictures that are averages of frames, not of all that lies between.
        frames: smallest and largest number of such frames.
        varying: share of pictures whose kernel changes over the picture.
        roll: by how much these turn during the exposure, to either side, in degrees.
        zoom: by how much they grow or shrink, as a fraction.
        foreground: share of pictures a part of which moves on a path of its own.
        defocused: share of pictures with a background out of focus.
        disc: radius of the disc of a lens out of focus, in pixels.
        curves: shares of the sRGB curve, a gamma of 2.2 and none, by which light is told from stored values.
        highlights: by what fraction clipped highlights are made brighter before the blur, where there is a curve.
        shot: variance of the photon noise of white, linear, where white is 1.
        read: standard deviation of the noise of black.
        quantised: whether the picture is rounded to 8 bits.
    """

    margin: int = 32
    motions: tuple[float, float, float, float] = (0.6, 0.3, 0.1, 0.0)
    anxiety: Range = (0.003, 0.01)
    length: float = 60.0
    span: Range = (3.0, 24.0)
    exposure: Range = (0.01, 1.0)
    framed: float = 0.15
    frames: tuple[int, int] = (9, 21)
    varying: float = 0.5
    roll: float = 2.0
    zoom: float = 0.01
    foreground: float = 0.25
    defocused: float = 0.2
    disc: Range = (0.5, 3.0)
    curves: tuple[float, float, float] = (0.5, 0.2, 0.3)
    highlights: Range = (0.0, 1.0)
    shot: Range = (0.0, 2e-4)
    read: Range = (0.0, 0.002)
    quantised: bool = True

    def __post_init__(self) -> None:
        if self.margin < self.disc[1] + 3:
            raise InputError(
                f"BlurSettings: margin exceeds the largest disc by 3 pixels, got {self.margin}, {self.disc}"
            )
        for name, count in (("motions", 4), ("curves", 3)):
            value = getattr(self, name)
            if len(value) != count or min(value) < 0 or sum(value) <= 0:
                raise InputError(f"BlurSettings: {name} are {count} shares from 0, not all of them 0; got {value}")
        for name in ("anxiety", "span", "exposure", "frames", "disc", "highlights", "shot", "read"):
            low, high = getattr(self, name)
            if not 0 <= low <= high or (name == "exposure" and high > 1) or (name == "frames" and low < 1):
                raise InputError(
                    f"BlurSettings: {name} runs from low to high, from 0 (exposure to 1); got {low}, {high}"
                )


class Blur(NamedTuple):
    """The numbers that describe the blur of each picture, drawn.

    Attributes:
        path: (B, STEPS, 2) places at equal times, down and right in pixels, of mean 0.
        front: (B, STEPS, 2), of the part that moves otherwise.
        turn: (B, 2) by how much the picture grows (a fraction) and turns (radians) during the exposure.
        varying, foreground: (B,) bool.
        frames: (B,) number of instants that are seen; infinite for all that lies between.
        disc: (B,) radius out of focus, 0 in focus.
        curve: (B,) 0 for sRGB, 1 for gamma 2.2, 2 for none.
        highlights, shot, read: (B,), as in ``BlurSettings``.
    """

    path: np.ndarray
    front: np.ndarray
    turn: np.ndarray
    varying: np.ndarray
    foreground: np.ndarray
    frames: np.ndarray
    disc: np.ndarray
    curve: np.ndarray
    highlights: np.ndarray
    shot: np.ndarray
    read: np.ndarray


def draw_blur(draws: Draws, settings: BlurSettings) -> Blur:
    """Draw the blur of B pictures, on the host."""
    numbers = iter(draws.uniform("blur", 12).T)
    few = next(numbers) < settings.framed
    frames = np.where(few, np.floor(between(settings.frames[0], settings.frames[1] + 1, next(numbers))), np.inf)
    # Both at once, for a walk takes as long for many as for one.
    both = Draws(np.concatenate([draws.child("path").seeds, draws.child("front").seeds]))
    paths = draw_paths(both, settings, np.tile(frames, 2))
    disc = between(*settings.disc, next(numbers)) * (next(numbers) < settings.defocused)
    zoom, roll = 2 * next(numbers) - 1, 2 * next(numbers) - 1
    varying, foreground = next(numbers) < settings.varying, next(numbers) < settings.foreground
    curve = choose(settings.curves, next(numbers))
    return Blur(
        path=paths[: draws.count],
        front=paths[draws.count :],
        turn=single(np.stack([zoom * settings.zoom, np.deg2rad(roll * settings.roll)], axis=1)),
        varying=varying,
        foreground=foreground,
        frames=frames,
        disc=single(disc),
        curve=curve,
        # What is blurred as stored was clipped before.
        highlights=single(between(*settings.highlights, next(numbers)) * (curve < 2)),
        shot=single(between(*settings.shot, next(numbers))),
        read=single(between(*settings.read, next(numbers))),
    )


def draw_paths(draws: Draws, settings: BlurSettings, frames: np.ndarray | None = None) -> np.ndarray:
    """(N, STEPS, 2) motions as an exposure sees them, of mean 0; ``frames`` as in ``exposed``, (N,)."""
    kind, anxiety, turn, exposure = draws.uniform("motion", 4).T
    motion = choose(settings.motions, kind)
    paths = np.zeros((draws.count, STEPS, 2), np.float32)
    shaken, straight, curved = (motion == i for i in (0, 1, 3))
    paths[shaken] = shake_paths(between(*settings.anxiety, anxiety[shaken]), settings.length, draws.take(shaken))
    paths[straight] = linear_paths(np.full(straight.sum(), settings.length), turn[straight])
    curved_draws = draws.take(curved)
    paths[curved] = spline_paths(curved_draws.between("span", settings.span), curved_draws)
    exposure = np.where(curved, 1.0, between(*settings.exposure, exposure))
    return exposed(paths, exposure, np.full(draws.count, np.inf) if frames is None else frames)


class Kernels(NamedTuple):
    """What a blur does to pictures, rendered; which picture it does it to are places among them, int64.

    Attributes:
        even, varying, front, soft: places of those with one kernel, with ``NODES``² of them, with a moving part, and
            out of focus.
        one: (n, K, K) the kernels of the even ones, K = 2 margin + 1.
        many: (n, NODES², K, K).
        parts: (n, K, K), of the moving parts.
        disc: (n,) radii of the soft ones.
    """

    even: Numbers
    varying: Numbers
    front: Numbers
    soft: Numbers
    one: Numbers
    many: Numbers
    parts: Numbers
    disc: Numbers


def render_blur(blur: Blur, size: tuple[int, int], margin: int) -> Kernels:
    """The kernels of a blur.

    Args:
        blur: the numbers.
        size: (H, W) of the pictures without their margins.
        margin: the reach of all kernels. A disc has no more than this to reach, and the motion what is left of it.
    """
    reach = margin - 2 - blur.disc
    even, varying, front, soft = (
        np.flatnonzero(x) for x in (~blur.varying, blur.varying, blur.foreground, blur.disc > 0)
    )
    varying_blur = Blur(*(x[varying] for x in blur))
    nodes = node_paths(varying_blur, size, reach[varying]).reshape(-1, STEPS, 2)
    return Kernels(
        even,
        varying,
        front,
        soft,
        render_paths(shrunk(blur.path[even], reach[even].reshape(-1, 1, 1)), margin),
        render_paths(nodes, margin).reshape(len(varying), NODES**2, 2 * margin + 1, 2 * margin + 1),
        render_paths(shrunk(blur.front[front], margin - 2.0), margin),
        blur.disc[soft],
    )


class Exposure(NamedTuple):
    """What is done to a batch. All but the first three is of the pictures that are exposed.

    Attributes:
        exposed, sharp: places of the pictures that are, and of those that stay as they are; int64.
        order: (B,) places in the row of these two groups.
        kernels: of the blur.
        srgb, gamma: places of those with these curves.
        bright: (n, 2) by how much the highlights of these two are made brighter, one after the other.
        shot, read: as in ``BlurSettings``.
        masks, noise: keys of the masks of moving parts, for ``kernels.front``, and of the noise.
    """

    exposed: Numbers
    sharp: Numbers
    order: Numbers
    kernels: Kernels
    srgb: Numbers
    gamma: Numbers
    bright: tuple[Numbers, Numbers]
    shot: Numbers
    read: Numbers
    masks: Numbers
    noise: Numbers


def plan_blur(draws: Draws, size: tuple[int, int], settings: BlurSettings, sharp_share: float = 0.0) -> Exposure:
    """Draw what ``apply_blur`` does to pictures of this size, ``sharp_share`` of which stay as they are."""
    is_sharp = draws.uniform("sharp", 1)[:, 0] < sharp_share
    seen, sharp = np.flatnonzero(~is_sharp), np.flatnonzero(is_sharp)
    draws = draws.take(seen)
    blur = draw_blur(draws, settings)
    kernels = render_blur(blur, (size[0] - 2 * settings.margin, size[1] - 2 * settings.margin), settings.margin)
    srgb, gamma = np.flatnonzero(blur.curve == 0), np.flatnonzero(blur.curve == 1)
    return Exposure(
        seen,
        sharp,
        np.argsort(np.concatenate([seen, sharp])),
        kernels,
        srgb,
        gamma,
        (blur.highlights[srgb], blur.highlights[gamma]),
        blur.shot,
        blur.read,
        draws.take(kernels.front).keys("mask"),
        draws.keys("noise"),
    )


def node_paths(blur: Blur, size: tuple[int, int], reach: np.ndarray) -> np.ndarray:
    """How each of the places that have a kernel (from the top left, row by row) moves when the picture moves, turns and
    grows about its middle.

    Args:
        blur: the numbers.
        size: (H, W) between the outermost places.
        reach: (B,) no path goes farther, in pixels.

    Returns:
        (B, NODES², STEPS, 2) float32.
    """
    down, right = (0.5 * side * np.linspace(-1, 1, NODES) for side in size)
    nodes = np.stack([np.repeat(down, NODES), np.tile(right, NODES)], axis=-1)
    zoom, roll = blur.turn[:, :1], blur.turn[:, 1:]
    # By how far a place moves from the beginning to the end; small angles.
    displacement = np.stack([zoom * nodes[:, 0] + roll * nodes[:, 1], zoom * nodes[:, 1] - roll * nodes[:, 0]], -1)
    times = instants(blur.frames)
    times = (times - times.mean(axis=1, keepdims=True))[:, None, :, None]
    return shrunk(blur.path[:, None] + times * displacement[:, :, None], reach.reshape(-1, 1, 1, 1))
