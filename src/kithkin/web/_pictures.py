"""From an upload to a job: the checks at the start, and the work itself."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import PurePath
from typing import Any

import numpy as np

from kithkin.errors import ImageError, InputError
from kithkin.images import Picture, decode_picture, encode_picture, losses, measure_picture
from kithkin.messages import one_line
from kithkin.model import KiT
from kithkin.neighbors import map_neighbors
from kithkin.restore_options import RestoreOptions
from kithkin.restorers import Blend, Restorer, Tiled, restore_image
from kithkin.tiles import SMALLEST_TILE
from kithkin.web._jobs import Answer, Job, Progress
from kithkin.web._kept import Kept, Remembered
from kithkin.web._limits import Limits
from kithkin.web._preview import Preview

MEDIA_TYPES = {"png": "image/png", "jpg": "image/jpeg"}
"""Of the formats of results, by the ending of their files."""


class Refused(Exception):
    """A request that is answered with this HTTP status and sentence."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status, self.detail = status, detail


@dataclass(frozen=True)
class Upload:
    """A picture file as it came, and the name to call it."""

    name: str
    data: bytes

    def result_name(self, ending: str) -> str:
        """As ``kithkin restore --format`` names its result."""
        return f"{PurePath(self.name).stem}-restored.{ending}"


def clean_name(name: str | None) -> str:
    """The last part of a file name, on one printable line; it is never used as a path."""
    last = re.split(r"[/\\]", name or "")[-1]
    plain = one_line(last) if last.strip(". ") else "picture"
    return plain if len(plain) <= 100 else plain[:60] + plain[-40:]


def check_upload(upload: Upload, limits: Limits) -> int:
    """The pixels of a picture, from its header; raises Refused where it is too large or of no known
    format."""
    if len(upload.data) > limits.megabytes * 1e6:
        raise Refused(413, too_many_bytes(limits))
    try:
        width, height = measure_picture(upload.data, upload.name)
    except ImageError as error:
        raise Refused(415, str(error)) from error
    if width * height > limits.megapixels * 1e6:
        raise Refused(
            413,
            f"{upload.name}: is {width} x {height} pixels large, more than the {limits.megapixels:g} megapixels that "
            "this server takes; crop it or scale it down first, or use `kithkin restore`",
        )
    return width * height


def too_many_bytes(limits: Limits) -> str:
    return (
        f"the upload is larger than the {limits.megabytes:g} MB that this server takes; "
        "crop the picture or scale it down first, or use `kithkin restore`"
    )


def options_of(form: Mapping[str, Any], precision: str, limits: Limits, model: tuple[str, str]) -> RestoreOptions:
    """The options that a form asks for, beside the precision that the server has settled.

    Raises:
        Refused: a value is not taken.
    """
    tile = form["tile"]
    if tile != "auto":
        if not (tile.isascii() and tile.isdecimal() and SMALLEST_TILE <= int(tile[:9]) <= limits.tile):
            sides = f"a whole number of pixels from {SMALLEST_TILE} to {limits.tile}"
            raise Refused(422, f"restore: tile must be 'auto' or {sides}, got {tile[:40]!r}")
        tile = int(tile)
    try:
        return RestoreOptions(**{**form, "tile": tile, "precision": precision}).for_model(*model)
    except InputError as error:
        raise Refused(422, str(error)) from error


def restore_job(
    upload: Upload,
    name: str,
    model: KiT | Restorer,
    options: RestoreOptions,
    ending: str,
    preview: Preview | None,
    kept: Kept,
    limits: Limits,
) -> Job:
    """The job that gives the file that ``kithkin restore --format`` writes.

    Args:
        upload: the picture.
        name: of the model.
        model: that restores it.
        options: how.
        ending: of the result's name, a key of ``MEDIA_TYPES``.
        preview: takes tiles as they are finished; where there is one, the restoration is kept as well.
        kept: restorations of before.
        limits: of the server.

    Raises:
        Refused: the picture is not taken.
    """
    pixels = check_upload(upload, limits)
    target = upload.result_name(ending)
    key = (hashlib.sha256(upload.data).digest(), name, options.tile)
    changes = any(options.amounts[:2])

    def run(progress: Progress) -> Answer:
        picture = decode_picture(upload.data, upload.name)
        notes = [*picture.notes, *losses(picture, target)]
        full = replace(options, strength=1.0, luma=1.0, chroma=1.0, detail=0.0) if changes else options
        restorer = full.compose(model, note=notes.append)
        if changes:
            assert isinstance(restorer, Tiled)
            if preview is not None:
                restorer = replace(restorer, choose=preview.choose, watch=partial(preview.add, picture))
            restorer = Blend(Remembered(restorer, kept, key, keeping=preview is not None), *options.amounts)
        result = restore_image(restorer, picture, progress=progress, note=notes.append)
        return Answer(encode_picture(result, target), MEDIA_TYPES[ending], target, tuple(notes))

    brief = not changes or key in kept
    kind = "copy" if brief else f"restore {name} {options.tile}"
    return Job(kind, upload.name, pixels, len(upload.data), run, brief=brief, preview=preview)


def neighbors_job(upload: Upload, network: KiT | Restorer, point: tuple[int, int], limits: Limits) -> Job:
    """The job that gives, as JSON, what all patches around a point attend to, in every block.

    Raises:
        Refused: the picture is not taken, or the network has no neighbours.
    """
    check_upload(upload, limits)
    if not isinstance(network, KiT):
        raise Refused(422, "neighbors: this is none of kithkin's networks, so no patches meet; take another model")
    if network.config.k == 1:
        raise Refused(422, "neighbors: in this network k = 1: a patch attends only to itself; choose another model")

    def run(progress: Progress) -> Answer:
        picture = decode_picture(upload.data, upload.name)
        left, top, width, height = crop = crop_around(picture, point, limits.neighbors_side, network.config.stride)
        part = np.ascontiguousarray(picture.pixels[top : top + height, left : left + width])
        progress(0.0)
        blocks = map_neighbors(network, replace(picture, pixels=part, alpha=None))
        size = [picture.pixels.shape[1], picture.pixels.shape[0]]
        values = {"size": size, "crop": crop, "blocks": [block.to_dict() for block in blocks]}
        return Answer(json.dumps(values, separators=(",", ":")).encode(), "application/json", "neighbors.json")

    return Job("neighbors", upload.name, limits.neighbors_side**2, len(upload.data), run)


def crop_around(picture: Picture, point: tuple[int, int], side: int, stride: int) -> tuple[int, int, int, int]:
    """The part (left, top, width, height) of at most ``side``² pixels that is looked at, on the
    network's own grid.

    Raises InputError where the point is outside the picture.
    """
    height, width = picture.pixels.shape[:2]
    x, y = point
    if not (0 <= x < width and 0 <= y < height):
        raise InputError(
            f"neighbors: the point {x},{y} is outside the picture, which is {width} x {height} pixels large; x goes "
            f"from 0 to {width - 1} and y from 0 to {height - 1}"
        )

    def start(at: int, length: int) -> int:
        last = -(-max(length - side, 0) // stride) * stride
        return min(max(at - side // 2, 0) // stride * stride, last)

    left, top = start(x, width), start(y, height)
    return left, top, min(side, width - left), min(side, height - top)
