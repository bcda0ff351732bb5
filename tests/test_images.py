"""Picture files: what is read is what was stored, what is written comes back, and failures leave nothing behind."""

import errno
import io
import os
import struct
import subprocess
import sys
import tempfile
import warnings
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings, strategies as st
from PIL import ExifTags, Image, ImageCms, ImageOps, PngImagePlugin

from kithkin.errors import ImageError, InputError
from kithkin.images import SUFFIXES, Picture, encode_picture, find_pictures, losses, read_picture, write_picture
from kithkin.images._formats import FORMATS, is_installed

RNG = np.random.default_rng(7)
H, W = 6, 9
RGB8 = RNG.integers(0, 256, (H, W, 3), dtype=np.uint8)
RGBA8 = RNG.integers(0, 256, (H, W, 4), dtype=np.uint8)
RGB16 = RNG.integers(0, 65536, (H, W, 3), dtype=np.uint16)
RGBA16 = RNG.integers(0, 65536, (H, W, 4), dtype=np.uint16)
GRAY8, GRAY16 = RGB8[..., 0], RGB16[..., 0]
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def expect(picture, samples, gray=False):
    """Compare a Picture with stored integers, (H, W) or (H, W, C), with alpha last where C is 2 or 4."""
    samples = samples[..., None] if samples.ndim == 2 else samples
    top = np.iinfo(samples.dtype).max
    colour, alpha = (samples[..., :-1], samples[..., -1]) if samples.shape[2] in (2, 4) else (samples, None)
    assert picture.pixels.dtype == np.float32
    assert picture.pixels.flags.c_contiguous
    want = np.broadcast_to(colour, (*colour.shape[:2], 3)).astype(np.float64) / top
    np.testing.assert_allclose(picture.pixels, want, rtol=0, atol=1e-7)
    assert (picture.alpha is None) == (alpha is None)
    if alpha is not None:
        assert picture.alpha.dtype == np.float32
        np.testing.assert_allclose(picture.alpha, alpha / float(top), rtol=0, atol=1e-7)
    assert picture.depth == 8 * samples.dtype.itemsize
    assert picture.gray is gray


