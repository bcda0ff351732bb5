"""Sheets of crops: the whole picture with its boxes, and each box enlarged as every method restores
it.

They look like the paper's Figs. 4 to 6.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from kithkin.errors import InputError
from kithkin.methods import Method, run_method
from kithkin.metrics import psnr

ZOOMS = {"nearest": Image.Resampling.NEAREST, "lanczos": Image.Resampling.LANCZOS}
_COLOURS = ((230, 60, 40), (30, 110, 220), (20, 150, 80), (210, 140, 0), (140, 70, 190), (0, 150, 165))
_INK, _FAINT = (25, 25, 25), (105, 105, 105)
_MARGIN, _GAP, _FRAME = 20, 12, 3
_FONT, _LINE = 17, 22
_PANEL = 240
"""Pixels that an enlarged crop should be wide; the integer zoom comes as close as it can."""


class Crop(NamedTuple):
    """A box of a picture, in pixels from its left upper corner."""

    x: int
    y: int
    width: int
    height: int

    def of(self, image: np.ndarray) -> np.ndarray:
        """That part of (H, W, ...)."""
        return image[self.y : self.y + self.height, self.x : self.x + self.width]


@dataclass(frozen=True)
class Panel:
    """A picture of the sheet.

    Attributes:
        name: what stands below.
        image: (H, W, 3) floats, clamped when drawn, or uint8.
        psnr: of the whole picture in dB; None leaves the line empty.
        seconds: that the method took, where one did.
    """

    name: str
    image: np.ndarray
    psnr: float | None = None
    seconds: float | None = None


def parse_crop(text: str) -> Crop:
    """``"X,Y,W,H"`` as a crop; raises InputError for anything else."""
    try:
        crop = Crop(*(int(part) for part in text.split(",")))
    except (TypeError, ValueError) as error:
        raise InputError(f"crop: expected X,Y,W,H in pixels, such as 40,80,64,64, got {text!r}") from error
    if crop.x < 0 or crop.y < 0 or crop.width < 1 or crop.height < 1:
        raise InputError(f"crop: expected X and Y from 0 and W and H from 1, got {text!r}")
    return crop


def check_crops(crops: Sequence[Crop], size: tuple[int, int]) -> None:
    """Raise InputError for a crop that leaves a picture of (height, width)."""
    height, width = size
    for crop in crops:
        if crop.x + crop.width > width or crop.y + crop.height > height:
            raise InputError(
                f"the crop {','.join(map(str, crop))} leaves the picture of {width} x {height} pixels; move it inside"
            )


def restored_panels(
    methods: Sequence[Method],
    degraded: np.ndarray,
    target: np.ndarray,
    *,
    protocol: str,
    sigma: float | None = None,
    picture: str = "the picture",
) -> list[Panel]:
    """Restore a picture by every method.

    Args:
        methods: from ``kithkin.methods.open_method``.
        degraded, target: (H, W, 3) float32.
        protocol: of ``kithkin.metrics.psnr``.
        sigma: what the methods are told of the noise, on the 0-255 scale.
        picture: its name, for messages.

    Returns:
        The input and one panel a method, in their order, each with the PSNR of the whole picture
        and the time.

    Raises:
        InputError: the two pictures differ in size.
        KithkinError: a method failed.
    """
    results = [Panel("input", degraded, psnr(degraded, target, protocol=protocol))]
    for method in methods:
        started = time.perf_counter()
        image = run_method(method, degraded, sigma=sigma, picture=picture)
        seconds = time.perf_counter() - started
        results.append(Panel(method.name, image, psnr(image, target, protocol=protocol), seconds))
    return results


def choose_crops(restored: Sequence[np.ndarray], target: np.ndarray, *, count: int = 2) -> list[Crop]:
    """Find where methods differ most.

    A place's score is the variance, over the methods, of what each leaves of the degradation (its
    output less the target, the mean over the channels), averaged over the box; for a single method,
    that residual squared. The boxes are squares of a ninth of the shorter side (48 pixels at
    least), rounded up to 8, and don't overlap.

    Args:
        restored: (H, W, 3) floats, one a method.
        target: (H, W, 3) floats.
        count: of crops; fewer come back where the picture has no room for more.

    Returns:
        The crops, the one with the highest score first.
    """
    height, width = target.shape[:2]
    side = min(height, width, max(48, -(-min(height, width) // 72) * 8))
    residuals = np.stack([np.clip(image, 0, 1).mean(axis=2) - target.mean(axis=2) for image in restored])
    score = residuals.var(axis=0) if len(residuals) > 1 else residuals[0] ** 2
    sums = np.pad(score.astype(np.float64).cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
    boxes = sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]
    chosen: list[Crop] = []
    while len(chosen) < count and np.isfinite(boxes).any():
        y, x = (int(i) for i in np.unravel_index(np.argmax(boxes), boxes.shape))
        chosen.append(Crop(x, y, side, side))
        boxes[max(0, y - side + 1) : y + side, max(0, x - side + 1) : x + side] = -np.inf
    return chosen


def draw_sheet(
    whole: Panel, panels: Sequence[Panel], crops: Sequence[Crop], *, caption: str = "", zoom: str = "nearest"
) -> Image.Image:
    """Draw the sheet.

    Args:
        whole: the picture that is shown entire, with a box a crop.
        panels: what is enlarged, all of the same size as ``whole``: input, methods, target.
        crops: at least one, inside the picture.
        caption: below the whole picture; names the protocol of the PSNR values.
        zoom: ``"nearest"`` keeps the pixels visible, ``"lanczos"`` smooths; both by a whole number.

    Returns:
        An RGB image.

    Raises:
        InputError: no panel or crop, a panel of another size, a crop outside the picture, or an
            unknown zoom.
    """
    _check(whole, panels, crops, zoom)
    columns, rows = _grid(len(panels), len(crops))
    sizes = [_enlarged(crop) for crop in crops]
    cell_width = max(width for width, _ in sizes) + 2 * _FRAME
    label = 2 * _LINE + _GAP
    block = sum(rows * (height + 2 * _FRAME + label) for _, height in sizes) - _GAP
    shown = _fitted(whole.image, round(1.4 * block), block - label)
    lines = _wrapped(caption, shown.width)
    right = _MARGIN + shown.width + 2 * _GAP
    low = _MARGIN + shown.height + 4 + (len(lines) + 1) * _LINE
    width = right + columns * (cell_width + _GAP) - _GAP + _MARGIN
    sheet = Image.new("RGB", (width, max(_MARGIN + block, low) + _MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    _place_whole(sheet, draw, shown, whole, crops)
    _write(draw, (_MARGIN, _MARGIN + shown.height + 4), [_shortened(whole.name, shown.width), *lines])
    top = _MARGIN
    for number, (crop, size) in enumerate(zip(crops, sizes, strict=True)):
        for index, panel in enumerate(panels):
            row, column = divmod(index, columns)
            corner = right + column * (cell_width + _GAP), top + row * (size[1] + 2 * _FRAME + label)
            part = _image(crop.of(panel.image)).resize(size, ZOOMS[zoom])
            _framed(draw, (*corner, size[0] + 2 * _FRAME, size[1] + 2 * _FRAME), _colour(number))
            sheet.paste(part, (corner[0] + _FRAME, corner[1] + _FRAME))
            value = "" if panel.psnr is None else f"{panel.psnr:.2f} dB"
            below = corner[0], corner[1] + size[1] + 2 * _FRAME + 4
            _write(draw, below, [_shortened(panel.name, cell_width), value])
        top += rows * (size[1] + 2 * _FRAME + label)
    return sheet


def _check(whole: Panel, panels: Sequence[Panel], crops: Sequence[Crop], zoom: str) -> None:
    if zoom not in ZOOMS:
        raise InputError(f"draw_sheet: expected a zoom of {' or '.join(ZOOMS)}, got {zoom!r}")
    if not panels or not crops:
        raise InputError(
            f"draw_sheet: expected panels and crops, got {len(panels)} and {len(crops)}; give one at least"
        )
    height, width = whole.image.shape[:2]
    for panel in panels:
        if panel.image.shape != whole.image.shape:
            raise InputError(
                f"draw_sheet: {panel.name} is {panel.image.shape[1]} x {panel.image.shape[0]} but {whole.name} is "
                f"{width} x {height}; give pictures of one scene, cropped alike"
            )
    check_crops(crops, (height, width))


def _grid(panels: int, crops: int) -> tuple[int, int]:
    """(columns, rows) of a crop's panels: a single crop fills two rows, so that the whole picture
    isn't tiny."""
    rows = 2 if crops == 1 and panels > 3 else -(-panels // 6)
    return -(-panels // rows), rows


def _enlarged(crop: Crop) -> tuple[int, int]:
    times = max(1, round(_PANEL / max(crop.width, crop.height)))
    return crop.width * times, crop.height * times


def _image(values: np.ndarray) -> Image.Image:
    if values.dtype != np.uint8:
        values = np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(values))


def _fitted(values: np.ndarray, width: int, height: int) -> Image.Image:
    """As large as fits into a box."""
    image = _image(values)
    scale = min(width / image.width, height / image.height)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    return image.resize(size, Image.Resampling.LANCZOS)


def _place_whole(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, shown: Image.Image, whole: Panel, crops: Sequence[Crop]
) -> None:
    sheet.paste(shown, (_MARGIN, _MARGIN))
    scale = shown.width / whole.image.shape[1]
    for number, crop in enumerate(crops):
        x, y, width, height = (round(scale * value) for value in crop)
        place = (_MARGIN + x - _FRAME, _MARGIN + y - _FRAME, width + 2 * _FRAME, height + 2 * _FRAME)
        _framed(draw, place, _colour(number))


def _colour(number: int) -> tuple[int, int, int]:
    return _COLOURS[number % len(_COLOURS)]


def _framed(draw: ImageDraw.ImageDraw, place: tuple[int, int, int, int], colour: tuple[int, int, int]) -> None:
    x, y, width, height = place
    draw.rectangle((x, y, x + width - 1, y + height - 1), outline=colour, width=_FRAME)


@cache
def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(_FONT)


def _write(draw: ImageDraw.ImageDraw, corner: tuple[int, int], lines: Sequence[str]) -> None:
    for number, line in enumerate(lines):
        draw.text((corner[0], corner[1] + number * _LINE), line, fill=_FAINT if number else _INK, font=_font())


def _shortened(text: str, width: int) -> str:
    """As much of a text as is no wider."""
    if _font().getlength(text) <= width:
        return text
    while text and _font().getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."


def _wrapped(text: str, width: int) -> list[str]:
    lines: list[str] = []
    for word in text.split():
        joined = f"{lines[-1]} {word}" if lines else word
        if lines and _font().getlength(joined) <= width:
            lines[-1] = joined
        else:
            lines.append(_shortened(word, width))
    return lines
