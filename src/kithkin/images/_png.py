"""PNG: the chunks that Pillow does not check, and 16 bit colour, which Pillow would cut down to 8."""

import io
import struct
import zlib

import numpy as np
from PIL import PngImagePlugin

from kithkin.images._picture import Picture, Refusal, check_size, imagecodecs_for, make_picture
from kithkin.images._pillow import samples_of

PNG_LEVEL = 4
"""How hard deflate tries, 0..9: half the time of the usual 6 for files about 5 percent larger."""

_GRAY, _RGB = 0, 2
_SRGB_CODES = b"\x01\x0d"
"""Primaries and transfer function of sRGB, as cICP numbers them."""
_SRGB_GAMMA, _SRGB_PRIMARIES = 45455, (31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)
"""As gAMA and cHRM hold them, in 1 / 100,000."""


def read_png(data: bytes) -> Picture:
    """Decode a PNG file. Raises Refusal, or what Pillow and imagecodecs raise on damage."""
    if data[12:16] != b"IHDR" or len(data) < 33:
        raise Refusal("is damaged: the PNG header is missing; use another copy of it")
    width, height, bits, colour = struct.unpack(">IIBB", data[16:26])
    check_size(width, height)
    chunks = _checked_chunks(data)
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
    exif = chunks.get(b"eXIf") or _imagemagick_exif(image.info.get("Raw profile type exif"))
    icc, dpi = image.info.get("icc_profile"), image.info.get("dpi")
    notes = () if icc is not None else _colour_notes(chunks)
    return make_picture(samples, icc=icc, exif=exif, dpi=dpi, notes=notes)


def _colour_notes(chunks: dict[bytes, bytes]) -> tuple[str, ...]:
    """What a PNG without a profile says of its colours that differs from sRGB, and that is not kept."""
    if b"cICP" in chunks and chunks[b"cICP"][:2] != _SRGB_CODES:
        return ("the PNG's code points of colour (cICP) are not kept: the values are taken for sRGB",)
    if b"sRGB" in chunks or b"cICP" in chunks:
        return ()
    gamma = int.from_bytes(chunks.get(b"gAMA", b"")[:4], "big")
    chromaticities = chunks.get(b"cHRM", b"")
    primaries = struct.unpack(">8I", chromaticities) if len(chromaticities) == 32 else _SRGB_PRIMARIES
    other = any(abs(a - b) > 1000 for a, b in zip(primaries, _SRGB_PRIMARIES, strict=True))
    if (gamma and abs(gamma - _SRGB_GAMMA) > 1000) or other:
        return ("the PNG's gamma and primaries (gAMA, cHRM) are not kept: the values are taken for sRGB",)
    return ()


def _checked_chunks(data: bytes) -> dict[bytes, bytes]:
    """Return the first chunk of each kind but the pixel data; raise Refusal on a wrong checksum or a missing end."""
    found: dict[bytes, bytes] = {}
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
            found.setdefault(kind, data[at + 8 : end])
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


def _imagemagick_exif(text: object) -> bytes | None:
    """Return the EXIF that ImageMagick stores as hexadecimal text, or None."""
    try:
        return bytes.fromhex("".join(text.split("\n")[3:])) if isinstance(text, str) else None
    except ValueError:
        return None


def encode_png16(samples: np.ndarray, icc: bytes | None, exif: bytes | None, dpi: tuple[float, float] | None) -> bytes:
    """Encode (H, W, 2..4) uint16 as PNG with its metadata. Raises Refusal where imagecodecs is missing."""
    codecs = imagecodecs_for("writing PNG with 16 bit colour")
    data: bytes = codecs.png_encode(np.ascontiguousarray(samples), level=PNG_LEVEL)
    extra = b""
    if icc:
        extra += _chunk(b"iCCP", b"ICC Profile\0\0" + zlib.compress(icc))
    if dpi:
        extra += _chunk(b"pHYs", struct.pack(">IIB", *(int(v / 0.0254 + 0.5) for v in dpi), 1))
    if exif:
        extra += _chunk(b"eXIf", exif)
    # All three belong before the pixel data; the 8 byte signature and the 25 byte IHDR come first.
    return data[:33] + extra + data[33:]


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
