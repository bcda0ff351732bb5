"""Files by path or URL: reading and writing wherever fsspec reaches, such as
``s3://bucket/folder``."""

import contextlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from kithkin.errors import ImageError, InputError, KithkinError
from kithkin.files import replacing
from kithkin.messages import missing_extra, shown

HEADER_BLOCK = 2**18
"""Bytes fetched at once where single headers are wanted: no dearer than one header on most
networks."""

_LOCAL = ("file://", "local://")
_OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oci", "oss"}
"""Protocols of stores in which an object appears whole or not at all."""


def is_url(source: Path | str) -> bool:
    """Whether this is a URL, such as ``s3://bucket/folder``, and no path; ``file://`` counts, see
    ``local_path``."""
    return "://" in str(source)


def local_path(place: str) -> str:
    """A place without ``file://``: such a URL is a path like any other. Other places come back as
    they are."""
    for start in _LOCAL:
        if place.startswith(start):
            return place[len(start) :]
    return place


def name_of(source: Path | str) -> str:
    """The last part of a path or URL, without what a signed URL carries in its query."""
    return PurePosixPath(urlsplit(str(source)).path if is_url(source) else source).name


def suffix_of(place: str) -> str:
    """The ending of a path or URL, in lower case."""
    return Path(place.rpartition("/")[2]).suffix.lower()


def open_system(url: str) -> tuple[Any, str]:
    """(fsspec's file system, the path in it) of a URL; its errors are fsspec's own, see
    ``explained``."""
    from fsspec.core import url_to_fs

    system, path = url_to_fs(url)
    return system, str(path)


def open_file(file: str) -> BinaryIO:
    """A file to look through for its headers, by path or URL."""
    if not is_url(file):
        return open(file, "rb")
    system, path = open_system(file)
    return system.open(path, "rb", block_size=HEADER_BLOCK, cache_type="readahead")


def read_text(file: str) -> str | None:
    """A small text file by path or URL; None where there is none, or a server that hides that
    forbids to read it."""
    try:
        if not is_url(file):
            return Path(file).read_text(encoding="utf-8")
        system, path = open_system(file)
        return str(system.cat_file(path).decode("utf-8"))
    except (FileNotFoundError, PermissionError):
        return None


def write_text(file: str, text: str) -> None:
    """Write a small text file by path or URL; it appears complete or not at all."""
    if is_url(file):
        system, path = open_system(file)
        _write_whole(system, path, text.encode("utf-8"), url=file)
        return
    with replacing(file) as part:
        part.write_text(text, encoding="utf-8")


def file_size(file: str) -> int:
    """Bytes of a file by path or URL."""
    if not is_url(file):
        return os.path.getsize(file)
    system, path = open_system(file)
    return int(system.size(path))


def list_files(url: str, *, missing_ok: bool = False) -> dict[str, int]:
    """URL -> bytes of every file below a URL, sorted.

    Raises:
        InputError: the URL can't be listed, or does not exist (unless ``missing_ok``); with what to
            do.
    """
    with explained(url):
        system, root = open_system(url)
        system.invalidate_cache()
        try:
            listed = system.find(root, detail=True)
        except FileNotFoundError:
            if missing_ok:
                return {}
            raise
    start, skip = url.rstrip("/"), len(root.rstrip("/"))
    return {f"{start}/{path[skip:].lstrip('/')}": listed[path].get("size") or 0 for path in sorted(listed)}


def size_if_file(url: str) -> int | None:
    """The bytes of the file at a URL; None where it is a folder. Raises InputError where it can't
    be looked at."""
    with explained(url):
        system, path = open_system(url)
        return (system.size(path) or 0) if system.isfile(path) else None


def check_reachable(url: str) -> None:
    """Raise InputError where fsspec can't open URLs of this kind here, or another process could
    not."""
    if url.startswith("memory://"):
        raise InputError(f"{url}: memory:// exists within one process alone, so no worker could see it")
    with explained(url):
        open_system(url)


def read_bytes(url: str) -> bytes:
    """The bytes at a URL; raises ImageError where they can't be had."""
    with explained(url, ImageError):
        system, path = open_system(url)
        try:
            # With a start: without one, s3fs fetches a large file in parts, and of an answer that is
            # cut off it neither tries again nor gives the other connections back.
            return bytes(system.cat_file(path, start=0))
        except Exception:
            if system.size(path) != 0:
                raise
            return b""  # nothing starts at 0


def write_bytes(url: str, data: bytes) -> None:
    """Write to a URL, whole or not at all; raises ImageError where that fails."""
    try:
        system, path = open_system(url)
        _write_whole(system, path, data, url=url)
    except Exception as error:
        raise ImageError(f"{shown(url)}: {reason(url, error, did='written')}") from error


def exists(url: str) -> bool:
    """Whether something is at a URL; raises ImageError where that can't be found out."""
    with explained(url, ImageError):
        system, path = open_system(url)
        return bool(system.exists(path))


@contextmanager
def explained(source: str, kind: type[KithkinError] = InputError) -> Iterator[None]:
    """Turn what goes wrong on the way to a file or URL into an error of ours that says what to
    do."""
    try:
        yield
    except KithkinError:
        raise
    except Exception as error:  # every file system that fsspec knows has errors of its own
        raise kind(f"{shown(source)}{': ' if kind is ImageError else ' '}{reason(source, error)}") from error


def reason(source: str, error: Exception, *, did: str = "read") -> str:
    """Why a file or URL can't be had (or "written"), and what to do, without its name."""
    scheme = source.partition("://")[0] if is_url(source) else ""
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, ImportError):
        if (error.name or "").partition(".")[0] != "fsspec" and scheme not in ("s3", "s3a", "http", "https"):
            return f"needs fsspec's client for {scheme}://, which is not installed ({text})"
        return missing_extra("", f"fsspec and its client for {scheme}://", "shards").strip()
    if isinstance(error, FileNotFoundError):
        where = "the bucket, the path and the endpoint" if scheme else "the path"
        return f"does not exist; check {where}, and of a set of shards the numbers in braces"
    if isinstance(error, PermissionError) or type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError"):
        if scheme in ("s3", "s3a"):
            return (
                f"may not be {did} ({text}); give credentials as for every AWS tool (AWS_PROFILE, or AWS_ACCESS_KEY_ID "
                "and AWS_SECRET_ACCESS_KEY), or set FSSPEC_S3_ANON=true for a public bucket"
            )
        return f"may not be {did} ({text}); check the permissions"
    if isinstance(error, ValueError) and "Protocol not known" in text:
        return (
            f"begins with {scheme}://, which fsspec does not know; give a folder, s3://, https:// or another it knows"
        )
    return (
        f"can't be {did} ({text[:200]}); check {'the network and the endpoint' if scheme else 'it'}, then run it again"
    )


def _write_whole(system: Any, path: str, data: bytes, *, url: str) -> None:
    """In an object store a put is atomic; elsewhere a hidden temporary file is renamed."""
    if url.partition("://")[0] in _OBJECT_STORES:
        system.pipe_file(path, data)
        return
    folder = path.rpartition("/")[0]
    temporary = f"{folder}/.kithkin-{secrets.token_hex(8)}.part"
    system.makedirs(folder, exist_ok=True)
    try:
        system.pipe_file(temporary, data)
        system.mv(temporary, path)
    except BaseException:
        with contextlib.suppress(Exception):
            system.rm_file(temporary)
        raise
