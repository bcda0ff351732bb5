"""TIFF: tifffile reads and writes it; Pillow decodes what tifffile can't without imagecodecs, up to 8 bits."""

import contextlib
import ctypes
import io
import math
import struct
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import TiffImagePlugin

from kithkin.images import _ifd
from kithkin.images._metadata import IPTC_RESOURCE, Fitting, photoshop_resources, upright_xmp
from kithkin.images._picture import Picture, Refusal, check_size, imagecodecs_for, make_picture
from kithkin.images._pillow import samples_of, samples_of_cmyk
from kithkin.messages import one_line

_ICC, _ORIENTATION, _DNG_VERSION, _RESOLUTION_UNIT = 34675, 274, 50706, 296
_OLD_JPEG = 6
_COLOURS = {0: 1, 1: 1, 2: 3}
"""Channels of the kinds of colour that are decoded here: gray with white or black as zero, RGB."""
_SEPARATED = 5
_MOST_CHANNELS = 32
_COLOURS_OF_PILLOW = (3, 4, _SEPARATED, 6)  # palette, mask, CMYK, YCbCr
_NO_EXTRA_CODEC = (1, 8, 32773, 32946)  # none, deflate, PackBits, deflate under its old number


_BY_PILLOW = (2, 3, 4, 5, 6, 7)  # of up to 8 bits: fax, LZW, JPEG


def tiff_size(data: bytes) -> tuple[int, int]:
    """Return (width, height) as stored; raises what `read_tiff` raises before it looks at the pixels."""
    with tifffile.TiffFile(io.BytesIO(data)) as tif:
        page = _only_page(tif)
        _check_kind(page)
        return page.imagewidth, page.imagelength


def read_tiff(data: bytes) -> Picture:
    """Decode a TIFF file with one picture: gray, palette, RGB, CMYK or YCbCr up to 8 bits, gray or RGB in 16.

    Raises Refusal, or what Pillow, tifffile and imagecodecs raise.
    """
    with tifffile.TiffFile(io.BytesIO(data)) as tif:
        page = _only_page(tif)
        check_size(page.imagewidth, page.imagelength)
        _check_kind(page)
        _check_data(page, data)
        tags = {tag.code: tag.value for tag in page.tags}
        icc = bytes(tags[_ICC]) if _ICC in tags else None
        described, notes = _described(data)
        stored = int(tags.get(_ORIENTATION, 1))
        image = None if _plain(page) else _by_pillow(data, page)
        if image is None:
            samples, turned = _decode(page), False
        else:
            image.load()  # This also turns the picture upright.
            turned = True
            if image.mode == "CMYK":
                samples, note = samples_of_cmyk(image, icc)
                icc, notes = None, (*notes, note)
            else:
                samples = samples_of(image)
        dpi = _dpi(tags)
        if stored in (5, 6, 7, 8) and turned and dpi:
            dpi = dpi[::-1]
        dropped = _dropped_channels(page)
    if dropped:
        notes = (*notes, f"{dropped} extra channel(s) of the TIFF are neither colour nor alpha and are not kept")
    return make_picture(samples, icc=icc, dpi=dpi, orientation=1 if turned else stored, notes=notes, **described)


def _plain(page: Any) -> bool:
    """Whether tifffile decodes the page without Pillow: gray or RGB in whole bytes, not packed by JPEG, LZW or fax."""
    whole = page.bitspersample in (8, 16) and int(page.photometric) in _COLOURS
    return whole and (page.bitspersample == 16 or page.compression not in _BY_PILLOW)


def _by_pillow(data: bytes, page: Any) -> TiffImagePlugin.TiffImageFile | None:
    """Return the picture opened by Pillow; None where it does not know it, but tifffile does."""
    _silence_libtiff()
    try:
        return TiffImagePlugin.TiffImageFile(io.BytesIO(data))
    except (SyntaxError, ValueError):
        if page.bitspersample == 8 and int(page.photometric) in _COLOURS:
            return None
        raise


@lru_cache(maxsize=1)
def _silence_libtiff() -> None:
    """Keep the C library behind Pillow from printing what it thinks of damaged files, beside our own error.

    Its handlers count for the whole process and can't be reached through Pillow, so the loaded library is looked up;
    where that fails, as on systems other than Linux, the lines stay.
    """
    with contextlib.suppress(OSError, AttributeError, StopIteration):
        lines = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines()
        path = next(part for line in lines if "/libtiff" in (part := line.partition("/")[1] + line.partition("/")[2]))
        library = ctypes.CDLL(path)
        library.TIFFSetErrorHandler(None)
        library.TIFFSetWarningHandler(None)


