"""How long a picture is going to take."""

import math
import random

import pytest

from kithkin.estimate import Estimate

MP = 1e6


def learned(pictures, **guess):
    estimate = Estimate(**guess)
    for pixels, seconds in pictures:
        estimate.observe(pixels, seconds)
    return estimate


def test_a_tiny_picture_says_nothing_of_a_large_one():
    """A picture of 7 by 5 pixels once made 301 minutes of a photograph's half."""
    for seconds in (0.02, 0.3, 5):  # the last as when the network is compiled first
        estimate = learned([(35, seconds)])
        assert estimate.seconds(35) == pytest.approx(seconds, rel=0.1)
        assert Estimate().seconds(12 * MP) / 1.5 < estimate.seconds(12 * MP) < Estimate().seconds(12 * MP) * 1.5


@pytest.mark.parametrize("per_pixel", [2e-8, 1e-6, 1e-4])
def test_a_large_picture_says_nothing_of_the_fixed_cost(per_pixel):
    estimate = learned([(12 * MP, 0.1 + 12 * MP * per_pixel)])
    assert estimate.seconds(24 * MP) == pytest.approx(0.1 + 24 * MP * per_pixel, rel=0.4)
    assert 0.05 < estimate.seconds(1) < 0.2


@pytest.mark.parametrize(("fixed", "per_pixel"), [(0.05, 7e-7), (0.5, 2e-8), (0.01, 2e-5), (4, 1e-6)])
def test_both_costs_are_found(fixed, per_pixel):
    """From pictures of every size whose times scatter by a fifth: within as much, for the smallest and the largest."""
    rng = random.Random(1)
    sizes = [math.exp(rng.uniform(math.log(100), math.log(50 * MP))) for _ in range(60)]
    estimate = learned([(n, (fixed + per_pixel * n) * rng.uniform(0.8, 1.25)) for n in sizes])
    for pixels in (100, 12 * MP, 50 * MP):
        assert estimate.seconds(pixels) == pytest.approx(fixed + per_pixel * pixels, rel=0.3)


def test_it_follows_a_machine_that_becomes_slower():
    estimate = learned([(MP, 1.0)] * 200 + [(MP, 4.0)] * 12)
    assert estimate.seconds(MP) == pytest.approx(4.0, rel=0.15)


def test_it_stays_finite_and_above_zero_whatever_it_is_told():
    rng = random.Random(2)
    values = [0, -1, 1e-300, 1e-9, 1, 1e9, 1e300, math.inf, -math.inf, math.nan]
    estimate = Estimate()
    for _ in range(3000):
        estimate.observe(rng.choice(values), rng.choice(values))
        assert 0.1 / 1001 < estimate.seconds(0) < 0.1 * 1001
        assert estimate.seconds(1) < estimate.seconds(MP) <= (0.1 + 3) * 1001
