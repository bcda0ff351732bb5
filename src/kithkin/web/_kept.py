"""Restorations that stay in memory for a while, so that another strength or format needs no second pass."""

import threading
import time
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass

from torch import Tensor

from kithkin.restorers import Composition, Progress, silent
from kithkin.web._limits import Limits


class Kept:
    """The restorations used last, by what they depend on, as far as the limits allow."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._lock = threading.Lock()
        self._known: OrderedDict[Hashable, tuple[Tensor, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._known

    def get(self, key: Hashable) -> Tensor | None:
        """A restoration, which counts as used now and must not be changed; None where it is not kept (any more)."""
        with self._lock:
            found = self._known.pop(key, None)
            if found is None:
                return None
            self._known[key] = found[0], time.monotonic()
            return found[0]

    def put(self, key: Hashable, restored: Tensor) -> None:
        """Keep a restoration, in place of those that were used longest ago."""
        with self._lock:
            self._known.pop(key, None)
            self._known[key] = restored, time.monotonic()
            while sum(kept.nbytes for kept, _ in self._known.values()) > self._limits.again_megabytes * 1e6:
                self._known.popitem(last=False)

    def expire(self) -> None:
        """Forget what was not used for long."""
        with self._lock:
            used = time.monotonic() - self._limits.again_seconds
            for key in [key for key, (_, last) in self._known.items() if last < used]:
                del self._known[key]


@dataclass(frozen=True)
class Remembered(Composition):
    """A restorer that works once and gives the same again.

    Attributes:
        kept: where its result stays.
        key: what the result depends on, the picture too.
        keeping: whether to keep it; what is kept already is used in any case.
    """

    kept: Kept
    key: Hashable
    keeping: bool

    def __call__(self, image: Tensor, progress: Progress = silent) -> Tensor:
        found = self.kept.get(self.key)
        if found is not None:
            return found.clone()  # The caller may write into it.
        restored = self.restorer(image, progress)
        if self.keeping:
            self.kept.put(self.key, restored.clone())
        return restored
