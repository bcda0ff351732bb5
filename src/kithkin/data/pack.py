"""Packing photographs into tar shards of a given size, to carry a training set to another machine in parts."""

import hashlib
import json
import random
import tarfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from os import cpu_count
from pathlib import Path
from typing import IO, NamedTuple

from kithkin.data.ahead import in_order
from kithkin.data.left_out import full_name
from kithkin.data.shards import write_indexes
from kithkin.errors import ImageError, InputError
from kithkin.images import Picture, encode_picture, find_pictures, read_picture

INDEX = "pack.json"
_BLOCK = tarfile.BLOCKSIZE
_END = 2 * _BLOCK


@dataclass(frozen=True)
class PackOptions:
    """How a pack is made.

    Attributes:
        part_mb: largest size of a part, in MB (1e6 bytes).
        parts: how many parts at most; None takes as many as the photographs fill.
        crop: side in pixels of the crops that photographs are cut into; None packs whole files, byte for byte.
        quality: of the JPEG (4:4:4) that crops are stored as.
        seed: of the order in which photographs are dealt to the parts, so that each part is a fair sample.
        exclude: names, as folder/file, of photographs to leave out: those that are validated on.
    """

    part_mb: float = 28.0
    parts: int | None = None
    crop: int | None = None
    quality: int = 92
    seed: int = 0
    exclude: frozenset[str] = frozenset()


@dataclass(frozen=True)
class PackReport:
    """What was packed.

    Attributes:
        parts: paths of the tar files.
        pictures: in all parts.
        left_out: pictures that the parts had no room for.
        small: photographs with a side shorter than a crop.
        excluded: photographs that ``exclude`` names.
        failed: why a file is not in the pack, a line each.
    """

    parts: tuple[Path, ...]
    pictures: int
    left_out: int
    small: int
    excluded: int
    failed: tuple[str, ...]


class _Entry(NamedTuple):
    """A picture of the pack: its name there, the photograph it comes from (folder/file), (height, width), bytes."""

    name: str
    source: str
    size: tuple[int, int]
    data: bytes


def pack_photos(
    folders: Sequence[str | Path],
    out: str | Path,
    options: PackOptions | None = None,
    *,
    report: Callable[[int, int], None] | None = None,
) -> PackReport:
    """Write photographs into ``part-000.tar``, ``part-001.tar``, …, each with its index, and ``pack.json``.

    The parts are ordinary tar shards: ``--data 'part-{000..001}.tar'`` trains from them. Each has an index beside it
    (``part-000.idx``). ``pack.json`` names every picture, the file it comes from, its size and its SHA-256.

    Args:
        folders: searched recursively.
        out: a folder that holds no pack yet.
        options: sizes and crops.
        report: called with how many photographs are done and how many there are.

    Raises:
        InputError: a value is out of range, there is no photograph, ``out`` holds a pack or can't be written, or a
            picture is larger than a part.
    """
    options = options or PackOptions()
    out = Path(out)
    files, excluded = _photographs(folders, options)
    _prepare(out)
    entries: list[dict[str, object]] = []
    failed: list[str] = []
    left_out = small = 0
    parts = _Parts(out, int(options.part_mb * 1e6), options.parts)
    with _writing(out), parts, ThreadPoolExecutor(cpu_count()) as pool:
        # A few ahead: a pack of crops does not fit in memory at once.
        packed = in_order(lambda file: pool.submit(_pack_one, *file, options), files, 2 * (cpu_count() or 1))
        for done, outcome in enumerate(packed, start=1):
            if isinstance(outcome, str):
                failed.append(outcome)
            elif not outcome:
                small += 1
            else:
                for entry in outcome:
                    part = parts.add(entry)
                    left_out += part is None
                    if part is not None:
                        entries.append(_row(part, entry))
            if report:
                report(done, len(files))
    for path in parts.paths:
        write_indexes(path, lambda index, count: None)
    with _writing(out):
        _write_index(out, parts.paths, entries, options)
    return PackReport(tuple(parts.paths), len(entries), left_out, small, excluded, tuple(failed))