def _described(data: bytes) -> tuple[dict[str, bytes | None], tuple[str, ...]]:
    """Return the picture's EXIF, XMP and IPTC data, and sentences about what of them is not kept."""
    try:
        tags = _ifd.first_directory(data)
        exif, damaged = _ifd.exif_of_tiff(data)
    except (ValueError, struct.error):
        return {}, ("the EXIF data and tags of the TIFF are damaged and not kept",)
    notes = ["a part of the EXIF data of the TIFF is damaged and not kept"] if damaged else []
    if _ifd.LAYERS in tags:
        notes.append("Photoshop's layers are not kept")
    if exif and _ifd.has_maker_note(exif):
        notes.append("the camera maker's notes in the EXIF data have moved: some programs won't understand them")
    xmp = tags[_ifd.XMP].raw if _ifd.XMP in tags else None
    resources = photoshop_resources(tags[_ifd.PHOTOSHOP].raw) if _ifd.PHOTOSHOP in tags else {}
    iptc = _iptc(tags[_ifd.IPTC].raw) if _ifd.IPTC in tags else resources.get(IPTC_RESOURCE)
    return {"exif": exif, "xmp": upright_xmp(xmp) if xmp else None, "iptc": iptc}, tuple(notes)


def _iptc(raw: bytes) -> bytes:
    """IPTC data are bytes, which many programs store as numbers of 4 bytes: in a file of the other order, reversed."""
    if raw[:1] == b"\x1c" or len(raw) % 4:
        return raw
    return np.frombuffer(raw, ">u4").astype("<u4").tobytes()


def _only_page(tif: tifffile.TiffFile) -> Any:
    """Return the page of the file's single picture; raise Refusal where there is another number of them."""
    pages: list[Any] = list(tif.pages)
    if not pages:
        raise Refusal("is damaged: the TIFF holds no picture; use another copy of it")
    if pages[0].subfiletype & 1 or _DNG_VERSION in pages[0].tags:
        raise Refusal(
            "is a camera's raw file or begins with a preview; name it as one, such as .dng, or develop it first"
        )
    # Bit 0 marks a smaller copy of another page, such as a thumbnail; nothing is lost with it.
    full = sum(not page.subfiletype & 1 for page in pages)
    # ImageJ puts a whole stack behind one page and says so in the description only.
    full = max(full, int((tif.imagej_metadata or {}).get("images", 1)))
    if full > 1:
        raise Refusal(f"is a TIFF of {full} pages; save the one to restore as a file of its own")
    return pages[0]


def _check_data(page: Any, data: bytes) -> None:
    """Raise Refusal where pixel data are missing."""
    if page.compression == _OLD_JPEG:
        return  # Its data are not where the offsets say.
    starts, sizes = page.dataoffsets, page.databytecounts
    complete = len(starts) == len(sizes) >= math.prod(page.chunked)
    # tifffile fills what is missing with zeros, and libtiff complains on stderr.
    if not complete or any(size < 1 or start + size > len(data) for start, size in zip(starts, sizes, strict=True)):
        raise Refusal("is cut off or damaged: pixel data of the TIFF are missing; use a complete copy of it")


def _check_kind(page: Any) -> None:
    """Raise Refusal for samples, colours and codecs that are not handled."""
    if page.imagedepth > 1:
        raise Refusal("is a TIFF volume, not a picture; save one slice of it as a file of its own")
    if page.sampleformat != 1 or page.bitspersample not in (1, 2, 4, 8, 16):
        kind = {2: "signed integer", 3: "float", 5: "complex integer", 6: "complex"}.get(page.sampleformat, "integer")
        bits = one_line(page.bitspersample)  # A tuple where the channels differ.
        raise Refusal(f"is a TIFF of {bits} bit {kind} samples; save it with 8 or 16 bit integers first")
    if page.samplesperpixel > _MOST_CHANNELS:
        raise Refusal(f"is a TIFF of {page.samplesperpixel} channels, not a photograph; save it as RGB or gray first")
    name = getattr(page.photometric, "name", page.photometric)
    colours = int(page.photometric)
    if colours not in _COLOURS and (page.bitspersample == 16 or colours not in _COLOURS_OF_PILLOW):
        raise Refusal(f"is a {page.bitspersample} bit TIFF with {name} colours; save it as RGB or gray first")
    if colours == _SEPARATED and page.samplesperpixel != 4:
        raise Refusal(f"is a CMYK TIFF of {page.samplesperpixel} channels; save it as RGB first")
    if page.compression in (*_NO_EXTRA_CODEC, *(_BY_PILLOW if page.bitspersample != 16 else ())):
        return
    codec = getattr(page.compression, "name", page.compression)
    if not _plain(page):
        raise Refusal(f"is a TIFF with {name} colours and {codec} compression; save it as RGB or gray first")
    imagecodecs_for(f"a {page.bitspersample} bit TIFF with {codec} compression")


