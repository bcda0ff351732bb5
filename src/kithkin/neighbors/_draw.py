"""Found neighbours as a picture."""

import colorsys
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from kithkin.errors import InputError
from kithkin.neighbors._find import Box, Neighbors, Query, Viewable, one_picture

ROUNDS = ("together", "separate")
_COLOURS = ("#ff5a1f", "#35b6ff", "#ffe04a", "#2fd08a", "#ff8ad8", "#b58cff", "#c8ff4a")
_PAPER, _INK, _FAINT = "#ffffff", "#1c1c1c", "#6b6b6b"
_LONG_SIDE = 1000
"""Pixels that a small picture is enlarged to, about, so that its patches can be seen."""


def draw_neighbors(
    image: Viewable, neighbors: Neighbors, *, rounds: str | None = None, buckets: bool = False
) -> Image.Image:
    """Draw the neighbours on the picture, as in Fig. 7, and side by side below it.

    Each query has a colour and a letter. Its chunk is framed in that colour, the query itself in a double line; the
    patches of the chunk before, which it attends to as well, are framed in a lighter, dashed line. The more a patch
    counts (Eq. 10), the thicker its frame; below the patches stand the weights in percent, 100 over all rounds.

    Args:
        image: the picture that was given to ``find_neighbors``.
        neighbors: what that returned.
        rounds: ``"together"`` draws all hash rounds into one panel, ``"separate"`` makes a panel of each; None takes
            the first, or the second with ``buckets``.
        buckets: lay the hash buckets over the picture, a colour each; a map belongs to one round.

    Returns:
        RGB; small pictures are enlarged.

    Raises:
        InputError: the picture has another size, ``rounds`` is neither of the two, or ``buckets`` are asked for
            together or where nothing is hashed.
    """
    rounds = rounds or ("separate" if buckets else "together")
    if rounds not in ROUNDS:
        raise InputError(f"draw_neighbors: rounds must be one of {', '.join(ROUNDS)}, got {rounds!r}")
    if buckets and rounds == "together":
        raise InputError("draw_neighbors: every round has buckets of its own; take rounds='separate'")
    if buckets and neighbors.buckets is None:
        raise InputError(
            "draw_neighbors: nothing is hashed on a map of so few patches, so it has no buckets; "
            "take a stage with a larger map, or a larger picture"
        )
    picture = _picture(image, neighbors)
    style = _Style.of(picture.size)
    count = len(neighbors.queries[0].rounds) if neighbors.queries else _count(neighbors)
    groups = [tuple(range(count))] if rounds == "together" else [(j,) for j in range(count)]
    return _tiled([_panel(picture, neighbors, chosen, buckets, style) for chosen in groups], style)


