"""One way to measure and to decode: what one of them refuses the other refuses alike; harmless damage is a note."""

import io
import logging
import struct
import subprocess
import sys
import zlib

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from kithkin.errors import ImageError
from kithkin.images import decode_picture, encode_picture, measure_picture

RNG = np.random.default_rng(9)
RGB16 = RNG.integers(0, 65536, (10, 14, 3), dtype=np.uint16)
RGB8 = (RGB16 >> 8).astype(np.uint8)
ONE16, ONE8 = RGB16[..., :1], RGB8[..., :1]


def tiff(samples, **options):
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, samples, **{"metadata": None, "photometric": "rgb", **options})
    return buffer.getvalue()


def saved(samples, kind, **options):
    buffer = io.BytesIO()
    image = samples if isinstance(samples, Image.Image) else Image.fromarray(samples)
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(kind, body, wrong=0):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body) ^ wrong)


# Sound files, with their samples.
READ = {
    "gray and alpha of 16 bits": (tiff(np.dstack([ONE16, ONE16]), photometric="minisblack", extrasamples=[2]), ONE16),
    "big-endian, white is zero": (tiff(ONE16[..., 0], photometric="miniswhite", byteorder=">"), 65535 - ONE16),
    "8 bits, white is zero": (tiff(ONE8[..., 0], photometric="miniswhite"), 255 - ONE8),
    "more channels": (tiff(np.dstack([RGB16, ONE16, ONE16]), extrasamples=[2, 0]), RGB16),
    "more channels of 8 bits": (tiff(np.dstack([RGB8, ONE8, ONE8]), extrasamples=[2, 0]), RGB8),
    "8 bit planes": (tiff(np.moveaxis(RGB8, 2, 0).copy(), planarconfig="separate"), RGB8),
    "BigTIFF, big-endian": (tiff(RGB8, bigtiff=True, byteorder=">"), RGB8),
    "BigTIFF, big-endian, LZW": (tiff(RGB8, bigtiff=True, byteorder=">", compression="lzw"), RGB8),
    "8 bit LZW": (tiff(RGB8, compression="lzw", predictor=True), RGB8),
    **{
        f"{codec}, {8 * pixels.itemsize} bits": (tiff(pixels, compression=codec), pixels)
        for codec in ("jpeg2000", "jpegxl", "lerc", "zstd", "lzma", "png")
        for pixels in (RGB8, RGB16)
    },
    "WebP in TIFF": (tiff(RGB8, compression="webp", compressionargs={"level": 101}), RGB8),
    "CMYK": (saved(Image.fromarray(RGB8).convert("CMYK"), "TIFF"), RGB8),
    "lossless WebP": (saved(RGB8, "WEBP", lossless=True), RGB8),
}
# Files that are refused, with a part of the sentence.
REFUSED = {
    "float": (tiff(RGB16.astype(np.float32) / 65535), "32 bit float samples; save it with 8 or 16 bit"),
    "half": (tiff(RGB16.astype(np.float16)), "16 bit float samples"),
    "32 bits": (tiff(RGB16.astype(np.uint32)), "32 bit integer samples"),
    "Lab": (tiff(RGB16, photometric="cielab"), "16 bit TIFF with CIELAB colours"),
    "8 bit Lab": (tiff(RGB8, photometric="cielab"), "8 bit TIFF with CIELAB colours"),
    "CMYK and alpha": (tiff(np.dstack([RGB8, ONE8, ONE8]), photometric="separated", extrasamples=[2]), "5 channels"),
    "CMYK of 16 bits": (tiff(np.dstack([RGB16, ONE16]), photometric="separated"), "16 bit TIFF with SEPARATED"),
    "two pages": (saved(RGB8, "TIFF", save_all=True, append_images=[Image.fromarray(RGB8)]), "2 pages"),
    "a volume of channels": (tiff(np.zeros((4, 4, 40), np.uint8), photometric="minisblack", planarconfig=1), "40 ch"),
    "PNG animation": (saved(RGB8, "PNG", save_all=True, append_images=[Image.fromarray(255 - RGB8)]), "2 pictures"),
    "WebP animation": (saved(RGB8, "WEBP", save_all=True, append_images=[Image.fromarray(255 - RGB8)]), "2 pictures"),
    "GIF": (saved(RGB8, "GIF"), "a GIF file"),
    "header of a JPEG": (saved(RGB8, "JPEG")[:20], "can't be decoded as JPEG"),
    "header of a TIFF": (tiff(RGB8)[:20], "TIFF"),
    "header of a PNG": (saved(RGB8, "PNG")[:20], "header is missing"),
    "header of a BMP": (saved(RGB8, "BMP")[:20], "can't be decoded as BMP"),
    "header of a WebP": (saved(RGB8, "WEBP")[:20], "can't be decoded as WebP"),
}


