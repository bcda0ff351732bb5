"""How long a picture is going to take, from what those before it took."""

import math

_ERROR = 0.2  # of a measured time, as a share: the same picture takes now this long, now that
_DOUBT = (1.5, 2.3)  # of the guessed fixed cost and cost of a pixel: factors of e^1.5 = 4.5 and e^2.3 = 10
_FORGET = 0.95  # a machine becomes faster or slower, so older pictures count less and less
_BOUND = math.log(1000)  # no factor beyond this is believed


class Estimate:
    """Seconds of a picture = fixed + per_pixel · pixels, fitted to the pictures so far.

    It begins with a guess and corrects it by each picture (a Kalman filter for the logarithms of both costs): a small
    picture tells the fixed cost, a large one the cost of a pixel, and neither distorts the other. Both costs stay above
    0 and within a factor of 1000 of the guess.

    Args:
        fixed: guessed seconds of any picture.
        per_pixel: guessed seconds of each pixel; as given, about that of the shipped networks on a few CPU cores.
    """

    def __init__(self, fixed: float = 0.1, per_pixel: float = 3e-6) -> None:
        self._guess = (math.log(fixed), math.log(per_pixel))
        # Replaced as a whole by `observe`, so that other threads may call `seconds` meanwhile.
        self._costs = self._guess
        self._doubts = (_DOUBT[0] ** 2, 0.0, _DOUBT[1] ** 2)  # variances, with the covariance between them

    def seconds(self, pixels: float) -> float:
        """Return the seconds that a picture of so many pixels is going to take: finite and above 0."""
        fixed, per_pixel = self._costs
        return math.exp(fixed) + math.exp(per_pixel) * max(pixels, 0.0)

    def observe(self, pixels: float, seconds: float) -> None:
        """Take into account that a picture of so many pixels took so many seconds; call it from one thread alone."""
        if not (pixels > 0 and 0 < seconds < math.inf):  # a clock that was set back tells nothing
            return
        expected = self.seconds(pixels)
        share = math.exp(self._costs[0]) / expected  # of the fixed cost in the time; the pixels have the rest
        of_fixed, both, of_pixel = (doubt / _FORGET for doubt in self._doubts)
        of_fixed, of_pixel = min(of_fixed, _DOUBT[0] ** 2), min(of_pixel, _DOUBT[1] ** 2)
        both = max(-1.0, min(1.0, both / math.sqrt(of_fixed * of_pixel))) * math.sqrt(of_fixed * of_pixel)
        lean = (of_fixed * share + both * (1 - share), both * share + of_pixel * (1 - share))
        total = lean[0] * share + lean[1] * (1 - share) + _ERROR**2
        surprise = (math.log(seconds) - math.log(expected)) / total
        self._doubts = (
            of_fixed - lean[0] ** 2 / total,
            both - lean[0] * lean[1] / total,
            of_pixel - lean[1] ** 2 / total,
        )
        self._costs = (
            _within(self._costs[0] + lean[0] * surprise, self._guess[0]),
            _within(self._costs[1] + lean[1] * surprise, self._guess[1]),
        )


def _within(value: float, guess: float) -> float:
    return max(guess - _BOUND, min(guess + _BOUND, value))