def _photographs(folders: Sequence[str | Path], options: PackOptions) -> tuple[list[tuple[Path, str]], int]:
    """(file, name in the pack) of every photograph, in the order in which they are packed; and how many more there
    are that the options exclude."""
    counts = (options.parts, options.crop)
    if options.part_mb <= 0 or any(count is not None and count < 1 for count in counts):
        raise InputError(
            f"pack: part_mb is above 0, parts and crop are at least 1; got {options.part_mb}, {options.parts} and "
            f"{options.crop}"
        )
    named: dict[str, Path] = {}
    for folder in map(Path, folders):
        for file in find_pictures(folder):
            name = full_name(folder.resolve().name, file.relative_to(folder).as_posix())
            if name in named:
                raise InputError(f"pack: {file} and {named[name]} have the same name in the pack; rename one of them")
            named[name] = file
    if not named:
        raise InputError(f"pack: there is no photograph in {', '.join(map(str, folders)) or 'no folder'}")
    files = [(file, name) for name, file in sorted(named.items()) if name not in options.exclude]
    random.Random(options.seed).shuffle(files)
    return files, len(named) - len(files)


def _prepare(out: Path) -> None:
    if any(out.glob("part-*.tar")) or (out / INDEX).exists():
        raise InputError(f"pack: {out} holds a pack already; give another folder")
    with _writing(out):
        out.mkdir(parents=True, exist_ok=True)


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"pack: {out} can't be written ({error.strerror or error}); give another folder") from error


def _pack_one(file: Path, name: str, options: PackOptions) -> list[_Entry] | str:
    """The pictures that a photograph gives, none where it is too small, or why it can't be read."""
    try:
        picture = read_picture(file)
        height, width = picture.pixels.shape[:2]
        if options.crop is None or (height, width) == (options.crop, options.crop):
            return [_Entry(name, name, (height, width), file.read_bytes())]
        return list(_crops(picture, name, options.crop, options.quality))
    except (ImageError, OSError) as error:
        return str(error)


def _crops(picture: Picture, name: str, crop: int, quality: int) -> Iterator[_Entry]:
    """As many crops side by side as fit, in the middle; on multiples of 8 pixels, where a JPEG's blocks begin."""
    tops, lefts = (
        [(side % crop) // 16 * 8 + i * crop for i in range(side // crop)] for side in picture.pixels.shape[:2]
    )
    for top in tops:
        for left in lefts:
            piece = Picture(picture.pixels[top : top + crop, left : left + crop])
            called = f"{name.rpartition('.')[0]}-{top:05}-{left:05}.jpg"
            yield _Entry(called, name, (crop, crop), encode_picture(piece, called, quality=quality))


class _Parts:
    """The tar files of a pack, filled one after the other."""

    def __init__(self, out: Path, size: int, most: int | None) -> None:
        self.paths: list[Path] = []
        self._out, self._size, self._most = out, size, most
        self._used = 0
        self._file: IO[bytes] | None = None

    def __enter__(self) -> "_Parts":
        return self

    def __exit__(self, *error: object) -> None:
        self._close()

    def add(self, entry: _Entry) -> int | None:
        """The number of the part that takes this picture; None where there is no room left for it."""
        info = tarfile.TarInfo(entry.name)
        info.size = len(entry.data)
        header = info.tobuf(tarfile.PAX_FORMAT)
        needed = len(header) + -(-info.size // _BLOCK) * _BLOCK
        if needed + _END > self._size:
            raise InputError(
                f"pack: {entry.source} takes {needed:,} bytes and a part holds {self._size:,}; give larger parts, or "
                "cut it with crop"
            )
        if self._file is None or self._used + needed + _END > self._size:
            if self._most is not None and len(self.paths) == self._most:
                return None
            self._open()
        assert self._file is not None
        self._file.write(header + entry.data + bytes(-info.size % _BLOCK))
        self._used += needed
        return len(self.paths) - 1

    def _open(self) -> None:
        self._close()
        path = self._out / f"part-{len(self.paths):03}.tar"
        self.paths.append(path)
        self._file, self._used = path.open("wb"), 0

    def _close(self) -> None:
        if self._file is not None:
            self._file.write(bytes(_END))
            self._file.close()
            self._file = None


def _row(part: int, entry: _Entry) -> dict[str, object]:
    digest = hashlib.sha256(entry.data).hexdigest()
    return {"part": part, "name": entry.name, "source": entry.source, "size": list(entry.size), "sha256": digest}


def _write_index(out: Path, paths: list[Path], entries: list[dict[str, object]], options: PackOptions) -> None:
    whole = {
        "options": asdict(options) | {"exclude": sorted(options.exclude)},
        "parts": [path.name for path in paths],
        "pictures": entries,
    }
    (out / INDEX).write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
