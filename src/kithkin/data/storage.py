"""Where pictures lie that are no files of their own on this machine: within tar shards, behind URLs, or both."""

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple, TypeAlias, TypeVar
from urllib.parse import urlsplit

from kithkin.errors import ImageError, InputError, KithkinError
from kithkin.files import replacing
from kithkin.images import SUFFIXES

PAUSES = (1.0, 3.0, 9.0)
"""Seconds between the attempts to fetch what a server did not give, beside the attempts of its own client."""

HEADER_BLOCK = 2**18
"""Bytes fetched at once where single headers are wanted: no dearer than one header on most networks."""

PARALLEL = 16
"""Files that are looked through at a time."""

T = TypeVar("T")


class Member(NamedTuple):
    """A picture within a shard, or a whole file behind a URL.

    Attributes:
        file: path or URL of the file that holds it.
        name: within the shard, or relative to the folder that was searched.
        offset, size: of its bytes in the file; no member of a tar file begins at 0.
    """

    file: str
    name: str
    offset: int
    size: int

    def __str__(self) -> str:
        return f"{self.name} in {self.file}" if self.offset else self.file


Place: TypeAlias = Path | Member


def is_url(source: Path | str) -> bool:
    """Whether this is a URL, such as ``s3://bucket/folder``, and no path."""
    return "://" in str(source)


def name_of(source: Path | str) -> str:
    """The last part of a path or URL, without what a signed URL carries in its query."""
    return PurePosixPath(urlsplit(str(source)).path if is_url(source) else source).name


def is_picture(name: str) -> bool:
    """Whether a name, with slashes, is that of a picture; names that begin with a dot are not, as in folders."""
    path = PurePosixPath(name)
    return path.suffix.lower() in SUFFIXES and not any(part.startswith(".") for part in path.parts)


def find_members(url: str) -> list[Member]:
    """The pictures below the URL of a folder, at any depth, sorted by name.

    Raises:
        InputError: there is no picture, or the URL can't be listed; with what to do.
    """
    with explained(url):
        system, root = open_system(url)
        found: dict[str, Any] = system.find(root, detail=True)
        whole = {path: str(system.unstrip_protocol(path)) for path in found}
    names = {path: path.removeprefix(root.rstrip("/") + "/") for path in found}
    members = [Member(whole[p], name, 0, found[p]["size"]) for p, name in names.items() if is_picture(name)]
    if not members:
        shards = sorted(name for name in names.values() if name.endswith(".tar"))
        hint = f"; name its shards, such as {url.rstrip('/')}/{shards[0]}" if shards else "; check the URL"
        raise InputError(f"{url} holds no picture{hint}")
    return sorted(members, key=lambda member: member.name.split("/"))


def open_file(file: str) -> BinaryIO:
    """A file to look through for its headers, by path or URL."""
    if not is_url(file):
        return open(file, "rb")
    system, path = open_system(file)
    return system.open(path, "rb", block_size=HEADER_BLOCK, cache_type="readahead")


def read_text(file: str) -> str | None:
    """A small text file by path or URL; None where there is none, or a server that hides that forbids to read it."""
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
        system.pipe_file(path, text.encode("utf-8"))
        return
    with replacing(file) as part:
        part.write_text(text, encoding="utf-8")


def file_size(file: str) -> int:
    """Bytes of a file by path or URL."""
    if not is_url(file):
        return os.path.getsize(file)
    system, path = open_system(file)
    return int(system.size(path))


def open_system(url: str) -> tuple[Any, str]:
    """(fsspec's file system, the path in it) of a URL."""
    from fsspec.core import url_to_fs

    system, path = url_to_fs(url)
    return system, str(path)


@contextmanager
def explained(source: str) -> Iterator[None]:
    """Turn what goes wrong on the way to a file or URL into an InputError that says what to do."""
    try:
        yield
    except KithkinError:
        raise
    except Exception as error:  # every file system that fsspec knows has errors of its own
        raise InputError(f"{source} {_reason(source, error)}") from error


def in_parallel(act: Callable[[str], T], files: Sequence[str]) -> list[T]:
    """What ``act`` says of every file, in their order."""
    with ThreadPoolExecutor(max_workers=min(PARALLEL, len(files))) as pool:
        return list(pool.map(act, files))


