"""From a loaded Pillow image to samples, and the formats that Pillow reads alone: JPEG, WebP, BMP.

The plugins are called directly, not through PIL.Image.open: that one enforces a limit of its own on the
number of pixels, which could only be changed for the whole process.
"""

import io
import re
import struct

import numpy as np
from PIL import BmpImagePlugin, Image, ImageChops, ImageCms, JpegImagePlugin, WebPImagePlugin

from kithkin.images._metadata import IPTC_RESOURCE, still_xmp, upright_xmp
from kithkin.images._picture import CREDENTIALS, Picture, Refusal, check_size, make_picture

_TARGET_MODES = {"1": "L", "La": "LA", "RGBa": "RGBA", "RGBX": "RGB", "YCbCr": "RGB", "PA": "RGBA"}


def samples_of(image: Image.Image) -> np.ndarray:
    """Return a loaded image of any mode but CMYK as (H, W) or (H, W, 2..4) uint8 or uint16; Refusal otherwise."""
    mode = image.mode
    if mode == "P":
        return np.asarray(image.convert("RGBA" if image.has_transparency_data else "RGB"))
    if mode in _TARGET_MODES:
        return np.asarray(image.convert(_TARGET_MODES[mode]))
    if mode in ("L", "LA", "RGB", "RGBA"):
        return np.asarray(image)
    if mode in ("I;16", "I;16B", "I;16L", "I;16N"):
        return np.asarray(image).astype(np.uint16)
    raise Refusal(f"has pixels of a kind that kithkin does not handle ({mode}); save it as RGB or gray first")


def samples_of_cmyk(image: Image.Image, icc: bytes | None) -> tuple[np.ndarray, str]:
    """Return a loaded CMYK image (0 = no ink) as sRGB (H, W, 3) uint8, and a sentence on how.

    The profile does the conversion; without a usable one, the inks are taken as ideal ones.
    """
    if icc:
        try:
            rgb = ImageCms.profileToProfile(
                image,
                ImageCms.ImageCmsProfile(io.BytesIO(icc)),
                ImageCms.createProfile("sRGB"),
                renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
                outputMode="RGB",
                flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
            )
        except (ImageCms.PyCMSError, OSError, ValueError):
            rgb = None
        if rgb is not None:
            return np.asarray(rgb), "CMYK was converted to sRGB with the profile in the file"
    return np.asarray(image.convert("RGB")), "CMYK without a usable colour profile: the colours are approximate"


def read_jpeg(data: bytes) -> Picture:
    """Decode a JPEG file; of an MPO file the first picture, with a note. Raises Refusal or what Pillow raises."""
    image = JpegImagePlugin.JpegImageFile(io.BytesIO(data))
    check_size(*image.size)
    # A file whose tail is zeros decodes to gray without an error. The end marker can't occur within the pixel
    # data, so where none follows the header (at which the stream now stands), the tail is lost.
    start = image.fp.tell() if image.fp else len(data)
    if data.find(b"\xff\xd9", start) < 0:
        raise Refusal("is cut off or overwritten: the end of the JPEG is missing; use a complete copy of it")
    image.load()
    icc = image.info.get("icc_profile")
    notes: tuple[str, ...] = ()
    if image.mode == "CMYK":
        # Adobe stores the inks inverted and says so with a marker; Pillow turns them round in any case.
        inks = image if "adobe" in image.info else ImageChops.invert(image)
        samples, note = samples_of_cmyk(inks, icc)
        icc, notes = None, (note,)
    else:
        samples = samples_of(image)
    resources = image.info.get("photoshop", {})
    comments = [body for name, body in image.applist if name == "COM"]
    xmp, video = image.info.get("xmp"), _holds_video(data, start)
    if xmp:
        xmp = upright_xmp(still_xmp(xmp) if video else xmp)
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


def _holds_video(data: bytes, start: int) -> bool:
    """Whether an MP4 or QuickTime film lies in a JPEG file behind its header, as a phone's motion photo stores it."""
    return re.search(rb"ftyp(?:mp4|isom|iso\d|avc1|qt  |M4V|3gp|hvc1)", memoryview(data)[start:]) is not None


def _jpeg_notes(image: JpegImagePlugin.JpegImageFile, data: bytes, start: int, video: bool) -> tuple[str, ...]:
    """Say what a JPEG file holds beside its picture that no result can hold."""
    notes = []
    behind = len(data[data.find(b"\xff\xd9", start) + 2 :].rstrip(b"\0"))
    if video:
        notes.append("holds a video behind the picture (a motion photo), which is not kept")
    elif "mp" in image.info:
        notes.append("holds more than one picture (MPO); only the first was read")
    elif behind:
        notes.append(f"{behind} bytes behind the end of the JPEG are not kept")
    segments = [(name, body[:30]) for name, body in image.applist]
    if any(name == "APP11" and body.startswith(b"JP") for name, body in segments):
        notes.append(CREDENTIALS)
    if any(name == "APP1" and body.startswith(b"http://ns.adobe.com/xmp/ext") for name, body in segments):
        notes.append("the part of its XMP data that exceeds 64 KB is not kept")
    if any(2000 <= number < 2998 for number in image.info.get("photoshop", {})):
        notes.append("Photoshop's paths are not kept")
    return tuple(notes)


def read_webp(data: bytes) -> Picture:
    """Decode a WebP file. Raises Refusal, or what Pillow raises on damage."""
    if data[12:16] == b"VP8X" and len(data) >= 30:
        # Pillow sets memory aside for this size as soon as it opens the file.
        check_size(*(1 + int.from_bytes(data[at : at + 3], "little") for at in (24, 27)))
    image = WebPImagePlugin.WebPImageFile(io.BytesIO(data))
    check_size(*image.size)
    frames = getattr(image, "n_frames", 1)
    if frames > 1:
        raise Refusal(f"is an animation of {frames} pictures; save the one to restore as a picture of its own")
    image.load()
    xmp = image.info.get("xmp")
    return make_picture(
        samples_of(image),
        icc=image.info.get("icc_profile"),
        exif=image.info.get("exif"),
        xmp=upright_xmp(xmp) if xmp else None,
    )


def read_bmp(data: bytes) -> Picture:
    """Decode a BMP file. Raises Refusal, or what Pillow raises on damage."""
    image = BmpImagePlugin.BmpImageFile(io.BytesIO(data))
    check_size(*image.size)
    image.load()
    return make_picture(samples_of(image), dpi=image.info.get("dpi"))


def encode_bmp_alpha(samples: np.ndarray, dpi: tuple[float, float] | None) -> bytes:
    """Encode (H, W, 4) uint8 RGBA as a BMP with the header that names an alpha channel (version 4), which Pillow omits.

    Many programs take such a file for opaque. So what is wholly transparent is stored as white: they show a white
    ground, and not what lay there unseen.
    """
    height, width = samples.shape[:2]
    bgra = samples[::-1, :, [2, 1, 0, 3]]
    bgra[bgra[..., 3] == 0] = (255, 255, 255, 0)
    x, y = (int(v / 0.0254 + 0.5) for v in dpi or (0, 0))
    head = struct.pack("<IiiHHIIiiII", 108, width, height, 1, 32, 3, bgra.size, x, y, 0, 0)
    masks = struct.pack("<4I4s48x", 0xFF0000, 0xFF00, 0xFF, 0xFF000000, b"BGRs")  # 48: end points and gammas, unused
    start = 14 + len(head) + len(masks)
    return b"BM" + struct.pack("<IHHI", start + bgra.size, 0, 0, start) + head + masks + bgra.tobytes()
