"""The Picture, and the steps from stored samples to pixels and back that all formats share."""

import math
import struct
from dataclasses import dataclass, replace
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np

from kithkin.errors import InputError
from kithkin.messages import missing_extra

MAX_PIXELS = 2**28
"""Pictures with more pixels (width x height) than this are refused before they are decoded."""

CREDENTIALS = "its content credentials (C2PA) are not kept: they vouch for the picture as it was"


class Refusal(Exception):
    """Why one file can't be read or written, without its path: the public functions put that in front."""


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture in memory, upright, with what its file said about it.

    pixels: (H, W, 3) float32 RGB in [0, 1], as encoded in the file, that is in the colour space of `icc`,
        or sRGB where `icc` is None. EXIF and TIFF orientation are already applied.
    alpha: (H, W) float32 in [0, 1], 0 = transparent, not premultiplied; None where the source had none.
    depth: bits per channel of the source, 8 (also for 1, 2 and 4) or 16.
    gray: the source had one colour channel; `pixels` then holds it three times, and files written from
        this picture hold the plain mean of the three channels.
    icc: the source's ICC profile, unchanged.
    exif: the source's EXIF block without the leading "Exif" marker, unchanged but for the orientation, which is 1; of
        a TIFF, its descriptive tags, EXIF and GPS data as such a block.
    xmp: the source's XMP packet, unchanged but for the orientation, which is 1.
    iptc: the source's IPTC data (IIM).
    comment: of a JPEG as stored, or the text "Comment" of a PNG in UTF-8.
    chunks: kind and body of a PNG's chunks on its colours (cICP, gAMA, cHRM, sRGB, sBIT, ...), its texts, and whatever
        else its kind allows to copy into a changed picture.
    dpi: dots per inch along x and along y, of the upright picture.
    notes: sentences about what reading could not keep or had to guess, for the caller to show.

    Raises InputError when a shape, a dtype or the depth does not fit.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None = None
    depth: int = 8
    gray: bool = False
    icc: bytes | None = None
    exif: bytes | None = None
    dpi: tuple[float, float] | None = None
    notes: tuple[str, ...] = ()
    xmp: bytes | None = None
    iptc: bytes | None = None
    comment: bytes | None = None
    chunks: tuple[tuple[bytes, bytes], ...] = ()

    def __post_init__(self) -> None:
        p = self.pixels
        if p.ndim != 3 or p.shape[2] != 3 or 0 in p.shape or p.dtype != np.float32:
            raise InputError(f"Picture: pixels must be (H, W, 3) float32 and not empty, got {p.shape} {p.dtype}")
        a = self.alpha
        if a is not None and (a.shape != p.shape[:2] or a.dtype != np.float32):
            raise InputError(f"Picture: alpha must be {p.shape[:2]} float32 as the pixels are, got {a.shape} {a.dtype}")
        if self.depth not in (8, 16):
            raise InputError(f"Picture: depth must be 8 or 16 bits, got {self.depth!r}")

    def with_pixels(self, pixels: np.ndarray) -> "Picture":
        """Return the same picture with other pixels, (H, W, 3) float32 in [0, 1].

        Raises InputError when the shape or dtype is another, or when there is an alpha of another size.
        """
        return replace(self, pixels=pixels)

    def over_white(self) -> np.ndarray:
        """Return the pixels laid over white by their alpha, as browsers do: in the values as stored, not in light."""
        if self.alpha is None:
            return self.pixels
        return np.float32(1) - self.alpha[..., None] * (np.float32(1) - self.pixels)


def make_picture(
    samples: np.ndarray,
    *,
    icc: bytes | None = None,
    exif: bytes | None = None,
    dpi: Any = None,
    orientation: int | None = None,
    notes: tuple[str, ...] = (),
    **more: Any,
) -> Picture:
    """Return the Picture of samples (H, W) or (H, W, C) uint8 or uint16, C = gray, gray + alpha, RGB or RGBA.

    `orientation` is the EXIF code 1..8 to undo; where it is None, the one in `exif` counts. `dpi` is what
    the decoder said, of any type; nonsense is dropped. `more` holds further fields of the Picture.
    """
    exif, from_exif = upright_exif(exif) if exif else (None, 1)
    orientation = from_exif if orientation is None else orientation
    samples = upright(samples[..., None] if samples.ndim == 2 else samples, orientation)
    channels = samples.shape[2]
    gray = channels < 3
    values = _unit(samples[..., :1] if gray else samples[..., :3])
    dots = clean_dpi(dpi)
    return Picture(
        pixels=np.repeat(values, 3, axis=2) if gray else values,
        alpha=_unit(samples[..., -1]) if channels in (2, 4) else None,
        depth=8 * samples.dtype.itemsize,
        gray=gray,
        icc=icc or None,
        exif=exif,
        dpi=dots[::-1] if dots and orientation in (5, 6, 7, 8) else dots,
        notes=notes,
        **more,
    )


