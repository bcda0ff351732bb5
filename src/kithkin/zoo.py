"""The weights that ship with the package, and what is known about each: its model card.

A model is two files in ``weights/``: ``<name>.safetensors`` and ``<name>.toml``, the card.
"""

import hashlib
import tomllib
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from kithkin.checkpoint import read_model
from kithkin.errors import CheckpointError, InputError
from kithkin.model import KiT


class Measurement(BaseModel):
    """One measured number: ``value`` ``unit`` on ``dataset`` at ``condition``, by ``protocol``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dataset: str
    condition: str
    protocol: str
    value: float
    unit: str


class Source(BaseModel):
    """Photographs that a model was trained on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    count: int
    licence: str


class ModelCard(BaseModel):
    """What is known about weights that ship.

    Attributes:
        name: what ``--model`` and ``load_model`` take.
        task: denoise, denoise-real, derain or deblur; also taken as a name where ``default`` is set.
        default: these are the weights of their task that are taken first.
        summary: one sentence on what goes in and comes out.
        sha256: of the weight file.
        recipe, commit: what trained them, and the revision of the code.
        steps, crops, hours, machine: how long and on what.
        licence: of the weights.
        limits: what they are not made for.
        sources: training photographs.
        measured: numbers, each under a named protocol.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    task: str
    default: bool
    summary: str
    sha256: str
    recipe: str
    commit: str
    steps: int
    crops: int
    hours: float
    machine: str
    licence: str
    limits: str
    sources: tuple[Source, ...]
    measured: tuple[Measurement, ...]

    @property
    def path(self) -> Path:
        """The weight file."""
        return _folder() / f"{self.name}.safetensors"


def list_models() -> dict[str, ModelCard]:
    """The models that come with the package: name -> card."""
    return {path.stem: _read_card(path) for path in sorted(_folder().glob("*.toml"))}


def find_model(name: str) -> ModelCard | None:
    """The card of a shipped model by its name, or by the name of its task where it is the default; else None."""
    cards = list_models()
    return cards.get(name) or next((c for c in cards.values() if c.default and c.task == name), None)


def load_model(name_or_path: str | Path, *, device: str | torch.device = "cpu") -> KiT:
    """A network with its weights, in float32 and evaluation mode.

    Args:
        name_or_path: a name or task from ``list_models`` (``"denoise"``), or the path of a checkpoint.
        device: where it goes.

    Raises:
        InputError: the device can't be used here.
        CheckpointError: no such model or file, or it is damaged; a shipped file must have the card's sha256.
    """
    _check_device(device)
    card = find_model(str(name_or_path))
    if card is None:
        path = Path(name_or_path)
        if not path.is_file():
            cards = list_models()
            known = ", ".join(sorted({c.task for c in cards.values() if c.default} | cards.keys())) or "none"
            raise CheckpointError(f"{name_or_path} is neither a model that ships ({known}) nor a file")
        return read_model(path).to(device)
    found = hashlib.sha256(card.path.read_bytes()).hexdigest() if card.path.is_file() else "missing"
    if found != card.sha256:
        raise CheckpointError(f"{card.path}: its sha256 is {found}, the card says {card.sha256}; install kithkin again")
    return read_model(card.path).to(device)


def _check_device(device: str | torch.device) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:  # Which one depends on how PyTorch was built.
        reason = str(error).splitlines()[0].rstrip(".")
        raise InputError(
            f"load_model: the device {str(device)!r} can't be used ({reason}); take 'cpu', or install a PyTorch that "
            "knows the device"
        ) from error


def _folder() -> Path:
    return Path(str(resources.files("kithkin") / "weights"))


def _read_card(path: Path) -> ModelCard:
    try:
        values: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
        return ModelCard.model_validate(values)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, ValidationError) as error:
        raise InputError(f"{path} is not a model card: {error}") from error
