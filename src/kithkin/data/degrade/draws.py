"""Random numbers that are functions of what they are for: counter-based, so that a picture's don't depend on its
fellows in a batch, on the device, or on how many processes share the work.

Here are the numbers that describe a degradation, drawn in NumPy for a whole batch at once. Fields of noise are drawn on
the device from the keys that this gives, see ``kithkin.data.degrade.fields``.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Draws:
    """What is drawn for the pictures of a batch, each number by the key of its picture and the name of what it is for.

    Attributes:
        seeds: (B,) uint64, a key for each picture.
    """

    seeds: np.ndarray

    @classmethod
    def of_step(cls, seed: int, step: int, places: Iterable[int]) -> "Draws":
        """The draws of a training step for these places in its batch."""
        mixed = _mixed(np.array([seed], np.uint64))
        mixed = _mixed(mixed ^ np.uint64(step))
        return cls(_mixed(mixed + np.fromiter(places, np.uint64) * _GOLDEN))

    @property
    def count(self) -> int:
        """Pictures."""
        return len(self.seeds)

    def uniform(self, name: str, columns: int) -> np.ndarray:
        """(B, columns) float64, uniform in [0, 1)."""
        counters = np.arange(1, columns + 1, dtype=np.uint64) * _GOLDEN
        return (_mixed(self.child(name).seeds[:, None] + counters) >> np.uint64(11)) * 2.0**-53

    def normal(self, name: str, columns: int) -> np.ndarray:
        """(B, columns) float64 of the standard normal distribution (Box and Muller's method)."""
        radius, turn = np.split(self.uniform(name, 2 * columns), 2, axis=1)
        return np.sqrt(-2 * np.log1p(-radius)) * np.cos(2 * np.pi * turn)

    def between(self, name: str, bounds: tuple[float, float]) -> np.ndarray:
        """(B,) float64, uniform between the bounds."""
        return between(*bounds, self.uniform(name, 1)[:, 0])

    def keys(self, name: str) -> np.ndarray:
        """(B, 2) int32: what fields of noise are drawn from on the device."""
        return self.child(name).seeds.view(np.int32).reshape(-1, 2)

    def child(self, name: str) -> "Draws":
        """Draws of their own for the same pictures."""
        return Draws(_mixed(self.seeds ^ _constant(name)))

    def take(self, places: np.ndarray) -> "Draws":
        """Those of some of the pictures, by a mask or by their places."""
        return Draws(self.seeds[places])


def between(low: Any, high: Any, draw: np.ndarray) -> np.ndarray:
    """Carry a draw in [0, 1) to the range from ``low`` to ``high``."""
    carried: np.ndarray = low + (high - low) * draw
    return carried


def log_between(low: np.ndarray, high: np.ndarray, draw: np.ndarray) -> np.ndarray:
    """Like ``between``, uniform in the logarithm where the range does not begin at 0."""
    return np.where(low > 0, low * (high / np.maximum(low, 1e-9)) ** draw, between(low, high, draw))


def choose(shares: Sequence[float], draw: np.ndarray) -> np.ndarray:
    """Indices drawn with these shares (of any sum): int64, of the shape of ``draw``, which is uniform in [0, 1)."""
    steps = np.cumsum(shares)
    return np.searchsorted(steps[:-1], draw * steps[-1], side="right")


def single(values: np.ndarray) -> np.ndarray:
    """As float32."""
    return values.astype(np.float32)


def _mixed(values: np.ndarray) -> np.ndarray:
    """Steele, Lea and Flood's finaliser of SplitMix64 (OOPSLA 2014): each bit depends on all bits."""
    values = values + _GOLDEN
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


@lru_cache(maxsize=256)
def _constant(name: str) -> np.uint64:
    return np.uint64(int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little"))
