"""Finding the picture files of a folder."""

import os
from pathlib import Path

from kithkin.errors import ImageError
from kithkin.images._picture import one_line, os_reason, shown

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")
"""The file name endings of the formats that kithkin reads and writes, in lower case."""


def find_pictures(folder: str | os.PathLike[str]) -> list[Path]:
    """Return the files under `folder`, at any depth, whose names end as in SUFFIXES (in any case), sorted.

    Files and folders whose names begin with a dot are left out, and so is everything that is not a regular
    file. Links to files count; links to folders are not followed, so there are no endless loops.

    Raises ImageError where `folder`, or a folder within it, is missing, not a folder or not readable.
    """
    found: list[Path] = []
    try:
        for root, folders, files in os.walk(folder, onerror=_raise):
            folders[:] = [name for name in folders if not name.startswith(".")]
            for name in files:
                path = Path(root, name)
                if not name.startswith(".") and path.suffix.lower() in SUFFIXES and path.is_file():
                    found.append(path)
    except OSError as error:
        where = Path(os.fsdecode(error.filename)) if error.filename else Path(folder)
        raise ImageError(f"{shown(where)}: can't be listed: {os_reason(error)}") from error
    except ValueError as error:  # a null character
        raise ImageError(f"{shown(Path(folder))}: is not a path ({one_line(error)}); check it") from error
    return sorted(found)


def _raise(error: OSError) -> None:
    raise error