@pytest.mark.parametrize("name", READ)
def test_what_is_sound_is_measured_and_decoded(name):
    data, samples = READ[name]
    assert measure_picture(data, "p") == (14, 10)
    picture = decode_picture(data, "p")
    top = np.iinfo(samples.dtype).max
    tolerance = 2 / 255 if name == "CMYK" else 1e-6
    np.testing.assert_allclose(picture.pixels, np.broadcast_to(samples / top, (10, 14, 3)), atol=tolerance)
    assert picture.depth == 8 * samples.itemsize


@pytest.mark.parametrize("name", REFUSED)
def test_measuring_and_decoding_refuse_with_the_same_sentence(name):
    data, words = REFUSED[name]
    sentences = []
    for function in (measure_picture, decode_picture):
        with pytest.raises(ImageError) as caught:
            function(data, "p")
        sentences.append(str(caught.value))
    assert sentences[0] == sentences[1]
    assert words in sentences[0]


def test_what_needs_imagecodecs_says_so_when_it_is_measured(monkeypatch):
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    for data in (tiff(RGB8, compression="jpegxl"), imagecodecs.png_encode(RGB16)):
        for function in (measure_picture, decode_picture):
            with pytest.raises(ImageError, match=r'pip install "kithkin\[codecs\]"'):
                function(data, "p")


# Harmless damage

PNG = saved(RGB8, "PNG")
TEXT = b"Title\0a title"


def test_a_damaged_text_is_left_out_with_a_note():
    for png in (PNG, imagecodecs.png_encode(RGB16)):
        sound = decode_picture(png, "p.png")
        parts = chunk(b"tEXt", TEXT, wrong=1) + chunk(b"tEXt", b"Author\0Ann") + chunk(b"tIME", bytes(7), wrong=9)
        picture = decode_picture(png[:33] + parts + png[33:], "p.png")
        np.testing.assert_array_equal(picture.pixels, sound.pixels)
        assert picture.chunks == ((b"tEXt", b"Author\0Ann"),)
        assert picture.notes == (
            "parts of the PNG that say nothing of its pixels are damaged and not kept (tEXt, tIME)",
        )


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (b"iCCP", b"x\0\0no profile"),
        (b"iCCP", b"x\0\0" + zlib.compress(bytes(2**26 + 9))),
        (b"gAMA", b"\0"),
        (b"cHRM", b"\0" * 31),
        (b"pHYs", b"\0"),
        (b"sBIT", b""),
    ],
    ids=lambda value: value.decode() if len(value) == 4 else "",
)
def test_a_part_that_makes_no_sense_is_left_out_with_a_note(kind, body):
    picture = decode_picture(PNG[:33] + chunk(kind, body) + PNG[33:], "p.png")
    assert (picture.chunks, picture.icc, picture.dpi) == ((), None, None)
    assert kind.decode() in picture.notes[0]


def test_text_is_never_unpacked_where_it_is_only_copied():
    bomb = chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(2**26), 9)) * 3  # more than Pillow allows
    picture = decode_picture(PNG[:33] + bomb + PNG[33:], "p.png")
    assert encode_picture(picture, "p.png").count(bomb[:60]) == 3


