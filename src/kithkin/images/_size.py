"""How large a picture is, from its header alone."""

import io
import os
import struct
from pathlib import Path

from PIL import BmpImagePlugin, JpegImagePlugin

from kithkin.errors import ImageError
from kithkin.images._picture import Refusal, one_line, shown
from kithkin.images._read import _HEAD, _format_of
from kithkin.images._tiff import tiff_size


def measure_picture(data: bytes, name: str | os.PathLike[str]) -> tuple[int, int]:
    """Return (width, height) in pixels as stored, before any turning, without decoding the picture.

    For a limit of one's own, lower than MAX_PIXELS. The rest of the data may still be damaged.

    Raises ImageError where the data are not of a format that `read_picture` reads, or their header is damaged;
    `name` is what it calls them.
    """
    path, kind = Path(name), "picture"
    try:
        kind = _format_of(data[:_HEAD])
        return _SIZES[kind](data)
    except Refusal as refusal:
        raise ImageError(f"{shown(path)}: {refusal}") from None
    except Exception as error:  # Damaged headers make the decoders raise nearly every kind of error.
        raise ImageError(
            f"{shown(path)}: can't be decoded as {kind}, its header is damaged ({one_line(error)}); use another copy"
        ) from error


def _png(data: bytes) -> tuple[int, int]:
    if data[12:16] != b"IHDR":
        raise Refusal("is damaged: the PNG header is missing; use another copy of it")
    width, height = struct.unpack(">II", data[16:24])
    return width, height


def _webp(data: bytes) -> tuple[int, int]:
    """By hand, for Pillow sets memory aside for the whole picture when it opens a WebP file."""
    kind = data[12:16]
    if kind == b"VP8X":
        width, height = (1 + int.from_bytes(data[at : at + 3], "little") for at in (24, 27))
    elif kind == b"VP8L":
        (bits,) = struct.unpack("<I", data[21:25])
        width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    else:
        width, height = (side & 0x3FFF for side in struct.unpack("<HH", data[26:30]))
    return width, height


_SIZES = {
    "PNG": _png,
    "WebP": _webp,
    "JPEG": lambda data: JpegImagePlugin.JpegImageFile(io.BytesIO(data)).size,
    "TIFF": tiff_size,
    "BMP": lambda data: BmpImagePlugin.BmpImageFile(io.BytesIO(data)).size,
}
