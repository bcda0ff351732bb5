"""What a file says beside its pixels: out of each format, and as far as each format holds it into the result."""

import re
import struct
import zlib
from typing import NamedTuple

from kithkin.images import _ifd
from kithkin.images._picture import Picture
from kithkin.messages import one_line

IPTC_RESOURCE = 0x0404
XMP_KEYWORD = b"XML:com.adobe.xmp"
COLOUR_CHUNKS = (b"cICP", b"gAMA", b"cHRM", b"sRGB", b"sBIT", b"mDCV", b"cLLI")
TEXT_CHUNKS = (b"tEXt", b"zTXt", b"iTXt")

_JPEG_SEGMENT = 65533
_XMP_SEGMENT = b"http://ns.adobe.com/xap/1.0/\0"
_PHOTOSHOP_SEGMENT = b"Photoshop 3.0\0"
_MOST_TEXT = 2**26
_PLAIN = ("WebP", "HEIC", "AVIF")
"""Formats that hold a profile, EXIF and XMP data, and nothing else of what is looked at here."""
_EXIF_OF_KEYWORD = {
    b"Description": _ifd.DESCRIPTION,
    b"Author": _ifd.ARTIST,
    b"Copyright": _ifd.COPYRIGHT,
    b"Software": _ifd.SOFTWARE,
}
_SRGB_CODES = b"\x01\x0d"
"""Primaries and transfer function of sRGB, as cICP numbers them."""
_SRGB_GAMMA, _SRGB_PRIMARIES = 45455, (31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)
"""As gAMA and cHRM hold them, in 1 / 100,000."""


class Fitting(NamedTuple):
    """What of a picture's metadata goes into a file of one format, and a sentence for each thing that does not."""

    icc: bytes | None
    exif: bytes | None
    xmp: bytes | None
    iptc: bytes | None
    comment: bytes | None
    chunks: tuple[tuple[bytes, bytes], ...]
    lost: tuple[str, ...]


def fitting(picture: Picture, kind: str) -> Fitting:
    """Choose what goes into a file of the format `kind`."""
    exif, no_exif = _exif(picture, kind)
    icc, no_icc = _icc(picture, kind)
    xmp, no_xmp = _xmp(picture, kind)
    iptc, no_iptc = _iptc(picture, kind)
    comment, no_comment = _comment(picture, kind, exif)
    lost = [sentence for sentence in (no_icc, no_exif, no_xmp, no_iptc, no_comment) if sentence]
    if kind != "PNG":
        lost += _lost_chunks(picture, kind, exif)
    if picture.dpi and kind in _PLAIN and not exif and picture.dpi not in ((72, 72), (96, 96)):
        lost.append(f"{kind} holds no resolution ({picture.dpi[0]:g} dpi): it is dropped")
    chunks = picture.chunks if kind == "PNG" else ()
    return Fitting(icc, exif, xmp, iptc, comment, chunks, tuple(lost))


Choice = tuple[bytes | None, str | None]
"""What is written, or why nothing is."""


def _icc(picture: Picture, kind: str) -> Choice:
    icc = picture.icc
    if icc and kind == "BMP":
        return None, "BMP holds no colour profile in kithkin: it is dropped"
    if icc and icc[16:20] == b"GRAY":
        if kind == "WebP":
            return None, "WebP holds no gray pictures, so no gray colour profile: it is dropped"
        if kind in ("HEIC", "AVIF") and picture.alpha is not None:
            return None, f"{kind} holds no gray pictures with transparency, so no gray colour profile: it is dropped"
    return icc, None


def _exif(picture: Picture, kind: str) -> Choice:
    exif, most = picture.exif, _JPEG_SEGMENT - len(b"Exif\0\0")
    if not exif:
        texts = [] if kind in ("PNG", "BMP") else _plain_texts(picture.chunks)
        return _ifd.text_exif({_EXIF_OF_KEYWORD[key]: text for key, text in texts if key in _EXIF_OF_KEYWORD}), None
    if kind == "BMP":
        return None, "BMP holds no EXIF data: they are dropped"
    if kind == "JPEG" and len(exif) > most:
        return None, f"JPEG holds at most {most} bytes of EXIF data: they are dropped"
    if kind in ("TIFF", "AVIF") and not _ifd.is_sound(exif):
        return None, f"the EXIF data are damaged, and {kind} holds only sound ones: they are dropped"
    # Pillow lays EXIF data that name an orientation out anew for an AVIF. That moves makers' notes, and fails for some.
    return _ifd.without(exif, _ifd.ORIENTATION) if kind == "AVIF" else exif, None


