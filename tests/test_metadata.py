"""What files say beside their pixels goes into every result that can hold it, and a sentence names what does not.

Files are made and read back with other libraries. The table in docs/reference/formats.md is what this finds.
"""

import io
import re
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms, IptcImagePlugin, PngImagePlugin

from kithkin.images import decode_picture, encode_picture, losses

PIXELS = np.random.default_rng(3).integers(0, 256, (12, 18, 3), dtype=np.uint8)
pytest.importorskip("pillow_heif").register_heif_opener()
SUFFIXES = {"PNG": ".png", "JPEG": ".jpg", "WebP": ".webp", "TIFF": ".tif", "BMP": ".bmp", "HEIC": ".heic"}
SUFFIXES["AVIF"] = ".avif"
PILLOWS = {kind: kind.upper() for kind in ("PNG", "JPEG", "WebP", "TIFF", "AVIF")} | {"HEIC": "HEIF"}
DOCUMENT = Path(__file__).parents[1] / "docs/reference/formats.md"
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmp:Rating="5"/></rdf:RDF></x:xmpmeta>'
)
IPTC = b"\x1c\x02\x05\x00\x05Title\x1c\x02\x19\x00\x03key"
RESOURCES = b"8BIM\x03\xed\0\0" + struct.pack(">I", 16) + bytes(16)
RESOURCES += b"8BIM\x04\x04\0\0" + struct.pack(">I", len(IPTC)) + IPTC + bytes(len(IPTC) % 2)


def exif():
    block = Image.Exif()
    block[0x010F], block[0x013B] = "Kit", "Ann"
    block.get_ifd(0x8769).update({0x8827: 1600, 0x927C: b"maker's note, at its place"})
    block.get_ifd(0x8825).update({1: "N", 2: (48.0, 51.0, 29.5)})
    block[0x8769] = block[0x8825] = 0  # or else Pillow writes neither into a TIFF
    return block


def png_chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def saved(kind, pixels=PIXELS, chunks=(), **options):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    data = buffer.getvalue()
    return data[:33] + b"".join(png_chunk(*one) for one in chunks) + data[33:]


def tiff(*tags, pixels=PIXELS, **options):
    buffer = io.BytesIO()
    options = {"photometric": "rgb", "metadata": None, "software": False, "extratags": tags, **options}
    tifffile.imwrite(buffer, pixels, **options)
    return buffer.getvalue()


def app13(data, resources=RESOURCES):
    body = b"Photoshop 3.0\0" + resources
    return data[:2] + b"\xff\xed" + struct.pack(">H", 2 + len(body)) + body + data[2:]


def text(**entries):
    info = PngImagePlugin.PngInfo()
    for key, value in entries.items():
        info.add_text(key, value)
    return saved("PNG", pnginfo=info)


def xmp_png():
    info = PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", XMP.decode(), zip=True)
    return saved("PNG", pnginfo=info)


def iptc_png():
    body = f"\niptc\n{len(RESOURCES):8}\n{RESOURCES.hex()}\n"
    info = PngImagePlugin.PngInfo()
    info.add_text("Raw profile type iptc", body, zip=True)
    return saved("PNG", pnginfo=info)


ALPHA = np.dstack([PIXELS, np.full((12, 18), 51, np.uint8)])
DEEP = np.repeat(PIXELS[..., :1].astype(np.uint16) * 256 + 7, 3, axis=2)
GAMMA = struct.pack(">I", 100000)
PRIMARIES = struct.pack(">8I", 31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000)