def picture_of(samples, **more):
    """Build a Picture from stored integers without the module's own reader."""
    samples = samples[..., None] if samples.ndim == 2 else samples
    unit = samples.astype(np.float32) / np.float32(np.iinfo(samples.dtype).max)
    channels = samples.shape[2]
    colour = np.repeat(unit[..., :1], 3, axis=2) if channels < 3 else unit[..., :3]
    alpha = np.ascontiguousarray(unit[..., -1]) if channels in (2, 4) else None
    depth = 8 * samples.dtype.itemsize
    return Picture(np.ascontiguousarray(colour), alpha, depth, channels < 3, **more)


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width, height, bits, colour, raw, *before):
    """A PNG by hand; `raw` holds the filtered rows, `before` the chunks between the header and the pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    body = b"".join(before) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + body


def encoded(samples, kind, **options):
    buffer = io.BytesIO()
    Image.fromarray(samples).save(buffer, kind, **options)
    return buffer.getvalue()


def save(folder, name, data):
    path = folder / name
    path.write_bytes(data)
    return path


def error_of(call, *args, **kwargs):
    with pytest.raises(ImageError) as caught:
        call(*args, **kwargs)
    message = str(caught.value)
    assert message.isprintable(), "the message must stay on one line"
    assert str(args[-1]) in message
    return message


# Reading


@pytest.mark.parametrize(
    ("samples", "kind", "gray"),
    [
        (GRAY8, "PNG", True),
        (RGBA8[..., :2], "PNG", True),
        (RGB8, "PNG", False),
        (RGBA8, "PNG", False),
        (GRAY16, "PNG", True),
        (GRAY8, "BMP", True),
        (RGB8, "BMP", False),
        (GRAY8, "TIFF", True),
        (RGB8, "TIFF", False),
        (RGBA8, "TIFF", False),
        (GRAY16, "TIFF", True),
    ],
)
def test_plain_modes_are_read_exactly(tmp_path, samples, kind, gray):
    # The name lies: the content decides.
    expect(read_picture(save(tmp_path, "picture.dat", encoded(samples, kind))), samples, gray)


@pytest.mark.parametrize("samples", [RGB8, RGBA8])
def test_lossless_webp_is_read_exactly(tmp_path, samples):
    data = encoded(samples, "WEBP", lossless=True, exact=True)
    expect(read_picture(save(tmp_path, "p.png", data)), samples)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
def test_black_and_white_is_gray(tmp_path, kind):
    bits = GRAY8 > 127
    expect(read_picture(save(tmp_path, "p", encoded(bits, kind))), np.where(bits, 255, 0).astype(np.uint8), True)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
def test_palette_gives_its_colours(tmp_path, kind):
    index, colours = RNG.integers(0, 200, (H, W), dtype=np.uint8), RNG.integers(0, 256, (200, 3), dtype=np.uint8)
    image = Image.fromarray(index)
    image.putpalette(colours.tobytes())
    image.save(tmp_path / "p", kind)
    assert image.mode == "P"
    expect(read_picture(tmp_path / "p"), colours[index])


PRIMARIES = (31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)


@pytest.mark.parametrize(
    ("chunks", "named"),
    [
        ([], None),
        ([(b"sRGB", b"\0"), (b"gAMA", struct.pack(">I", 45455))], None),
        ([(b"gAMA", struct.pack(">I", 45455)), (b"cHRM", struct.pack(">8I", *PRIMARIES))], None),
        ([(b"cICP", bytes([1, 13, 0, 1]))], None),
        ([(b"gAMA", struct.pack(">I", 100000))], "gAMA"),
        ([(b"cHRM", struct.pack(">8I", *PRIMARIES[:2], 68000, 32000, 26500, 69000, 15000, 6000))], "cHRM"),
        ([(b"cICP", bytes([9, 16, 0, 1])), (b"sRGB", b"\0")], "cICP"),
        ([(b"cICP", bytes([9, 16, 0, 1])), (b"iCCP", b"x\0\0" + zlib.compress(SRGB))], "cICP"),
        ([(b"gAMA", struct.pack(">I", 100000)), (b"iCCP", b"x\0\0" + zlib.compress(SRGB))], None),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_a_png_says_of_its_colours_is_named_where_it_is_lost(tmp_path, chunks, named):
    raw = b"".join(b"\0" + row.tobytes() for row in RGB8)
    data = png(RGB8.shape[1], RGB8.shape[0], 8, 2, raw, *(chunk(kind, body) for kind, body in chunks))
    picture = read_picture(save(tmp_path, "p.png", data))
    expect(picture, RGB8)
    assert picture.notes == ()
    for suffix in (".jpg", ".tif", ".webp", ".bmp"):
        told = [note for note in losses(picture, "p" + suffix) if "profile" not in note]
        assert [named in note for note in told] == ([True] if named else [])
    assert losses(picture, "p.png") == []
    written = encode_picture(picture, "p.png")
    assert all(chunk(kind, body) in written for kind, body in chunks if kind != b"iCCP")


def test_palette_with_transparency_gives_alpha(tmp_path):
    index, colours = RNG.integers(0, 5, (H, W), dtype=np.uint8), RNG.integers(0, 256, (5, 3), dtype=np.uint8)
    alpha = np.array([0, 90, 255, 17, 255], np.uint8)
    raw = b"".join(b"\0" + row.tobytes() for row in index)
    data = png(W, H, 8, 3, raw, chunk(b"PLTE", colours.tobytes()), chunk(b"tRNS", alpha.tobytes()))
    expect(read_picture(save(tmp_path, "p.png", data)), np.dstack([colours[index], alpha[index]]))


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_transparent_gray_value_gives_alpha(tmp_path, bits):
    values = RNG.integers(0, min(2**bits, 5), (H, 8)).astype(np.uint16)
    if bits == 16:
        raw = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    else:
        fields = ((values[..., None] >> np.arange(bits - 1, -1, -1)) & 1).astype(np.uint8).reshape(H, -1)
        raw = b"".join(b"\0" + row.tobytes() for row in np.packbits(fields, axis=1))
    path = save(tmp_path, "p.png", png(8, H, bits, 0, raw, chunk(b"tRNS", struct.pack(">H", 1))))
    dtype, top = (np.uint16, 65535) if bits == 16 else (np.uint8, 255)
    gray = values * (top // (2**bits - 1))
    expect(read_picture(path), np.dstack([gray, np.where(values == 1, 0, top)]).astype(dtype), True)


@pytest.mark.parametrize("rgb", [RGB8, RGB16])
def test_transparent_colour_gives_alpha(tmp_path, rgb):
    big = rgb.astype(">u2") if rgb.dtype == np.uint16 else rgb
    key = chunk(b"tRNS", struct.pack(">3H", *rgb[2, 3]))
    data = png(W, H, 8 * rgb.dtype.itemsize, 2, b"".join(b"\0" + row.tobytes() for row in big), key)
    alpha = np.full((H, W), np.iinfo(rgb.dtype).max, rgb.dtype)
    alpha[2, 3] = 0
    expect(read_picture(save(tmp_path, "p.png", data)), np.dstack([rgb, alpha]))


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_16_bit_png_keeps_its_low_bits(tmp_path, channels):
    samples = np.ascontiguousarray(RGBA16[..., :channels])
    path = save(tmp_path, "p.png", imagecodecs.png_encode(samples))
    expect(read_picture(path), samples, channels == 2)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"planarconfig": "separate"},
        {"byteorder": ">"},
        {"compression": "lzw", "predictor": True},
        {"compression": "zlib", "rowsperstrip": 2},
        {"compression": "packbits"},
        {"tile": (16, 16)},
        {"bigtiff": True},
    ],
)
def test_16_bit_tiff_layouts(tmp_path, options):
    planar = options.get("planarconfig") == "separate"
    for samples, extra in ((RGB16, {}), (RGBA16, {"extrasamples": ["unassalpha"]})):
        stored = np.ascontiguousarray(np.moveaxis(samples, 2, 0)) if planar else samples
        layout = {"planarconfig": "contig", **options}
        tifffile.imwrite(tmp_path / "p.tif", stored, photometric="rgb", metadata=None, **layout, **extra)
        expect(read_picture(tmp_path / "p.tif"), samples)


def test_16_bit_gray_tiff_with_alpha_and_inverted(tmp_path):
    both = np.ascontiguousarray(RGBA16[..., :2])
    options = {"planarconfig": "contig", "extrasamples": ["unassalpha"], "metadata": None}
    tifffile.imwrite(tmp_path / "la.tif", both, photometric="minisblack", **options)
    expect(read_picture(tmp_path / "la.tif"), both, True)
    tifffile.imwrite(tmp_path / "w.tif", GRAY16, photometric="miniswhite", metadata=None)
    expect(read_picture(tmp_path / "w.tif"), 65535 - GRAY16, True)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_premultiplied_tiff_is_divided_by_its_alpha(tmp_path, dtype):
    top = np.iinfo(dtype).max
    straight, alpha = np.full((4, 4, 3), (top, top // 2, 0), dtype), np.full((4, 4, 1), top // 3, dtype)
    alpha[0, 0] = 0
    stored = np.concatenate([(straight / top * alpha).round().astype(dtype), alpha], axis=2)
    options = {"photometric": "rgb", "extrasamples": ["assocalpha"], "metadata": None}
    tifffile.imwrite(tmp_path / "p.tif", stored, **options)
    picture = read_picture(tmp_path / "p.tif")
    np.testing.assert_allclose(picture.pixels[1:], straight[1:] / top, atol=4 / top)
    np.testing.assert_allclose(picture.alpha, alpha[..., 0] / top, atol=1e-6)
    assert np.isfinite(picture.pixels).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_unnamed_tiff_channels_are_dropped_with_a_note(tmp_path, dtype):
    samples = RGBA16.astype(dtype)
    tifffile.imwrite(tmp_path / "p.tif", samples, photometric="rgb", extrasamples=["unspecified"], metadata=None)
    picture = read_picture(tmp_path / "p.tif")
    expect(picture, samples[..., :3])
    assert "1 extra channel" in picture.notes[0]


@pytest.mark.parametrize("gray", [False, True])
def test_jpeg_is_read_as_pillow_decodes_it(tmp_path, gray):
    smooth = np.asarray(Image.fromarray(GRAY8 if gray else RGB8).resize((40, 30), Image.Resampling.BICUBIC))
    path = save(tmp_path, "p.jpg", encoded(smooth, "JPEG", quality=95))
    with Image.open(path) as image:
        expect(read_picture(path), np.asarray(image), gray)


def cmyk_profile():
    """An ICC profile that turns no ink into white and any other corner of the ink cube into middle gray."""
    lightness = [255] + [128] * 15
    table = b"".join(bytes((v, 128, 128)) for v in lightness)
    identity = struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 65536)
    lut = b"mft1\0\0\0\0" + bytes((4, 3, 2, 0)) + identity + bytes(range(256)) * 4 + table + bytes(range(256)) * 3
    lut += bytes(-len(lut) % 4)
    size = 128 + 4 + 12 + len(lut)
    head = struct.pack(">I4sI4s4s4s", size, b"lcms", 0x02400000, b"prtr", b"CMYK", b"Lab ") + bytes(12) + b"acsp"
    head += bytes(28) + struct.pack(">3I", 63190, 65536, 54061)
    return head + bytes(128 - len(head)) + struct.pack(">I4sII", 1, b"A2B0", 144, len(lut)) + lut


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_goes_through_its_profile(tmp_path, kind):
    inks = np.zeros((16, 32, 4), np.uint8)
    inks[:, 16:, 0] = 255  # cyan, which this profile prints gray
    Image.frombytes("CMYK", (32, 16), inks.tobytes()).save(tmp_path / "p", kind, icc_profile=cmyk_profile())
    picture = read_picture(tmp_path / "p")
    np.testing.assert_allclose(picture.pixels[:, :14], 1, atol=0.01)
    np.testing.assert_allclose(picture.pixels[:, 18:], 119 / 255, atol=0.02)  # L* = 50 in sRGB
    assert picture.icc is None
    assert "profile in the file" in picture.notes[0]


@pytest.mark.parametrize("icc", [None, b"broken" * 40, SRGB])
@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_without_usable_profile_is_approximate(tmp_path, kind, icc):
    inks = np.zeros((16, 16, 4), np.uint8)
    inks[..., 0] = 255
    Image.frombytes("CMYK", (16, 16), inks.tobytes()).save(tmp_path / "p", kind, icc_profile=icc)
    picture = read_picture(tmp_path / "p")
    np.testing.assert_allclose(picture.pixels[8, 8], (0, 1, 1), atol=0.02)
    assert picture.icc is None
    assert "approximate" in picture.notes[0]


def test_cmyk_jpeg_without_adobe_marker_is_not_inverted(tmp_path):
    ink = np.zeros((16, 16, 4), np.uint8)
    ink[..., 0] = 255
    buffer = io.BytesIO()
    Image.frombytes("CMYK", (16, 16), (255 - ink).tobytes()).save(buffer, "JPEG")
    data = buffer.getvalue()
    at = data.index(b"\xff\xee")
    plain = data[:at] + data[at + 2 + int.from_bytes(data[at + 2 : at + 4], "big") :]
    assert b"Adobe" not in plain
    np.testing.assert_allclose(read_picture(save(tmp_path, "p.jpg", plain)).pixels[8, 8], (0, 1, 1), atol=0.02)


# Orientation and metadata


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_orientation_is_applied_as_pillow_does(tmp_path, orientation, kind):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    exif[ExifTags.Base.Make] = "Kit"
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.ISOSpeedRatings] = 1600
    path = save(tmp_path, "p", encoded(RGB8, kind, exif=exif))
    picture = read_picture(path)
    with Image.open(path) as image:
        expect(picture, np.asarray(ImageOps.exif_transpose(image).convert("RGB")))
    kept = Image.Exif()
    kept.load(picture.exif)
    assert kept[ExifTags.Base.Orientation] == 1
    assert kept[ExifTags.Base.Make] == "Kit"
    assert kept.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.ISOSpeedRatings] == 1600


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("rgb", [RGB8, RGB16])
def test_tiff_orientation(tmp_path, orientation, compression, rgb):
    tag = (274, 3, 1, orientation, True)
    options = {"compression": compression, "resolution": (300, 150), "resolutionunit": "INCH", "metadata": None}
    tifffile.imwrite(tmp_path / "p.tif", rgb, photometric="rgb", extratags=[tag], **options)
    picture = read_picture(tmp_path / "p.tif")
    image = Image.fromarray(np.arange(H * W, dtype=np.uint8).reshape(H, W))
    image.getexif()[ExifTags.Base.Orientation] = orientation
    order = np.asarray(ImageOps.exif_transpose(image))
    expect(picture, rgb.reshape(-1, 3)[order])
    assert picture.dpi == ((150, 300) if orientation > 4 else (300, 150))


@pytest.mark.parametrize("order", ["<", ">"])
def test_exif_changes_in_nothing_but_the_orientation(tmp_path, order):
    def entry(tag, kind, count, value):
        return struct.pack(order + "HHI", tag, kind, count) + value

    def block(orientation, thumbnail):
        entries = entry(0x0112, 3, 1, struct.pack(order + "HH", orientation, 0))
        entries += entry(0x927C, 7, 7, struct.pack(order + "I", 60)) + entry(0x9999, 7, 4, b"odd!")
        start = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, 8)
        return (start + struct.pack(order + "H", 3) + entries + struct.pack(order + "I", thumbnail)).ljust(
            60
        ) + b"\0maker\xff"

    # The thumbnail would appear lying on its side, so it goes with a turn, and only then.
    for orientation, thumbnail in ((6, 0), (1, 99)):
        path = save(tmp_path, "p.jpg", encoded(RGB8, "JPEG", exif=b"Exif\0\0" + block(orientation, 99)))
        assert read_picture(path).exif == block(1, thumbnail)


@pytest.mark.parametrize("exif", [b"II", b"II*\0\xff\xff\xff\xff", b"nonsense", b"II*\0\x08\0\0\0\xff\xff"])
def test_broken_exif_does_not_hinder_reading(tmp_path, exif):
    picture = read_picture(save(tmp_path, "p.png", encoded(RGB8, "PNG", exif=exif)))
    expect(picture, RGB8)
    assert picture.exif == exif


@pytest.mark.parametrize("name", ["p.png", "p.jpg", "p.webp", "p.tif"])
@pytest.mark.parametrize("depth", [8, 16])
def test_metadata_survive_a_round_trip(tmp_path, name, depth):
    exif = Image.Exif()
    exif[ExifTags.Base.Make] = "Kit"
    block = exif.tobytes().removeprefix(b"Exif\0\0")
    picture = picture_of(RGB8 if depth == 8 else RGB16, icc=SRGB, exif=block, dpi=(300.0, 150.0))
    write_picture(picture, tmp_path / name)
    again = read_picture(tmp_path / name)
    assert again.icc == SRGB
    assert b"Kit" in again.exif if name == "p.tif" else again.exif == block
    if name != "p.webp":
        np.testing.assert_allclose(again.dpi, (300, 150), rtol=1e-4)
    with Image.open(tmp_path / name) as image:  # and others find them
        assert image.info["icc_profile"] == SRGB
        assert image.getexif().get(ExifTags.Base.Make) == "Kit"


def test_exif_as_imagemagick_writes_it_into_png(tmp_path):
    block = b"II*\0\x08\0\0\0\x01\0" + struct.pack("<HHIHH", 0x0112, 3, 1, 3, 0) + bytes(4)
    text = PngImagePlugin.PngInfo()
    text.add_text("Raw profile type exif", f"\nexif\n{len(block):8}\n{block.hex()}\n", zip=True)
    expect(read_picture(save(tmp_path, "p.png", encoded(RGB8, "PNG", pnginfo=text))), RGB8[::-1, ::-1])


# Refusals

WHOLE = {
    "PNG": encoded(RGB8, "PNG"),
    "PNG 16": imagecodecs.png_encode(RGB16),
    "JPEG": encoded(RGB8, "JPEG"),
    "progressive JPEG": encoded(RGB8, "JPEG", progressive=True),
    "WebP": encoded(RGB8, "WEBP"),
    "lossless WebP": encoded(RGB8, "WEBP", lossless=True),
    "BMP": encoded(RGB8[:, :8], "BMP"),  # without padding, so that every byte counts
    "TIFF": encoded(RGB8, "TIFF"),
    "TIFF LZW": encoded(RGB8, "TIFF", compression="tiff_lzw"),
}
for _compression in (None, "zlib", "lzw"):
    _buffer = io.BytesIO()
    tifffile.imwrite(_buffer, RGB16, photometric="rgb", compression=_compression, metadata=None)
    WHOLE[f"TIFF 16 {_compression}"] = _buffer.getvalue()


@pytest.mark.parametrize("name", WHOLE)
def test_truncated_files_are_refused(tmp_path, name):
    data = WHOLE[name]
    whole = read_picture(save(tmp_path, "whole", data))
    # The last bytes of these formats say nothing but that the file ends.
    needless = {"PNG": 12, "PNG 16": 12, "JPEG": 2}.get(name, 0)
    for cut in (*range(1, len(data), max(1, len(data) // 12)), *range(len(data) - 16, len(data))):
        path = save(tmp_path, "cut", data[:cut])
        if cut < len(data) - needless:
            error_of(read_picture, path)
        else:
            picture = read_picture(path)
            np.testing.assert_array_equal(picture.pixels, whole.pixels)
            assert "complete" in picture.notes[0]


@pytest.mark.parametrize("name", ["PNG", "PNG 16", "JPEG", "progressive JPEG", "TIFF 16 zlib"])
def test_zeroed_tails_are_refused(tmp_path, name):
    # In the other formats zeros are valid pixels and nothing holds a checksum.
    data = WHOLE[name]
    error_of(read_picture, save(tmp_path, "zeroed", data[: len(data) * 2 // 3].ljust(len(data) + 100, b"\0")))


def test_every_broken_byte_of_a_png_is_noticed(tmp_path):
    for name in ("PNG", "PNG 16"):
        data = bytearray(WHOLE[name])
        for at in range(8, len(data), 7):
            data[at] ^= 0x10
            path = save(tmp_path, "broken.png", bytes(data))
            if at < len(data) - 12:
                error_of(read_picture, path)
            else:
                assert "the end of the PNG is missing" in read_picture(path).notes[0]
            data[at] ^= 0x10


@pytest.mark.parametrize("name", WHOLE)
def test_damage_gives_a_picture_or_an_image_error(tmp_path, name):
    rng = np.random.default_rng(1)
    messages = []
    for _ in range(25):
        data = bytearray(WHOLE[name])
        for at in rng.integers(4, len(data), 3):
            data[at] = rng.integers(256)
        path = save(tmp_path, "damaged", bytes(data))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                read_picture(path)
            except ImageError as error:
                messages.append(str(error))
    assert all(message.isprintable() for message in messages)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"just some text", "not a picture"),
        (b'<?xml version="1.0"?><svg xmlns="x"/>', "SVG"),
        (b"GIF89a" + bytes(20), "GIF"),
        (b"\0\0\0\x18ftypheic" + bytes(20), "HEIC"),
        (b"BM but this is text", "BMP"),
        (b"\xff\xd8\xff", "JPEG"),
        (b"RIFF\x04\0\0\0WEBP", "WebP"),
        (b"II*\0\x08\0\0\0", "TIFF"),
        (b"\x89PNG\r\n\x1a\n", "PNG"),
        (png(0, 5, 8, 2, b""), "0 x 5"),
        (png(5, 5, 8, 2, b""), "PNG"),
        (png(5, 5, 7, 2, b""), "PNG"),
    ],
)
def test_what_is_no_picture_is_refused(tmp_path, content, words):
    assert words in error_of(read_picture, save(tmp_path, "p.png", content))


def test_paths_that_lead_to_no_file(tmp_path):
    assert "does not exist" in error_of(read_picture, tmp_path / "absent.png")
    assert "folder" in error_of(read_picture, tmp_path)
    os.mkfifo(tmp_path / "pipe.png")
    assert "regular" in error_of(read_picture, tmp_path / "pipe.png")
    for name in ("two\nlines.png", "null\0.png", "x" * 400 + ".png"):
        with pytest.raises(ImageError) as caught:
            read_picture(tmp_path / name)
        assert str(caught.value).isprintable()


def test_unreadable_file(tmp_path, monkeypatch):
    def deny(*args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied")

    path = save(tmp_path, "p.png", WHOLE["PNG"])
    monkeypatch.setattr("builtins.open", deny)
    assert "permission" in error_of(read_picture, path).lower()


def bomb(kind):
    if kind == "PNG":
        return png(60000, 60000, 8, 2, b"")
    if kind == "JPEG":
        data = WHOLE["JPEG"]
        at = data.index(b"\xff\xc0") + 5
        return data[:at] + struct.pack(">HH", 60000, 60000) + data[at + 4 :]
    if kind == "BMP":
        return WHOLE["BMP"][:18] + struct.pack("<ii", 60000, 60000) + WHOLE["BMP"][26:]
    if kind == "WebP":
        frame = WHOLE["WebP"][12:]
        body = b"WEBPVP8X" + struct.pack("<IB3x", 10, 0) + (59999).to_bytes(3, "little") * 2 + frame
        return b"RIFF" + struct.pack("<I", len(body)) + body
    dtype = np.uint8 if kind == "TIFF" else np.uint16
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, np.zeros((4, 4), dtype), photometric="minisblack", metadata=None)
    data = bytearray(buffer.getvalue())
    for tag in (256, 257):
        at = data.index(struct.pack("<H", tag), 8)
        data[at : at + 12] = struct.pack("<HHII", tag, 4, 1, 60000)
    return bytes(data)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "WebP", "TIFF", "TIFF 16"])
def test_bombs_are_refused_by_their_header(tmp_path, kind):
    limit = Image.MAX_IMAGE_PIXELS
    assert "60000 x 60000" in error_of(read_picture, save(tmp_path, "bomb", bomb(kind)))
    assert limit == Image.MAX_IMAGE_PIXELS


def test_own_limit_counts_not_that_of_pillow(tmp_path, monkeypatch):
    path = save(tmp_path, "p.png", WHOLE["PNG"])
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)  # 54 pixels are a bomb to Pillow now
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        expect(read_picture(path), RGB8)
    monkeypatch.setattr("kithkin.images._picture.MAX_PIXELS", H * W - 1)
    assert f"{W} x {H}" in error_of(read_picture, path)


def test_several_pictures_in_one_file_are_refused(tmp_path):
    first, second = Image.fromarray(RGB8), Image.fromarray(255 - RGB8)
    for kind in ("PNG", "WEBP", "TIFF"):
        first.save(tmp_path / kind, kind, save_all=True, append_images=[second])
        assert " 2 p" in error_of(read_picture, tmp_path / kind)
    tifffile.imwrite(tmp_path / "stack.tif", np.stack([GRAY16] * 3), imagej=True)
    assert "3 pages" in error_of(read_picture, tmp_path / "stack.tif")


def test_tiff_with_thumbnail_behind_is_read_and_with_preview_in_front_is_not(tmp_path):
    small = np.zeros((2, 3, 3), np.uint8)
    for name, pages in (("behind.tif", [(RGB8, 0), (small, 1)]), ("front.tif", [(small, 1), (RGB8, 0)])):
        with tifffile.TiffWriter(tmp_path / name) as writer:
            for pixels, kind in pages:
                writer.write(pixels, photometric="rgb", subfiletype=kind, metadata=None)
    expect(read_picture(tmp_path / "behind.tif"), RGB8)
    assert "preview" in error_of(read_picture, tmp_path / "front.tif")


@pytest.mark.parametrize("dtype", [np.float32, np.uint32, np.int16])
def test_other_tiff_samples_are_refused(tmp_path, dtype):
    tifffile.imwrite(tmp_path / "p.tif", GRAY16.astype(dtype), photometric="minisblack", metadata=None)
    assert f"{8 * np.dtype(dtype).itemsize} bit" in error_of(read_picture, tmp_path / "p.tif")


def test_16_bit_cmyk_tiff_is_refused(tmp_path):
    tifffile.imwrite(tmp_path / "p.tif", RGBA16, photometric="separated", metadata=None)
    assert "SEPARATED" in error_of(read_picture, tmp_path / "p.tif")


def test_mpo_gives_the_first_picture_and_says_so(tmp_path):
    first, second = Image.fromarray(RGB8), Image.fromarray(255 - RGB8)
    first.save(tmp_path / "p.jpg", "MPO", save_all=True, append_images=[second])
    picture = read_picture(tmp_path / "p.jpg")
    with Image.open(tmp_path / "p.jpg") as image:
        expect(picture, np.asarray(image))
    assert "MPO" in picture.notes[0]


# Writing


@pytest.mark.parametrize("depth", [8, 16])
def test_every_level_survives_and_rounding_is_half_up(tmp_path, depth):
    dtype = np.uint8 if depth == 8 else np.uint16
    levels = np.arange(2**depth, dtype=dtype).reshape(2 ** (depth // 2), -1)
    write_picture(picture_of(levels), tmp_path / "p.png")
    with Image.open(tmp_path / "p.png") as image:
        np.testing.assert_array_equal(np.asarray(image), levels)
    values = np.array([-0.5, 0, 0.499 / 255, 0.501 / 255, 0.5, 1, 7], np.float32)
    pixels = np.repeat(values.reshape(1, -1, 1), 3, axis=2)
    write_picture(Picture(pixels, depth=8), tmp_path / "r.png")
    with Image.open(tmp_path / "r.png") as image:
        assert np.asarray(image)[0, :, 0].tolist() == [0, 0, 0, 1, 128, 255, 255]


@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    channels=st.integers(1, 4),
    depth=st.sampled_from((8, 16)),
    suffix=st.sampled_from((".png", ".tif", ".webp", ".bmp")),
    seed=st.integers(0, 99),
)
def test_lossless_round_trip(height, width, channels, depth, suffix, seed):
    if suffix in (".webp", ".bmp"):
        depth = 8
    if suffix == ".bmp":
        channels = 1 if channels < 3 else 3
    dtype = np.uint8 if depth == 8 else np.uint16
    samples = np.random.default_rng(seed).integers(0, 2**depth, (height, width, channels), dtype=dtype)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "p" + suffix)
        picture = picture_of(samples)
        assert losses(picture, path) == []
        write_picture(picture, path)
        again = read_picture(path)
        if suffix == ".webp":  # It has no gray, and forgets an alpha that is opaque everywhere.
            np.testing.assert_array_equal(again.pixels, picture.pixels)
            np.testing.assert_array_equal(
                1 if again.alpha is None else again.alpha, 1 if picture.alpha is None else picture.alpha
            )
        else:
            expect(again, samples, channels < 3)


def test_others_read_what_is_written(tmp_path):
    write_picture(picture_of(RGBA16), tmp_path / "p.png")
    np.testing.assert_array_equal(imagecodecs.png_decode((tmp_path / "p.png").read_bytes()), RGBA16)
    write_picture(picture_of(RGBA16), tmp_path / "p.tif")
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "p.tif"), RGBA16)
    write_picture(picture_of(RGBA8), tmp_path / "p8.tiff")
    with Image.open(tmp_path / "p8.tiff") as image:
        assert image.mode == "RGBA"
        np.testing.assert_array_equal(np.asarray(image), RGBA8)


def test_jpeg_has_full_colour_resolution_and_obeys_the_quality(tmp_path):
    colours = np.zeros((16, 16, 3), np.uint8)
    colours[:, ::2] = (255, 0, 0)
    colours[:, 1::2] = (0, 0, 255)
    write_picture(picture_of(colours), tmp_path / "p.jpg", quality=95)
    with Image.open(tmp_path / "p.jpg") as image:
        assert image.layer[0][1:3] == (1, 1)
        assert np.abs(np.asarray(image).astype(int) - colours).max() < 25
    write_picture(picture_of(colours), tmp_path / "low.jpg", quality=20)
    assert (tmp_path / "low.jpg").stat().st_size < (tmp_path / "p.jpg").stat().st_size
    for quality in (0, 101, 1.5, True):
        with pytest.raises(InputError, match="quality"):
            write_picture(picture_of(colours), tmp_path / "q.jpg", quality=quality)


def test_gray_is_the_mean_of_the_channels(tmp_path):
    pixels = np.full((2, 2, 3), (0.1, 0.2, 0.63), np.float32)
    picture = Picture(np.zeros((2, 2, 3), np.float32), gray=True).with_pixels(pixels)
    write_picture(picture, tmp_path / "p.png")
    with Image.open(tmp_path / "p.png") as image:
        assert image.mode == "L"
        assert image.getpixel((0, 0)) == round(0.31 * 255)


@pytest.mark.parametrize("suffix", [suffix for suffix in SUFFIXES if is_installed(FORMATS[suffix])])
@pytest.mark.parametrize("samples", [GRAY8, RGBA8, RGBA16])
def test_same_picture_gives_same_bytes(tmp_path, suffix, samples):
    picture = picture_of(samples, icc=SRGB, dpi=(72.0, 72.0))
    write_picture(picture, tmp_path / f"a{suffix}")
    write_picture(picture, tmp_path / f"b{suffix.upper()}")
    data = (tmp_path / f"a{suffix}").read_bytes()
    assert data == (tmp_path / f"b{suffix.upper()}").read_bytes()
    assert b"tifffile" not in data


def test_losses_name_what_the_format_can_not_hold():
    full = picture_of(RGBA16, icc=SRGB, exif=b"II*\0\x08\0\0\0" + bytes(70000))
    told = {s: " / ".join(losses(full, f"p{s}")) for s in SUFFIXES}
    assert told[".png"] == ""
    assert "JPEG holds 8 bits a channel: 16 are reduced to 8" in told[".jpg"]
    assert "JPEG holds no transparency: the picture is laid over white" in told[".jpg"]
    assert "65527 bytes of EXIF" in told[".jpeg"]
    assert all(word in told[".bmp"] for word in ("16 are reduced", "profile", "EXIF"))
    assert not any("transparency" in told[suffix] for suffix in (".png", ".webp", ".tif", ".bmp"))
    assert "16 are reduced" in told[".webp"]
    assert told[".tif"] == told[".tiff"] == ""
    opaque = picture_of(np.dstack([RGB8, np.full((H, W), 255, np.uint8)]))
    assert losses(opaque, "p.jpg") == []
    assert "'.gif'" in error_of(losses, full, "p.gif")


def test_lossy_targets_are_written_all_the_same(tmp_path):
    picture = picture_of(RGBA16, icc=SRGB, exif=b"II*\0\x08\0\0\0" + bytes(70000))
    for suffix in (".jpg", ".bmp", ".webp"):
        write_picture(picture, tmp_path / f"p{suffix}")
        again = read_picture(tmp_path / f"p{suffix}")
        assert again.depth == 8
        assert (again.alpha is None) == (suffix == ".jpg")
    gray = picture_of(GRAY8, icc=SRGB[:16] + b"GRAY" + SRGB[20:])
    assert "gray" in losses(gray, "p.webp")[0]
    write_picture(gray, tmp_path / "g.webp")
    assert read_picture(tmp_path / "g.webp").icc is None


CUT_OUT = np.full((16, 24, 4), (220, 40, 40, 255), np.uint8)
CUT_OUT[:, :8] = (10, 20, 30, 0)  # nobody has seen this colour
CUT_OUT[:, 8:16, 3] = 51


def transparent_files():
    """Files with transparency, by what they are; black may stand for the colour under it."""
    gray = np.ascontiguousarray(CUT_OUT[..., [1, 3]])
    palette = Image.fromarray(np.repeat(np.array([[0] * 8 + [1] * 8 + [2] * 8], np.uint8), 16, axis=0))
    palette.putpalette([10, 20, 30, 220, 40, 40, 220, 40, 40])
    table = io.BytesIO()
    palette.save(table, "PNG", transparency=b"\0\x33\xff")
    key = chunk(b"tRNS", struct.pack(">3H", 10, 20, 30))
    raw = b"".join(b"\0" + row.tobytes() for row in CUT_OUT[..., :3])
    alpha = CUT_OUT[..., 3:]
    straight = CUT_OUT[..., :3].astype(float)
    premultiplied = np.concatenate([(straight * (alpha / 255)).round().astype(np.uint8), alpha], axis=2)
    return {
        "PNG": encoded(CUT_OUT, "PNG"),
        "gray PNG": encoded(gray, "PNG"),
        "palette PNG": table.getvalue(),
        "key PNG": png(24, 16, 8, 2, raw, key),
        "PNG 16": imagecodecs.png_encode(CUT_OUT.astype(np.uint16) * 257),
        "WebP": encoded(CUT_OUT, "WEBP", lossless=True, exact=True),
        "TIFF": encoded(CUT_OUT, "TIFF"),
        "TIFF 16": tiff(CUT_OUT.astype(np.uint16) * 257, photometric="rgb", extrasamples=["unassalpha"]),
        "gray TIFF 16": tiff(gray.astype(np.uint16) * 257, photometric="minisblack", extrasamples=["unassalpha"]),
        "premultiplied TIFF": tiff(premultiplied, photometric="rgb", extrasamples=["assocalpha"]),
        "BMP": encode_picture(picture_of(CUT_OUT), "p.bmp"),
    }


def tiff(samples, **options):
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, samples, metadata=None, **{"planarconfig": "contig", **options})
    return buffer.getvalue()


LOSSY = (".heic", ".heif", ".hif", ".avif")  # in test_photo_formats.py


@pytest.mark.parametrize("name", transparent_files())
def test_what_lies_under_transparency_is_never_shown(tmp_path, name):
    picture = read_picture(save(tmp_path, "in", transparent_files()[name]))
    assert picture.alpha is not None
    for suffix in set(SUFFIXES).difference(LOSSY):
        path = tmp_path / f"out{suffix}"
        write_picture(picture, path, overwrite=True)
        said = [note for note in losses(picture, path) if "transparency" in note]
        if suffix.startswith(".tif"):  # Pillow reads no TIFF of 16 bits with alpha
            stored = tifffile.imread(path)[..., -1]
            np.testing.assert_allclose(stored / np.iinfo(stored.dtype).max, picture.alpha, atol=1e-5)
            continue
        with Image.open(path) as image:
            if image.mode in ("RGBA", "LA"):
                np.testing.assert_allclose(np.asarray(image.getchannel("A")) / 255, picture.alpha, atol=1e-6)
                assert not said
                continue
            seen = np.asarray(image.convert("RGB")).astype(int)
        assert said == ["JPEG holds no transparency: the picture is laid over white"]
        want = 255 - picture.alpha[..., None] * (255 - 255 * picture.pixels)
        assert np.abs(seen - want)[:, [2, 12, 20]].max() <= 3
        assert seen[8, 2].min() >= 252


def test_existing_file_stays_unless_overwriting(tmp_path, monkeypatch):
    path = save(tmp_path, "p.png", b"precious")
    path.chmod(0o640)
    assert "exists" in error_of(write_picture, picture_of(RGB8), path)
    assert path.read_bytes() == b"precious"
    write_picture(picture_of(RGB8), path, overwrite=True)
    expect(read_picture(path), RGB8)
    assert path.stat().st_mode & 0o777 == 0o640
    # The file may also appear while the picture is being encoded.
    late = tmp_path / "late.png"
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (late.write_bytes(b"late"), real(fd)))
    assert "exists" in error_of(write_picture, picture_of(RGB8), late)
    assert late.read_bytes() == b"late"
    assert not list(tmp_path.glob(".*"))


def test_file_system_without_hard_links(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    write_picture(picture_of(RGB8), tmp_path / "p.png")
    expect(read_picture(tmp_path / "p.png"), RGB8)
    assert os.listdir(tmp_path) == ["p.png"]


def test_overwriting_through_a_link_keeps_the_link(tmp_path):
    target = save(tmp_path, "real.png", b"old")
    link = tmp_path / "link.png"
    link.symlink_to(target)
    write_picture(picture_of(RGB8), link, overwrite=True)
    assert link.is_symlink()
    expect(read_picture(target), RGB8)
    (tmp_path / "device.png").symlink_to("/dev/null")
    assert "device" in error_of(write_picture, picture_of(RGB8), tmp_path / "device.png", overwrite=True)


def error_of_write(path, **options):
    with pytest.raises(ImageError) as caught:
        write_picture(picture_of(RGB8), path, **options)
    assert str(caught.value).isprintable()
    return str(caught.value)


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_failure_while_writing_changes_nothing(tmp_path, monkeypatch, step):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    path = save(tmp_path, "p.png", b"precious")
    monkeypatch.setattr(os, step, full)
    assert "free some space" in error_of_write(path, overwrite=True)
    assert path.read_bytes() == b"precious"
    assert os.listdir(tmp_path) == ["p.png"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_full_disk(tmp_path, monkeypatch):
    real = os.open
    monkeypatch.setattr(
        os, "open", lambda path, *a, **k: (os.symlink("/dev/full", path), real("/dev/full", os.O_WRONLY))[1]
    )
    assert "No space left" in error_of_write(tmp_path / "p.png")
    assert os.listdir(tmp_path) == []


def test_interruption_leaves_no_temporary_file(tmp_path, monkeypatch):
    def interrupt(*args):
        assert any(name.startswith(".") and name.endswith(".part") for name in os.listdir(tmp_path))
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_picture(picture_of(RGB8), tmp_path / "p.png")
    assert os.listdir(tmp_path) == []


def test_places_that_can_not_be_written(tmp_path, monkeypatch):
    assert "no folder" in error_of_write(tmp_path / "absent" / "p.png")
    (tmp_path / "folder.png").mkdir()
    assert "exists" in error_of_write(tmp_path / "folder.png")
    assert "folder" in error_of_write(tmp_path / "folder.png", overwrite=True)
    for name in ("p.gif", "p", ".png"):
        assert ".png, .jpg, .jpeg, .webp, .tif, .tiff, .bmp" in error_of_write(tmp_path / name)
    for overwrite in (False, True):
        assert "not a path" in error_of_write(tmp_path / "null\0.png", overwrite=overwrite)
    (tmp_path / "loop.png").symlink_to("loop.png")
    error_of_write(tmp_path / "loop.png", overwrite=True)
    error_of_write(tmp_path / ("x" * 300 + ".png"))

    def deny(*args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "open", deny)
    assert "permissions" in error_of_write(tmp_path / "p.png")


def test_pictures_that_can_not_be_written(tmp_path):
    pixels = np.zeros((2, 2, 3), np.float32)
    pixels[0, 0, 0] = np.nan
    assert "NaN" in error_of(write_picture, Picture(pixels), tmp_path / "p.png")
    wide = Picture(np.zeros((1, 16384, 3), np.float32))
    assert "WebP" in error_of(write_picture, wide, tmp_path / "p.webp")
    assert os.listdir(tmp_path) == []


def test_picture_checks_its_arrays():
    picture = picture_of(RGBA8)
    with pytest.raises(InputError, match="float32"):
        picture.with_pixels(picture.pixels.astype(np.float64))
    with pytest.raises(InputError, match="alpha"):
        picture.with_pixels(picture.pixels[1:])
    with pytest.raises(InputError, match="depth"):
        Picture(picture.pixels, depth=12)
    other = picture.with_pixels(1 - picture.pixels)
    assert other.alpha is picture.alpha
    np.testing.assert_array_equal(other.pixels, 1 - picture.pixels)


# Without imagecodecs


def test_without_imagecodecs(tmp_path):
    save(tmp_path, "16.png", WHOLE["PNG 16"])
    save(tmp_path, "lzw.tif", WHOLE["TIFF 16 lzw"])
    save(tmp_path, "zlib.tif", WHOLE["TIFF 16 zlib"])
    save(tmp_path, "8.tif", WHOLE["TIFF LZW"])
    code = """
