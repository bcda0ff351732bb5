"""TOML files, above all those that come with the package: weights' cards, recipes, tables and data sets."""

import tomllib
from importlib import resources
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from kithkin.errors import InputError


class Section(BaseModel):
    """A table of a TOML file: unknown keys are refused, numbers are finite, values stay as they were read."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


Checked = TypeVar("Checked", bound=BaseModel)


def packaged(place: str) -> Path:
    """The path of a file or folder of the package, named with slashes."""
    return Path(str(resources.files("kithkin") / place))


def toml_files(folder: Path) -> dict[str, Path]:
    """The TOML files of a folder: name without its ending -> path."""
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def read_as(kind: type[Checked], path: Path, what: str) -> Checked:
    """A TOML file as a model of ``kind``; raises InputError where it is not ``what`` (such as "a model card")."""
    try:
        return kind.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, ValidationError) as error:
        raise InputError(f"{path} is not {what}: {error}") from error
