"""HEIC, AVIF and cameras' raw files: what goes in and comes out. The files are made here."""

import io
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL
import pytest
import tifffile
from PIL import Image, ImageCms
from typer.testing import CliRunner

from kithkin.cli import app
from kithkin.errors import ImageError
from kithkin.images import (
    Picture,
    _ifd,
    decode_picture,
    encode_picture,
    ending_of,
    look_through,
    losses,
    measure_picture,
    read_picture,
)

heif = pytest.importorskip("pillow_heif")
rawpy = pytest.importorskip("rawpy")

ROWS, COLUMNS = np.mgrid[:48, :70] / 70
PIXELS = np.stack([ROWS, COLUMNS, (ROWS + COLUMNS) / 2], 2).astype(np.float32)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
P3 = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()  # any other profile than sRGB
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><r tiff:Orientation="6"/></x:xmpmeta>'


def exif(orientation=1):
    block = Image.Exif()
    block[0x010F], block[0x0112] = "Kit", orientation
    block.get_ifd(0x8769)[0x8827] = 1600
    return block.tobytes().removeprefix(b"Exif\0\0")


def full(depth=8, **fields):
    alpha = np.broadcast_to(COLUMNS, (48, 70)).astype(np.float32)
    return Picture(PIXELS, alpha=alpha, depth=depth, icc=P3, exif=exif(), xmp=XMP.replace(b'"6"', b'"1"'), **fields)


@pytest.mark.parametrize("suffix", [".heic", ".heif", ".HIF", ".avif"])
def test_pixels_and_all_that_the_file_says_come_back(suffix):
    picture = full()
    data = encode_picture(picture, f"p{suffix}")
    found = decode_picture(data, "p")
    assert losses(picture, f"p{suffix}") == []
    assert (found.depth, found.gray, found.notes) == (8, False, ())
    assert (found.icc, found.xmp) == (picture.icc, picture.xmp)
    block = Image.Exif()
    block.load(found.exif)
    assert (block[0x010F], block.get(0x0112, 1), block.get_ifd(0x8769)[0x8827]) == ("Kit", 1, 1600)
    if suffix != ".avif":  # in which EXIF data name no orientation
        assert found.exif == picture.exif
    assert np.abs(found.pixels - PIXELS).max() < 6 / 255
    assert np.abs(found.alpha - picture.alpha).max() < 6 / 255
    assert measure_picture(data, "p") == (70, 48)
    assert Image.open(io.BytesIO(encode_picture(picture, "p.png"))).size == (70, 48)


@pytest.mark.parametrize("order", ["<", ">"])
def test_exif_in_an_avif_moves_nothing_and_may_be_of_rare_types(order):
    note, page = bytes(range(256)), struct.pack(order + "II", 1, 2)
    tags = {0x010D: _ifd.Entry(5, page), 0x0112: _ifd.Entry(3, struct.pack(order + "H", 1))}
    block = _ifd.exif_block(tags, order, {_ifd.EXIF_IFD: {_ifd.MAKER_NOTE: _ifd.Entry(7, note)}})
    found = decode_picture(encode_picture(Picture(PIXELS, exif=block), "p.avif"), "p").exif
    first = _ifd.first_directory(found)
    assert sorted(first) == [0x010D, _ifd.EXIF_IFD]
    assert first[0x010D].raw == page
    assert (len(found), found.index(note)) == (len(block), block.index(note))


def test_damaged_exif_is_left_out_of_an_avif_with_a_sentence():
    picture = Picture(PIXELS, exif=b"no EXIF data")
    assert losses(picture, "p.avif") == ["the EXIF data are damaged, and AVIF holds only sound ones: they are dropped"]
    assert decode_picture(encode_picture(picture, "p.avif"), "p").exif is None


