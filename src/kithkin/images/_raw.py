"""Cameras' raw files and DNG, developed by LibRaw (rawpy)."""

import contextlib
import io
import struct
from typing import Any

import numpy as np
from PIL import ImageCms, JpegImagePlugin

from kithkin.images import _ifd
from kithkin.images._picture import Picture, Refusal, check_size, make_picture, photo_package

_GAMMA = (2.4, 12.92)
"""The curve of sRGB, as LibRaw takes it: power, and slope of its beginning."""

_TAGS = range(256, 50000)
"""Of the first directory of a raw file, the ones that are no maker's and not DNG's."""


def raw_size(data: bytes) -> tuple[int, int]:
    """Return (width, height) as stored."""
    with _opened(data) as raw:
        return raw.sizes.width, raw.sizes.height


def read_raw(data: bytes) -> Picture:
    """Develop a raw file: 16-bit sRGB, with the camera's white balance, upright.

    Raises Refusal, or what rawpy raises on damage.
    """
    with _opened(data) as raw:
        check_size(raw.sizes.width, raw.sizes.height)
        samples = raw.postprocess(use_camera_wb=True, no_auto_bright=True, output_bps=16, gamma=_GAMMA)
        exif, own = _exif(data, raw)
    notes = []
    if exif is None:
        notes.append("no EXIF data were found in the raw file")
    elif not own:
        notes.append("the EXIF data are those of the raw file's preview")
    elif _ifd.has_maker_note(exif):
        notes.append("the camera maker's notes in the EXIF data have moved: some programs won't understand them")
    if b"<x:xmpmeta" in data:
        notes.append("the XMP data of the raw file are not kept: they may hold settings for its development")
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return make_picture(np.asarray(samples), icc=profile, exif=exif, orientation=1, notes=tuple(notes))


def _opened(data: bytes) -> Any:
    rawpy = photo_package("camera raw", "rawpy")
    try:
        return rawpy.imread(io.BytesIO(data))
    except rawpy.LibRawFileUnsupportedError as error:
        raise Refusal("is not a raw file that LibRaw knows; develop it to a TIFF or PNG first") from error


def _exif(data: bytes, raw: Any) -> tuple[bytes | None, bool]:
    """Return the EXIF data, and whether they are the file's own: those of a preview where it is no TIFF."""
    with contextlib.suppress(ValueError, struct.error):
        exif, _ = _ifd.exif_of_tiff(data, _TAGS)
        if exif is not None:
            return exif, True
    with contextlib.suppress(Exception):  # rawpy raises several kinds where there is no preview, and so does Pillow.
        preview = JpegImagePlugin.JpegImageFile(io.BytesIO(raw.extract_thumb().data))
        return preview.info.get("exif"), False
    return None, False