import sys
sys.modules["imagecodecs"] = None
from kithkin.errors import ImageError
from kithkin.images import read_picture, write_picture
picture = read_picture("zlib.tif")
write_picture(picture, "again.tif")
assert (read_picture("again.tif").pixels == picture.pixels).all()
write_picture(read_picture("8.tif"), "8.png")
for call in (lambda: read_picture("16.png"), lambda: read_picture("lzw.tif"), lambda: write_picture(picture, "o.png")):
    try:
        call()
        print("no error")
    except ImageError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 3
    assert all('pip install "kithkin[codecs]"' in line for line in lines)
    assert not (tmp_path / "o.png").exists()


def environment():
    import kithkin

    return {**os.environ, "PYTHONPATH": str(Path(kithkin.__file__).parents[1])}


# Folders


def test_find_pictures(tmp_path):
    for name in (
        "b.PNG",
        "a.jpeg",
        "sub/deep/c.TIF",
        "notes.txt",
        ".hidden.png",
        ".git/d.png",
        "e.png.part",
        "f.bmp/x",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "sub" / "loop").symlink_to(tmp_path)
    (tmp_path / "sub" / "linked.webp").symlink_to(tmp_path / "a.jpeg")
    (tmp_path / "sub" / "dangling.png").symlink_to(tmp_path / "absent")
    found = find_pictures(tmp_path)
    assert [p.relative_to(tmp_path).as_posix() for p in found] == [
        "a.jpeg",
        "b.PNG",
        "sub/deep/c.TIF",
        "sub/linked.webp",
    ]
    assert find_pictures(str(tmp_path / "sub" / "deep")) == [tmp_path / "sub" / "deep" / "c.TIF"]


def test_find_pictures_refuses_what_is_no_folder(tmp_path):
    error_of(find_pictures, tmp_path / "absent")
    error_of(find_pictures, save(tmp_path, "p.png", WHOLE["PNG"]))