def test_heic_holds_ten_bits():
    ramp = np.repeat(np.linspace(0.2, 0.3, 1024, dtype=np.float32)[None, :, None], 64, 0).repeat(3, 2)
    picture = Picture(ramp, depth=16)
    found = decode_picture(encode_picture(picture, "p.heic", quality=100), "p")
    assert found.depth == 16
    assert np.abs(found.pixels - ramp).max() < 2 / 1023
    assert len(np.unique(found.pixels[0, :, 1])) > 60  # of 8 bits, there would be 26
    assert losses(picture, "p.heic") == ["HEIC holds 10 bits a channel: 16 are reduced to 10"]
    white = decode_picture(encode_picture(Picture(np.ones((16, 16, 3), np.float32), depth=16), "p.heic"), "p")
    assert white.pixels.min() == 1


@pytest.mark.parametrize("suffix", [".heic", ".avif"])
def test_gray_stays_gray_and_with_alpha_becomes_rgb(suffix):
    gray = np.repeat(PIXELS[..., :1], 3, 2)
    found = decode_picture(encode_picture(Picture(gray, gray=True), f"p{suffix}"), "p")
    assert found.gray or (suffix == ".avif" and int(PIL.__version__.split(".")[0]) < 13)  # RGB, as Pillow reads it
    assert np.abs(found.pixels - gray).max() < 4 / 255
    profile = SRGB[:16] + b"GRAY" + SRGB[20:]
    assert losses(Picture(gray, gray=True, icc=profile), f"p{suffix}") == []
    both = replace(full(), pixels=gray, gray=True, icc=profile)
    assert "no gray colour profile" in losses(both, f"p{suffix}")[0]
    found = decode_picture(encode_picture(both, f"p{suffix}"), "p")
    assert found.icc is None
    assert np.abs(found.pixels - gray).max() < 6 / 255


@pytest.mark.parametrize("suffix", [".heic", ".avif"])
def test_quality_is_obeyed_and_the_same_picture_gives_the_same_bytes(suffix):
    noisy = Picture((PIXELS + np.random.default_rng(0).normal(0, 0.05, PIXELS.shape)).clip(0, 1).astype(np.float32))
    sizes = [len(encode_picture(noisy, f"p{suffix}", quality=quality)) for quality in (30, 60, 90)]
    assert sizes == sorted(set(sizes))
    assert encode_picture(noisy, f"p{suffix}") == encode_picture(noisy, f"p{suffix}", quality=95)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["HEIF", "AVIF"])
def test_pictures_of_other_programs_are_upright(kind, orientation):
    heif.register_heif_opener()
    image = Image.fromarray((PIXELS * 255).astype(np.uint8))
    block = Image.Exif()
    block[0x0112] = orientation
    buffer = io.BytesIO()
    image.save(buffer, kind, quality=95, exif=block.tobytes(), **({"xmp": XMP} if kind == "AVIF" else {}))
    found = decode_picture(buffer.getvalue(), "p")
    jpeg = io.BytesIO()
    image.save(jpeg, "JPEG", quality=95, exif=block.tobytes())
    wanted = decode_picture(jpeg.getvalue(), "p")
    assert found.pixels.shape == wanted.pixels.shape
    assert np.abs(found.pixels - wanted.pixels).mean() < 4 / 255
    assert kind != "AVIF" or b'Orientation="1"' in found.xmp
    assert Image.open(io.BytesIO(encode_picture(found, "p.jpg"))).getexif().get(0x0112, 1) == 1


def test_further_pictures_in_a_heic_are_named():
    buffer = io.BytesIO()
    file = heif.from_pillow(Image.fromarray((PIXELS * 255).astype(np.uint8)))
    file.add_from_pillow(Image.fromarray((PIXELS[:32, :32] * 200).astype(np.uint8)))
    file.save(buffer, quality=90)
    found = decode_picture(buffer.getvalue(), "p")
    assert found.pixels.shape == PIXELS.shape
    assert found.notes == ("holds 2 pictures; only the main one was read",)