def _unit(samples: np.ndarray) -> np.ndarray:
    values = samples.astype(np.float32, order="C")
    values /= np.float32(np.iinfo(samples.dtype).max)
    return values


def to_samples(values: np.ndarray, depth: int) -> np.ndarray:
    """Return floats as uint8 (depth 8) or uint16 (depth 16): clamped to [0, 1], scaled, rounded half up.

    Raises Refusal on NaN and infinity, which have no place between black and white.
    """
    if not np.isfinite(values).all():
        raise Refusal("the pixels hold NaN or infinite values, so there is no picture to write")
    scaled = np.clip(values, 0, 1) * np.float32(2**depth - 1)
    scaled += np.float32(0.5)
    return scaled.astype(np.uint8 if depth == 8 else np.uint16)


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Return (H, W, ...) pixels turned and mirrored so that EXIF orientation 1..8 is undone; others change nothing."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    rows = slice(None, None, -1 if orientation in (3, 4, 7, 8) else 1)
    columns = slice(None, None, -1 if orientation in (2, 3, 6, 7) else 1)
    return pixels[rows, columns]


def upright_exif(exif: bytes) -> tuple[bytes, int]:
    """Return the EXIF block with its orientation set to 1, and the orientation 1..8 that it had.

    The value is changed in place, because rebuilding the block would break maker notes, which hold offsets.
    Where the orientation was not 1, the embedded thumbnail is unlinked: it would appear lying on its side.
    A block that can't be parsed is returned as it is, with orientation 1.
    """
    exif = exif.removeprefix(b"Exif\0\0")
    block = bytearray(exif)
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None:
        return exif, 1
    try:
        (start,) = struct.unpack_from(order + "I", block, 4)
        (count,) = struct.unpack_from(order + "H", block, start)
        for entry in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind = struct.unpack_from(order + "HH", block, entry)
            if tag != 0x0112 or kind not in (3, 4):
                continue
            code = order + ("H" if kind == 3 else "I")
            (orientation,) = struct.unpack_from(code, block, entry + 8)
            struct.pack_into(code, block, entry + 8, 1)
            if orientation not in range(2, 9):
                return bytes(block), 1
            thumbnail = start + 2 + 12 * count
            if thumbnail + 4 <= len(block):
                struct.pack_into(order + "I", block, thumbnail, 0)
            return bytes(block), orientation
    except struct.error:
        pass
    return exif, 1


def clean_dpi(dpi: Any) -> tuple[float, float] | None:
    """Return a decoder's resolution as two floats, or None where it is missing or not usable in every format."""
    try:
        x, y = (float(v) for v in dpi)
    except (TypeError, ValueError, ArithmeticError):
        return None
    usable = all(math.isfinite(v) and 1 <= v <= 65535 for v in (x, y))
    return (x, y) if usable else None


def check_size(width: int, height: int) -> None:
    """Raise Refusal for a picture without pixels, or with more than MAX_PIXELS."""
    if width < 1 or height < 1:
        raise Refusal(f"is {width} x {height} pixels large, so there is no picture in it; use another file")
    if width * height > MAX_PIXELS:
        raise Refusal(
            f"is {width} x {height} pixels large, more than the {MAX_PIXELS} that kithkin decodes; "
            "crop it or scale it down first"
        )


_MODULES = {"pillow-heif": "pillow_heif", "rawpy": "rawpy"}


def photo_package(what: str, package: str) -> ModuleType:
    """Return the module of a package of the extra `photo`; raise Refusal with the install line where it is missing."""
    try:
        return import_module(_MODULES[package])
    except ImportError as error:
        raise Refusal(missing_extra(what, package, "photo")) from error


def imagecodecs_for(what: str) -> ModuleType:
    """Return the module imagecodecs; raise Refusal with the install line where it is missing."""
    try:
        import imagecodecs
    except ImportError as error:
        raise Refusal(missing_extra(what, "imagecodecs", "codecs")) from error
    return imagecodecs
