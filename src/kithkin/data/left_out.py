"""Photographs that are left out of a folder, by a list of their names: those that are validated on."""

from pathlib import Path, PurePosixPath

from kithkin.errors import InputError


def read_names(path: Path) -> frozenset[str]:
    """The names in a text file, ``FOLDER/FILE``, one a line; of a table with tabs, its first column.

    Raises:
        InputError: it can't be read.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} can't be read as a list of names ({error}); give a text file") from error
    return frozenset(line.partition("\t")[0].strip() for line in lines if line.strip())


def full_name(folder: str, name: str) -> str:
    """``FOLDER/FILE``, as lists and packs name a photograph: with ``_`` for blanks, which separate the fields of a
    shard's index.

    Args:
        folder: its name, without what lies above it.
        name: of the file, relative to the folder, with slashes.
    """
    return "_".join(str(PurePosixPath(folder, name)).split())