# What a source holds: the files that hold it, and how another library finds it in a file.
ROWS = {
    "16 bits a channel": {"PNG": saved("PNG", np.ascontiguousarray(DEEP[..., 0])), "TIFF": tiff(pixels=DEEP)},
    "transparency": {
        "PNG": saved("PNG", ALPHA),
        "WebP": saved("WEBP", ALPHA, lossless=True),
        "TIFF": tiff(pixels=ALPHA, extrasamples=["unassalpha"]),
    },
    "colour profile (ICC)": {k: saved(name, icc_profile=SRGB) for k, name in PILLOWS.items()},
    "EXIF, camera, GPS": {k: saved(name, exif=exif()) for k, name in PILLOWS.items()},
    "XMP": {
        "PNG": xmp_png(),
        "JPEG": saved("JPEG", xmp=XMP),
        "WebP": saved("WEBP", xmp=XMP),
        "HEIC": saved("HEIF", xmp=XMP),
        "AVIF": saved("AVIF", xmp=XMP),
        "TIFF": tiff((700, 1, None, XMP, True)),
    },
    "IPTC": {
        "PNG": iptc_png(),
        "JPEG": app13(saved("JPEG")),
        "TIFF": tiff((33723, 7, None, IPTC, True)),
        "TIFF of Photoshop": tiff((34377, 7, None, RESOURCES, True)),
    },
    "comment": {"JPEG": saved("JPEG", comment=b"a comment"), "PNG": text(Comment="a comment")},
    "author, description, copyright, software": {
        "PNG": text(Author="Ann", Description="a scan", Copyright="(c) Ann", Software="Scan 1"),
        "TIFF": tiff((33432, 2, None, "(c) Ann", True), (315, 2, None, "Ann", True), description="a scan"),
    },
    "other text of a PNG": {"PNG": text(parameters="Steps: 40")},
    "PNG's cICP": {"PNG": saved("PNG", chunks=[(b"cICP", b"\x09\x10\0\1")])},
    "PNG's gAMA and cHRM": {"PNG": saved("PNG", chunks=[(b"gAMA", GAMMA), (b"cHRM", PRIMARIES)])},
    "PNG's sBIT": {"PNG": saved("PNG", chunks=[(b"sBIT", b"\x05\x06\x05")])},
    "resolution": {k: saved(k, dpi=(300, 150)) for k in ("PNG", "JPEG", "TIFF", "BMP")},
}


def opened(data):
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def has_exif(data):
    found = opened(data).getexif()
    inner, gps = found.get_ifd(0x8769), found.get_ifd(0x8825)
    maker = inner.get(0x927C, b"").startswith(b"maker's note")
    return (found.get(0x010F), found.get(0x013B), inner.get(0x8827), gps.get(1), maker) == (
        "Kit",
        "Ann",
        1600,
        "N",
        True,
    )


def has_texts(data):
    image = opened(data)
    found = image.getexif()
    texts = getattr(image, "text", {})
    return (found.get(33432) or texts.get("Copyright")) == "(c) Ann" and (
        (found.get(315) or texts.get("Author")) == "Ann" and (found.get(270) or texts.get("Description")) == "a scan"
    )


def has_xmp(data):
    if data[:2] in (b"II", b"MM"):
        return tifffile.TiffFile(io.BytesIO(data)).pages[0].tags[700].value == XMP if b"xmpmeta" in data else False
    return (opened(data).info.get("xmp") or b"").rstrip(b"\0") == XMP


def has_iptc(data):
    image = opened(data)
    if image.format == "PNG":
        raw = image.text.get("Raw profile type iptc", "")
        return IPTC in bytes.fromhex("".join(raw.split("\n")[3:]))
    if image.format in ("WEBP", "HEIF", "AVIF"):
        return False
    found = IptcImagePlugin.getiptcinfo(image)
    return found is not None and found.get((2, 5)) == b"Title"


def has_comment(data):
    image = opened(data)
    found = [image.info.get("comment"), image.getexif().get(270), getattr(image, "text", {}).get("Comment")]
    return any(value in ("a comment", b"a comment") for value in found)


def depth(data):
    if data[:2] in (b"II", b"MM"):
        return tifffile.TiffFile(io.BytesIO(data)).pages[0].bitspersample
    return data[24] if data[1:4] == b"PNG" else 8  # or 10


FIND = {
    "16 bits a channel": lambda data: depth(data) == 16,
    "transparency": lambda data: opened(data).mode == "RGBA" and opened(data).getchannel("A").getpixel((0, 0)) == 51,
    "colour profile (ICC)": lambda data: opened(data).info.get("icc_profile") == SRGB,
    "EXIF, camera, GPS": has_exif,
    "XMP": has_xmp,
    "IPTC": has_iptc,
    "comment": has_comment,
    "author, description, copyright, software": has_texts,
    "other text of a PNG": lambda data: getattr(opened(data), "text", {}).get("parameters") == "Steps: 40",
    "PNG's cICP": lambda data: png_chunk(b"cICP", b"\x09\x10\0\1") in data,
    "PNG's gAMA and cHRM": lambda data: png_chunk(b"gAMA", GAMMA) in data and png_chunk(b"cHRM", PRIMARIES) in data,
    "PNG's sBIT": lambda data: png_chunk(b"sBIT", b"\x05\x06\x05") in data,
    "resolution": lambda data: np.allclose([float(v) for v in opened(data).info.get("dpi", (0, 0))], (300, 150), 1e-3),
}
SAID = {
    "16 bits a channel": "16 are reduced",
    "transparency": "transparency",
    "colour profile (ICC)": "profile",
    "EXIF, camera, GPS": "EXIF",
    "XMP": "XMP",
    "IPTC": "IPTC",
    "comment": "comment",
    "author, description, copyright, software": "texts (Author, Description, Copyright, Software)",
    "other text of a PNG": "texts (parameters)",
    "PNG's cICP": "cICP",
    "PNG's gAMA and cHRM": "gAMA, cHRM",
    "PNG's sBIT": "sBIT",
    "resolution": "resolution",
}


