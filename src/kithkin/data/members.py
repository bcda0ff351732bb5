"""Pictures that are not local files of their own: within tar shards, behind URLs, or both."""

import os
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, TypeAlias, TypeVar

from kithkin.errors import ImageError, InputError
from kithkin.images import SUFFIXES
from kithkin.storage import is_url, list_files, open_system, reason

PAUSES = (1.0, 3.0, 9.0)
"""Seconds between the attempts to fetch what a server did not give, beside the attempts of its own client."""

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


def is_picture(name: str) -> bool:
    """Whether a name, with slashes, is that of a picture; names that begin with a dot are not, as in folders."""
    path = PurePosixPath(name)
    return path.suffix.lower() in SUFFIXES and not any(part.startswith(".") for part in path.parts)


def find_members(url: str) -> list[Member]:
    """The pictures below the URL of a folder, at any depth, sorted by name.

    Raises:
        InputError: there is no picture, or the URL can't be listed; with what to do.
    """
    sizes, start = list_files(url), len(url.rstrip("/")) + 1
    names = {whole: whole[start:] for whole in sizes}
    members = [Member(whole, name, 0, sizes[whole]) for whole, name in names.items() if is_picture(name)]
    if not members:
        shards = sorted(name for name in names.values() if name.endswith(".tar"))
        hint = f"; name its shards, such as {url.rstrip('/')}/{shards[0]}" if shards else "; check the URL"
        raise InputError(f"{url} holds no picture{hint}")
    return sorted(members, key=lambda member: member.name.split("/"))


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
    contents = {member: _read(member) for member in wanted if not is_url(member.file)}
    contents |= {member: b"" for member in wanted if not member.size}  # a range without bytes can't be asked for
    contents |= _fetch([member for member in wanted if member not in contents])
    for member, data in contents.items():
        if len(data) != member.size:
            raise ImageError(
                f"{member}: has {len(data):,} of the {member.size:,} bytes that were found there at the start of the "
                "run; put the file back as it was, or start anew"
            )
    return contents


def _read(member: Member) -> bytes:
    try:
        with open(member.file, "rb") as file:
            return os.pread(file.fileno(), member.size, member.offset)
    except OSError as error:
        raise ImageError(f"{member}: can't be read: {error.strerror or error}; check that the disk is there") from error


def _fetch(members: list[Member]) -> dict[Member, bytes]:
    contents: dict[Member, bytes] = {}
    for pause in (*PAUSES, None):
        missing = [member for member in members if member not in contents]
        if not missing:
            break
        answers = _request(missing)
        contents |= {
            m: bytes(data) for m, data in zip(missing, answers, strict=True) if not isinstance(data, Exception)
        }
        failures = [(m, e) for m, e in zip(missing, answers, strict=True) if isinstance(e, Exception)]
        lasting = [(m, e) for m, e in failures if isinstance(e, FileNotFoundError | PermissionError | ImportError)]
        if lasting or (failures and pause is None):
            member, error = (lasting or failures)[0]
            raise ImageError(f"{member}: {reason(member.file, error)}") from error
        if failures and pause is not None:
            time.sleep(pause)
    return contents


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
            results = system.cat_ranges([path for _, path in places], starts, ends, on_error="return")
        except Exception as error:
            results = [error] * len(places)
        answers |= {member: data for (member, _), data in zip(places, results, strict=True)}
    return [answers[member] for member in members]
