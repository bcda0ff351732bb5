"""Tags as TIFF and EXIF hold them: taken raw out of a directory (IFD), and laid out anew as an EXIF block.

Raw, because every decoder that turns values into numbers and text loses some: rare types, odd counts, other encodings.
"""

import struct
from typing import NamedTuple

EXIF_IFD, GPS_IFD, INTEROP_IFD, MAKER_NOTE = 34665, 34853, 40965, 37500
DESCRIPTION, SOFTWARE, ARTIST, COPYRIGHT = 270, 305, 315, 33432
XMP, IPTC, PHOTOSHOP, ICC, LAYERS, ORIENTATION = 700, 33723, 34377, 34675, 37724, 274

_POINTERS = (EXIF_IFD, GPS_IFD, INTEROP_IFD)
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}
"""Bytes of a value, by the number of its type. Types of later versions are left out: few programs know them."""
_STRUCTURE = frozenset(
    {254, 255, 256, 257, 258, 259, 262, 263, 264, 265, 266, 273, ORIENTATION, 277, 278, 279, 280, 281, 282, 283, 284}
    | {288, 289, 290, 291, 292, 293, 296, 301, 317, 318, 319, 320, 321, 322, 323, 324, 325, 330, 332, 333, 334, 336}
    | {337, 338, 339, 340, 341, 342, 343, 344, 345, 346, 347, 400, *range(512, 533), 559, 32995, 32997, 32998}
    | {XMP, IPTC, PHOTOSHOP, ICC, LAYERS, 33421, 33422, 50838, 50839}
)
"""Tags that say how pixels are stored, which the writer knows better, or that `Picture` holds apart from EXIF."""


class Entry(NamedTuple):
    """A tag's value: the number of its type, and its bytes, in the byte order of the file."""

    kind: int
    raw: bytes


Tags = dict[int, Entry]


def byte_order(data: bytes) -> str:
    """Return what `struct` calls the byte order of a TIFF or EXIF block; raise ValueError where it is neither."""
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None:
        raise ValueError("no byte order")
    return order


def first_directory(data: bytes) -> Tags:
    """Return the tags of the first directory of a TIFF, a BigTIFF or an EXIF block.

    Raises ValueError or struct.error where it is damaged.
    """
    order = byte_order(data)
    big = struct.unpack_from(order + "H", data, 2)[0] == 43
    (at,) = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)
    return _directory(data, at, order, big)


def _directory(data: bytes, at: int, order: str, big: bool) -> Tags:
    word = "Q" if big else "I"
    step, room = (20, 8) if big else (12, 4)
    (count,) = struct.unpack_from(order + ("Q" if big else "H"), data, at)
    start = at + (8 if big else 2)
    if start + step * count > len(data):
        raise ValueError("a directory of tags is cut off")
    tags: Tags = {}
    for entry in range(start, start + step * count, step):
        tag, kind, number = struct.unpack_from(order + "HH" + word, data, entry)
        if big and tag in _POINTERS:
            # Of 8 bytes here, of 4 in an EXIF block.
            raw = struct.pack(order + "I", struct.unpack_from(order + "Q", data, entry + step - room)[0])
            tags[tag] = Entry(4, raw)
            continue
        length = number * _SIZES.get(kind, 0)
        place = entry + step - room
        if length > room:
            (place,) = struct.unpack_from(order + word, data, place)
        if length and place + length <= len(data):
            tags.setdefault(tag, Entry(kind, data[place : place + length]))
    return tags


def exif_of_tiff(data: bytes, tags: range = range(1 << 16)) -> tuple[bytes | None, bool]:
    """Return what a TIFF says of its picture as an EXIF block, and whether a part of it was damaged and left out.

    The block holds those of the descriptive tags that are in `tags`, EXIF and GPS data; it is None where there is
    nothing of them.
    Raises ValueError or struct.error where the first directory is damaged.
    """
    order, big = byte_order(data), data[2:4] in (b"+\0", b"\0+")
    first = first_directory(data)
    below: dict[int, Tags] = {}
    damaged = False
    for tag in _POINTERS:
        parent = below.get(EXIF_IFD, {}) if tag == INTEROP_IFD else first
        if tag in parent:
            try:
                below[tag] = _below(data, parent[tag], order, big)
            except (ValueError, struct.error):
                damaged = True
    described = {tag: entry for tag, entry in descriptive(first).items() if tag in tags}
    return exif_block(described, order, below), damaged


