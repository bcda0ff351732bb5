"""The numbers of uniform deblurring: what each is, and behind the dash what chose it.

Measured on validation photographs (noise of sigma 2.55, as stored), deconvolution alone: on 16 crops of 384², in dB
over the blurred ones; or on windows of 512², in dB for those whose kernel lingers in one place and for the others. More
in ``docs/research/training-notes.md``: "One kernel for the whole picture", "Where the picture lies".
"""

import math
from typing import NamedTuple

SIZE = 35
"""Side of the kernels that are looked for, in pixels. - Not measured."""
SMALLEST = 7
"""Side of the smallest square that kernels are looked for in. - Smoothed, they reach two pixels beyond it, where their
noise is told."""
WINDOW = 512
"""Side of the part of a picture, its middle, that a kernel is found from, in pixels. - Not measured."""
QUIETEST = 2.0
"""Noise level, on the 0-255 scale, below which no picture is believed to be. - Rounding and JPEG leave as much."""
SHRINK = math.sqrt(0.5)
"""From one size of the picture to the next smaller one. - That of Pan et al."""
SMALLEST_RADIUS = 2
"""Radius of the kernel at the smallest size. - Not measured."""
ROUNDS = 4
"""Turns of picture and kernel at each size. - Five are no better."""
EDGES, EDGES_FALL, FEWEST_EDGES = 4e-3, 1.1, 1e-4
"""Squared height of the edges that are kept at first, in pictures in [0, 1]; by how much it falls from turn to turn;
where it ends. - Those of Pan et al."""
STEEPEST = 1e3
"""Penalty with which half quadratic splitting ends. - 1e5, that of Pan et al., is no better."""
SMOOTH, SMOOTHEST = 8.0, 30.0
"""Weight of the kernel's squares against the squares of the picture's differences, and that for the last kernel. - Not
measured."""
FAINT = 0.1
"""From coarse to fine, values below this share of the largest one, both of the smoothed kernel, are dropped. - 0.05 of
an unsmoothed kernel: -0.1 dB; 0.1: +2.7 dB; 0.15: +2.0 dB."""
SURE = 5.0
"""What is kept of a kernel, smoothed, stands this many times out of its noise, at least. - At the last size instead of
``FAINT``: 27.36 and 28.74 dB, where that has 23.24 and 28.11; at coarse sizes as well it loses 3 and 5 dB."""
SMALL_PART = 0.03
"""Connected parts with less than this share of a kernel's sum are dropped. - None dropped: -6.4 dB; below 0.1: -0.1 dB,
but a kernel of many faint parts loses all of them. 0.03 itself was not measured."""
PLACING = 6
"""Turns of picture and kernel, at the last size, in which the faint parts are kept. - As ``SURE``; no other number was
measured."""
PLACING_EDGES, LAST_EDGES = 2e-3, 5e-4
"""Squared height of the edges that are kept in these turns, and for the last kernel. - Not measured."""
FILLS = 4
"""How often the borders are filled in. - Not measured."""
LEAST_WEIGHT, DAMPING = 1e-3, 1e-4
"""Weight of a result's squared differences, however little noise there is, and of its squares. - Not measured."""


class Curve(NamedTuple):
    """What is taken to have been blurred, and how far a kernel found so is believed.

    Attributes:
        power: of stored values, that was blurred. - 2.2 is about a display's.
        caution: times the noise that the picture has, as the deconvolution sees it. - In light, with twice to three
            times the noise and the mean of both results, a loss of 1.1 dB became a gain of 0.3 to 0.5 dB.
        unexplained: what ``unexplained`` must not exceed. - Refuses sharp pictures, and most whose blur varies.
        far: how far, squared, the picture without its blur may lie from what a network makes of it, where the
            network's change (but for the noise) counts 1. - As ``unexplained``.
        share: of the picture without its blur in the result, the rest is the network's. - As stored, 0.75 gains 0.3 dB
            over 1 on the pictures by which it was chosen; in light as ``caution``.
    """

    power: float
    caution: float
    unexplained: float
    far: float
    share: float


# Light needs more caution: its noise is not the same everywhere, it is clipped, and what rings around a bright edge
# shows in the dark beside it.
CURVES = {"stored": Curve(1.0, 1.0, 2.5, 3.5, 0.75), "light": Curve(2.2, 2.0, 5.0, 2.5, 0.5)}
"""By name: most test sets are blurred as stored, and so are linear pictures; a camera blurs light."""
