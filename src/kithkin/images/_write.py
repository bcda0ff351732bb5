"""Writing a picture file, whole or not at all."""

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from kithkin.errors import ImageError, InputError
from kithkin.files import replacing
from kithkin.images._formats import FORMATS, SUFFIXES, check_installed
from kithkin.images._heif import HEIC_BITS, QUALITY, check_avif, encode_heic
from kithkin.images._metadata import fitting, with_jpeg_segments, with_png_chunks
from kithkin.images._picture import Picture, Refusal, to_samples
from kithkin.images._pillow import encode_bmp_alpha
from kithkin.images._png import PNG_LEVEL, encode_png16
from kithkin.images._tiff import encode_tiff
from kithkin.messages import one_line, os_reason, shown

_JPEG_QUALITY = 95
_LONGEST_SIDES = {"WebP": 16383, "JPEG": 65500}  # of JPEG by libjpeg; the format itself could 35 more
_HOLDS_16_BITS = ("PNG", "TIFF")
_HOLDS_ALPHA = ("PNG", "TIFF", "WebP", "BMP", "HEIC", "AVIF")


def losses(picture: Picture, path: str | os.PathLike[str]) -> list[str]:
    """Return a sentence for each thing in `picture` that a file of the format of `path` can't hold.

    Raises ImageError where the ending of `path` names no format that kithkin writes.
    """
    kind = _format_of(Path(path))
    sentences = []
    if picture.depth == 16 and kind not in _HOLDS_16_BITS:
        bits = HEIC_BITS if kind == "HEIC" else 8
        sentences.append(f"{kind} holds {bits} bits a channel: 16 are reduced to {bits}")
    if kind not in _HOLDS_ALPHA and _transparent(picture):
        sentences.append(f"{kind} holds no transparency: the picture is laid over white")
    sentences += fitting(picture, kind).lost
    return sentences


def encode_picture(picture: Picture, name: str | os.PathLike[str], *, quality: int | None = None) -> bytes:
    """Return the bytes of the file that `write_picture` would write; `name` names the format, and errors call it so.

    Raises ImageError where the ending is unknown, the pixels are not finite or the format can't hold the picture;
    InputError for a wrong `quality`.
    """
    path = Path(name)
    kind = _format_of(path)
    _check_quality("encode_picture", quality)
    try:
        return _encoded(picture, kind, quality)
    except Refusal as refusal:
        raise ImageError(f"{shown(path)}: {refusal}") from refusal.__cause__


def write_picture(
    picture: Picture, path: str | os.PathLike[str], *, overwrite: bool = False, quality: int | None = None
) -> None:
    """Write `picture` in the format that the ending of `path` names: PNG, JPEG, WebP, TIFF, BMP, HEIC or AVIF.

    Pixels are clamped to [0, 1] and rounded half up. Gray pictures are written as gray (the plain mean of the
    channels), in WebP as RGB with equal channels. 16 bits, alpha and all that the source said beside its pixels
    are kept where the format holds them: see `losses` and docs/reference/formats.md. JPEG is written with `quality`
    1..100 (95 where None) and full colour resolution (4:4:4), WebP with loss where a `quality` is given, everything
    else without. The same picture gives the same bytes.

    The file appears complete or not at all: it is written under a hidden temporary name in the same folder
    and then renamed, so a failure leaves an existing file as it was. A link at `path` is followed when
    overwriting. 16 bit colour PNG needs the package imagecodecs.

    Raises ImageError where the ending is unknown, the file exists and `overwrite` is False, the pixels are not
    finite, the format can't hold the picture, or the system refuses to write; InputError for a wrong `quality`.
    """
    path = Path(path)
    kind = _format_of(path)
    _check_quality("write_picture", quality)
    try:
        data = _encoded(picture, kind, quality)
        with replacing(path, overwrite=overwrite) as part:
            part.write_bytes(data)
    except Refusal as refusal:
        raise ImageError(f"{shown(path)}: {refusal}") from refusal.__cause__
    except FileExistsError as error:
        instead = "choose another name" if overwrite else "choose another name, or allow `overwrite`"
        raise ImageError(f"{shown(path)}: {error.strerror}; {instead}") from error
    except (FileNotFoundError, NotADirectoryError) as error:
        folder = shown(Path(error.filename).parent)
        raise ImageError(f"{shown(path)}: can't be written: there is no folder {folder}; create it first") from error
    except OSError as error:
        raise ImageError(f"{shown(path)}: can't be written: {os_reason(error)}") from error
    except (ValueError, RuntimeError) as error:  # a null character in the path; a link to itself
        raise ImageError(f"{shown(path)}: is not a path ({one_line(error)}); check it") from error


