"""What the inputs of a restoration hold: pictures of files, of folders, and at URLs."""

import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path, PurePath
from typing import NamedTuple

from kithkin.errors import ImageError, InputError
from kithkin.images import FOREIGN_SUFFIXES, RAW_SUFFIXES, SUFFIXES, ending_of, look_through
from kithkin.messages import shown
from kithkin.storage import check_reachable, list_files, size_if_file, suffix_of

Place = Path | str
"""A path, or a URL as text."""


def identity(place: Place) -> str:
    """The same text for all paths of one file."""
    return os.path.realpath(place) if isinstance(place, Path) else place


class Content(NamedTuple):
    """What an input holds.

    Attributes:
        results: the folder of its results.
        pictures: source -> name of its result below that folder, and bytes where a listing tells.
        foreign: pictures that kithkin does not read.
    """

    results: Place
    pictures: dict[Place, tuple[str, int]]
    foreign: list[Place]


def content_of(place: Place, results: Place | None, suffix: str | None) -> Content:
    """Look into an input; raise ImageError where it is a folder without a picture that kithkin
    reads."""
    if isinstance(place, str):
        assert results is not None
        return _at_url(place, results, suffix)
    if os.path.isdir(place):
        return _in_folder(place, results, suffix)
    return Content(results or place.parent, {place: (_restored_name(place, suffix), 0)}, [])


def _in_folder(folder: Path, results: Place | None, suffix: str | None) -> Content:
    if results is None:
        named = folder if folder.name not in ("", "..") else folder.resolve()
        if not named.name:
            raise ImageError(f"{shown(folder)}: has no name to derive one for the results from; name a folder for them")
        results = named.with_name(f"{named.name}-restored")
    own, other = os.path.realpath(folder), identity(results)
    results_inside = isinstance(results, Path) and other != own and os.path.commonpath([own, other]) == own

    def is_input(path: Path) -> bool:
        return not (results_inside and Path(other) in Path(os.path.realpath(path)).parents)

    files = look_through(folder)
    foreign: list[Place] = [path for path in files.foreign if is_input(path)]
    pictures: dict[Place, tuple[str, int]] = {
        path: (path.relative_to(folder).with_suffix(suffix or ending_of(path)).as_posix(), 0)
        for path in files.pictures
        if is_input(path)
    }
    if not pictures:
        others = foreign_summary(foreign)
        remedy = f"it holds others, {others}" if others else "name another folder"
        raise ImageError(f"{shown(folder)}: holds no picture that kithkin reads ({', '.join(SUFFIXES)}); {remedy}")
    return Content(results, pictures, foreign)


def _at_url(url: str, results: Place, suffix: str | None) -> Content:
    pictures: dict[Place, tuple[str, int]] = {}
    foreign: list[Place] = []
    for source, below, size in _listed(url):
        name = PurePath(below)
        ending = suffix_of(below)
        if source != url and ending not in (*SUFFIXES, *RAW_SUFFIXES):
            foreign.append(source)
            continue
        own = name.suffix if ending in SUFFIXES else ".tiff" if ending in RAW_SUFFIXES else ".png"
        name = name.with_name(f"{name.stem}-restored{own}") if source == url else name.with_suffix(own)
        pictures[source] = ((name.with_suffix(suffix) if suffix else name).as_posix(), size)
    return Content(results, pictures, foreign)


def _listed(url: str) -> list[tuple[str, str, int]]:
    """URL, path below ``url`` and bytes of the pictures there, or of the file that it is; hidden
    ones are left out.

    Among them are those in formats that kithkin does not read, told by their names.

    Raises:
        InputError: the URL can't be opened by any worker.
        ImageError: it is missing, can't be listed, or holds no picture.
    """
    check_reachable(url)
    try:
        if (size := size_if_file(url)) is not None:
            return [(url, PurePath(url).name, size)]
        files = list_files(url)
    except InputError as error:
        raise ImageError(str(error)) from error
    known, start = (*SUFFIXES, *RAW_SUFFIXES, *FOREIGN_SUFFIXES), len(url.rstrip("/")) + 1
    pictures = [
        (file, file[start:], size)
        for file, size in files.items()
        if suffix_of(file) in known and not any(part.startswith(".") for part in file[start:].split("/"))
    ]
    if not any(suffix_of(below) in (*SUFFIXES, *RAW_SUFFIXES) for _, below, _ in pictures):
        raise ImageError(f"{shown(url)}: holds no picture ({', '.join(SUFFIXES)}); name another place")
    return pictures


def beside(path: str | os.PathLike[str]) -> Path:
    """Where the result of a file goes by default: ``photo-restored.jpg`` for ``photo.jpg``."""
    return Path(path).with_name(_restored_name(Path(path), None))


def _restored_name(path: Path, suffix: str | None) -> str:
    return f"{path.stem}-restored{suffix or ending_of(path)}"


def foreign_summary(foreign: Iterable[Place]) -> str | None:
    """Return one sentence that counts pictures in formats that kithkin does not read, and says what
    to do; None for none."""
    endings = [_kind(place) for place in foreign]
    if not endings:
        return None
    counts = Counter(endings).most_common()
    listed = []
    for why in (_CONVERT, _INSTALL):
        if named := ", ".join(f"{count} {ending}" for ending, count in counts if _reason(ending) == why):
            listed.append(f"{named} ({why})")
    return f"{len(endings)} {'file' if len(endings) == 1 else 'files'} skipped: {'; '.join(listed)}"


_CONVERT = "not read by kithkin: convert to PNG, JPEG, WebP, TIFF or BMP first, as with `magick IN OUT.png`"
_INSTALL = 'to read them: pip install "kithkin[photo]"'


def _reason(ending: str) -> str:
    """Why a picture with this ending is not read."""
    return _INSTALL if ending in (*SUFFIXES, *RAW_SUFFIXES) else _CONVERT


def _kind(place: Place) -> str:
    return PurePath(place).suffix.lower() or "without an ending"


def unread_reason(source: Place) -> str:
    """Why a picture in a format that kithkin does not read is skipped."""
    return f"{shown(source)}: {_reason(_kind(source))}"
