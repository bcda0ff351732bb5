"""Estimates of how long a picture will take, from the ones before it."""

import math

_NOISE = 0.2  # standard deviation of a measured time, as a share of it
_DEVIATIONS = (1.5, 2.3)  # of the logarithms of the guessed costs: factors of e^1.5 = 4.5 and e^2.3 = 10
_FORGETTING = 0.95  # a machine becomes faster or slower, so older pictures count less and less
_BOUND = math.log(1000)  # no factor beyond this is believed


class Estimate:
    """Seconds of a picture = fixed + per_pixel · pixels, fitted to the pictures so far.

    It begins with a guess and corrects it by each picture, with an extended Kalman filter for the
    logarithms of both costs: a small picture tells the fixed cost, a large one the cost of a pixel,
    and neither distorts the other. Both costs stay above 0 and within a factor of 1000 of the guess.

    Args:
        fixed: guessed seconds of any picture.
        per_pixel: guessed seconds of each pixel; as given, about that of the shipped networks on a
            few CPU cores.
    """

    def __init__(self, fixed: float = 0.1, per_pixel: float = 3e-6) -> None:
        self._guess = (math.log(fixed), math.log(per_pixel))
        # Replaced as a whole by `observe`, so that other threads may call `seconds` meanwhile.
        self._costs = self._guess
        # Variance of the fixed cost, covariance, variance of the cost of a pixel.
        self._covariance = (_DEVIATIONS[0] ** 2, 0.0, _DEVIATIONS[1] ** 2)

    def seconds(self, pixels: float) -> float:
        """Return the seconds that a picture of so many pixels is going to take: finite and above 0."""
        fixed, per_pixel = self._costs
        return math.exp(fixed) + math.exp(per_pixel) * max(pixels, 0.0)

    def observe(self, pixels: float, seconds: float) -> None:
        """Learn from a picture of so many pixels that took so many seconds; call it from one thread alone."""
        if not (pixels > 0 and 0 < seconds < math.inf):  # a clock that was set back tells nothing
            return
        expected = self.seconds(pixels)
        # The derivatives of log(seconds) by the two costs: their shares of the time.
        share = math.exp(self._costs[0]) / expected
        fixed, both, pixel = (value / _FORGETTING for value in self._covariance)
        fixed, pixel = min(fixed, _DEVIATIONS[0] ** 2), min(pixel, _DEVIATIONS[1] ** 2)
        most = math.sqrt(fixed * pixel)
        both = max(-1.0, min(1.0, both / most)) * most
        with_time = (fixed * share + both * (1 - share), both * share + pixel * (1 - share))
        variance = with_time[0] * share + with_time[1] * (1 - share) + _NOISE**2  # of log(seconds)
        innovation = (math.log(seconds) - math.log(expected)) / variance
        self._covariance = (
            fixed - with_time[0] ** 2 / variance,
            both - with_time[0] * with_time[1] / variance,
            pixel - with_time[1] ** 2 / variance,
        )
        self._costs = (
            _within(self._costs[0] + with_time[0] * innovation, self._guess[0]),
            _within(self._costs[1] + with_time[1] * innovation, self._guess[1]),
        )


def _within(value: float, guess: float) -> float:
    return max(guess - _BOUND, min(guess + _BOUND, value))