def _xmp(picture: Picture, kind: str) -> Choice:
    xmp, most = picture.xmp, _JPEG_SEGMENT - len(_XMP_SEGMENT)
    if xmp and kind == "BMP":
        return None, "BMP holds no XMP data: they are dropped"
    if xmp and kind == "JPEG" and len(xmp) > most:
        return None, f"JPEG holds at most {most} bytes of XMP data: they are dropped"
    return xmp, None


def _iptc(picture: Picture, kind: str) -> Choice:
    iptc = picture.iptc
    if iptc and kind in ("BMP", *_PLAIN):
        return None, f"{kind} holds no IPTC data: they are dropped"
    if iptc and kind == "JPEG" and len(_photoshop(iptc)) > _JPEG_SEGMENT:
        return None, "JPEG holds less than 64 KB of IPTC data: they are dropped"
    return iptc, None


def _comment(picture: Picture, kind: str, exif: bytes | None) -> Choice:
    comment = picture.comment
    if comment and kind in ("BMP", *_PLAIN):
        return None, f"{kind} holds no comment: it is dropped"
    if comment and kind == "TIFF" and _says(exif, _ifd.DESCRIPTION):
        return None, "TIFF holds no comment beside the description: it is dropped"
    if comment and kind == "JPEG" and len(comment) > _JPEG_SEGMENT:
        return None, f"JPEG holds comments of at most {_JPEG_SEGMENT} bytes: it is dropped"
    return comment, None


def _says(exif: bytes | None, tag: int) -> bool:
    return exif is not None and tag in _ifd.first_directory(exif)


def _lost_chunks(picture: Picture, kind: str, exif: bytes | None) -> list[str]:
    """Say which of a PNG's chunks have no place in another format, as far as somebody would miss them."""
    lost = []
    kept = [] if picture.exif or not exif else list(_EXIF_OF_KEYWORD)
    keywords = [body.split(b"\0")[0] for name, body in picture.chunks if name in TEXT_CHUNKS]
    texts = ", ".join(dict.fromkeys(key.decode("latin1") for key in keywords if key not in kept))
    if texts:
        lost.append(f"{kind} holds none of PNG's texts ({one_line(texts)}): they are dropped")
    names = other_colours(dict(picture.chunks), picture.icc is not None)
    if names:
        lost.append(f"{kind} holds no {names} of PNG: dropped, so the same values may look different")
    if b"sBIT" in dict(picture.chunks):
        lost.append(f"{kind} holds no significant bits (sBIT) of PNG: they are dropped")
    return lost


def other_colours(chunks: dict[bytes, bytes], profile: bool) -> str:
    """Name the chunks by which a PNG's colours differ from sRGB, or from its profile; empty where none do."""
    if b"cICP" in chunks:  # It outranks everything else.
        return "" if chunks[b"cICP"][:2] == _SRGB_CODES else "code points of colour (cICP)"
    if profile or b"sRGB" in chunks:
        return ""
    gamma = int.from_bytes(chunks.get(b"gAMA", b"")[:4], "big")
    chromaticities = chunks.get(b"cHRM", b"")
    primaries = struct.unpack(">8I", chromaticities) if len(chromaticities) == 32 else _SRGB_PRIMARIES
    other = any(abs(a - b) > 1000 for a, b in zip(primaries, _SRGB_PRIMARIES, strict=True))
    return "gamma and primaries (gAMA, cHRM)" if (gamma and abs(gamma - _SRGB_GAMMA) > 1000) or other else ""


# XMP


def upright_xmp(xmp: bytes) -> bytes:
    """Return XMP data that call the picture upright, as its pixels are now."""
    return re.sub(rb"(tiff:Orientation\s*(?:=\s*[\"']|>\s*))[2-8]", rb"\g<1>1", xmp)


def still_xmp(xmp: bytes) -> bytes:
    """Return XMP data that promise no video behind the picture."""
    return re.sub(rb"((?:MotionPhoto|MicroVideo)\s*(?:=\s*[\"']|>\s*))1", rb"\g<1>0", xmp)


# IPTC


