"""Writing a file whole or not at all, and below the folder that it belongs to."""

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path, PureWindowsPath

from kithkin.errors import InputError, KithkinError


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str], *, overwrite: bool = True) -> Iterator[Path]:
    """Give a hidden temporary file beside `path`, which takes that name when the block ends, and
    leaves no trace if the block fails.

    The temporary file is empty at first. It has the permissions of the file that it replaces, or
    those that the umask leaves a new file. It is on the disk before it takes the name, and its
    folder after, so that a power cut leaves the old content or the new. The folder must exist.

    Args:
        path: of the file. A link to one is followed.
        overwrite: whether a file may be replaced.

    Raises:
        FileExistsError: something is at `path` that must stay: with `overwrite`, a folder or a
            device.
        OSError: the system refuses.
    """
    target = Path(os.path.realpath(path) if overwrite else path)
    existing = _status(target)
    if existing is not None and not overwrite:
        raise _exists(target, "exists already")
    if existing is not None and not stat.S_ISREG(existing.st_mode):
        raise _exists(target, "is a folder or a device, not a file")
    part = target.with_name(f".kithkin-{secrets.token_hex(8)}.part")
    try:
        # The umask applies as for every new file: to ask for it would mean to change it for all threads.
        os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666 if existing is None else 0o600))
        mode = stat.S_IMODE(os.stat(part if existing is None else target).st_mode)
        yield part
        _sync(part, mode)
        if overwrite:
            os.replace(part, target)
        else:
            _move_to_new_name(part, target)
        with contextlib.suppress(OSError):  # The file is in place; not every file system can sync a folder.
            sync_folder(target.parent)
    finally:
        with contextlib.suppress(OSError):  # After success the name is gone.
            os.unlink(part)


def write_whole(path: str | os.PathLike[str], data: bytes | str) -> None:
    """Write a small file, text as UTF-8, by ``replacing``; missing folders are made.

    Raises:
        KithkinError: the folder or the disk does not take it.
    """
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as part:
            part.write_bytes(data.encode("utf-8") if isinstance(data, str) else data)
    except OSError as error:
        raise KithkinError(f"{path}: can't be written: {error.strerror or error}") from error


def path_below(folder: str | os.PathLike[str], name: str) -> Path:
    """Return the path of a file below `folder` whose name comes from data: a key, a member of an
    archive, a listing.

    Args:
        folder: that the file must be in, at any depth; it need not exist.
        name: with slashes.

    Raises:
        InputError: the name leads elsewhere, on this system or another: it is empty, absolute,
            names a drive, holds ``..`` or a null character, or passes a link that leaves the
            folder.
    """
    path = Path(folder, name)
    parts = name.replace("\\", "/").split("/")
    leads_out = ".." in parts or set(parts) <= {"", "."} or "\0" in name or bool(PureWindowsPath(name).anchor)
    if not leads_out:
        inside = os.path.realpath(folder)
        leads_out = os.path.commonpath([inside, os.path.realpath(path)]) != inside
    if leads_out:
        raise InputError(
            f"{name!a} names no file below {folder}: a name from data must not lead out of the folder for results; "
            "rename it where it came from"
        )
    return path


def sync_folder(folder: str | os.PathLike[str]) -> None:
    """Wait until the names in a folder are on the disk; raise OSError where that fails."""
    if os.name != "posix":  # Elsewhere a folder can't be opened.
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _exists(path: Path, what: str) -> FileExistsError:
    return FileExistsError(errno.EEXIST, what, str(path))


def _status(path: Path) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except FileNotFoundError:
        return None


def _sync(part: Path, mode: int) -> None:
    """Wait until a file, perhaps one newly made under its name, is on the disk with permissions."""
    descriptor = os.open(part, os.O_RDWR)
    try:
        with contextlib.suppress(OSError):  # A file system without permissions.
            os.chmod(part, mode)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _move_to_new_name(part: Path, target: Path) -> None:
    """Rename, but fail if the name was taken meanwhile: so does a hard link; a rename replaces."""
    try:
        os.link(part, target)
    except FileExistsError:
        raise
    except OSError:  # A file system without hard links; a small gap remains between the look and the rename.
        if os.path.lexists(target):
            raise _exists(target, "exists already") from None
        os.replace(part, target)