class _Style(NamedTuple):
    """Sizes in pixels that suit the size of the picture."""

    scale: int
    line: int
    text: int
    small: int
    thumb: int
    gap: int

    @classmethod
    def of(cls, size: tuple[int, int]) -> "_Style":
        scale = max(1, round(_LONG_SIDE / max(size)))
        unit = max(1.0, max(size) * scale / _LONG_SIDE)
        return cls(scale, *(round(unit * value) for value in (2.5, 15, 11, 36, 5)))

    @property
    def font(self) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
        return self.font_of(self.text)

    def font_of(self, size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
        """The same letters in another size."""
        return ImageFont.load_default(size)


def _count(neighbors: Neighbors) -> int:
    return 1 if neighbors.buckets is None else len(neighbors.buckets)


def _picture(image: Viewable, neighbors: Neighbors) -> Image.Image:
    planes = one_picture("draw_neighbors", image)
    size = (planes.shape[2], planes.shape[1])
    if size != neighbors.size:
        raise InputError(
            f"draw_neighbors: the neighbours are those of a picture of {neighbors.size[0]} x {neighbors.size[1]} "
            f"pixels, this one has {size[0]} x {size[1]}; pass the same picture to both"
        )
    levels = planes.expand(3, -1, -1).clamp(0, 1).mul(255).round().byte()
    return Image.fromarray(levels.permute(1, 2, 0).contiguous().numpy())


def _panel(
    picture: Image.Image, neighbors: Neighbors, rounds: Sequence[int], buckets: bool, style: _Style
) -> Image.Image:
    """The picture with the frames of these rounds, a title above and the patches themselves below."""
    view = _with_buckets(picture, neighbors, rounds[0]) if buckets else picture
    view = view.resize((picture.width * style.scale, picture.height * style.scale), Image.Resampling.BICUBIC)
    _frames(view, neighbors, rounds, style)
    strip = _strip(picture, neighbors, rounds, view.width, style)
    head = 2 * style.text
    panel = Image.new("RGB", (view.width, head + view.height + strip.height), _PAPER)
    panel.paste(view, (0, head))
    panel.paste(strip, (0, head + view.height))
    ImageDraw.Draw(panel).text(
        (style.gap, head // 2), _title(neighbors, rounds, buckets), fill=_INK, font=style.font, anchor="lm"
    )
    return panel


def _title(neighbors: Neighbors, rounds: Sequence[int], buckets: bool) -> str:
    which = f"round {rounds[0] + 1}" if len(rounds) == 1 else f"rounds 1 to {len(rounds)}"
    side = neighbors.patch_side
    parts = [f"{neighbors.stage}, block {neighbors.block}", which, f"k = {neighbors.k}", f"patches of {side} x {side}"]
    if buckets:
        parts.append("a colour a hash bucket")
    return " · ".join(parts)


def _frames(view: Image.Image, neighbors: Neighbors, rounds: Sequence[int], style: _Style) -> None:
    draw = ImageDraw.Draw(view)
    lines = [_lines(query, rounds, style) for query in neighbors.queries]
    for (query, colour), line in zip(_coloured(neighbors), lines, strict=True):
        for j in rounds:
            for box in query.rounds[j].look_back:
                _frame(draw, _corners(box, neighbors, style), _lighter(colour), line[box], dashed=True)
    for (query, colour), line in zip(_coloured(neighbors), lines, strict=True):
        for j in rounds:
            for box in query.rounds[j].chunk:
                _frame(draw, _corners(box, neighbors, style), colour, line[box])
    for number, (query, colour) in enumerate(_coloured(neighbors)):
        left, top, right, bottom = _corners(query.box, neighbors, style)
        grown = lines[number].get(query.box, style.line) + 2
        _frame(draw, (left - grown, top - grown, right + grown, bottom + grown), colour, style.line)
        _tag(draw, _letter(number), (left - grown, top - grown - style.line), colour, style)


def _lines(query: Query, rounds: Sequence[int], style: _Style) -> dict[Box, int]:
    """The width of every patch's frame in pixels, by how much it counts in these rounds together; of all frames the
    same where that is not known."""
    shown = [query.rounds[j] for j in rounds]
    boxes = [box for one_round in shown for box in (*one_round.chunk, *one_round.look_back)]
    weights = [weight for one_round in shown for weight in one_round.weights]
    if not weights:
        return dict.fromkeys(boxes, style.line)
    total: dict[Box, float] = {}
    for box, weight in zip(boxes, weights, strict=True):
        total[box] = total.get(box, 0.0) + weight
    places = sum(len(one_round.weights) for one_round in query.rounds)  # their weights sum to 1
    return {box: _thickness(weight * places, style) for box, weight in total.items()}


def _thickness(times: float, style: _Style) -> int:
    """Of the frame of a patch that counts so many times as much as all do on average: by the root, within bounds."""
    return max(1, round(style.line * min(2.0, math.sqrt(max(0.0, times)))))


def _coloured(neighbors: Neighbors) -> list[tuple[Query, str]]:
    return [(query, _COLOURS[i % len(_COLOURS)]) for i, query in enumerate(neighbors.queries)]


def _letter(number: int) -> str:
    return chr(ord("A") + number) if number < 26 else str(number + 1)


def _lighter(colour: str) -> str:
    levels = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return "#" + "".join(f"{(2 * level + 255) // 3:02x}" for level in levels)


Corners = tuple[int, int, int, int]


def _corners(box: Box, neighbors: Neighbors, style: _Style) -> Corners:
    """Left, top, right and bottom pixel of what the picture shows of a box, enlarged."""
    width, height = neighbors.size
    left, top = box.x * style.scale, box.y * style.scale
    right, bottom = min(box.x + box.width, width), min(box.y + box.height, height)
    return left, top, right * style.scale - 1, bottom * style.scale - 1


def _frame(draw: ImageDraw.ImageDraw, corners: Corners, colour: str, line: int, *, dashed: bool = False) -> None:
    """A frame around these pixels, with a dark edge that makes it visible on any ground. Nothing for an empty one."""
    left, top, right, bottom = corners
    if right < left or bottom < top:
        return
    for width, ink in ((line + 1, _INK), (line, colour)):
        whole = (left - width, top - width, right + width, bottom + width)
        if dashed:
            _dashes(draw, whole, ink, width, (_parts(right - left, line), _parts(bottom - top, line)))
        else:
            draw.rectangle(whole, outline=ink, width=width)


def _dashes(draw: ImageDraw.ImageDraw, corners: Corners, ink: str, width: int, parts: tuple[int, int]) -> None:
    left, top, right, bottom = corners
    for x, to in _spans(left, right, parts[0]):
        draw.rectangle((x, top, to, top + width - 1), fill=ink)
        draw.rectangle((x, bottom - width + 1, to, bottom), fill=ink)
    for y, to in _spans(top, bottom, parts[1]):
        draw.rectangle((left, y, left + width - 1, to), fill=ink)
        draw.rectangle((right - width + 1, y, right, to), fill=ink)


def _parts(length: int, line: int) -> int:
    """How many parts a dashed line has, drawn and left out in turns: an odd number, so that both ends are drawn."""
    return max(1, length // (8 * line)) * 2 + 1


def _spans(start: int, end: int, parts: int) -> list[tuple[int, int]]:
    """The parts that are drawn, first and last pixel."""
    cuts = [start + round(i * (end - start + 1) / parts) for i in range(parts + 1)]
    return [(cuts[i], cuts[i + 1] - 1) for i in range(0, parts, 2)]


def _tag(draw: ImageDraw.ImageDraw, text: str, corner: tuple[int, int], colour: str, style: _Style) -> None:
    """A letter on a plate above this corner, or within the picture where there is no room above."""
    width, height = round(draw.textlength(text, font=style.font)) + style.gap, style.text + style.gap // 2
    x, y = max(0, corner[0]), max(0, corner[1] - height)
    draw.rectangle((x, y, x + width, y + height), fill=colour, outline=_INK)
    draw.text((x + width / 2, y + height / 2), text, fill=_INK, font=style.font, anchor="mm")


def _strip(picture: Image.Image, neighbors: Neighbors, rounds: Sequence[int], width: int, style: _Style) -> Image.Image:
    """The patches side by side, a row for each query and round: the query, its chunk, what it looks back to."""
    rows = [
        _row(picture, neighbors, (number, query, colour), j, style)
        for number, (query, colour) in enumerate(_coloured(neighbors))
        for j in rounds
    ]
    if not rows:
        return Image.new("RGB", (width, 0), _PAPER)
    row_width, row_height = max(row.width for row in rows), rows[0].height
    columns = max(1, width // row_width)
    lines = -(-len(rows) // columns)
    head = 2 * style.text
    strip = Image.new("RGB", (max(width, row_width), head + lines * row_height), _PAPER)
    legend = "in a row: the patch asked about · the rest of its chunk · dashed, the chunk before"
    if any(one_round.weights for query in neighbors.queries for one_round in query.rounds):
        legend += " · below, how much each counts, over all rounds 100 %"
    ImageDraw.Draw(strip).text((style.gap, head // 2), legend, fill=_FAINT, font=style.font, anchor="lm")
    for i, row in enumerate(rows):
        column, line = divmod(i, lines)
        strip.paste(row, (column * row_width, head + line * row_height))
    return strip


def _row(
    picture: Image.Image, neighbors: Neighbors, which: tuple[int, Query, str], j: int, style: _Style
) -> Image.Image:
    number, query, colour = which
    one_round = query.rounds[j]
    parts = one_round.weights or (None,) * (len(one_round.chunk) + len(one_round.look_back))
    weighted = [*zip((*one_round.chunk, *one_round.look_back), parts, strict=True)]
    own = [pair for pair in weighted[: len(one_round.chunk)] if pair[0] == query.box]
    chunk = [pair for pair in weighted[: len(one_round.chunk)] if pair[0] != query.box]
    edge = 2 * style.line + 2
    step, label = style.thumb + edge + 2, 7 * style.text
    below = style.small + style.gap if one_round.weights else 0
    row = Image.new("RGB", (label + step * len(weighted) + 4 * style.gap, style.thumb + 2 * edge + below), _PAPER)
    draw = ImageDraw.Draw(row)
    middle = edge + style.thumb // 2
    draw.text((style.gap, middle), _letter(number), fill=_INK, font=style.font, anchor="lm")
    draw.text((style.gap + style.text, middle), f" round {j + 1}", fill=_FAINT, font=style.font, anchor="lm")
    x = label
    for kind, pairs in (("query", own), ("chunk", chunk), ("back", weighted[len(one_round.chunk) :])):
        for box, weight in pairs:
            _thumb(row, picture, box, (x, edge), style)
            corners = (x, edge, x + style.thumb - 1, edge + style.thumb - 1)
            ink = _lighter(colour) if kind == "back" else colour
            _frame(draw, corners, ink, style.line * (2 if kind == "query" else 1), dashed=kind == "back")
            if weight is not None:
                place = (x + style.thumb // 2, 2 * edge + style.thumb)
                draw.text(place, _percent(weight), fill=_INK, font=style.font_of(style.small), anchor="mt")
            x += step
        x += style.gap
    return row


def _percent(weight: float) -> str:
    return f"{100 * weight:.0f} %" if abs(weight) >= 0.095 else f"{100 * weight:.1f} %"


def _thumb(row: Image.Image, picture: Image.Image, box: Box, place: tuple[int, int], style: _Style) -> None:
    """A patch, enlarged; gray where it reaches beyond the picture."""
    crop = Image.new("RGB", (box.width, box.height), "#9a9a9a")
    crop.paste(picture, (-box.x, -box.y))
    row.paste(crop.resize((style.thumb, style.thumb), Image.Resampling.BICUBIC), place)


def _with_buckets(picture: Image.Image, neighbors: Neighbors, j: int) -> Image.Image:
    """The picture in gray under the colours of the buckets of one round."""
    assert neighbors.buckets is not None
    table = np.array([_bucket_colour(b) for b in range(int(neighbors.buckets.max()) + 1)], dtype=np.uint8)
    side = neighbors.patch_side
    colours = table[neighbors.buckets[j]].repeat(side, axis=0).repeat(side, axis=1)
    overlay = Image.fromarray(np.ascontiguousarray(colours[: picture.height, : picture.width]))
    return Image.blend(picture.convert("L").convert("RGB"), overlay, 0.5)


def _bucket_colour(bucket: int) -> tuple[int, ...]:
    """Hues at the golden angle, so that buckets of near numbers, which sorting puts side by side, differ most."""
    hue = bucket * (math.sqrt(5) - 1) / 2 % 1
    return tuple(round(255 * level) for level in colorsys.hsv_to_rgb(hue, 0.9 - 0.4 * (bucket % 2), 1.0))


def _tiled(panels: list[Image.Image], style: _Style) -> Image.Image:
    """The panels in a square, or nearly."""
    columns = math.ceil(math.sqrt(len(panels)))
    lines = -(-len(panels) // columns)
    width, height = (max(getattr(panel, side) for panel in panels) for side in ("width", "height"))
    gap = 2 * style.gap
    whole = Image.new("RGB", (columns * (width + gap) - gap, lines * (height + gap) - gap), _PAPER)
    for i, panel in enumerate(panels):
        whole.paste(panel, (i % columns * (width + gap), i // columns * (height + gap)))
    return whole