def read_members(members: Iterable[Member]) -> dict[Member, bytes]:
    """The bytes of pictures; what lies behind URLs is fetched at the same time, and again after a failure.

    Raises:
        ImageError: a file is not there, has become shorter, or its server does not answer.
    """
    wanted = list(dict.fromkeys(members))
    found = {member: _read(member) for member in wanted if not is_url(member.file)}
    found |= {member: b"" for member in wanted if not member.size}  # a range without bytes can't be asked for
    found |= _fetch([member for member in wanted if member not in found])
    for member, data in found.items():
        if len(data) != member.size:
            raise ImageError(
                f"{member}: has {len(data):,} of the {member.size:,} bytes that were found there at the start of the "
                "run; put the file back as it was, or start anew"
            )
    return found


def _read(member: Member) -> bytes:
    try:
        with open(member.file, "rb") as file:
            return os.pread(file.fileno(), member.size, member.offset)
    except OSError as error:
        raise ImageError(f"{member}: can't be read: {error.strerror or error}; check that the disk is there") from error


def _fetch(members: list[Member]) -> dict[Member, bytes]:
    found: dict[Member, bytes] = {}
    for pause in (*PAUSES, None):
        missing = [member for member in members if member not in found]
        if not missing:
            break
        answers = _request(missing)
        found |= {m: bytes(data) for m, data in zip(missing, answers, strict=True) if not isinstance(data, Exception)}
        failures = [(m, e) for m, e in zip(missing, answers, strict=True) if isinstance(e, Exception)]
        lasting = [(m, e) for m, e in failures if isinstance(e, FileNotFoundError | PermissionError | ImportError)]
        if lasting or (failures and pause is None):
            member, error = (lasting or failures)[0]
            raise ImageError(f"{member}: {_reason(member.file, error)}") from error
        if failures and pause is not None:
            time.sleep(pause)
    return found


def _request(members: list[Member]) -> list[bytes | Exception]:
    """The bytes, or what went wrong, of every member."""
    answers: dict[Member, bytes | Exception] = {}
    by_system: dict[int, tuple[Any, list[tuple[Member, str]]]] = {}
    for member in members:
        try:
            system, path = open_system(member.file)
        except Exception as error:
            answers[member] = error
            continue
        by_system.setdefault(id(system), (system, []))[1].append((member, path))
    for system, places in by_system.values():
        starts, ends = ([m.offset for m, _ in places], [m.offset + m.size for m, _ in places])
        try:
            found = system.cat_ranges([path for _, path in places], starts, ends, on_error="return")
        except Exception as error:
            found = [error] * len(places)
        answers |= {member: data for (member, _), data in zip(places, found, strict=True)}
    return [answers[member] for member in members]


def _reason(source: str, error: Exception) -> str:
    scheme = source.partition("://")[0] if is_url(source) else ""
    told = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, ImportError):
        if (error.name or "").partition(".")[0] != "fsspec" and scheme not in ("s3", "s3a", "http", "https"):
            return f"needs fsspec's client for {scheme}://, which is not installed ({told})"
        return f'needs fsspec and its client for {scheme}://; install them with: pip install "kithkin[shards]"'
    if isinstance(error, FileNotFoundError):
        where = "the bucket, the path and the endpoint" if scheme else "the path"
        return f"does not exist; check {where}, and of a set of shards the numbers in braces"
    if isinstance(error, PermissionError) or type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError"):
        if scheme in ("s3", "s3a"):
            return (
                f"may not be read ({told}); give credentials as for every AWS tool (AWS_PROFILE, or AWS_ACCESS_KEY_ID "
                "and AWS_SECRET_ACCESS_KEY), or set FSSPEC_S3_ANON=true for a public bucket"
            )
        return f"may not be read ({told}); check the permissions"
    if isinstance(error, ValueError) and "Protocol not known" in told:
        return (
            f"begins with {scheme}://, which fsspec does not know; give a folder, s3://, https:// or another it knows"
        )
    return (
        f"can't be read ({told[:200]}); check {'the network and the endpoint' if scheme else 'it'}, then run it again"
    )
