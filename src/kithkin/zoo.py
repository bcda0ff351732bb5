"""The weights that ship with the package, and what is known about each: its model card.

A model is two files in ``weights/``: ``<name>.safetensors`` and ``<name>.toml``, the card.
"""

import hashlib
import re
from dataclasses import replace
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

import torch

from kithkin.checkpoint import read_model
from kithkin.errors import CheckpointError, InputError
from kithkin.layers import KNNLocalAttention
from kithkin.model import KiT
from kithkin.model_config import LARGEST
from kithkin.names import current_name
from kithkin.packaged import Section, packaged, read_as, toml_files

Network = TypeVar("Network")
_WEIGHTS = packaged("weights")
GROUPING = {"k": "k", "h": "n_hashes"}
"""What may stand in brackets behind a model's name, ``denoise-gaussian[k=8,h=2]``: the paper's letter -> ours."""


class Measurement(Section):
    """One measured number: ``value`` ``unit`` on ``dataset`` at ``condition``, by ``protocol``."""

    dataset: str
    condition: str
    protocol: str
    value: float
    unit: str


class Source(Section):
    """Photographs that a model was trained on."""

    name: str
    count: int
    licence: str


class ModelCard(Section):
    """What is known about weights that ship.

    Attributes:
        name: what ``--model`` and ``load_model`` take.
        task: denoise, denoise-gaussian, derain or deblur; also taken as a name where ``default`` is set.
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
        return _WEIGHTS / f"{self.name}.safetensors"


def list_models() -> dict[str, ModelCard]:
    """The models that come with the package: name -> card."""
    return {name: read_as(ModelCard, path, "a model card") for name, path in toml_files(_WEIGHTS).items()}


def find_model(name: str) -> ModelCard | None:
    """The card of a shipped model by its name, or by the name of its task where it is the default; else None."""
    cards, name = list_models(), current_name(name)
    return cards.get(name) or next((c for c in cards.values() if c.default and c.task == name), None)


def load_model(
    name_or_path: str | Path,
    *,
    k: int | None = None,
    n_hashes: int | None = None,
    device: str | torch.device = "cpu",
) -> KiT:
    """A network with its weights, in float32 and evaluation mode.

    No weight depends on k and h, so every model takes others than it was trained with: as arguments, or in brackets
    behind its name (``"denoise-gaussian[k=8,h=2]"``), which is how commands take them.

    Args:
        name_or_path: a name or task from ``list_models`` (``"denoise"``), or the path of a checkpoint.
        k: patches in a chunk; None takes the checkpoint's.
        n_hashes: hash rounds h; None takes the checkpoint's.
        device: where it goes.

    Raises:
        InputError: the device can't be used here, or k or h is out of range, given twice or not in this network.
        CheckpointError: no such model or file, or it is damaged; a shipped file must have the card's sha256.
    """
    return open_model(name_or_path, k=k, n_hashes=n_hashes, device=device).network


class OpenedModel(NamedTuple, Generic[Network]):
    """A network, and what it is.

    Attributes:
        network: as ``load_model`` gives it, or another restorer.
        name: of the card or the file, and behind it in brackets the k and h that are not the checkpoint's.
        card: None where it does not ship.
        remark: a sentence on a k or h that is not the checkpoint's, else None.
    """

    network: Network
    name: str
    card: ModelCard | None = None
    remark: str | None = None


def open_model(
    name_or_path: str | Path,
    *,
    k: int | None = None,
    n_hashes: int | None = None,
    device: str | torch.device = "cpu",
) -> OpenedModel[KiT]:
    """The same as ``load_model``, with the name under which results of this network may be kept."""
    _check_device(device)
    plain, grouping = split_grouping(name_or_path)
    for name, value in (("k", k), ("n_hashes", n_hashes)):
        if value is not None:
            if name in grouping:
                raise InputError(f"load_model: {name_or_path} sets {name}, and an argument does too; give it once")
            grouping[name] = value
    check_grouping(grouping, who=f"load_model: {name_or_path}")
    card = find_model(plain)
    own = Path(plain).name if card is None else card.name
    network = read_model(_checked_file(plain, card))
    stored = network.config.to_dict()
    changed = {name: grouping[name] for name in GROUPING.values() if grouping.get(name, stored[name]) != stored[name]}
    remark = None
    if changed:
        if not _has_attention(network):
            raise InputError(
                f"load_model: {name_or_path}: {own} has no k-NN attention, so it has no k and h; leave them out"
            )
        network = regrouped(network, **{"k": stored["k"], "n_hashes": stored["n_hashes"], **changed})
        told = (f"{_letter(name)} = {value} instead of {stored[name]}" for name, value in changed.items())
        remark = f"{own} runs with {', '.join(told)}"
    return OpenedModel(network.to(device), own + grouping_text(changed), card, remark)


def regrouped(model: KiT, *, k: int, n_hashes: int) -> KiT:
    """The same weights in a network of this k and h, in evaluation mode on the same device.

    Rounds beyond those of the model get rotations from the same fixed stream.

    Raises:
        InputError: a value is out of range, or the network has no k-NN attention.
    """
    if not _has_attention(model):
        raise InputError("regrouped: this network has no k-NN attention, so there is no k or h to change; take another")
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        changed = KiT(replace(model.config, k=k, n_hashes=n_hashes))
    changed.load_state_dict(model.state_dict())
    return changed.to(next(model.parameters()).device, torch.float32).eval()


def _has_attention(model: KiT) -> bool:
    return any(isinstance(module, KNNLocalAttention) for module in model.modules())


def split_grouping(spec: str | Path) -> tuple[str, dict[str, int]]:
    """A model's name or path without the brackets behind it, and what they set: ``"denoise-gaussian[k=8,h=2]"`` is
    ``("denoise-gaussian", {"k": 8, "n_hashes": 2})``. A file of the whole name is itself.

    Raises:
        InputError: the brackets hold something else.
    """
    text = str(spec)
    if not (parts := re.fullmatch(r"(.+)\[([^\[\]]*)\]", text)) or Path(text).is_file():
        return text, {}
    grouping: dict[str, int] = {}
    for part in parts[2].split(","):
        letter, _, value = (x.strip() for x in part.partition("="))
        if letter not in GROUPING or GROUPING[letter] in grouping or not re.fullmatch(r"-?[0-9]{1,20}", value):
            raise InputError(
                f"{text}: expected k (patches in a chunk) and h (hash rounds) in the brackets, each once and a whole "
                f"number, such as {parts[1]}[k=8,h=2], got {part!r}"
            )
        grouping[GROUPING[letter]] = int(value)
    return parts[1], grouping


def grouping_text(grouping: dict[str, int]) -> str:
    """What ``split_grouping`` takes apart: ``"[k=8,h=2]"``, or nothing."""
    inside = ",".join(f"{letter}={grouping[name]}" for letter, name in GROUPING.items() if name in grouping)
    return f"[{inside}]" if inside else ""


def check_grouping(grouping: dict[str, int], *, who: str) -> None:
    """Raise InputError for a k or h that no network takes."""
    for name, value in grouping.items():
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= LARGEST[name]:
            raise InputError(f"{who}: {_letter(name)} must be a whole number from 1 to {LARGEST[name]}, got {value!r}")


def _letter(name: str) -> str:
    return next(letter for letter, ours in GROUPING.items() if ours == name)


def _checked_file(name: str, card: ModelCard | None) -> Path:
    """The file of a model; raise CheckpointError if it is missing, or if a shipped one has another sha256."""
    if card is None:
        if not Path(name).is_file():
            cards = list_models()
            known = ", ".join(sorted({c.task for c in cards.values() if c.default} | cards.keys())) or "none"
            raise CheckpointError(f"{name} is neither a model that ships ({known}) nor a file")
        return Path(name)
    found = hashlib.sha256(card.path.read_bytes()).hexdigest() if card.path.is_file() else "missing"
    if found != card.sha256:
        raise CheckpointError(f"{card.path}: its sha256 is {found}, the card says {card.sha256}; install kithkin again")
    return card.path


def _check_device(device: str | torch.device) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:  # Which one depends on how PyTorch was built.
        reason = str(error).splitlines()[0].rstrip(".")
        raise InputError(
            f"load_model: the device {str(device)!r} can't be used ({reason}); take 'cpu', or install a PyTorch that "
            "knows the device"
        ) from error