def cell(row, target):
    """``kept`` or ``said``, by every source that holds it; an AssertionError where it is neither."""
    found = set()
    for source, data in ROWS[row].items():
        assert source == "TIFF of Photoshop" or FIND[row](data), (
            f"{row}: not in the {source}, so there is nothing to test"
        )
        picture = decode_picture(data, f"a {source}")
        assert picture.notes == () or (source, row) == ("TIFF", "EXIF, camera, GPS")
        name = "result" + SUFFIXES[target]
        kept = bool(FIND[row](encode_picture(picture, name)))
        sentences = losses(picture, name)
        texts = "EXIF" if (row, source) == ("author, description, copyright, software", "TIFF") else SAID[row]
        said = any(texts in sentence for sentence in sentences)
        assert kept != said, f"{row} from {source} to {target}: kept {kept}, {sentences}"
        assert len(sentences) == (0 if kept else 1), sentences
        found.add("kept" if kept else "said")
    assert len(found) == 1, f"{row} to {target} depends on the source: {found}"
    return found.pop()


def table():
    lines = ["| | " + " | ".join(SUFFIXES) + " |", "| --- " * (1 + len(SUFFIXES)) + "|"]
    return lines + [f"| {row} | " + " | ".join(cell(row, target) for target in SUFFIXES) + " |" for row in ROWS]


def test_what_is_kept_and_what_is_said_is_what_the_document_says():
    document = DOCUMENT.read_text()
    found = re.search(r"<!-- table: metadata -->\n(.*?)<!-- end -->", document, re.S)[1]
    assert found == "\n".join(table()) + "\n"


def test_makers_notes_stay_at_their_place_when_exif_goes_into_a_tiff():
    # Their offsets count from the beginning of the block, which becomes the beginning of the file.
    picture = decode_picture(ROWS["EXIF, camera, GPS"]["JPEG"], "p.jpg")
    for deep in (False, True):
        data = encode_picture(replace(picture, depth=16 if deep else 8), "p.tif")
        at = picture.exif.index(b"maker's note")
        assert data[at : at + 12] == b"maker's note"
        again = decode_picture(data, "p.tif")
        assert "maker" in again.notes[0]
        np.testing.assert_array_equal(again.pixels, picture.pixels)
        assert has_exif(encode_picture(again, "p.tif"))
        assert tifffile.TiffFile(io.BytesIO(data)).pages[0].tags[34665].value["ISOSpeedRatings"] == 1600


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("bigtiff", [False, True])
def test_tags_of_any_tiff_become_exif(byteorder, bigtiff):
    tags = [(315, 2, None, "Ann", True), (37386, 5, 1, (50, 1), True), (65000, 3, 3, (1, 2, 3), True)]
    swapped = struct.pack(
        byteorder + "8I", *struct.unpack("<8I", IPTC.ljust(32, b"\0"))
    )  # numbers, as libtiff has them
    tags.append((33723, 4, None, swapped, True))
    for pixels in (PIXELS, DEEP):
        picture = decode_picture(tiff(*tags, pixels=pixels, byteorder=byteorder, bigtiff=bigtiff), "p.tif")
        found = opened(encode_picture(picture, "p.jpg")).getexif()
        assert (found[315], float(found[37386]), found[65000]) == ("Ann", 50, (1, 2, 3))
        assert picture.iptc.rstrip(b"\0") == IPTC


def test_damaged_exif_hinders_no_format():
    rng = np.random.default_rng(5)
    block = bytearray(exif().tobytes().removeprefix(b"Exif\0\0"))
    for _ in range(60):
        damaged = bytearray(block)
        for at in rng.integers(4, len(block), 4):
            damaged[at] = rng.integers(256)
        picture = decode_picture(saved("JPEG", exif=b"Exif\0\0" + bytes(damaged)), "p.jpg")
        for suffix in SUFFIXES.values():
            again = decode_picture(encode_picture(picture, "p" + suffix), "p")
            assert again.pixels.shape == picture.pixels.shape


def test_xmp_says_what_is_true_of_the_result():
    said = b'<x tiff:Orientation="6" GCamera:MotionPhoto="1"/><tiff:Orientation>8</tiff:Orientation>'
    upright = said.replace(b'"6"', b'"1"').replace(b">8<", b">1<")
    still = upright.replace(b'Photo="1"', b'Photo="0"')
    picture = decode_picture(saved("JPEG", xmp=said), "p.jpg")
    assert picture.xmp == upright
    assert decode_picture(saved("JPEG", xmp=said) + VIDEO, "p.jpg").xmp == still
    assert decode_picture(saved("JPEG", xmp=b'<x hdrgm:Version="1.0" a="b"/>'), "p.jpg").xmp == b'<x a="b"/>'


