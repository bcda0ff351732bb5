"""PNG: the chunks that Pillow does not check, and 16 bit colour, which Pillow would cut down to 8."""

import io
import struct
import zlib

import numpy as np
from PIL import PngImagePlugin

from kithkin.images._metadata import (
    COLOUR_CHUNKS,
    IPTC_RESOURCE,
    TEXT_CHUNKS,
    XMP_KEYWORD,
    chunk,
    photoshop_resources,
    raw_profile,
    text_of,
    upright_xmp,
)
from kithkin.images._picture import CREDENTIALS, Picture, Refusal, check_size, imagecodecs_for, make_picture
from kithkin.images._pillow import samples_of

PNG_LEVEL = 4
"""How hard deflate tries, 0..9: half the time of the usual 6 for files about 5 percent larger."""

_GRAY, _RGB = 0, 2


_DISPENSABLE = (
    *COLOUR_CHUNKS,
    *TEXT_CHUNKS,
    *(b"iCCP", b"eXIf", b"pHYs", b"tIME", b"bKGD", b"hIST", b"sPLT", b"oFFs", b"pCAL", b"sCAL", b"sTER", b"caBX"),
)
"""Chunks without which the pixels are the same."""
_LENGTHS = {
    b"cICP": (4,),
    b"gAMA": (4,),
    b"cHRM": (32,),
    b"sRGB": (1,),
    b"sBIT": (1, 2, 3, 4),
    b"mDCV": (24,),
    b"cLLI": (8,),
    b"pHYs": (9,),
    b"tIME": (7,),
}
_END = b"\0\0\0\0IEND\xaeB`\x82"
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""Of an interlaced picture: where its pixels begin across and down, and how far apart they are."""


def png_size(data: bytes) -> tuple[int, int]:
    """Return (width, height); raise Refusal for what the header and the chunks before the pixels rule out."""
    if data[12:16] != b"IHDR" or len(data) < 33:
        raise Refusal("is damaged: the PNG header is missing; use another copy of it")
    width, height, bits, colour = struct.unpack(">IIBB", data[16:26])
    at = 33
    while at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        if kind == b"IDAT":
            break
        if kind == b"acTL":
            frames = int.from_bytes(data[at + 8 : at + 12], "big")
            if frames > 1:
                raise Refusal(f"is an animation of {frames} pictures; save the one to restore as a picture of its own")
        at += 12 + length
    if bits == 16 and colour != _GRAY:
        imagecodecs_for("PNG with 16 bit colour")
    return width, height


def read_png(data: bytes) -> Picture:
    """Decode a PNG file. Raises Refusal, or what Pillow and imagecodecs raise on damage."""
    check_size(*png_size(data))
    bits, colour = data[24:26]
    pixels, packed, others, notes = _checked_chunks(data)
    chunks = dict(reversed(others))
    image = PngImagePlugin.PngImageFile(io.BytesIO(pixels))
    if bits == 16 and colour != _GRAY:
        samples = imagecodecs_for("PNG with 16 bit colour").png_decode(pixels)
    else:
        image.load()
        # Pillow leaves rows without data black: the last ones, or every other one of an interlaced picture.
        if not all(row.any() for row in np.asarray(image)[-2:]) and _unpacked(packed)[0] < _size_of_pixels(data):
            raise Refusal("is damaged: it has fewer pixels than the PNG says; use another copy of it")
        samples = samples_of(image)
        if b"tRNS" in chunks and colour in (_GRAY, _RGB):
            samples = _with_key_alpha(samples, chunks[b"tRNS"], bits)
    exif, xmp, iptc, comment, copied = _sorted_out(others)
    return make_picture(
        samples,
        icc=text_of(b"zTXt", chunks[b"iCCP"]) if b"iCCP" in chunks else None,
        exif=chunks.get(b"eXIf") or exif,
        dpi=_dpi(chunks.get(b"pHYs", b"")),
        notes=(*notes, CREDENTIALS) if b"caBX" in chunks else notes,
        xmp=upright_xmp(xmp) if xmp else None,
        iptc=iptc,
        comment=comment,
        chunks=tuple(copied),
    )


def _sorted_out(
    others: list[tuple[bytes, bytes]],
) -> tuple[bytes | None, bytes | None, bytes | None, bytes | None, list[tuple[bytes, bytes]]]:
    """Return EXIF that ImageMagick stored as text, XMP, IPTC, the comment, and the chunks to copy as they are."""
    exif = xmp = iptc = comment = None
    copied = []
    for kind, body in others:
        keyword = body.split(b"\0")[0] if kind in TEXT_CHUNKS else b""
        # By its fourth letter a chunk says whether it still holds when pixels change. Pillow writes pHYs and eXIf.
        if kind not in COLOUR_CHUNKS and (kind[3:].isupper() or kind in (b"pHYs", b"eXIf", b"iCCP")):
            continue
        if keyword == XMP_KEYWORD:
            xmp = text_of(kind, body)
        elif keyword == b"Raw profile type iptc":
            block = raw_profile(text_of(kind, body)) or b""
            iptc = photoshop_resources(block).get(IPTC_RESOURCE) or (block if block[:1] == b"\x1c" else None)
        elif keyword in (b"Raw profile type exif", b"Raw profile type APP1"):  # Its orientation holds no more.
            exif = exif or raw_profile(text_of(kind, body))
        elif keyword == b"Comment":
            text = text_of(kind, body)
            comment = text if text is None or kind == b"iTXt" else text.decode("latin1").encode()
        else:
            copied.append((kind, body))
    return exif, xmp, iptc, comment, copied


def _dpi(body: bytes) -> tuple[float, float] | None:
    """Dots per inch of a pHYs chunk; None where there is none, or where it gives but the shape of a pixel."""
    if len(body) != 9 or body[8] != 1:
        return None
    x, y = struct.unpack(">II", body[:8])
    return x * 0.0254, y * 0.0254


def _checked_chunks(data: bytes) -> tuple[bytes, list[memoryview], list[tuple[bytes, bytes]], tuple[str, ...]]:
    """Return the file with nothing but what its pixels need, those packed, kind and body of the other chunks, and what
    was damaged.

    Raises Refusal where a checksum of what the pixels need is wrong, or their end is missing.
    """
    others: list[tuple[bytes, bytes]] = []
    kept: list[bytes | memoryview] = [data[:8]]
    damaged: list[tuple[bytes, bytes]] = []
    packed: list[memoryview] = []
    view = memoryview(data)
    at, ended = 8, False
    while at + 12 <= len(data) and not ended:
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 8 + length
        if end + 4 > len(data):
            break
        sound = zlib.crc32(view[at + 4 : end]) == int.from_bytes(data[end : end + 4], "big")
        if kind in _DISPENSABLE:
            body = data[at + 8 : end]
            (others if sound and _well_formed(kind, body) else damaged).append((kind, body))
        elif kind == b"IEND":
            ended = sound
        elif sound and _needed(kind):
            kept.append(view[at : end + 4])
            if kind == b"IDAT":
                packed.append(view[at + 8 : end])
            else:
                others.append((kind, data[at + 8 : end]))
        elif sound:
            others.append((kind, data[at + 8 : end]))
        elif packed and kind != b"IDAT":
            break  # Behind the pixels, if they are complete, the order of the chunks is of no use any more.
        else:
            raise Refusal(f"is damaged: a checksum in the PNG ({ascii(kind)[1:]}) is wrong; use another copy of it")
        at = end + 4
    notes = _damage([kind for kind, _ in damaged])
    if not ended:
        if not _unpacked(packed)[1]:
            raise Refusal("is cut off: the end of the PNG is missing; use a complete copy of it")
        notes = (*notes, "the end of the PNG is missing; the pixels are complete")
    return b"".join((*kept, _END)), packed, others, notes


def _needed(kind: bytes) -> bool:
    """Whether a decoder needs a chunk: its first letter says so, and tRNS is the one that wrongly says no."""
    return not kind[0] & 0x20 or kind == b"tRNS"


def _well_formed(kind: bytes, body: bytes) -> bool:
    """Whether a chunk has the length, and a profile the packing, that its kind asks for."""
    if kind == b"iCCP":
        return bool(text_of(b"zTXt", body))
    return len(body) in _LENGTHS.get(kind, (len(body),))


def _damage(kinds: list[bytes]) -> tuple[str, ...]:
    names = ", ".join(dict.fromkeys(kind.decode() for kind in kinds))
    return (f"parts of the PNG that say nothing of its pixels are damaged and not kept ({names})",) if kinds else ()


def _unpacked(packed: list[memoryview]) -> tuple[int, bool]:
    """Return how many bytes the pixel data unpack to, little of it at a time, and whether they reach their end."""
    unpacker, size = zlib.decompressobj(), 0
    try:
        for part in packed:
            rest: bytes | memoryview = part
            while rest and not unpacker.eof:
                size += len(unpacker.decompress(rest, 1 << 20))
                rest = unpacker.unconsumed_tail
        size += len(unpacker.flush())
    except zlib.error:
        return size, False
    return size, unpacker.eof


def _size_of_pixels(data: bytes) -> int:
    """Return the size of unpacked pixel data that the header of a PNG asks for: rows, and a byte before each."""
    width, height, bits, colour, *_, interlaced = struct.unpack(">IIBBBBB", data[16:29])
    bits *= {2: 3, 4: 2, 6: 4}.get(colour, 1)
    size = 0
    for x, y, across, down in _PASSES if interlaced else ((0, 0, 1, 1),):
        columns, rows = -(-(width - x) // across), -(-(height - y) // down)
        size += rows * (1 + -(-columns * bits // 8)) if columns else 0
    return size


def _with_key_alpha(samples: np.ndarray, key: bytes, bits: int) -> np.ndarray:
    """Return (H, W) or (H, W, 3) samples with an alpha channel: 0 where the colour is the PNG's transparent one."""
    colour = np.frombuffer(key[: 2 * (samples.shape[2] if samples.ndim == 3 else 1)], ">u2")
    # Pillow stretches 1, 2 and 4 bit gray to 8 bits, but the key is stored unstretched.
    colour = colour * (255 // (2**bits - 1) if bits < 8 else 1)
    samples = samples[..., None] if samples.ndim == 2 else samples
    top = np.iinfo(samples.dtype).max
    alpha = np.where((samples == colour).all(axis=2), 0, top).astype(samples.dtype)
    return np.concatenate([samples, alpha[..., None]], axis=2)


def encode_png16(samples: np.ndarray, icc: bytes | None, exif: bytes | None, dpi: tuple[float, float] | None) -> bytes:
    """Encode (H, W, 2..4) uint16 as PNG with its metadata. Raises Refusal where imagecodecs is missing."""
    codecs = imagecodecs_for("writing PNG with 16 bit colour")
    data: bytes = codecs.png_encode(np.ascontiguousarray(samples), level=PNG_LEVEL)
    extra = b""
    if icc:
        extra += chunk(b"iCCP", b"ICC Profile\0\0" + zlib.compress(icc))
    if dpi:
        extra += chunk(b"pHYs", struct.pack(">IIB", *(int(v / 0.0254 + 0.5) for v in dpi), 1))
    if exif:
        extra += chunk(b"eXIf", exif)
    # All three belong before the pixel data; the 8 byte signature and the 25 byte IHDR come first.
    return data[:33] + extra + data[33:]