def test_damage_behind_the_picture_of_a_webp_is_a_note():
    icc = bytes(300)
    data = saved(RGB8, "WEBP", lossless=True, exif=b"Exif\0\0MM\0*" + bytes(40), xmp=b"<x/>", icc_profile=icc)
    sound = decode_picture(data, "p.webp")
    at = data.index(b"EXIF")
    for broken, words in (
        (data[: at + 20], "cut off"),
        (data[:-1], "cut off"),
        (data[:4] + struct.pack("<I", len(data) + 90) + data[8:], "length"),
    ):
        picture = decode_picture(broken, "p.webp")
        np.testing.assert_array_equal(picture.pixels, sound.pixels)
        assert (picture.icc, len(picture.notes)) == (icc, 1)
        assert words in picture.notes[0]
    with pytest.raises(ImageError):
        decode_picture(data[: at - 9], "p.webp")


def test_a_damaged_profile_of_a_jpeg_is_said():
    data = saved(RGB8, "JPEG", icc_profile=bytes(300))
    assert decode_picture(data, "p.jpg").icc == bytes(300)
    (note,) = decode_picture(data.replace(b"ICC_PROFILE\0\1\1", b"ICC_PROFILE\0\1\5"), "p.jpg").notes
    assert "profile is damaged" in note


def test_a_damaged_part_of_exif_in_tiff_is_said_and_the_rest_kept():
    exif = Image.Exif()
    exif[315] = "Ann"
    exif.get_ifd(34665)[34855] = 1600
    exif[34665] = 0
    data = saved(RGB8, "TIFF", exif=exif)
    at = data.index(struct.pack("<H", 34665))
    picture = decode_picture(data[: at + 8] + struct.pack("<I", 2**30) + data[at + 12 :], "p.tif")
    assert picture.notes == ("a part of the EXIF data of the TIFF is damaged and not kept",)
    assert b"Ann" in picture.exif


@pytest.mark.parametrize("kind", [b"PLTE", b"tRNS", b"acTL", b"zzzz"])
def test_damage_that_may_change_the_pixels_is_refused(kind):
    with pytest.raises(ImageError, match="a checksum in the PNG"):
        decode_picture(PNG[:33] + chunk(kind, bytes(6), wrong=1) + PNG[33:], "p.png")


