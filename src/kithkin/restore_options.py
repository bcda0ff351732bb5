"""How pictures are restored, checked without PyTorch, so that a wrong value is refused before that is loaded."""

from dataclasses import dataclass

from kithkin.errors import InputError

OVERLAP = 32
"""Pixels that neighbouring tiles share at least, unless another number is asked for."""
CPU_TILE = 768
"""Side in pixels of tiles on a CPU, unless another is asked for."""
SMALLEST_TILE = 64
"""Side in pixels below which a tile shows the model too little, and saves no memory worth it."""
PASSES = (1, 2, 4, 8)
"""Sizes of an ensemble."""
CURVES = ("stored", "light")
"""What a uniform blur may be of: see ``kithkin.deconvolution``."""


def check_tiling(tile: str | int, overlap: int) -> None:
    """Raise InputError for a tile or an overlap that ``restore`` does not take."""
    if isinstance(overlap, bool) or not isinstance(overlap, int) or overlap < 0:
        raise InputError(f"restore: overlap must be a whole number of pixels from 0, got {overlap!r}")
    if tile == "off":
        return
    if tile != "auto" and (isinstance(tile, bool) or not isinstance(tile, int) or tile < SMALLEST_TILE):
        raise InputError(f"restore: tile must be 'auto', 'off' or at least {SMALLEST_TILE} pixels, got {tile!r}")
    side = CPU_TILE if isinstance(tile, str) else tile
    if 2 * overlap > side:
        raise InputError(
            f"restore: an overlap of {overlap} needs tiles of at least {2 * overlap} pixels, got {tile!r}; "
            f"take an overlap of at most {side // 2}, or a larger tile"
        )


def check_strength(strength: float) -> None:
    """Raise InputError for a strength that ``restore`` does not take."""
    if isinstance(strength, bool) or not isinstance(strength, int | float) or not 0 <= strength <= 1:
        raise InputError(f"restore: strength must be a number from 0 (the input) to 1 (restored), got {strength!r}")


def check_ensemble(ensemble: int) -> None:
    """Raise InputError for a number of passes that there is no set of views for."""
    if isinstance(ensemble, bool) or ensemble not in PASSES:
        raise InputError(f"restore: ensemble must be one of {', '.join(map(str, PASSES))} passes, got {ensemble!r}")


def check_curve(curve: str) -> None:
    """Raise InputError for a curve that ``kithkin.deconvolution`` has no constants for."""
    if not isinstance(curve, str) or curve not in CURVES:
        raise InputError(f"uniform_blur must be {' or '.join(CURVES)}, got {curve!r}; a camera's blur is of light")


@dataclass(frozen=True)
class RestoreOptions:
    """How files are restored and written.

    Attributes:
        tile, overlap, strength, ensemble, uniform_blur: as in ``kithkin.restoration.restore``.
        quality: 1 to 100, of JPEG files, and of WebP files, which it makes lossy; None for 95 in JPEG and no loss in
            WebP.
        overwrite: replace results that exist already.

    Raises:
        InputError: a value is out of range.
    """

    tile: str | int = "auto"
    overlap: int = OVERLAP
    strength: float = 1.0
    ensemble: int = 1
    uniform_blur: str | None = None
    quality: int | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        check_tiling(self.tile, self.overlap)
        check_strength(self.strength)
        check_ensemble(self.ensemble)
        if self.uniform_blur is not None:
            check_curve(self.uniform_blur)
        whole = isinstance(self.quality, int) and not isinstance(self.quality, bool)
        if self.quality is not None and not (whole and 1 <= self.quality <= 100):
            raise InputError(f"restore: quality must be a whole number from 1 to 100, got {self.quality!r}")
