"""A report of evaluations as one HTML page that needs no network: tables, curves, sliders, every
picture's values.

Pictures are stored one by one while an evaluation goes on; the page is made from them and from
plain values at the end.
"""

import base64
import hashlib
import io
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from PIL import Image

from kithkin.errors import InputError
from kithkin.files import write_whole

SIDE = 512
"""Largest side of the stored middle of a picture, in pixels; scaling would hide noise."""
SLIDERS = 12
"""Pictures a condition that the page shows: the worst and the best by the first method."""
BUDGET = 14_000_000
"""Bytes of JPEG in the page at most; as text they take a third more."""
_QUALITY = 88
_KEYS = ("method", "dataset", "protocol", "means", "images")


class ReportBuilder:
    """Collects pictures in a folder and writes its ``index.html``.

    Args:
        folder: made with the first file; ``pictures/`` within it keeps the pictures.
        title: of the page.

    Raises:
        InputError: the folder is a file, or lies within one.
    """

    def __init__(self, folder: Path, *, title: str) -> None:
        self.folder = Path(folder)
        existing = next(path for path in (self.folder, *self.folder.absolute().parents) if path.exists())
        if not existing.is_dir():
            raise InputError(
                f"{self.folder} can't be the folder of a report: {existing} is a file; name another folder"
            )
        self.title = title
        self._pictures = self.folder / "pictures"

    def add_picture(
        self,
        row: Mapping[str, object],
        degraded: np.ndarray,
        restored: np.ndarray,
        target: np.ndarray | None,
    ) -> None:
        """Store the middle of a picture before and after, as JPEG.

        What is stored already stays, so that an evaluation goes on where it stopped; other weights
        under the same name need another folder.

        Args:
            row: has ``"method"`` and ``"dataset"`` as the evaluation that ``write`` gets, and
                ``"image"`` and ``"condition"`` as its row; further keys don't matter.
            degraded, restored, target: (H, W, 3) floats, clamped here, or uint8; target None where
                there is none.

        Raises:
            InputError: the row misses a key, or a picture has another shape.
            KithkinError: the folder or the disk does not take the file.
        """
        missing = [key for key in ("method", "dataset", "image", "condition") if key not in row]
        if missing:
            raise InputError(f"add_picture: expected a row with {', '.join(missing)}, got {', '.join(row)}; add them")
        for view, image in (("before", degraded), ("after", restored), ("target", target)):
            path = self._path(view, row)
            if image is not None and not path.exists():
                write_whole(path, _jpeg(image))

    def write(
        self,
        evaluations: Sequence[Mapping[str, Any]],
        *,
        tables: Sequence[Mapping[str, Any]] = (),
    ) -> Path:
        """Write the page.

        Args:
            evaluations: each with ``"method"``, ``"dataset"``, ``"protocol"`` (name, psnr, window,
                summary), ``"means"`` (condition -> psnr_input, psnr, ssim_input, ssim, images,
                seconds_per_megapixel) and ``"images"`` (a list of image, condition, psnr_input,
                psnr, ssim_input, ssim, seconds, megapixels). A PSNR is None where the pictures are
                equal. The first evaluation of a data set decides which pictures are shown.
            tables: published values: ``"title"``, ``"columns"``, ``"rows"`` (lists as long as
                columns), ``"source"``.

        Returns:
            The path of ``index.html``, below 20 MB.

        Raises:
            InputError: an evaluation misses a key.
            KithkinError: the folder or the disk does not take the file.
        """
        for evaluation in evaluations:
            missing = [key for key in _KEYS if key not in evaluation]
            if missing:
                raise InputError(
                    f"write: expected evaluations with {', '.join(_KEYS)}; {', '.join(missing)} is missing"
                )
        values = {
            "title": self.title,
            "evaluations": [{key: evaluation[key] for key in _KEYS} for evaluation in evaluations],
            "tables": list(tables),
            "curves": noise_curves(evaluations),
            "sliders": self._sliders(evaluations),
        }
        page = Template(_part("page.html")).substitute(
            title=escape(self.title), style=_part("page.css"), script=_part("page.js"), data=_json(values)
        )
        path = self.folder / "index.html"
        write_whole(path, page)
        return path

    def _path(self, view: str, row: Mapping[str, object]) -> Path:
        """Where a view is stored: targets are shared by all conditions, inputs by all methods."""
        keys = {"target": ("dataset",), "before": ("dataset", "condition"), "after": ("dataset", "condition", "method")}
        parts = [str(row[key]) for key in (*keys[view], "image")]
        name = re.sub(r"[^A-Za-z0-9]+", "-", Path(parts[-1]).stem)[:40].strip("-")
        digest = hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()[:12]
        return self._pictures / f"{name}-{view}-{digest}.jpg"

    def _sliders(self, evaluations: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The pictures to show as data URIs, the worst and the best first, within the budget."""
        left = BUDGET
        sliders = []
        for dataset, row in _worst_and_best(evaluations):
            known = {"dataset": dataset, "image": row["image"], "condition": row["condition"]}
            methods = [e["method"] for e in evaluations if e["dataset"] == dataset]
            paths = {method: self._path("after", {**known, "method": method}) for method in methods}
            stored = {method: path for method, path in paths.items() if path.exists()}
            views = {view: self._path(view, known) for view in ("before", "target") if self._path(view, known).exists()}
            size = sum(path.stat().st_size for path in (*stored.values(), *views.values()))
            if not stored or "before" not in views or size > left:
                continue
            left -= size
            after = {method: _uri(path) for method, path in stored.items()}
            sliders.append({**known, **{view: _uri(path) for view, path in views.items()}, "after": after})
        return sliders


def noise_curves(evaluations: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """PSNR over sigma: curves of each data set and protocol that has several noise levels."""
    curves: dict[tuple[str, str], dict[str, Any]] = {}
    for evaluation in evaluations:
        levels = {name: re.fullmatch(r"sigma ([0-9.]+)", name) for name in evaluation["means"]}
        means = evaluation["means"]
        points = [
            [float(m[1]), means[name]["psnr"]] for name, m in levels.items() if m and _finite(means[name]["psnr"])
        ]
        if len(points) < 2:
            continue
        protocol = evaluation["protocol"]
        title = f"{evaluation['dataset']}: PSNR over the noise level ({protocol['name']})"
        curve = {"title": title, "x": "sigma", "y": f"PSNR {protocol['psnr']} (dB)", "series": []}
        curves.setdefault((evaluation["dataset"], protocol["name"]), curve)["series"].append(
            {"name": evaluation["method"], "points": sorted(points)}
        )
    return list(curves.values())


def _worst_and_best(evaluations: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(data set, row): each condition's worst picture, each one's best, the second worst, ..."""
    ranked: dict[tuple[str, str], tuple[str, list[Mapping[str, Any]]]] = {}
    for evaluation in evaluations:
        for condition in dict.fromkeys(row["condition"] for row in evaluation["images"]):
            rows = [row for row in evaluation["images"] if row["condition"] == condition]
            rows.sort(key=lambda row: row["psnr"] if _finite(row["psnr"]) else math.inf)
            ranked.setdefault((evaluation["dataset"], condition), (evaluation["dataset"], rows))
    for place in range(SLIDERS):
        for dataset, rows in ranked.values():
            if place < len(rows):
                yield dataset, rows[-1 - place // 2 if place % 2 else place // 2]


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _plain(value: Any) -> Any:
    """What JSON can hold: paths and the like as text, numbers that aren't finite as null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, str | bool) or value is None:
        return value
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, int | float):
        return value if math.isfinite(value) else None
    return str(value)


def _json(values: Mapping[str, Any]) -> str:
    """JSON for a script element: no text in it can end the element or open a comment."""
    text = json.dumps(_plain(values), allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _jpeg(image: np.ndarray) -> bytes:
    if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise InputError(f"add_picture: expected (H, W, 3), not empty, got {image.shape}; give RGB pictures")
    top, left = ((side - min(side, SIDE)) // 2 for side in image.shape[:2])
    part = image[top : top + SIDE, left : left + SIDE]
    if part.dtype != np.uint8:
        part = np.rint(np.clip(np.nan_to_num(part), 0, 1) * 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(part)).save(buffer, "JPEG", quality=_QUALITY, subsampling=0)
    return buffer.getvalue()


def _uri(path: Path) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(path.read_bytes()).decode("ascii")


def _part(name: str) -> str:
    return (resources.files("kithkin") / "report" / name).read_text(encoding="utf-8")
