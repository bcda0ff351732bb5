"""Draw ``results/quality_per_second.json`` as an SVG of a few kilobytes: PSNR over seconds a megapixel, a panel a set.

    python benchmarks/quality_plot.py [JSON] [SVG]

Colours follow the reader's light or dark scheme; without one, they read on either. A full mark is float32, a hollow one
bfloat16 of the same method, joined to it by a line.
"""

import json
import math
import sys
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from measure import RESULTS

ROOT = Path(__file__).parent.parent
WIDTH, HEIGHT = 400, 270  # of a panel
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 30, 42  # of its margins
COLUMNS = 2
LETTER, BOLD, LINE = 6.1, 6.9, 11  # a letter's width, in bold too, and a line's height in pixels, at 11 pixels of text
SHOWN = 2.0  # dB below the best; what lies lower is named in a line, or it would press the others together
STYLE = """
text { font-family: system-ui, sans-serif; font-size: 11px; fill: #57606a; }
.title { font-weight: 600; fill: #24292f; }
.grid { stroke: #8c959f; stroke-opacity: .3; }
.ours { fill: #0969da; stroke: #0969da; }
.peer { fill: #9a6700; stroke: #9a6700; }
.ours-name { fill: #0969da; font-weight: 600; }
.peer-name { fill: #9a6700; }
.half { fill: none; stroke-width: 1.5; }
@media (prefers-color-scheme: dark) {
  text { fill: #9198a1; }
  .title { fill: #f0f6fc; }
  .ours { fill: #58a6ff; stroke: #58a6ff; }
  .peer { fill: #d29922; stroke: #d29922; }
  .ours-name { fill: #58a6ff; }
  .peer-name { fill: #d29922; }
  .half { fill: none; }
}
"""


Box = tuple[float, float, float, float]


class Point(NamedTuple):
    """A method in one precision: seconds a megapixel and dB."""

    method: str
    precision: str
    ours: bool
    seconds: float
    psnr: float