def _decode(page: Any) -> np.ndarray:
    """Return the page as (H, W, 1..4) uint8 or uint16, gray or RGB, with alpha last and not premultiplied."""
    colours, dtype = _COLOURS[int(page.photometric)], np.uint8 if page.bitspersample == 8 else np.uint16
    top = np.iinfo(dtype).max
    planes = page.asarray(squeeze=False)[:, 0]  # (planes, H, W, channels); one of the two numbers is 1
    samples = planes.transpose(1, 2, 0, 3).reshape(*planes.shape[1:3], -1).astype(dtype, copy=False)
    colour = samples[..., :colours]
    if page.photometric == 0:
        colour = top - colour
    kind = _alpha_kind(page)
    if kind is None:
        return colour
    alpha = samples[..., colours : colours + 1]
    if kind == 1:
        with np.errstate(divide="ignore", invalid="ignore"):
            straight = np.nan_to_num(colour * float(top) / alpha, nan=0.0, posinf=0.0)
        colour = np.minimum(straight + 0.5, top).astype(dtype)
    return np.concatenate([colour, alpha], axis=2)


def _alpha_kind(page: Any) -> int | None:
    """Return 1 where the first extra channel is premultiplied alpha, 2 for plain alpha, None for neither."""
    extras = [int(e) for e in page.extrasamples]
    if not extras and page.photometric == 2 and page.samplesperpixel == 4:
        return 2  # Not allowed, but common, and Pillow reads it so.
    return extras[0] if extras and extras[0] in (1, 2) else None


def _dropped_channels(page: Any) -> int:
    return max(0, len(page.extrasamples) - (_alpha_kind(page) is not None))


def _dpi(tags: dict[int, Any]) -> tuple[float, float] | None:
    """Return the resolution per inch, or None where there is none or no unit."""
    factor = {2: 1.0, 3: 2.54}.get(int(tags.get(_RESOLUTION_UNIT, 2)))
    try:
        (a, b), (c, d) = tags[282], tags[283]
        return None if factor is None else (factor * a / b, factor * c / d)
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None


def encode_tiff(samples: np.ndarray, dpi: tuple[float, float] | None, held: Fitting) -> bytes:
    """Encode (H, W) or (H, W, 2..4) uint8 or uint16 as a deflate-compressed TIFF; the last of 2 or 4 is alpha."""
    channels = samples.shape[2] if samples.ndim == 3 else 1
    options: dict[str, Any] = {"resolution": dpi, "resolutionunit": "INCH"} if dpi else {}
    if channels > 1:
        options["planarconfig"] = "contig"
    if channels in (2, 4):
        options["extrasamples"] = ["unassalpha"]
    buffer = io.BytesIO()
    extra: list[Any] = []
    if held.exif:
        # The file begins with the EXIF block, for which it is a TIFF without a picture, and goes on with the pixels
        # and a new first directory. So all that the block points to stays where it says, makers' notes included.
        buffer, extra = _begun_with(held.exif)
        options["append"] = "force"
    if held.xmp:
        extra.append((_ifd.XMP, 1, None, held.xmp, True))
    if held.iptc:
        extra.append((_ifd.IPTC, 7, None, held.iptc, True))
    if held.comment:
        extra.append((_ifd.DESCRIPTION, 2, None, held.comment, True))
    tifffile.imwrite(
        buffer,
        np.ascontiguousarray(samples),
        photometric="rgb" if channels > 2 else "minisblack",
        compression="zlib",
        predictor=True,
        iccprofile=held.icc,
        metadata=None,
        software=False,
        extratags=extra,
        **options,
    )
    return _finished(buffer.getvalue(), len(held.exif)) if held.exif else buffer.getvalue()


_STAND_INS = {_ifd.EXIF_IFD: _ifd.EXIF_IFD - 1, _ifd.GPS_IFD: _ifd.GPS_IFD - 1}
"""tifffile writes no tags of these two kinds, so they go under unused numbers beside them, and are renamed."""


def _begun_with(exif: bytes) -> tuple[io.BytesIO, list[Any]]:
    """Return the beginning of a TIFF that holds an EXIF block, and the tags to write into its first directory."""
    order = _ifd.byte_order(exif)
    tags = _ifd.first_directory(exif)
    moved = _ifd.descriptive(tags)
    moved |= {stand_in: tags[pointer] for pointer, stand_in in _STAND_INS.items() if pointer in tags}
    base = exif + bytes(len(exif) % 2)
    empty = struct.pack(order + "HI", 0, 0)  # a directory without tags, which the new one follows
    begun = base[:4] + struct.pack(order + "I", len(base)) + base[8:] + empty
    return io.BytesIO(begun), [(tag, entry.kind, None, entry.raw, True) for tag, entry in moved.items()]


def _finished(data: bytes, length: int) -> bytes:
    """Make the new directory the first one, and give the tags with stand-ins their numbers."""
    file = bytearray(data)
    order = _ifd.byte_order(data)
    file[4:8] = file[length + length % 2 + 2 :][:4]
    (at,) = struct.unpack_from(order + "I", file, 4)
    (count,) = struct.unpack_from(order + "H", file, at)
    for entry in range(at + 2, at + 2 + 12 * count, 12):
        (number,) = struct.unpack_from(order + "H", file, entry)
        for tag, stand_in in _STAND_INS.items():
            if number == stand_in:
                struct.pack_into(order + "H", file, entry, tag)
    return bytes(file)
