"""Reading or measuring a picture file: from the path to the functions that its first bytes ask for."""

import os
import stat
from collections.abc import Callable
from pathlib import Path, PurePath
from typing import TypeVar

from kithkin.errors import ImageError
from kithkin.images._formats import foreign_format, known_format
from kithkin.images._heif import avif_size, heic_size, read_avif, read_heic
from kithkin.images._jpeg import jpeg_size, read_jpeg
from kithkin.images._picture import Picture, Refusal
from kithkin.images._pillow import bmp_size, read_bmp, read_webp, webp_size
from kithkin.images._png import png_size, read_png
from kithkin.images._raw import raw_size, read_raw
from kithkin.images._tiff import read_tiff, tiff_size
from kithkin.messages import one_line, os_reason, shown

Result = TypeVar("Result")

_HEAD = 1024
_READERS: dict[str, Callable[[bytes], Picture]] = {
    "PNG": read_png,
    "JPEG": read_jpeg,
    "WebP": read_webp,
    "TIFF": read_tiff,
    "BMP": read_bmp,
    "HEIC": read_heic,
    "AVIF": read_avif,
    "raw": read_raw,
}
_SIZES: dict[str, Callable[[bytes], tuple[int, int]]] = {
    "PNG": png_size,
    "JPEG": jpeg_size,
    "WebP": webp_size,
    "TIFF": tiff_size,
    "BMP": bmp_size,
    "HEIC": heic_size,
    "AVIF": avif_size,
    "raw": raw_size,
}


def read_picture(path: str | os.PathLike[str]) -> Picture:
    """Read a PNG, JPEG, WebP, TIFF, BMP, HEIC or AVIF file, recognised by its content, or a camera's raw file,
    recognised by its name, as an upright Picture.

    Gray, palette, RGB, each with or without transparency, at up to 8 or 16 bits a channel; CMYK, which is
    converted to sRGB with the profile in the file (the profile is then dropped). ICC profile, EXIF, XMP, IPTC,
    comments, a PNG's texts and resolution are kept; `Picture.notes` names what was dropped or guessed.

    16 bit colour PNG, and TIFF with a rare compression or 16 bit and LZW, need the package imagecodecs; HEIC, AVIF and
    raw files need the extra `photo`.

    Raises ImageError, with one line that names the path, for everything that does not give a complete
    picture: a missing or unreadable file, another format, damage, a cut off file, animations, several
    pages, float samples, no pixels or more than MAX_PIXELS.
    """
    path = Path(path)
    try:
        data = _load(path)
    except Refusal as refusal:
        raise ImageError(f"{shown(path)}: {refusal}") from refusal.__cause__
    except MemoryError as error:
        raise ImageError(f"{shown(path)}: does not fit in the memory; crop it or scale it down first") from error
    return decode_picture(data, path)


def decode_picture(data: bytes, name: str | os.PathLike[str]) -> Picture:
    """Decode the bytes of a picture file, as `read_picture` does; `name` is what errors call it.

    Raises ImageError as `read_picture` does.
    """
    return _by_format(_READERS, data, name)


def measure_picture(data: bytes, name: str | os.PathLike[str]) -> tuple[int, int]:
    """Return (width, height) in pixels as stored, before any turning, without decoding the picture.

    For a limit of one's own, lower than MAX_PIXELS. What the header rules out is refused as `decode_picture` refuses
    it; the rest of the data may still be damaged.

    Raises ImageError where the data are not of a format that `read_picture` reads, their header is damaged, or is of a
    picture that can't be read; `name` is what it calls them.
    """
    return _by_format(_SIZES, data, name)


def _by_format(functions: dict[str, Callable[[bytes], Result]], data: bytes, name: str | os.PathLike[str]) -> Result:
    """Call the function of the data's format; raise ImageError for whatever goes wrong in it."""
    kind = "picture"
    try:
        kind = _format_of(data[:_HEAD], PurePath(name))
        return functions[kind](data)
    except Refusal as refusal:
        raise ImageError(f"{shown(name)}: {refusal}") from refusal.__cause__
    except MemoryError as error:
        raise ImageError(f"{shown(name)}: does not fit in the memory; crop it or scale it down first") from error
    except Exception as error:  # Damaged files make the decoders raise nearly every kind of error.
        raise ImageError(
            f"{shown(name)}: can't be decoded as {kind}, it is damaged or of an unusual make "
            f"({one_line(error)}); use another copy, or save it again with an image editor"
        ) from error


def _load(path: Path) -> bytes:
    """Return the bytes of the file; raise Refusal where that is impossible, or where no picture begins like that."""
    try:
        status = os.stat(path)  # Before opening, because opening a pipe would wait for ever.
        if stat.S_ISDIR(status.st_mode):
            raise Refusal("is a folder; name a picture file in it")
        if not stat.S_ISREG(status.st_mode):
            raise Refusal("is not a regular file; name a picture file")
        with open(path, "rb") as file:
            head = file.read(_HEAD)
            _format_of(head, path)  # Before the rest, which may be long.
            return head + file.read()
    except FileNotFoundError as error:
        raise Refusal("does not exist; check the path") from error
    except OSError as error:
        raise Refusal(f"can't be read: {os_reason(error)}") from error
    except ValueError as error:
        raise Refusal(f"is not a path ({one_line(error)}); check it") from error


def _format_of(head: bytes, name: PurePath) -> str:
    """Return the format of a file that begins with `head`; raise Refusal for all that are not in _READERS."""
    if not head:
        raise Refusal("is empty (0 bytes); use another copy of it")
    kind = known_format(head, name)
    if kind is not None:
        return kind
    foreign, formats = foreign_format(head), ", ".join(_READERS)
    if foreign is None:
        raise Refusal(f"is not a picture that kithkin knows ({formats}); check what the file is")
    raise Refusal(f"is {foreign} file, which kithkin does not read; convert it to one of {formats} first")
