"""Kinds of rain: how each looks, and which of them a batch gets."""

from dataclasses import dataclass, fields

from kithkin.errors import InputError

Range = tuple[float, float]


@dataclass(frozen=True)
class RainLook:
    """How one kind of rain looks; each picture, or each of its layers, draws every number from its range.

    Attributes:
        layers: streak layers, each with its own density, length, width and direction.
        density: fraction of the pixels that hold a seed, the start of a streak; drawn in the logarithm. 0 is no rain.
        length: of a streak, in pixels; drawn in the logarithm.
        width: of a streak at half its brightness, in pixels; drawn in the logarithm. A width above a sixth of the
            length is reduced to it, down to 1: plumper streaks are snow.
        lean: largest angle between the fall and the vertical, to either side, in degrees.
        spread: largest angle between the direction of a layer and that of the picture, in degrees.
        threshold: the part of a layer that stays dark, in standard deviations above its mean. -1 leaves a dense
            texture, 2 single streaks.
        strength: brightness of the streaks per standard deviation above the threshold, on the scale where white is 1.
        darkening: share of a layer's mean brightness that is taken from it again: above 0 some streaks darken what is
            behind them, as in a part of the published pairs.
        variation: how much the strength changes over the picture; 1 is from none to twice the mean.
        veil: opacity of the veil where it is thickest.
        light: gray value of the veil.
        drops: fraction of the picture that drops out of focus cover.
        radius: of such a drop, in pixels.
    """

    layers: tuple[int, int] = (1, 1)
    density: Range = (0.005, 0.03)
    length: Range = (15.0, 60.0)
    width: Range = (1.0, 4.0)
    lean: float = 30.0
    spread: float = 0.0
    threshold: Range = (0.5, 2.0)
    strength: Range = (0.05, 0.15)
    darkening: Range = (0.0, 0.0)
    variation: Range = (0.0, 0.4)
    veil: Range = (0.0, 0.0)
    light: Range = (0.6, 0.95)
    drops: Range = (0.0, 0.0)
    radius: Range = (3.0, 10.0)

    def __post_init__(self) -> None:
        for name, (low, high) in _bounds().items():
            value = getattr(self, name)
            first, last = value if isinstance(value, tuple) else (0.0, value)
            if not low <= first <= last <= high:
                raise InputError(f"RainLook: {name} lies within {low:g} to {high:g}, low to high; got {value}")


def _bounds() -> dict[str, Range]:
    """What each field of a look may hold."""
    bounds = {field.name: (0.0, 1.0) for field in fields(RainLook)}
    return bounds | {
        "layers": (0, 8),
        "length": (1.0, 200.0),
        "width": (0.5, 20.0),
        "lean": (0.0, 90.0),
        "spread": (0.0, 90.0),
        "threshold": (-5.0, 5.0),
        "radius": (1.0, 50.0),
    }


LIGHT = RainLook(length=(10.0, 60.0), threshold=(0.0, 1.5), strength=(0.09, 0.27))
MEDIUM = RainLook(
    layers=(1, 2),
    density=(0.01, 0.06),
    length=(10.0, 50.0),
    spread=5.0,
    threshold=(-2.0, 0.5),
    strength=(0.04, 0.11),
    darkening=(0.0, 1.0),
    drops=(0.0, 0.01),
)
HEAVY = RainLook(
    layers=(2, 4),
    density=(0.01, 0.06),
    length=(10.0, 60.0),
    width=(1.0, 4.0),
    lean=35.0,
    spread=30.0,
    threshold=(-0.5, 1.0),
    strength=(0.1, 0.3),
    veil=(0.0, 0.4),
    drops=(0.0, 0.03),
)
LOOKS = {"light": LIGHT, "medium": MEDIUM, "heavy": HEAVY}


@dataclass(frozen=True)
class RainSettings:
    """What rain a batch gets; each picture draws its look and its blending.

    Attributes:
        looks: kinds of rain.
        shares: of the looks; of any sum.
        blends: shares of "add", "screen" and "alpha". Added light is O + S, clipped (Yang et al. 2017, Eq. 1);
            screened 1 - (1 - O)(1 - S), which only brightens; alpha blending goes from O towards the streak's gray.
        gray: gray value of streaks and drops that are alpha blended.
        quantised: whether the picture is rounded to 8 bits, as the published ones are.
    """

    looks: tuple[RainLook, ...] = (LIGHT, MEDIUM, HEAVY)
    shares: tuple[float, ...] = (0.5, 0.25, 0.25)
    blends: tuple[float, float, float] = (0.4, 0.4, 0.2)
    gray: Range = (0.75, 1.0)
    quantised: bool = True

    def __post_init__(self) -> None:
        if not self.looks or len(self.looks) != len(self.shares):
            raise InputError(f"RainSettings: every look has a share; got {len(self.looks)} looks, {self.shares}")
        for name in ("shares", "blends"):
            value = getattr(self, name)
            if min(value) < 0 or sum(value) <= 0:
                raise InputError(f"RainSettings: {name} are from 0, not all of them 0; got {value}")
