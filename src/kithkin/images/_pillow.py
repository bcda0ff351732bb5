"""From a loaded Pillow image to samples, and two formats that Pillow reads alone: WebP and BMP.

The plugins are called directly, not through PIL.Image.open: that one enforces a limit of its own on the
number of pixels, which could only be changed for the whole process.
"""

import io
import struct

import numpy as np
from PIL import BmpImagePlugin, Image, ImageCms, WebPImagePlugin

from kithkin.images._metadata import upright_xmp
from kithkin.images._picture import Picture, Refusal, check_size, make_picture

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


def webp_size(data: bytes) -> tuple[int, int]:
    """Return (width, height); raise Refusal for an animation.

    By hand, for Pillow sets memory aside for the whole picture as soon as it opens a WebP file.
    """
    kind = data[12:16]
    if kind == b"VP8X":
        frames, at = 0, 12
        while at + 8 <= len(data):
            frames += data[at : at + 4] == b"ANMF"
            length = int.from_bytes(data[at + 4 : at + 8], "little")
            at += 8 + length + length % 2
        if frames > 1:
            raise Refusal(f"is an animation of {frames} pictures; save the one to restore as a picture of its own")
        width, height = (1 + int.from_bytes(data[at : at + 3], "little") for at in (24, 27))
    elif kind == b"VP8L":
        (bits,) = struct.unpack("<I", data[21:25])
        width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    else:
        width, height = (side & 0x3FFF for side in struct.unpack("<HH", data[26:30]))
    return width, height


def read_webp(data: bytes) -> Picture:
    """Decode a WebP file. Raises Refusal, or what Pillow raises on damage."""
    check_size(*webp_size(data))
    data, notes = _whole_webp(data)
    image = WebPImagePlugin.WebPImageFile(io.BytesIO(data))
    check_size(*image.size)
    image.load()
    return picture_of(image, notes)


def picture_of(image: Image.Image, notes: tuple[str, ...]) -> Picture:
    """What Pillow decoded, with the colour profile, EXIF data and XMP that it found."""
    xmp = image.info.get("xmp")
    return make_picture(
        samples_of(image),
        icc=image.info.get("icc_profile"),
        exif=image.info.get("exif"),
        xmp=upright_xmp(xmp) if xmp else None,
        notes=notes,
    )


def _whole_webp(data: bytes) -> tuple[bytes, tuple[str, ...]]:
    """Return a WebP file whose picture is complete with a right length and without metadata that are cut off."""
    at, pictures = 12, 0
    while at + 8 <= len(data):
        kind, length = struct.unpack_from("<4sI", data, at)
        if at + 8 + length > len(data):
            break
        pictures += kind in (b"VP8 ", b"VP8L", b"ANMF")
        at += 8 + length + length % 2
    cut = at < len(data)
    if not pictures or (not cut and 8 + int.from_bytes(data[4:8], "little") <= at):
        return data, ()
    whole = data[:at].ljust(at, b"\0")
    note = "the metadata at the end of the WebP are cut off and not kept" if cut else "the length in the WebP is wrong"
    return whole[:4] + struct.pack("<I", at - 8) + whole[8:], (note,)


def bmp_size(data: bytes) -> tuple[int, int]:
    """Return (width, height)."""
    return BmpImagePlugin.BmpImageFile(io.BytesIO(data)).size


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