def test_an_animated_avif_is_refused_and_ten_bits_are_named():
    frames = [Image.fromarray((PIXELS * v).astype(np.uint8)) for v in (100, 200)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "AVIF", save_all=True, append_images=frames[1:])
    with pytest.raises(ImageError, match="is an animation of 2 pictures"):
        decode_picture(buffer.getvalue(), "p.avif")
    codecs = pytest.importorskip("imagecodecs")
    data = codecs.avif_encode((PIXELS * 1023).astype(np.uint16), level=95, bitspersample=10)
    found = decode_picture(bytes(data), "p.avif")
    assert found.notes == ("its 10 or 12 bits a channel were read as 8",)
    assert np.abs(found.pixels - PIXELS).max() < 8 / 255


@pytest.mark.parametrize("suffix", [".heic", ".avif"])
def test_damaged_files_are_refused(suffix):
    data = encode_picture(Picture(PIXELS), f"p{suffix}")
    for broken in (data[:30], data[: len(data) // 2], data[:-20]):
        with pytest.raises(ImageError):
            decode_picture(broken, f"p{suffix}")


# Raw


def dng(light, orientation=1):
    """A DNG of a camera whose primaries are sRGB's; ``light`` is (H, W, 3) in [0, 1], linear. Every pixel of the mosaic
    (red and green above green and blue) has one of the colours."""
    values = (light * 65535).round().astype(np.uint16)
    mosaic = values[..., 1].copy()
    mosaic[::2, ::2], mosaic[1::2, 1::2] = values[::2, ::2, 0], values[1::2, 1::2, 2]
    from_xyz = [32405, -15371, -4985, -9693, 18760, 416, 556, -2040, 10572]
    matrix = [part for value in from_xyz for part in (value, 10000)]
    tags = [
        (271, 2, None, "Kit", True),
        (272, 2, None, "Synthetic", True),
        (274, 3, 1, orientation, True),
        (700, 1, None, XMP, True),
        (33421, 3, 2, (2, 2), True),
        (33422, 1, 4, bytes([0, 1, 1, 2]), True),
        (33432, 2, None, "(c) Ann", True),
        (50706, 1, 4, bytes([1, 4, 0, 0]), True),
        (50708, 2, None, "Kit Synthetic", True),
        (50714, 3, 1, 0, True),
        (50717, 4, 1, 65535, True),
        (50721, 10, 9, matrix, True),
        (50728, 5, 3, (1, 2, 1, 1, 1, 2), True),  # neutral is (0.5, 1, 0.5)
        (50778, 3, 1, 21, True),
    ]
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, mosaic, photometric=32803, metadata=None, software=False, extratags=tags)
    return buffer.getvalue()


def curve(light):
    return np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


def patches():
    """Smooth patches of colour, (120, 160, 3), as the camera sees them before its white balance."""
    colours = np.random.default_rng(0).uniform(0.1, 0.8, (3, 4, 3))
    return colours.repeat(40, 0).repeat(40, 1)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_raw_file_is_developed_upright_with_the_cameras_white_balance(orientation):
    light = patches()
    found = decode_picture(dng(light * (0.5, 1, 0.5), orientation), "p.DNG")
    turned = np.rot90(curve(light), {1: 0, 3: 2, 6: -1, 8: 1}[orientation])
    assert found.pixels.shape == turned.shape
    middles = np.s_[20::40, 20::40]
    assert np.abs(found.pixels[middles] - turned[middles]).max() < 0.02
    assert (found.depth, found.gray, found.alpha) == (16, False, None)
    assert found.icc == SRGB or ImageCms.getProfileDescription(ImageCms.ImageCmsProfile(io.BytesIO(found.icc)))
    assert measure_picture(dng(light, orientation), "p.dng") == (160, 120)


def test_a_raw_files_metadata_go_into_the_result():
    found = decode_picture(dng(patches()), "p.dng")
    assert found.notes == ("the XMP data of the raw file are not kept: they may hold settings for its development",)
    data = encode_picture(found, "p.tif")
    tags = tifffile.TiffFile(io.BytesIO(data)).pages[0].tags
    assert (tags[271].value, tags[272].value, tags[33432].value) == ("Kit", "Synthetic", "(c) Ann")
    assert not any(tag.code >= 50000 or tag.code in (33421, 33422) for tag in tags)  # else it would pass for a DNG
    again = decode_picture(data, "p.tif")
    np.testing.assert_array_equal(again.pixels, found.pixels)
    assert (again.depth, again.icc) == (16, found.icc)


def test_what_is_no_raw_file_is_told():
    with pytest.raises(ImageError, match=r"p\.nef: is not a raw file that LibRaw knows"):
        decode_picture(b"II*\0" + bytes(2000), "p.nef")
    with pytest.raises(ImageError, match="can't be decoded as raw"):
        decode_picture(dng(patches())[:20000], "p.dng")
    with pytest.raises(ImageError, match=r"name it as one, such as \.dng"):
        decode_picture(dng(patches()), "p.tif")
    png = encode_picture(Picture(PIXELS), "p.png")
    assert decode_picture(png, "p.dng").depth == 8  # A name alone makes no raw file.


def test_the_command_restores_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("trip").mkdir()
    Path("trip/IMG_1.DNG").write_bytes(dng(patches(), 6))
    Path("trip/IMG_2.heic").write_bytes(encode_picture(full(), "p.heic"))
    Path("trip/IMG_3").write_bytes(encode_picture(full(), "p.avif"))
    said = CliRunner().invoke(app, ["restore", "trip", "-m", "denoise-tiny", "--strength", "0"])
    assert (said.exit_code, said.stdout.splitlines()) == (
        0,
        [
            "trip/IMG_1.DNG -> trip-restored/IMG_1.tiff",
            "trip/IMG_2.heic -> trip-restored/IMG_2.heic",
            "trip/IMG_3 -> trip-restored/IMG_3.avif",
        ],
    )
    found = read_picture("trip-restored/IMG_1.tiff")
    assert (found.depth, found.pixels.shape) == (16, (160, 120, 3))
    assert read_picture("trip-restored/IMG_2.heic").icc == P3
    said = CliRunner().invoke(app, ["restore", "trip/IMG_1.DNG", "-m", "denoise-tiny", "--format", "avif"])
    assert said.exit_code == 0
    assert "AVIF holds 8 bits a channel" in said.stderr
    assert read_picture("trip/IMG_1-restored.avif").pixels.shape == (160, 120, 3)


@pytest.mark.parametrize(
    ("name", "needs"),
    [("a.heic", "pillow-heif"), ("a.avif", "Pillow from 11.3"), ("a.dng", "rawpy")],
)
def test_without_the_extra_it_says_what_to_install(tmp_path, monkeypatch, name, needs):
    data = dng(patches()) if name == "a.dng" else encode_picture(full(), name)
    (tmp_path / name).write_bytes(data)
    assert look_through(tmp_path).pictures == (tmp_path / name,)
    assert ending_of(tmp_path / name) == (".tiff" if name == "a.dng" else Path(name).suffix)
    for module in ("pillow_heif", "rawpy"):
        monkeypatch.setitem(__import__("sys").modules, module, None)
    monkeypatch.setattr("kithkin.images._heif.features.check", lambda feature: False)
    with pytest.raises(ImageError, match=rf'{needs}.*; install it with: pip install "kithkin\[photo\]"'):
        read_picture(tmp_path / name)
    assert look_through(tmp_path).foreign == (tmp_path / name,)
    said = CliRunner().invoke(app, ["restore", str(tmp_path), "-m", "denoise-tiny"])
    assert said.exit_code == 1
    assert f'1 {Path(name).suffix} (to read them: pip install "kithkin[photo]")' in said.stderr
    if name != "a.dng":
        (tmp_path / "b.png").write_bytes(encode_picture(Picture(PIXELS), "b.png"))
        said = CliRunner().invoke(app, ["restore", str(tmp_path / "b.png"), "-o", str(tmp_path / f"c{name}")])
        assert said.exit_code == 1
        assert "can't be written" in said.stderr
        assert needs in said.stderr
