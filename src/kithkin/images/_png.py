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


def read_png(data: bytes) -> Picture:
    """Decode a PNG file. Raises Refusal, or what Pillow and imagecodecs raise on damage."""
    if data[12:16] != b"IHDR" or len(data) < 33:
        raise Refusal("is damaged: the PNG header is missing; use another copy of it")
    width, height, bits, colour = struct.unpack(">IIBB", data[16:26])
    check_size(width, height)
    found = _checked_chunks(data)
    chunks = dict(reversed(found))
    frames = struct.unpack(">I", chunks[b"acTL"][:4])[0] if b"acTL" in chunks else 1
    if frames > 1:
        raise Refusal(f"is an animation of {frames} pictures; save the one to restore as a picture of its own")
    image = PngImagePlugin.PngImageFile(io.BytesIO(data))
    if bits == 16 and colour != _GRAY:
        samples = imagecodecs_for("PNG with 16 bit colour").png_decode(data)
    else:
        image.load()
        samples = samples_of(image)
        if b"tRNS" in chunks and colour in (_GRAY, _RGB):
            samples = _with_key_alpha(samples, chunks[b"tRNS"], bits)
    exif, xmp, iptc, comment, copied = _sorted_out(found)
    return make_picture(
        samples,
        icc=image.info.get("icc_profile"),
        exif=chunks.get(b"eXIf") or exif,
        dpi=image.info.get("dpi"),
        notes=(CREDENTIALS,) if b"caBX" in chunks else (),
        xmp=upright_xmp(xmp) if xmp else None,
        iptc=iptc,
        comment=comment,
        chunks=tuple(copied),
    )


def _sorted_out(
    found: list[tuple[bytes, bytes]],
) -> tuple[bytes | None, bytes | None, bytes | None, bytes | None, list[tuple[bytes, bytes]]]:
    """Return EXIF that ImageMagick stored as text, XMP, IPTC, the comment, and the chunks to copy as they are."""
    exif = xmp = iptc = comment = None
    copied = []
    for kind, body in found:
        keyword = body.split(b"\0")[0] if kind in TEXT_CHUNKS else b""
        # By its fourth letter a chunk says whether it still holds when pixels change. Pillow writes pHYs and eXIf.
        if kind not in COLOUR_CHUNKS and (kind[3:].isupper() or kind in (b"pHYs", b"eXIf")):
            continue
        if keyword == XMP_KEYWORD:
            xmp = text_of(kind, body)
        elif keyword == b"Raw profile type iptc":
            block = raw_profile(text_of(kind, body)) or b""
            iptc = photoshop_resources(block).get(IPTC_RESOURCE) or (block if block[:1] == b"\x1c" else None)
        elif keyword in (b"Raw profile type exif", b"Raw profile type APP1"):  # Its orientation holds no more.
            exif = exif or raw_profile(text_of(kind, body))
        elif keyword == b"Comment" and kind == b"tEXt":
            comment = text_of(kind, body)
        else:
            copied.append((kind, body))
    return exif, xmp, iptc, comment, copied


def _checked_chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    """Return kind and body of the chunks but the pixel data; raise Refusal on a wrong checksum or a missing end."""
    found: list[tuple[bytes, bytes]] = []
    view = memoryview(data)
    at = 8
    while at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 8 + length
        if end + 4 > len(data):
            break
        if zlib.crc32(view[at + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            raise Refusal(f"is damaged: a checksum in the PNG ({ascii(kind)[1:]}) is wrong; use another copy of it")
        if kind == b"IEND":
            return found
        if kind not in (b"IDAT", b"fdAT"):
            found.append((kind, data[at + 8 : end]))
        at = end + 4
    raise Refusal("is cut off: the end of the PNG is missing; use a complete copy of it")


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
