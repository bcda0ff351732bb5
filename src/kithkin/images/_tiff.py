"""TIFF: tifffile reads the structure and 16 bit pixels, Pillow decodes up to 8 bits, tifffile writes."""

import io
import math
from typing import Any

import numpy as np
import tifffile
from PIL import TiffImagePlugin

from kithkin.images._picture import Picture, Refusal, check_size, imagecodecs_for, make_picture, one_line
from kithkin.images._pillow import samples_of, samples_of_cmyk

_ICC, _ORIENTATION, _EXIF, _DNG_VERSION, _RESOLUTION_UNIT = 34675, 274, 34665, 50706, 296
_OLD_JPEG = 6
_NO_EXTRA_CODEC = (1, 8, 32773, 32946)  # none, deflate, PackBits, deflate under its old number


def read_tiff(data: bytes) -> Picture:
    """Decode a TIFF file with one picture: gray, palette, RGB, CMYK or YCbCr up to 8 bits, gray or RGB in 16.

    The EXIF block is not kept (a note says so). Raises Refusal, or what Pillow, tifffile and imagecodecs raise.
    """
    with tifffile.TiffFile(io.BytesIO(data)) as tif:
        page = _only_page(tif)
        _check_page(page, data)
        tags = {tag.code: tag.value for tag in page.tags}
        icc = bytes(tags[_ICC]) if _ICC in tags else None
        notes: tuple[str, ...] = ("the EXIF data of the TIFF is not kept",) if _EXIF in tags else ()
        if page.bitspersample == 16:
            samples = _decode16(page)
            orientation = int(tags.get(_ORIENTATION, 1))
        else:
            image = TiffImagePlugin.TiffImageFile(io.BytesIO(data))
            image.load()  # This also turns the picture upright.
            orientation = 1
            if image.mode == "CMYK":
                samples, note = samples_of_cmyk(image, icc)
                icc, notes = None, (*notes, note)
            else:
                samples = samples_of(image)
        dpi = _dpi(tags)
        if tags.get(_ORIENTATION) in (5, 6, 7, 8) and orientation == 1 and dpi:
            dpi = dpi[::-1]
        dropped = _dropped_channels(page)
    if dropped:
        notes = (*notes, f"{dropped} extra channel(s) of the TIFF are neither colour nor alpha and are not kept")
    return make_picture(samples, icc=icc, dpi=dpi, orientation=orientation, notes=notes)


def _only_page(tif: tifffile.TiffFile) -> Any:
    """Return the page of the file's single picture; raise Refusal where there is another number of them."""
    pages: list[Any] = list(tif.pages)
    if not pages:
        raise Refusal("is damaged: the TIFF holds no picture; use another copy of it")
    if pages[0].subfiletype & 1 or _DNG_VERSION in pages[0].tags:
        raise Refusal("is a camera's raw file or begins with a preview; develop it to a TIFF or PNG first")
    # Bit 0 marks a smaller copy of another page, such as a thumbnail; nothing is lost with it.
    full = sum(not page.subfiletype & 1 for page in pages)
    # ImageJ puts a whole stack behind one page and says so in the description only.
    full = max(full, int((tif.imagej_metadata or {}).get("images", 1)))
    if full > 1:
        raise Refusal(f"is a TIFF of {full} pages; save the one to restore as a file of its own")
    return pages[0]


def _check_page(page: Any, data: bytes) -> None:
    """Raise Refusal where the page is too large, of a kind not handled, or has pixel data missing."""
    check_size(page.imagewidth, page.imagelength)
    if page.imagedepth > 1:
        raise Refusal("is a TIFF volume, not a picture; save one slice of it as a file of its own")
    if page.sampleformat != 1 or page.bitspersample not in (1, 2, 4, 8, 16):
        kind = {2: "signed integer", 3: "float", 5: "complex integer", 6: "complex"}.get(page.sampleformat, "integer")
        bits = one_line(page.bitspersample)  # A tuple where the channels differ.
        raise Refusal(f"is a TIFF of {bits} bit {kind} samples; save it with 8 or 16 bit integers first")
    if page.compression == _OLD_JPEG:
        return  # Its data are not where the offsets say.
    starts, sizes = page.dataoffsets, page.databytecounts
    complete = len(starts) == len(sizes) >= math.prod(page.chunked)
    # tifffile fills what is missing with zeros, and libtiff complains on stderr.
    if not complete or any(size < 1 or start + size > len(data) for start, size in zip(starts, sizes, strict=True)):
        raise Refusal("is cut off or damaged: pixel data of the TIFF are missing; use a complete copy of it")


def _decode16(page: Any) -> np.ndarray:
    """Return the page as (H, W, 1..4) uint16, gray or RGB, with alpha last and not premultiplied."""
    colours = {0: 1, 1: 1, 2: 3}.get(int(page.photometric))
    if colours is None:
        name = getattr(page.photometric, "name", page.photometric)
        raise Refusal(f"is a 16 bit TIFF with {name} colours; save it as RGB or gray first")
    if page.compression not in _NO_EXTRA_CODEC:
        imagecodecs_for(f"a 16 bit TIFF with {getattr(page.compression, 'name', page.compression)} compression")
    planes = page.asarray(squeeze=False)[:, 0]  # (planes, H, W, channels); one of the two numbers is 1
    samples = planes.transpose(1, 2, 0, 3).reshape(*planes.shape[1:3], -1).astype(np.uint16, copy=False)
    colour = samples[..., :colours]
    if page.photometric == 0:
        colour = 65535 - colour
    kind = _alpha_kind(page)
    if kind is None:
        return colour
    alpha = samples[..., colours : colours + 1]
    if kind == 1:
        with np.errstate(divide="ignore", invalid="ignore"):
            straight = np.nan_to_num(colour * 65535.0 / alpha, nan=0.0, posinf=0.0)
        colour = np.minimum(straight + 0.5, 65535).astype(np.uint16)
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


def encode_tiff(samples: np.ndarray, icc: bytes | None, dpi: tuple[float, float] | None) -> bytes:
    """Encode (H, W) or (H, W, 2..4) uint8 or uint16 as a deflate-compressed TIFF; the last of 2 or 4 is alpha."""
    channels = samples.shape[2] if samples.ndim == 3 else 1
    options: dict[str, Any] = {"resolution": dpi, "resolutionunit": "INCH"} if dpi else {}
    if channels > 1:
        options["planarconfig"] = "contig"
    if channels in (2, 4):
        options["extrasamples"] = ["unassalpha"]
    buffer = io.BytesIO()
    tifffile.imwrite(
        buffer,
        np.ascontiguousarray(samples),
        photometric="rgb" if channels > 2 else "minisblack",
        compression="zlib",
        predictor=True,
        iccprofile=icc,
        metadata=None,
        software=False,
        **options,
    )
    return buffer.getvalue()