def _check_quality(who: str, quality: int | None) -> None:
    if quality is None:
        return
    if isinstance(quality, bool) or not isinstance(quality, int) or not 1 <= quality <= 100:
        raise InputError(f"{who}: quality must be an integer from 1 to 100, got {quality!r}")


def _format_of(path: Path) -> str:
    kind = FORMATS.get(path.suffix.lower())
    if kind is None:
        ending = f"the ending {path.suffix!r}" if path.suffix else "no ending"
        raise ImageError(f"{shown(path)}: has {ending}; kithkin writes {', '.join(SUFFIXES)}")
    return kind


def _encoded(picture: Picture, kind: str, quality: int | None) -> bytes:
    """Return the bytes of the file; raise Refusal where the picture does not go into the format."""
    try:
        samples = _samples(picture, kind)
        held, dpi = fitting(picture, kind), picture.dpi
        if kind == "TIFF":
            return encode_tiff(samples, dpi, held)
        if kind == "BMP" and samples.shape[2:] == (4,):
            return encode_bmp_alpha(samples, dpi)
        if kind == "PNG" and samples.ndim == 3 and samples.dtype == np.uint16:
            return with_png_chunks(encode_png16(samples, held.icc, held.exif, dpi), held, samples.shape[2], 16)
        if kind == "HEIC":
            return encode_heic(samples, held, quality)
        exif = b"Exif\0\0" + held.exif if held.exif else None
        options: dict[str, Any] = {"icc_profile": held.icc, "exif": exif, "dpi": dpi}
        if kind == "JPEG":
            options |= {"quality": quality or _JPEG_QUALITY, "subsampling": 0, "comment": held.comment}
        if kind == "AVIF":
            check_avif()
            options |= {"quality": quality or QUALITY, "xmp": held.xmp}
            options["subsampling"] = "4:0:0" if samples.ndim == 2 else "4:4:4"
        if kind == "PNG":
            options["compress_level"] = PNG_LEVEL
        if kind == "WebP":
            # exact: without it, the colours under transparent pixels are lost. Without loss, quality and method are the
            # effort: a sixth of the time of the defaults for files about 6 percent larger.
            effort = {"lossless": True, "quality": 20, "method": 1} if quality is None else {"quality": quality}
            options |= {"exact": True, "xmp": held.xmp, **effort}
        buffer = io.BytesIO()
        kept = {key: value for key, value in options.items() if value is not None}
        Image.fromarray(samples).save(buffer, kind.upper(), **kept)
        data = buffer.getvalue()
        if kind == "PNG":
            channels = samples.shape[2] if samples.ndim == 3 else 1
            return with_png_chunks(data, held, channels, 8 * samples.itemsize)
        return with_jpeg_segments(data, held) if kind == "JPEG" else data
    except Refusal:
        raise
    except MemoryError as error:
        raise Refusal("there is not enough memory to encode the picture; scale it down first") from error
    except Exception as error:  # Encoders raise several kinds, for instance where a side is too long.
        raise Refusal(f"can't be encoded as {kind} ({one_line(error)}); choose another format") from error


def _samples(picture: Picture, kind: str) -> np.ndarray:
    """Return what the file holds: (H, W) or (H, W, 2..4), uint8 or uint16."""
    depth = picture.depth if kind in (*_HOLDS_16_BITS, "HEIC") else 8
    # An opaque alpha adds nothing to a BMP, of which a program that knows no alpha in it may make a mess.
    keeps_alpha = kind in _HOLDS_ALPHA and picture.alpha is not None and (kind != "BMP" or _transparent(picture))
    pixels = picture.pixels if keeps_alpha else picture.over_white()
    gray = picture.gray and kind != "WebP" and not (kind in ("BMP", "HEIC", "AVIF") and keeps_alpha)
    colour = to_samples(pixels.mean(axis=2) if gray else pixels, depth)
    if not keeps_alpha or picture.alpha is None:
        return colour
    return np.dstack([colour, to_samples(picture.alpha, depth)])


def _transparent(picture: Picture) -> bool:
    return picture.alpha is not None and bool((picture.alpha < 1).any())


def check_fits(width: int, height: int, path: str | os.PathLike[str]) -> None:
    """Raise ImageError where the format that the ending of `path` names can't hold so many pixels a side, or needs a
    package that is not installed."""
    kind = _format_of(Path(path))
    try:
        check_installed(kind)
    except Refusal as refusal:
        raise ImageError(f"{shown(path)}: can't be written: {refusal}") from refusal.__cause__
    most = _LONGEST_SIDES.get(kind, max(width, height))
    if max(width, height) > most:
        raise ImageError(
            f"{shown(path)}: can't be written: {kind} holds at most {most} pixels a side, and the picture has "
            f"{width} x {height}; choose another format, such as TIFF or PNG"
        )
