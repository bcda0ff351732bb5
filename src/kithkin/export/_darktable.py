"""The package that darktable 5.6 installs for its neural restore, and the list that its repositories publish.

The format is that of darktable at 2c81558 (``src/common/ai/restore_rgb.c``), a96b701 (``src/common/ai/restore.c``) and
01e3de3 (``src/common/ai_models.c``), of its pull request 21827 for additional repositories, and of
``docs/dtmodel-format.md`` in darktable-ai-sdk at 1d14e44.
"""

import hashlib
import io
import json
import re
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

from kithkin.errors import InputError
from kithkin.files import write_whole
from kithkin.messages import shown
from kithkin.zoo import ModelCard

INDEX = "versions.json"
NETWORK = "model.onnx"


def check_id(path: Path) -> str:
    """The model's id, by which darktable names a folder and a release its file: the file's name without the ending.

    Raises:
        InputError: it holds other signs than letters, digits, dots, dashes and underscores.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", path.stem, re.ASCII):
        raise InputError(
            f"export: {shown(path)}: darktable takes the name for the model's id, expected letters, digits, dots, "
            "dashes and underscores; choose another name"
        )
    return path.stem


def read_index(path: Path) -> dict[str, Any]:
    """The list beside a package, empty where there is none.

    Raises:
        InputError: the file there is something else.
    """
    place = path.with_name(INDEX)
    if not place.exists():
        return {"schema": 1, "models": {}}
    try:
        index = json.loads(place.read_text(encoding="utf-8"))
        if isinstance(index["models"], dict):
            return dict(index)
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise InputError(f"export: {shown(place)} is no list of models for darktable; choose another folder")


def write_package(network: bytes, path: Path, version: str, card: ModelCard | None) -> None:
    """Write a network in ONNX as a package, and enter it in the list beside it, where other models stay.

    The same network gives the same bytes.

    Raises:
        InputError, KithkinError: as ``check_id``, ``read_index`` and ``write_whole``.
    """
    config, index = _config(check_id(path), version, card), read_index(path)
    buffer = io.BytesIO()
    with ZipFile(buffer, "w") as archive:
        for name, data in (("config.json", _json(config).encode()), (NETWORK, network)):
            archive.writestr(ZipInfo(f"{path.stem}/{name}"), data, ZIP_DEFLATED)
    package = buffer.getvalue()
    entry = {key: config[key] for key in ("version", "name", "description", "task")}
    if card is not None:
        entry["license"] = config["model_card"]["license"]
    entry |= {"size": len(package), "sha256": f"sha256:{hashlib.sha256(package).hexdigest()}"}
    index["models"][path.stem] = entry
    write_whole(path, package)
    write_whole(path.with_name(INDEX), _json(index))


def read_network(path: Path) -> bytes:
    """The network of a package, in ONNX."""
    with ZipFile(path) as archive:
        return archive.read(next(name for name in archive.namelist() if name.endswith(f"/{NETWORK}")))


def _config(model_id: str, version: str, card: ModelCard | None) -> dict[str, Any]:
    """What darktable shows of a model. ``denoise`` is its only task that keeps a picture's size."""
    config: dict[str, Any] = {
        "id": model_id,
        "name": f"kithkin {model_id if card is None else card.name}",
        "description": "A network trained with kithkin" if card is None else card.summary,
        "task": "denoise",
        "arch": "kit",
        "backend": "onnx",
        "version": version,
        "tiling": True,
    }
    if card is not None:
        config["model_card"] = {
            "long_description": f"{card.summary} {card.limits}",
            "scope": f"single-image restoration: {card.task}",
            "author": "The kithkin authors; the network after Lee, Choi, Sohn, Min (CVPR 2022)",
            "license": card.licence.partition(" ")[0],
            "training_data": "; ".join(f"{source.count} photographs of {source.name}" for source in card.sources),
            "training_data_license": "; ".join(f"{source.name}: {source.licence}" for source in card.sources),
            "notes": f"Trained with kithkin: {card.recipe}; commit {card.commit}",
        }
    return config


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
