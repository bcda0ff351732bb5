"""Picture files in and out.

The only place of kithkin that knows about bit depths, channel order, palettes, transparency, EXIF, colour
profiles and file formats. Everything else works on `Picture.pixels`: (H, W, 3) float32 in [0, 1].
"""

import logging

from kithkin.images._find import ending_of, find_pictures, look_through
from kithkin.images._formats import FOREIGN_SUFFIXES, RAW_SUFFIXES, SUFFIXES, readable
from kithkin.images._picture import MAX_PIXELS, Picture, Refusal
from kithkin.images._pillow import samples_of, samples_of_cmyk
from kithkin.images._read import decode_picture, measure_picture, read_picture
from kithkin.images._write import check_fits, encode_picture, losses, write_picture

# They report damage to a log, which Python prints where nobody has set up logging. What matters of it is in our errors.
for _library in ("PIL", "tifffile", "imagecodecs"):
    logging.getLogger(_library).addHandler(logging.NullHandler())

__all__ = [
    "FOREIGN_SUFFIXES",
    "MAX_PIXELS",
    "RAW_SUFFIXES",
    "SUFFIXES",
    "Picture",
    "Refusal",
    "check_fits",
    "decode_picture",
    "encode_picture",
    "ending_of",
    "find_pictures",
    "look_through",
    "losses",
    "measure_picture",
    "read_picture",
    "readable",
    "samples_of",
    "samples_of_cmyk",
    "write_picture",
]
