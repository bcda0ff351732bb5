"""Picture files in and out.

The only place of kithkin that knows about bit depths, channel order, palettes, transparency, EXIF, colour
profiles and file formats. Everything else works on `Picture.pixels`: (H, W, 3) float32 in [0, 1].
"""

import logging

from kithkin.images._find import SUFFIXES, find_pictures
from kithkin.images._picture import MAX_PIXELS, Picture
from kithkin.images._read import decode_picture, measure_picture, read_picture
from kithkin.images._write import encode_picture, losses, write_picture

# They report damage to a log, which Python prints where nobody has set up logging. What matters of it is in our errors.
for _library in ("PIL", "tifffile", "imagecodecs"):
    logging.getLogger(_library).addHandler(logging.NullHandler())

__all__ = [
    "MAX_PIXELS",
    "SUFFIXES",
    "Picture",
    "decode_picture",
    "encode_picture",
    "find_pictures",
    "losses",
    "measure_picture",
    "read_picture",
    "write_picture",
]