def test_a_png_without_its_end_is_complete_only_with_all_pixels():
    flat = np.zeros((64, 64, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(flat).save(buffer, "PNG", compress_level=0)
    data = buffer.getvalue()
    raw = zlib.compress(b"".join(b"\0" + bytes(64 * 3) for _ in range(64)), 0)
    halves = [chunk(b"IDAT", raw[:6000]), chunk(b"IDAT", raw[6000:])]
    assert decode_picture(data[:33] + b"".join(halves), "p.png").notes
    with pytest.raises(ImageError, match="is cut off"):
        decode_picture(data[:33] + halves[0], "p.png")


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize(
    ("colour", "samples"),
    [(2, RGB8), (0, ONE8), (0, ONE16), (6, np.dstack([RGB8, ONE8]))],
    ids=lambda value: str(value)[:1],
)
def test_a_png_of_fewer_pixels_than_its_header_says_is_refused(colour, samples, interlaced):
    """Its checksums are right and its pixel data reach their end."""
    every = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
    passes = every if interlaced else ((0, 0, 1, 1),)
    bits = 8 * samples.itemsize

    def png(samples, rows=None):
        big = samples.astype(samples.dtype.newbyteorder(">"))
        lines = [b"\0" + row.tobytes() for x, y, across, down in passes for row in big[y::down, x::across]]
        header = struct.pack(">IIBBBBB", 14, 10, bits, colour, 0, 0, interlaced)
        body = chunk(b"IDAT", zlib.compress(b"".join(lines[:rows])))
        return PNG[:8] + chunk(b"IHDR", header) + body + chunk(b"IEND", b"")

    for whole in (samples, np.zeros_like(samples)):  # A picture may be black.
        found = decode_picture(png(whole), "p.png").pixels
        unit = whole[..., :3] / np.iinfo(samples.dtype).max
        np.testing.assert_allclose(found, np.broadcast_to(unit, found.shape), atol=1e-6)
        for rows in (-1, -3, 1):
            with pytest.raises(ImageError, match="fewer pixels than the PNG says"):
                decode_picture(png(whole, rows), "p.png")


def test_a_png_of_single_bits_may_be_black_and_must_be_whole():
    for width in (1, 8, 9):
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, 10, 1, 0, 0, 0, 0))
        row = b"\0" + bytes(-(-width // 8))
        assert decode_picture(PNG[:8] + header + chunk(b"IDAT", zlib.compress(row * 10)), "p.png").pixels.max() == 0
        with pytest.raises(ImageError, match="fewer pixels than the PNG says"):
            decode_picture(PNG[:8] + header + chunk(b"IDAT", zlib.compress(row * 9)) + chunk(b"IEND", b""), "p.png")


@pytest.mark.parametrize("quality", [20, 90])
@pytest.mark.parametrize("what", ["noise", "smooth", "flat"])
def test_a_jpeg_without_its_end_is_complete_only_with_all_pixels(what, quality):
    y, x = np.mgrid[:90, :120]
    pixels = {
        "noise": RNG.integers(0, 256, (90, 120, 3), dtype=np.uint8),
        "smooth": np.dstack([x * 2, y * 2, x + y]).astype(np.uint8),
        "flat": np.full((90, 120, 3), 99, np.uint8),
    }[what]
    data = saved(pixels, "JPEG", quality=quality)
    sound = decode_picture(data, "p.jpg")
    for tail in (data[:-2], data[:-1], data[:-2] + bytes(9)):
        picture = decode_picture(tail, "p.jpg")
        assert "the picture is complete" in picture.notes[0]
        np.testing.assert_array_equal(picture.pixels, sound.pixels)
    start = data.index(b"\xff\xda") + 14
    for missing in (4, 5, 10, 50, (len(data) - start) // 2):
        for tail in (data[:-missing], data[:-missing] + bytes(400)):
            with pytest.raises(ImageError, match="the end of the JPEG is missing"):
                decode_picture(tail, "p.jpg")
    with pytest.raises(ImageError, match="the end of the JPEG is missing"):
        decode_picture(saved(pixels, "JPEG", progressive=True)[:-2], "p.jpg")


def test_what_libraries_log_reaches_nobody_who_did_not_ask(tmp_path):
    code = """
import sys
from kithkin.errors import ImageError
from kithkin.images import decode_picture, measure_picture
for path in sys.argv[1:]:
    data = bytearray(open(path, "rb").read())
    for at in range(8, len(data), 5):
        broken = data.copy()
        broken[at] ^= 0x55
        for function in (measure_picture, decode_picture):
            try:
                function(bytes(broken), "p.tif")
            except ImageError:
                pass
"""
    for name, data in {
        "plain": tiff(RGB8[:3, :3], compression="zlib", extratags=[(315, 2, None, "Ann", True)]),
        "LZW": saved(RGB8, "TIFF", compression="tiff_lzw"),
        "fax": saved(RGB8[..., 0] > 99, "TIFF", compression="group4"),
    }.items():
        (tmp_path / name).write_bytes(data)
    command = [sys.executable, "-W", "ignore", "-c", code, *tmp_path.iterdir()]
    done = subprocess.run(command, capture_output=True)
    assert (done.returncode, done.stderr.decode()) == (0, "")


def test_whoever_sets_up_logging_still_hears_them(caplog):
    with caplog.at_level(logging.WARNING):
        logging.getLogger("tifffile").warning("heard")
    assert "heard" in caplog.text


def test_notes_of_damage_do_not_stay_in_the_result():
    picture = decode_picture(PNG[:-4], "p.png")
    assert decode_picture(encode_picture(picture, "p.png"), "p.png").notes == ()
