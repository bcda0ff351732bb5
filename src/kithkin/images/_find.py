"""Finding the picture files of a folder."""

import os
from dataclasses import dataclass
from pathlib import Path

from kithkin.errors import ImageError
from kithkin.images._formats import (
    ENDINGS,
    FOREIGN_SUFFIXES,
    FORMATS,
    RAW_SUFFIXES,
    SUFFIXES,
    foreign_format,
    is_installed,
    known_format,
)
from kithkin.messages import one_line, os_reason, shown


@dataclass(frozen=True)
class FolderContent:
    """The pictures of a folder, each list sorted.

    Attributes:
        pictures: what kithkin reads: files whose names end as in SUFFIXES and RAW_SUFFIXES, and others that are such a
            picture by their content.
        foreign: pictures in formats that it does not read, or that need a package that is not installed.
    """

    pictures: tuple[Path, ...]
    foreign: tuple[Path, ...]


def look_through(folder: str | os.PathLike[str]) -> FolderContent:
    """Return the pictures under `folder`, at any depth, told by their content where their names don't tell.

    What is passed over is as in `find_pictures`. Raises ImageError as that does; a file that can't be opened counts as
    what its name says.
    """
    pictures: list[Path] = []
    foreign: list[Path] = []
    for path in _files(folder):
        suffix = path.suffix.lower()
        kind = "raw" if suffix in RAW_SUFFIXES else FORMATS.get(suffix)
        head = b"" if kind else _head(path)
        if kind is None and _is_picture(head):
            kind = known_format(head)
        if kind is not None:
            (pictures if is_installed(kind) else foreign).append(path)
        elif suffix in FOREIGN_SUFFIXES or foreign_format(head) not in (None, "a PDF", "an SVG"):
            foreign.append(path)
    return FolderContent(tuple(pictures), tuple(foreign))


def ending_of(path: str | os.PathLike[str]) -> str:
    """Return the file name ending for a picture of the same format: its own, or that of its content, or ``.png``."""
    path = Path(path)
    if path.suffix.lower() in SUFFIXES:
        return path.suffix
    return ENDINGS.get(known_format(_head(path), path) or "", ".png")


def find_pictures(folder: str | os.PathLike[str]) -> list[Path]:
    """Return the files under `folder`, at any depth, whose names end as in SUFFIXES (in any case), sorted.

    Files and folders whose names begin with a dot are left out, and so is everything that is not a regular
    file. Links to files count; links to folders are not followed, so there are no endless loops.

    Raises ImageError where `folder`, or a folder within it, is missing, not a folder or not readable.
    """
    return [path for path in _files(folder) if path.suffix.lower() in SUFFIXES]


def _files(folder: str | os.PathLike[str]) -> list[Path]:
    """Return the regular files under `folder` that are not hidden, sorted."""
    found: list[Path] = []
    try:
        for root, folders, files in os.walk(folder, onerror=_raise):
            folders[:] = [name for name in folders if not name.startswith(".")]
            paths = (Path(root, name) for name in files if not name.startswith("."))
            found += [path for path in paths if path.is_file()]
    except OSError as error:
        where = Path(os.fsdecode(error.filename)) if error.filename else Path(folder)
        raise ImageError(f"{shown(where)}: can't be listed: {os_reason(error)}") from error
    except ValueError as error:  # a null character
        raise ImageError(f"{shown(Path(folder))}: is not a path ({one_line(error)}); check it") from error
    return sorted(found)


def _head(path: Path) -> bytes:
    try:
        if not path.is_file():  # To open a pipe would wait for ever.
            return b""
        with open(path, "rb") as file:
            return file.read(256)
    except (OSError, ValueError):
        return b""


def _is_picture(head: bytes) -> bool:
    """Whether a file is one that kithkin reads. Two letters make no BMP file, so more of its header is looked at."""
    kind = known_format(head)
    return kind is not None and (kind != "BMP" or (head[6:10] == bytes(4) and head[15:18] == bytes(3)))


def _raise(error: OSError) -> None:
    raise error
