"""JPEG: Pillow decodes it; what its end and the data behind it mean is found out here."""

import io
import re

from PIL import ImageChops, JpegImagePlugin

from kithkin.images._metadata import IPTC_RESOURCE, still_xmp, upright_xmp
from kithkin.images._picture import CREDENTIALS, Picture, Refusal, check_size, make_picture
from kithkin.images._pillow import samples_of, samples_of_cmyk

_END = b"\xff\xd9"
_GAIN_MAP = re.compile(rb"\s+hdrgm:Version=(\"[^\"]*\"|'[^']*')")
"""By this attribute, a picture's XMP data promise that a gain map follows (Ultra HDR)."""


def jpeg_size(data: bytes) -> tuple[int, int]:
    """Return (width, height) as stored."""
    return JpegImagePlugin.JpegImageFile(io.BytesIO(data)).size


def read_jpeg(data: bytes) -> Picture:
    """Decode a JPEG file; of an MPO file the first picture, with a note. Raises Refusal or what Pillow raises."""
    image = JpegImagePlugin.JpegImageFile(io.BytesIO(data))
    check_size(*image.size)
    # A file whose tail is zeros decodes to gray without an error. The end marker can't occur within the pixel
    # data, so where none follows the header (at which the stream now stands), the tail is lost.
    start = image.fp.tell() if image.fp else len(data)
    notes: tuple[str, ...] = ()
    if data.find(_END, start) < 0:
        data, image = _ended(data, image)
        notes = ("the end marker of the JPEG is missing; the picture is complete",)
    image.load()
    icc = image.info.get("icc_profile")
    if image.mode == "CMYK":
        # Adobe stores the inks inverted and says so with a marker; Pillow turns them round in any case.
        inks = image if "adobe" in image.info else ImageChops.invert(image)
        samples, note = samples_of_cmyk(inks, icc)
        icc, notes = None, (*notes, note)
    else:
        samples = samples_of(image)
    resources = image.info.get("photoshop", {})
    comments = [body for name, body in image.applist if name == "COM"]
    xmp, video = image.info.get("xmp"), _holds_video(data, start)
    if xmp:
        xmp = _GAIN_MAP.sub(b"", upright_xmp(still_xmp(xmp) if video else xmp))
    notes += _jpeg_notes(image, data, start, video)
    return make_picture(
        samples,
        icc=icc,
        exif=image.info.get("exif"),
        dpi=image.info.get("dpi"),
        notes=notes,
        xmp=xmp,
        iptc=resources.get(IPTC_RESOURCE),
        comment=b"\n".join(comments) or None,
    )


def _ended(data: bytes, image: JpegImagePlugin.JpegImageFile) -> tuple[bytes, JpegImagePlugin.JpegImageFile]:
    """Return a JPEG file without an end marker with one; raise Refusal where pixel data are missing as well.

    Decoders make up what is missing without an error. So the file is decoded three times, with other bytes behind it
    each time: where nothing is missing, they change nothing. A progressive file may lack a whole pass, which this
    would not show.
    """
    stripped = data.rstrip(b"\0")
    bridge = b"\0" if stripped.endswith(b"\xff") else b""  # Half an end marker becomes a byte of data.
    whole = stripped + bridge + _END
    if "progressive" not in image.info:
        others = [stripped + bridge + bytes([byte, byte ^ 0x6B]) * 2048 + _END for byte in (0x35, 0xCA)]
        first, *rest = (_decoded(candidate) for candidate in (whole, *others))
        if all(other == first for other in rest):
            return whole, JpegImagePlugin.JpegImageFile(io.BytesIO(whole))
    raise Refusal("is cut off or overwritten: the end of the JPEG is missing; use a complete copy of it")


def _decoded(data: bytes) -> bytes:
    image = JpegImagePlugin.JpegImageFile(io.BytesIO(data))
    image.load()
    return image.tobytes()


def _holds_video(data: bytes, start: int) -> bool:
    """Whether an MP4 or QuickTime film lies in a JPEG file behind its header, as a phone's motion photo stores it."""
    return re.search(rb"ftyp(?:mp4|isom|iso\d|avc1|qt  |M4V|3gp|hvc1)", memoryview(data)[start:]) is not None


def _jpeg_notes(image: JpegImagePlugin.JpegImageFile, data: bytes, start: int, video: bool) -> tuple[str, ...]:
    """Say what a JPEG file holds beside its picture that no result can hold."""
    notes = []
    behind = len(data[data.find(_END, start) + 2 :].rstrip(b"\0"))
    if video:
        notes.append("holds a video behind the picture (a motion photo), which is not kept")
    elif _GAIN_MAP.search(image.info.get("xmp", b"")):
        notes.append("holds a gain map for bright screens (HDR), which is not kept")
    elif "mp" in image.info:
        notes.append("holds more than one picture (MPO); only the first was read")
    elif behind:
        notes.append(f"{behind} bytes behind the end of the JPEG are not kept")
    segments = [(name, body[:30]) for name, body in image.applist]
    if any(name == "APP11" and body.startswith(b"JP") for name, body in segments):
        notes.append(CREDENTIALS)
    if any(name == "APP1" and body.startswith(b"http://ns.adobe.com/xmp/ext") for name, body in segments):
        notes.append("the part of its XMP data that exceeds 64 KB is not kept")
    profile = any(name == "APP2" and body.startswith(b"ICC_PROFILE") for name, body in segments)
    if profile and not image.info.get("icc_profile"):
        notes.append("its colour profile is damaged and not kept: the values are taken for sRGB")
    if any(2000 <= number < 2998 for number in image.info.get("photoshop", {})):
        notes.append("Photoshop's paths are not kept")
    return tuple(notes)