VIDEO = struct.pack(">I", 24) + b"ftypmp42\0\0\0\0mp42isom" + bytes(range(256)) * 2


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (saved("JPEG") + VIDEO, "motion photo"),
        (saved("JPEG") + b"something else", "14 bytes behind the end"),
        (saved("JPEG", xmp=b'<x hdrgm:Version="1.0"/>') + saved("JPEG"), "gain map"),
        (app13(saved("JPEG"), b"8BIM\x07\xd0\0\0\0\0\0\x02ab"), "paths"),
        (tiff((37724, 7, None, b"Adobe Photoshop Document Data Block\0", True)), "layers"),
        (saved("PNG", chunks=[(b"caBX", b"\0\0\0\x0cjumb")]), "C2PA"),
        (saved("JPEG").replace(b"\xff\xdb", b"\xff\xeb\0\x06JP\0\x01\xff\xdb", 1), "C2PA"),
        (saved("JPEG", xmp=XMP).replace(b"ns.adobe.com/xap/1.0/", b"ns.adobe.com/xmp/ext/", 1), "64 KB"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_no_result_can_hold_is_said_once(data, words):
    (note,) = decode_picture(data, "p").notes
    assert words in note
    assert decode_picture(saved("JPEG") + bytes(9), "padded.jpg").notes == ()


def test_what_is_too_long_for_jpeg_is_said():
    long = b"x" * 70000
    picture = replace(decode_picture(saved("PNG"), "p.png"), xmp=long, iptc=long, comment=long)
    assert [word in note for word, note in zip(("XMP", "IPTC", "comment"), losses(picture, "p.jpg"), strict=True)]
    assert len(encode_picture(picture, "p.jpg")) < 9000
    again = decode_picture(encode_picture(picture, "p.png"), "p.png")
    assert (again.xmp, again.iptc, again.comment) == (long, long, long)


def test_a_comment_keeps_its_letters():
    for words in ("plain", "größer als 1 €"):
        picture = decode_picture(saved("JPEG", comment=words.encode()), "p.jpg")
        data = encode_picture(picture, "p.png")
        assert opened(data).text["Comment"] == words
        again = encode_picture(decode_picture(data, "p.png"), "p.jpg")
        assert opened(again).info["comment"] == words.encode()
    assert decode_picture(text(Comment="größer"), "p.png").comment == "größer".encode()
    assert opened(encode_picture(replace(picture, comment=b"\xe9t\xe9"), "p.png")).text["Comment"] == "été"


def test_a_text_can_not_write_over_the_terminal():
    hostile = saved("PNG", chunks=[(b"tEXt", b"\x1b[2J\nkithkin: fine" + b"\0x"), (b"tEXt", b"k" * 79 + b"\0x")] * 9)
    (note,) = losses(decode_picture(hostile, "p.png"), "p.jpg")
    assert note.isprintable()
    assert len(note) < 300


def test_16_bit_png_keeps_what_8_bit_png_keeps():
    chunks = ((b"cICP", b"\x09\x10\0\1"), (b"tEXt", b"Title\0T"), (b"sBIT", b"\x0c\x0c\x0c"))
    picture = replace(decode_picture(tiff(pixels=DEEP), "p.tif"), xmp=XMP, iptc=IPTC, comment=b"c", chunks=chunks)
    again = decode_picture(encode_picture(picture, "p.png"), "p.png")
    assert (again.depth, again.xmp, again.iptc, again.comment, again.chunks) == (16, XMP, IPTC, b"c", chunks)
    # Chunks that hold for the old pixels alone stay behind, and the bits are counted for each channel.
    odd = decode_picture(saved("PNG", chunks=[(b"tIME", bytes(7)), (b"prVt", b"x"), (b"prVT", b"x")]), "p.png")
    assert odd.chunks == ((b"prVt", b"x"),)
    clear = replace(picture, alpha=np.zeros((12, 18), np.float32), depth=8)
    assert (b"sBIT", b"\x0c\x0c\x0c\x08") in decode_picture(encode_picture(clear, "p.png"), "p.png").chunks


if __name__ == "__main__":  # python tests/test_metadata.py writes the table
    start, end = "<!-- table: metadata -->\n", "<!-- end -->"
    before, rest = DOCUMENT.read_text().split(start)
    DOCUMENT.write_text(before + start + "\n".join(table()) + "\n" + end + rest.split(end, 1)[1])
