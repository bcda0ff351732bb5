"""Which formats there are: told by a file's first bytes, by its name, and by what is installed."""

from pathlib import PurePath

from kithkin.images._heif import check_avif
from kithkin.images._picture import Refusal, photo_package

FORMATS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".webp": "WebP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".bmp": "BMP",
    ".heic": "HEIC",
    ".heif": "HEIC",
    ".hif": "HEIC",
    ".avif": "AVIF",
}
"""Formats that kithkin reads and writes, by file name endings in lower case."""
SUFFIXES = tuple(FORMATS)
"""The file name endings of the formats that kithkin reads and writes, in lower case."""
ENDINGS = {"PNG": ".png", "JPEG": ".jpg", "WebP": ".webp", "TIFF": ".tiff", "BMP": ".bmp", "HEIC": ".heic"} | {
    "AVIF": ".avif",
    "raw": ".tiff",
}
"""The ending of a result by the format of its source; what is developed from raw becomes a TIFF."""
RAW_SUFFIXES = (
    *(".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dcr", ".dng", ".erf", ".fff", ".iiq", ".kdc", ".mef", ".mos", ".mrw"),
    *(".nef", ".nrw", ".orf", ".pef", ".raf", ".raw", ".rw2", ".rwl", ".sr2", ".srf", ".srw", ".x3f"),
)
"""Endings of cameras' raw files, which are read and not written. Many are TIFF files by their first bytes, with a small
preview as their picture."""
FOREIGN_SUFFIXES = (
    *(".exr", ".gif", ".hdr", ".j2k", ".jp2", ".jpf", ".jpx", ".jxl", ".jxr"),
    *(".psb", ".psd", ".qoi", ".svg", ".tga"),
)
"""Endings of other formats that kithkin does not read."""

_PACKAGES = {"HEIC": ("HEIC", "pillow-heif"), "raw": ("camera raw", "rawpy")}
_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_HEIF_BRANDS = (b"avi", b"hei", b"hev", b"mif", b"msf")
_FOREIGN_STARTS = {
    b"GIF8": "a GIF",
    b"\0\0\0\x0cjP  ": "a JPEG 2000",
    b"\xff\x4f\xff\x51": "a JPEG 2000",
    b"\0\0\0\x0cJXL ": "a JPEG XL",
    b"\xff\x0a": "a JPEG XL",
    b"%PDF": "a PDF",
    b"8BPS": "a Photoshop",
}


def known_format(head: bytes, name: PurePath | None = None) -> str | None:
    """Return the format of a file that begins with `head`, a value of FORMATS or "raw"; None for any other.

    A camera's raw file is one by its name, unless it begins like a picture that is no TIFF.
    """
    kind = _by_content(head)
    return "raw" if head and kind in (None, "TIFF") and name and name.suffix.lower() in RAW_SUFFIXES else kind


def _by_content(head: bytes) -> str | None:
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if head.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "WebP"
    if head.startswith(_TIFF_STARTS):
        return "TIFF"
    if head.startswith(b"BM"):
        return "BMP"
    if head[4:8] == b"ftyp" and head[8:11] in _HEIF_BRANDS:
        return "AVIF" if head[8:11] == b"avi" else "HEIC"
    return None


def foreign_format(head: bytes) -> str | None:
    """Return what a picture is that begins with `head` and that kithkin does not read, such as "a GIF"."""
    if b"<svg" in head.lower():
        return "an SVG"
    return next((name for start, name in _FOREIGN_STARTS.items() if head.startswith(start)), None)


def check_installed(kind: str) -> None:
    """Raise Refusal with the install line where a package that a format needs is missing."""
    if kind == "AVIF":
        check_avif()
    if kind in _PACKAGES:
        photo_package(*_PACKAGES[kind])


def is_installed(kind: str) -> bool:
    """Whether the packages that a format needs are there."""
    try:
        check_installed(kind)
    except Refusal:
        return False
    return True


def readable() -> dict[str, list[str]]:
    """The endings of the files that can be read here, by format: "raw" is that of cameras."""
    kinds: dict[str, list[str]] = {}
    for suffix, kind in (*FORMATS.items(), *((suffix, "raw") for suffix in RAW_SUFFIXES)):
        kinds.setdefault(kind, []).append(suffix)
    return {kind: suffixes for kind, suffixes in kinds.items() if is_installed(kind)}