def photoshop_resources(data: bytes) -> dict[int, bytes]:
    """Take Photoshop's blocks of data apart, as far as they are sound; IPTC data are the one numbered IPTC_RESOURCE."""
    resources: dict[int, bytes] = {}
    at = 0
    while data[at : at + 4] == b"8BIM" and at + 12 <= len(data):
        (number,) = struct.unpack_from(">H", data, at + 4)
        at += 6 + (data[at + 6] + 2) // 2 * 2
        if at + 4 > len(data):
            break
        (length,) = struct.unpack_from(">I", data, at)
        resources.setdefault(number, data[at + 4 : at + 4 + length])
        at += 4 + length + length % 2
    return resources


def _iptc_resource(iptc: bytes) -> bytes:
    return b"8BIM" + struct.pack(">HHI", IPTC_RESOURCE, 0, len(iptc)) + iptc + bytes(len(iptc) % 2)


def _photoshop(iptc: bytes) -> bytes:
    return _PHOTOSHOP_SEGMENT + _iptc_resource(iptc)


# JPEG


def with_jpeg_segments(data: bytes, held: Fitting) -> bytes:
    """Put XMP and IPTC data into a JPEG file, behind the segments that must come first."""
    bodies = [(b"\xff\xe1", _XMP_SEGMENT + held.xmp)] if held.xmp else []
    bodies += [(b"\xff\xed", _photoshop(held.iptc))] if held.iptc else []
    at = 2
    while data[at : at + 2] in (b"\xff\xe0", b"\xff\xe1"):
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    added = b"".join(marker + struct.pack(">H", 2 + len(body)) + body for marker, body in bodies)
    return data[:at] + added + data[at:]


# PNG


def chunk(kind: bytes, body: bytes) -> bytes:
    """One chunk of a PNG file."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def with_png_chunks(data: bytes, held: Fitting, channels: int, depth: int) -> bytes:
    """Put XMP, IPTC, comment and the chunks of the source into a PNG file of 1 to 4 channels, before its pixels."""
    added = b""
    for kind, body in held.chunks:
        # As many numbers as channels: transparency may have become an alpha channel, and colours gray.
        full = body[:channels] + bytes([depth]) * (channels - len(body)) if kind == b"sBIT" else body
        added += chunk(kind, full)
    if held.comment:
        added += _comment_chunk(held.comment.replace(b"\0", b" "))
    if held.xmp:
        added += chunk(b"iTXt", XMP_KEYWORD + bytes(5) + held.xmp.rstrip(b"\0"))
    if held.iptc:
        block = _iptc_resource(held.iptc)
        text = f"\niptc\n{len(block):8}\n{block.hex()}\n".encode()
        added += chunk(b"zTXt", b"Raw profile type iptc\0\0" + zlib.compress(text))
    return data[:33] + added + data[33:]


def _comment_chunk(comment: bytes) -> bytes:
    """A comment as PNG holds text: Latin-1 in one kind of chunk, UTF-8 in another."""
    try:
        comment.decode()
    except UnicodeDecodeError:
        return chunk(b"tEXt", b"Comment\0" + comment)
    return (
        chunk(b"tEXt", b"Comment\0" + comment) if comment.isascii() else chunk(b"iTXt", b"Comment" + bytes(5) + comment)
    )


def text_of(kind: bytes, body: bytes) -> bytes | None:
    """Return the text of a PNG's chunk of text, unpacked; None where it is damaged or too long."""
    try:
        _, rest = body.split(b"\0", 1)
        if kind == b"tEXt":
            return rest
        packed = kind == b"zTXt" or rest[0] == 1
        rest = rest[1:] if kind == b"zTXt" else rest[2:].split(b"\0", 2)[2]
        if not packed:
            return rest
        unpacker = zlib.decompressobj()
        text = unpacker.decompress(rest, _MOST_TEXT)
        return text if unpacker.eof else None
    except (ValueError, IndexError, zlib.error):
        return None


def raw_profile(text: bytes | None) -> bytes | None:
    """Return the bytes that ImageMagick and others store in a PNG as hexadecimal text, or None."""
    try:
        return bytes.fromhex("".join(text.decode("ascii").split("\n")[3:])) if text is not None else None
    except ValueError:
        return None


def _plain_texts(chunks: tuple[tuple[bytes, bytes], ...]) -> list[tuple[bytes, str]]:
    """The keywords and texts among a PNG's chunks."""
    texts = []
    for kind, body in chunks:
        text = text_of(kind, body) if kind in TEXT_CHUNKS else None
        if text is not None:
            texts.append((body.split(b"\0")[0], text.decode("utf-8" if kind == b"iTXt" else "latin1", "replace")))
    return texts
