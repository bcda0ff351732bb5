"""HEIC by pillow-heif, and AVIF by Pillow."""

import io
from typing import Any

import numpy as np
from PIL import features

from kithkin.images._metadata import Fitting, upright_xmp
from kithkin.images._picture import Picture, Refusal, check_size, make_picture, photo_package
from kithkin.images._pillow import picture_of
from kithkin.messages import missing_extra

HEIC_BITS = 10
QUALITY = 95
"""Of HEIC and AVIF files where none is asked for."""


def heic_size(data: bytes) -> tuple[int, int]:
    """Return (width, height), upright."""
    width, height = photo_package("HEIC", "pillow-heif").open_heif(io.BytesIO(data)).size
    return width, height


def read_heic(data: bytes) -> Picture:
    """Decode the main picture of a HEIC file. Raises Refusal or what pillow-heif raises."""
    library = photo_package("HEIC", "pillow-heif")
    image = library.open_heif(io.BytesIO(data), convert_hdr_to_8bit=False, hdr_to_16bit=False)
    check_size(*image.size)
    samples, bits = np.asarray(image), image.info["bit_depth"]
    if samples.dtype == np.uint16:
        top = 2**bits - 1  # White stays white.
        samples = ((samples.astype(np.uint32) * 65535 + top // 2) // top).astype(np.uint16)
    notes = []
    if len(image) > 1:
        notes.append(f"holds {len(image)} pictures; only the main one was read")
    beside = {"auxiliary pictures, such as a gain map,": "aux", "a depth map": "depth_images"}
    notes += [f"{name} of the HEIC can't be kept" for name, key in beside.items() if image.info.get(key)]
    xmp = image.info.get("xmp")
    return make_picture(
        samples,
        icc=image.info.get("icc_profile"),
        exif=image.info.get("exif"),
        xmp=upright_xmp(xmp) if xmp else None,
        orientation=1,  # The decoder has turned it, by what the HEIC says and not by its EXIF data.
        notes=tuple(notes),
    )


def encode_heic(samples: np.ndarray, held: Fitting, quality: int | None) -> bytes:
    """Encode (H, W), (H, W, 3) or (H, W, 4) uint8, or uint16 of which 10 bits are kept; no colour is thinned out."""
    library = photo_package("HEIC", "pillow-heif")
    mode = "L" if samples.ndim == 2 else {3: "RGB", 4: "RGBA"}[samples.shape[2]]
    options: dict[str, Any] = {
        "exif": b"Exif\0\0" + held.exif if held.exif else None,
        "xmp": held.xmp,
        "icc_profile": held.icc,
    }
    if held.icc:
        options["icc_profile_type"] = "prof"
    buffer = io.BytesIO()
    library.encode(
        mode if samples.dtype == np.uint8 else f"{mode};16",
        samples.shape[1::-1],
        np.ascontiguousarray(samples).tobytes(),
        buffer,
        format="HEIF",
        quality=quality or QUALITY,
        chroma=444,
        **{key: value for key, value in options.items() if value is not None},
    )
    return buffer.getvalue()


def avif_size(data: bytes) -> tuple[int, int]:
    """Return (width, height) as stored; raise Refusal for an animation."""
    return _open_avif(data).size


def read_avif(data: bytes) -> Picture:
    """Decode an AVIF file, in 8 bits a channel. Raises Refusal or what Pillow raises."""
    image = _open_avif(data)
    check_size(*image.size)
    image.load()
    at = data.find(b"av1C")
    deep = at >= 0 and bool(data[at + 6] & 0x40)  # "high_bitdepth" of the codec's configuration
    return picture_of(image, ("its 10 or 12 bits a channel were read as 8",) if deep else ())


def _open_avif(data: bytes):  # type: ignore[no-untyped-def]  # Its class is not in every Pillow.
    check_avif()
    from PIL.AvifImagePlugin import AvifImageFile

    image = AvifImageFile(io.BytesIO(data))
    frames = getattr(image, "n_frames", 1)
    if frames > 1:
        raise Refusal(f"is an animation of {frames} pictures; save the one to restore as a picture of its own")
    return image


def check_avif() -> None:
    """Raise Refusal where Pillow knows no AVIF."""
    if "avif" not in features.modules or not features.check("avif"):
        raise Refusal(missing_extra("AVIF", "a Pillow from 11.3 on", "photo"))