class Scale(NamedTuple):
    """Values to pixels of a panel: seconds by their logarithm."""

    seconds: tuple[float, float]
    psnr: tuple[float, float]

    def x(self, seconds: float) -> float:
        low, high = map(math.log10, self.seconds)
        return LEFT + (math.log10(seconds) - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    def y(self, psnr: float) -> float:
        low, high = self.psnr
        return HEIGHT - BOTTOM - (psnr - low) / (high - low) * (HEIGHT - TOP - BOTTOM)


def draw(result: dict[str, Any], path: Path) -> None:
    """Write the plot of a result of ``quality_per_second.py``, at sigma 25 or else the first noise level."""
    sets = list(result["pictures"])
    sigmas = list(result["methods"][0]["psnr"][sets[0]])
    sigma = "25" if "25" in sigmas else sigmas[0]
    panels = []
    for i, name in enumerate(sets):
        points = [_point(row, name, sigma) for row in result["methods"]]
        count = result["pictures"][name]
        title = f"PSNR in dB: {name}, sigma {sigma} ({count} picture{'s' if count > 1 else ''})"
        place = f"translate({i % COLUMNS * WIDTH} {i // COLUMNS * HEIGHT})"
        panels.append(f'<g transform="{place}">\n{_panel(title, points)}\n</g>')
    height = -(-len(sets) // COLUMNS) * HEIGHT
    panels += _legend(height + 4, result["time"])
    width, height = min(len(sets), COLUMNS) * WIDTH, height + 16
    size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    what = "PSNR in dB over seconds a megapixel, by method"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{what}">\n<title>{what}</title>'
    path.write_text("\n".join([head, f"<style>{STYLE}</style>", *panels, "</svg>"]) + "\n", encoding="utf-8")


def _point(row: dict[str, Any], name: str, sigma: str) -> Point:
    seconds, psnr = row["seconds_per_megapixel"], row["psnr"][name][sigma]
    return Point(row["method"], row["precision"], row["ours"], seconds, psnr)


def _legend(y: int, time: dict[str, Any]) -> list[str]:
    """What the marks are, and what was timed."""
    threads = f"{time['threads']} thread{'s' if time['threads'] > 1 else ''}"
    clock = {"wall": "wall time", "cpu": "CPU time"}[time["clock"]]
    side = "×".join(map(str, time["picture"]))
    return [
        f'<circle class="ours" cx="{LEFT}" cy="{y}" r="4"/><text x="{LEFT + 8}" y="{y + 4}">float32</text>',
        f'<circle class="ours half" cx="{LEFT + 64}" cy="{y}" r="4"/><text x="{LEFT + 72}" y="{y + 4}">bfloat16</text>',
        f'<text x="{LEFT + 132}" y="{y + 4}">{clock} of {threads}, {side} pixels</text>',
    ]


def _panel(title: str, points: list[Point]) -> str:
    best = max(point.psnr for point in points)
    low = [point for point in points if point.psnr < best - SHOWN]
    points = [point for point in points if point not in low]
    scale = _scale(points)
    parts = [f'<text class="title" x="{LEFT}" y="16">{escape(title)}</text>', *_axes(scale)]
    lower = [f"{p.method} {p.psnr:.2f} dB, {p.seconds:.2g} s" for p in low if p.precision == "float32"]
    x_axis = "seconds a megapixel" + (f" (lower: {'; '.join(lower)})" if low else "")
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - BOTTOM + 33}" text-anchor="middle">{escape(x_axis)}</text>')
    taken = [box for method in _by_method(points) for box in _covered(method, scale)]
    for own in _by_method(points):
        method = own[0].method
        kind = "ours" if own[0].ours else "peer"
        if len(own) > 1:
            (x1, y1), (x2, y2) = ((scale.x(p.seconds), scale.y(p.psnr)) for p in own[:2])
            parts.append(f'<path class="{kind}" d="M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}"/>')
        for p in own:
            half = " half" if p.precision == "bfloat16" else ""
            said = f"{p.method}, {p.precision}: {p.psnr:.2f} dB, {p.seconds:.3g} s a megapixel"
            place = f'cx="{scale.x(p.seconds):.1f}" cy="{scale.y(p.psnr):.1f}" r="4"'
            parts.append(f'<circle class="{kind}{half}" {place}><title>{escape(said)}</title></circle>')
        width = (BOLD if own[0].ours else LETTER) * len(method)
        x, y = _free_place(scale.x(own[0].seconds), scale.y(own[0].psnr), width, taken)
        parts.append(f'<text class="{kind}-name" x="{x:.1f}" y="{y + LINE - 2:.1f}">{escape(method)}</text>')
    return "\n".join(parts)


def _by_method(points: list[Point]) -> list[list[Point]]:
    """Points of one method each, float32 first."""
    return [[p for p in points if p.method == method] for method in dict.fromkeys(p.method for p in points)]


def _covered(points: list[Point], scale: Scale) -> list[Box]:
    """Squares along the marks of a method and the line between them."""
    ends = [(scale.x(p.seconds), scale.y(p.psnr)) for p in points]
    (x1, y1), (x2, y2) = ends[0], ends[-1]
    places = [*ends, *((x1 + (x2 - x1) * i / 12, y1 + (y2 - y1) * i / 12) for i in range(1, 12))]
    return [(x - 5, y - 5, x + 5, y + 5) for x, y in places]


def _scale(points: list[Point]) -> Scale:
    """From 1, 2 or 5 of a decade to another, and between quarters or halves of a decibel."""
    seconds, psnr = [p.seconds for p in points], [p.psnr for p in points]
    step = 0.5 if max(psnr) - min(psnr) > 0.8 else 0.25
    low, high = math.floor(min(psnr) / step) * step, math.ceil(max(psnr) / step) * step
    left = max(value for value in _ticks(1e-4, 1e4) if value < min(seconds))
    right = min(value for value in _ticks(1e-4, 1e4) if value > max(seconds))
    return Scale((left, right), (low, high if high > low else low + step))


def _ticks(low: float, high: float) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    values = [digit * 10.0**decade for decade in decades for digit in (1, 2, 5)]
    return [value for value in values if low <= value * 1.0001 and value <= high * 1.0001]


def _axes(scale: Scale) -> list[str]:
    """Grid lines with their values, and what the axes are."""
    parts = []
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    for value in _ticks(*scale.seconds):
        x = scale.x(value)
        parts.append(f'<path class="grid" d="M{x:.1f} {TOP}V{bottom}"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 15}" text-anchor="middle">{value:g}</text>')
    low, high = scale.psnr
    step = next(s for s in (0.25, 0.5, 1, 2, 5, 10) if (high - low) / s <= 6)
    for i in range(math.ceil(low / step), math.floor(high / step) + 1):
        y = scale.y(i * step)
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{right}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{i * step:g}</text>')
    return parts


def _free_place(x: float, y: float, width: float, taken: list[Box]) -> tuple[float, float]:
    """The upper left corner of a label near a point that hides nothing, and is then taken itself."""
    beside = [
        (x + 8, y - LINE / 2),
        (x - 8 - width, y - LINE / 2),
        (x - width / 2, y - 8 - LINE),
        (x - width / 2, y + 8),
    ]
    rings = [(a, b + shift) for shift in (0, -LINE, LINE, -2 * LINE, 2 * LINE) for a, b in beside]
    within = [
        (a, b) for a, b in rings if a >= LEFT and a + width <= WIDTH and TOP - LINE <= b <= HEIGHT - BOTTOM - LINE
    ]
    boxes = [(a, b, a + width, b + LINE) for a, b in within] or [(x, y, x + width, y + LINE)]
    best = min(boxes, key=lambda box: sum(_overlap(box, other) for other in taken))
    taken.append(best)
    return best[:2]


def _overlap(one: Box, other: Box) -> float:
    wide = min(one[2], other[2]) - max(one[0], other[0])
    high = min(one[3], other[3]) - max(one[1], other[1])
    return max(wide, 0.0) * max(high, 0.0)


def main() -> None:
    given = [Path(name) for name in sys.argv[1:]]
    source, target = (given + [None] * 2)[:2]
    source = source or RESULTS / "quality_per_second.json"
    draw(json.loads(source.read_text(encoding="utf-8")), target or ROOT / "docs/images/quality-per-second.svg")


if __name__ == "__main__":
    main()
