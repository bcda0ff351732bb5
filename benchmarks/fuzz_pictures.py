"""Thousands of damaged pictures through measuring, decoding and writing: nothing but ImageError may come out.

    python benchmarks/fuzz_pictures.py [--count 20000] [--seed 0]

Files of every format, kind of pixels and metadata are damaged as disks, networks and attackers damage them. It prints
and keeps how many were read and refused, the time of the slowest, and the memory that was left at the end. Any other
error ends it, with the seed of the file. The tests run a few hundred.
"""

import argparse
import io
import struct
import time
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import imagecodecs
import numpy as np
import tifffile
from PIL import Image, PngImagePlugin

from kithkin.errors import ImageError
from kithkin.images import _picture, decode_picture, encode_picture, losses, measure_picture

from measure import _status, keep

TARGETS = (".png", ".jpg", ".webp", ".tif", ".bmp")
MOST_PIXELS = 2**20
"""A limit lower than the real one, so that a damaged header does not cost seconds."""


def corpus() -> dict[str, bytes]:
    """Small sound files of every kind."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:24, :32]
    rgb = (np.dstack([x * 8, y * 10, (x + y) * 4]) + rng.integers(0, 9, (24, 32, 3))).clip(0, 255).astype(np.uint8)
    rgba = np.dstack([rgb, np.where(x > 9, 255, x * 20).astype(np.uint8)])
    exif = Image.Exif()
    exif[271], exif[274] = "Kit", 6
    exif.get_ifd(34665).update({34855: 1600, 37500: b"note" * 9})
    exif.get_ifd(34853).update({1: "N", 2: (48.0, 51.0, 29.5)})
    exif[34665] = exif[34853] = 0
    more: dict[str, Any] = {"exif": exif, "xmp": b'<x tiff:Orientation="6"/>', "icc_profile": b"profile" * 40}
    info = PngImagePlugin.PngInfo()
    info.add_text("Title", "a title")
    info.add_itxt("XML:com.adobe.xmp", "<x/>", zip=True)
    info.add_text("Raw profile type exif", f"\nexif\n8\n{b'II*0'.hex()}\n", zip=True)

    def saved(pixels: np.ndarray, kind: str, mode: str | None = None, **options: Any) -> bytes:
        buffer = io.BytesIO()
        image = Image.fromarray(pixels)
        (image.convert(mode) if mode else image).save(buffer, kind, **options)
        return buffer.getvalue()

    def tiff(pixels: np.ndarray, **options: Any) -> bytes:
        buffer = io.BytesIO()
        tifffile.imwrite(buffer, pixels, **{"photometric": "rgb", "metadata": None, **options})
        return buffer.getvalue()

    deep = rgb.astype(np.uint16) * 257
    tags = [(700, 1, None, b"<x/>", True), (33723, 7, None, b"\x1c\x02\x05\0\x01t", True), (315, 2, None, "Ann", True)]
    jpeg = saved(rgb, "JPEG", comment=b"a comment", **more)
    return {
        "PNG": saved(rgb, "PNG", pnginfo=info, exif=exif, icc_profile=b"profile" * 40, dpi=(300, 300)),
        "PNG, palette": saved(rgb, "PNG", "P", transparency=3),
        "PNG, alpha": saved(rgba, "PNG"),
        "PNG, gray and alpha": saved(rgba, "PNG", "LA"),
        "PNG, 1 bit": saved(rgb, "PNG", "1"),
        "PNG, 16 bit gray": saved(deep[..., 0], "PNG"),
        "PNG, 16 bit": imagecodecs.png_encode(deep),
        "JPEG": jpeg,
        "JPEG with IPTC and a video": jpeg[:2] + _app13() + jpeg[2:] + b"\0\0\0\x18ftypmp42" + bytes(30),
        "JPEG, progressive": saved(rgb, "JPEG", progressive=True),
        "JPEG, gray": saved(rgb, "JPEG", "L"),
        "JPEG, CMYK": saved(rgb, "JPEG", "CMYK"),
        "MPO": saved(rgb, "MPO", save_all=True, append_images=[Image.fromarray(rgb)]),
        "WebP": saved(rgb, "WEBP", **more),
        "WebP, lossless, alpha": saved(rgba, "WEBP", lossless=True),
        "BMP": saved(rgb, "BMP"),
        "BMP, palette": saved(rgb, "BMP", "P"),
        "BMP, alpha": encode_picture(decode_picture(saved(rgba, "PNG"), "p.png"), "p.bmp"),
        "TIFF": tiff(rgb, extratags=tags, resolution=(300, 300)),
        "TIFF of Pillow": saved(rgb, "TIFF", exif=exif),
        "TIFF of kithkin": encode_picture(decode_picture(jpeg, "p.jpg"), "p.tif"),
        "TIFF, 16 bit, big-endian": tiff(deep, byteorder=">", compression="zlib", extratags=tags),
        "TIFF, BigTIFF": tiff(deep, bigtiff=True, extratags=tags),
        "TIFF, tiles": tiff(deep, tile=(16, 16), compression="lzw", predictor=True),
        "TIFF, planes": tiff(np.moveaxis(rgb, 2, 0).copy(), planarconfig="separate"),
        "TIFF, alpha": tiff(rgba, extrasamples=["assocalpha"]),
        "TIFF, LZW": saved(rgb, "TIFF", compression="tiff_lzw"),
        "TIFF, JPEG": saved(rgb, "TIFF", compression="jpeg"),
        "TIFF, fax": saved(rgb, "TIFF", "1", compression="group4"),
        "TIFF, palette": saved(rgb, "TIFF", "P"),
        "TIFF, CMYK": saved(rgb, "TIFF", "CMYK"),
        "TIFF, JPEG XL": tiff(rgb, compression="jpegxl"),
    }


def _app13() -> bytes:
    body = b"Photoshop 3.0\0" + b"8BIM\x04\x04\0\0\0\0\0\x06\x1c\x02\x05\0\x01t"
    return b"\xff\xed" + struct.pack(">H", 2 + len(body)) + body


def damaged(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    """Return the file with one to four faults; `other` is a file to mix in."""
    file = bytearray(data)
    for _ in range(rng.integers(1, 5)):
        if len(file) < 8:
            break
        kind, at = rng.integers(9), int(rng.integers(len(file)))
        # Headers are where damage does most.
        at = at % min(len(file), 200) if rng.random() < 0.5 else at
        length = int(rng.integers(1, 40))
        if kind == 0:
            file[at] ^= 1 << rng.integers(8)
        elif kind == 1:
            file[at : at + length] = rng.bytes(length)
        elif kind == 2:
            file[at : at + 4] = struct.pack(rng.choice(["<I", ">I"]), rng.choice(EXTREMES))
        elif kind == 3:
            file[at : at + 2] = struct.pack(rng.choice(["<H", ">H"]), rng.choice(EXTREMES) & 0xFFFF)
        elif kind == 4:
            del file[at : at + length]
        elif kind == 5:
            file[at:at] = file[at : at + length]
        elif kind == 6:
            del file[at:]
        elif kind == 7:
            file[at : at + 4 * length] = bytes(4 * length)
        else:
            start = int(rng.integers(len(other)))
            file[at : at + length] = other[start : start + length]
    return bytes(file)


EXTREMES = (0, 1, 2, 7, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)


def try_one(data: bytes, target: str) -> str:
    """Measure, decode and write one file: ``read`` or ``refused``; any other error than ImageError escapes.

    Raises AssertionError where what is measured is not what is decoded, or where measuring refuses what decoding takes.
    """
    size = None
    try:
        size = measure_picture(data, "p")
        picture = decode_picture(data, "p")
    except ImageError as error:
        if not str(error).isprintable():
            raise AssertionError(f"not on one line: {error!r}") from error
        if size is None:
            try:
                decode_picture(data, "p")
            except ImageError:
                pass
            else:
                raise AssertionError(f"decoded, but not measured: {error}") from error
        return "refused"
    assert sorted(size) == sorted(picture.pixels.shape[:2])
    assert np.isfinite(picture.pixels).all()
    losses(picture, target)
    encode_picture(picture, target)
    return "read"


def run(count: int, seed: int, report: Callable[[str, float], None] = lambda outcome, seconds: None) -> Counter[str]:
    """Try `count` damaged files; an error that escapes is raised, with what made the file."""
    files = corpus()
    names = list(files)
    outcomes: Counter[str] = Counter()
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        name, other = rng.choice(names, 2)
        data = damaged(files[name], files[other], rng)
        target = str(rng.choice(TARGETS))
        started = time.perf_counter()
        try:
            outcome = try_one(data, "p" + target)
        except BaseException as error:
            error.add_note(f"{name}, damaged with the seed [{seed}, {number}], to {target}")
            raise
        outcomes[outcome] += 1
        report(outcome, time.perf_counter() - started)
    return outcomes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    _picture.MAX_PIXELS = MOST_PIXELS
    run(500, options.seed + 1)
    before = _status("VmRSS")
    times: list[float] = []
    outcomes = run(options.count, options.seed, lambda outcome, seconds: times.append(seconds))
    keep(
        "fuzz_pictures",
        {
            "files": options.count,
            "seed": options.seed,
            "read": outcomes["read"],
            "refused": outcomes["refused"],
            "slowest seconds": round(max(times), 3),
            "seconds": round(sum(times), 1),
            "memory kept, MB": round((_status("VmRSS") - before) / 1e6, 1),
            "largest memory, MB": round(_status("VmHWM") / 1e6),
        },
    )


if __name__ == "__main__":
    main()
