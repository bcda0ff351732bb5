"""Where pictures lie: a path of this machine, or a URL that fsspec opens."""

import contextlib
import secrets
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from kithkin.errors import ImageError, InputError
from kithkin.images import SUFFIXES
from kithkin.images._find import FOREIGN_SUFFIXES, RAW_SUFFIXES
from kithkin.images._picture import one_line, shown

INSTALL = 'python3 -m pip install "kithkin[cluster]"'
_LOCAL = ("file://", "local://")
_OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oci", "oss"}
"""Protocols of stores in which an object appears whole or not at all."""


class Found(NamedTuple):
    """A picture below a URL: its own URL, its path below the URL that was listed, its size in bytes."""

    url: str
    below: str
    size: int


def is_url(place: str) -> bool:
    """Whether a place is for fsspec; a file:// URL counts, so map it with ``plain`` first."""
    return "://" in place


def plain(place: str) -> str:
    """Return a place with file:// taken off, since that is a path like any other."""
    for start in _LOCAL:
        if place.startswith(start):
            return place[len(start) :]
    return place


def filesystem(url: str) -> tuple[Any, str]:
    """Return fsspec's file system of a URL, and the path in it.

    Raises:
        InputError: no such protocol, its package is missing, or it does not reach beyond one process.
    """
    try:
        from fsspec.core import url_to_fs
    except ImportError as error:
        raise InputError(f"{url}: URLs need fsspec; install it with: {INSTALL}") from error
    if url.startswith("memory://"):
        raise InputError(f"{url}: memory:// exists within one process alone, so no worker could see it")
    try:
        fs, path = url_to_fs(url, use_listings_cache=False)
    except (ImportError, ValueError) as error:
        raise InputError(f"{url}: can't be opened: {one_line(error)}") from error
    return fs, path


def find_at(url: str) -> list[Found]:
    """Return the pictures below a URL, or the file that it is; hidden ones are left out, as `find_pictures` does.

    Among them are those in formats that kithkin does not read, told by their names.

    Raises:
        ImageError: it is missing, can't be listed, or holds no picture.
    """
    fs, path = filesystem(url)
    try:
        if fs.isfile(path):
            return [Found(url, PurePosixPath(path).name, fs.size(path) or 0)]
        listed = {name: info.get("size") or 0 for name, info in fs.find(path, detail=True).items()}
    except Exception as error:  # Every store has its own kinds.
        raise ImageError(f"{shown(url)}: can't be listed: {one_line(error)}") from error
    start, found = url.rstrip("/"), []
    for name in sorted(listed):
        below = name[len(path.rstrip("/")) :].lstrip("/")
        hidden = any(part.startswith(".") for part in PurePosixPath(below).parts)
        if not hidden and suffix_of(below) in (*SUFFIXES, *RAW_SUFFIXES, *FOREIGN_SUFFIXES):
            found.append(Found(f"{start}/{below}", below, listed[name]))
    if not any(suffix_of(picture.below) in SUFFIXES for picture in found):
        raise ImageError(f"{shown(url)}: holds no picture ({', '.join(SUFFIXES)}); name another place")
    return found


def present_at(url: str) -> set[str]:
    """Return the URLs of all files below a URL: one listing instead of a question a file."""
    fs, path = filesystem(url)
    try:
        names = fs.find(path)
    except FileNotFoundError:
        return set()
    except Exception as error:
        raise InputError(f"{url}: can't be listed: {one_line(error)}; check the address and the rights") from error
    return {f"{url.rstrip('/')}/{name[len(path.rstrip('/')) :].lstrip('/')}" for name in names}


def get(url: str) -> bytes:
    """Return the bytes at a URL; raise ImageError where they can't be had."""
    fs, path = filesystem(url)
    try:
        data: bytes = fs.cat_file(path)
    except FileNotFoundError as error:
        raise ImageError(f"{shown(url)}: does not exist; check the address") from error
    except Exception as error:
        raise ImageError(f"{shown(url)}: can't be read: {one_line(error)}") from error
    return data


def put(data: bytes, url: str) -> None:
    """Write bytes to a URL, whole or not at all; raise ImageError where that fails.

    In an object store a put is atomic; elsewhere a hidden temporary file is renamed.
    """
    fs, path = filesystem(url)
    try:
        if url.partition("://")[0] in _OBJECT_STORES:
            fs.pipe_file(path, data)
        else:
            _put_and_rename(fs, path, data)
    except Exception as error:
        raise ImageError(f"{shown(url)}: can't be written: {one_line(error)}") from error


def _put_and_rename(fs: Any, path: str, data: bytes) -> None:
    folder = path.rpartition("/")[0]
    temporary = f"{folder}/.kithkin-{secrets.token_hex(8)}.part"
    fs.makedirs(folder, exist_ok=True)
    try:
        fs.pipe_file(temporary, data)
        fs.mv(temporary, path)
    except BaseException:
        with contextlib.suppress(Exception):
            fs.rm_file(temporary)
        raise


def exists(url: str) -> bool:
    """Whether something is at a URL; raise ImageError where that can't be found out."""
    fs, path = filesystem(url)
    try:
        return bool(fs.exists(path))
    except Exception as error:
        raise ImageError(f"{shown(url)}: can't be looked at: {one_line(error)}") from error


def suffix_of(place: str) -> str:
    """The ending of a path or URL, in lower case."""
    return Path(place.rpartition("/")[2]).suffix.lower()