def is_sound(exif: bytes) -> bool:
    """Whether the first directory of an EXIF block, and those that it points to, can be read."""
    try:
        first = first_directory(exif)
        for tag in (EXIF_IFD, GPS_IFD):
            if tag in first:
                _below(exif, first[tag], byte_order(exif), False)
    except (ValueError, struct.error):
        return False
    return exif[2:4] in (b"*\0", b"\0*")


def has_maker_note(exif: bytes) -> bool:
    """Whether an EXIF block that `exif_of_tiff` made holds a camera maker's notes."""
    first = first_directory(exif)
    return EXIF_IFD in first and MAKER_NOTE in _below(exif, first[EXIF_IFD], byte_order(exif), False)


def without(exif: bytes, tag: int) -> bytes:
    """Return a sound EXIF block without a tag of its first directory; nothing else that it points to moves."""
    order = byte_order(exif)
    (at,) = struct.unpack_from(order + "I", exif, 4)
    (count,) = struct.unpack_from(order + "H", exif, at)
    end = at + 2 + 12 * count
    entries = [exif[entry : entry + 12] for entry in range(at + 2, end, 12)]
    kept = [entry for entry in entries if struct.unpack_from(order + "H", entry) != (tag,)]
    directory = struct.pack(order + "H", len(kept)) + b"".join(kept) + exif[end : end + 4]
    return exif[:at] + directory.ljust(end + 4 - at, b"\0") + exif[end + 4 :]


def _below(data: bytes, pointer: Entry, order: str, big: bool) -> Tags:
    if len(pointer.raw) != 4:
        raise ValueError("a pointer of another size")
    return _directory(data, struct.unpack(order + "I", pointer.raw)[0], order, big)


def descriptive(tags: Tags) -> Tags:
    """The tags that say something of the picture, and nothing of how its pixels are stored."""
    return {tag: entry for tag, entry in tags.items() if tag not in _STRUCTURE and tag not in _POINTERS}


def exif_block(tags: Tags, order: str = "<", below: dict[int, Tags] | None = None) -> bytes | None:
    """Lay out an EXIF block of its first directory and those it points to; None where they are empty."""
    directories = {0: tags, **{pointer: entries for pointer, entries in (below or {}).items() if entries}}
    if not any(directories.values()):
        return None
    starts, at = {}, 8
    for pointer, entries in directories.items():
        parts = {tag: entry for tag, entry in entries.items() if tag not in _POINTERS}
        parts |= {tag: Entry(4, bytes(4)) for tag in _points(pointer, directories)}
        directories[pointer] = parts
        starts[pointer] = at
        at += 6 + sum(12 + (-(-len(entry.raw) // 2) * 2 if len(entry.raw) > 4 else 0) for entry in parts.values())
    block = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8)
    for entries in directories.values():
        entries |= {tag: Entry(4, struct.pack(order + "I", starts[tag])) for tag in _POINTERS if tag in entries}
        block += _laid_out(entries, len(block), order)
    return block


def _points(pointer: int, directories: dict[int, Tags]) -> list[int]:
    """The directories that the one behind `pointer` points to."""
    candidates = {0: (EXIF_IFD, GPS_IFD), EXIF_IFD: (INTEROP_IFD,)}.get(pointer, ())
    return [tag for tag in candidates if tag in directories]


def _laid_out(tags: Tags, at: int, order: str) -> bytes:
    """One directory that lies at `at`, with its values behind it."""
    head = struct.pack(order + "H", len(tags))
    values = b""
    start = at + 2 + 12 * len(tags) + 4
    for tag, (kind, raw) in sorted(tags.items()):
        head += struct.pack(order + "HHI", tag, kind, len(raw) // _SIZES[kind])
        if len(raw) > 4:
            head += struct.pack(order + "I", start + len(values))
            values += raw + bytes(len(raw) % 2)
        else:
            head += raw.ljust(4, b"\0")
    return head + bytes(4) + values


def text_exif(tags: dict[int, str]) -> bytes | None:
    """An EXIF block of texts alone, as UTF-8, by the numbers of their tags."""
    return exif_block({tag: Entry(2, text.encode() + b"\0") for tag, text in tags.items() if text})
