"""The front of the methods, drawn as one SVG: depth and unlearning against the side effect, and depth against cost."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from semu_diffusion.pipelines.report.mark import MARK

__all__ = ["Point", "front"]

SIDE, GAP, MARGIN = 300, 76, 56  # of a panel, between panels, around all
LINE = 18  # height of a line of the legend
# what does not move at all, or costs nothing, stands at the left edge of a logarithmic axis
FLOOR = {"drift": 1e-5, "passes": 100, "seconds": 1e-2}
WORDS = {
    "drift": "drift of what is kept (MSE, log)", "revival": "revival", "unasked": "erased thing among unasked samples",
    "UA": "unlearning accuracy", "passes": "image passes of the erasure (log)", "seconds": "seconds of the erasure (log)",
}  # fmt: skip


@dataclass(frozen=True)
class Point:
    """A method in the picture: its title, whether it is ours, its numbers by name (None: not measured), the kind of what it
    erased (a style is drawn as a square)."""

    title: str
    ours: bool
    values: Mapping[str, float | None]
    kind: str = "class"


def front(points: Sequence[Point], title: str) -> str:
    """An SVG of four panels, a mark for each point with its method's number, and the legend: the lower left is better, but for
    UA."""
    cost = "passes" if points and all(point.values.get("passes") is not None for point in points) else "seconds"
    panels = (("drift", "revival"), ("drift", "unasked"), ("drift", "UA"), (cost, "revival"))
    width = 2 * SIDE + GAP + 2 * MARGIN
    colours = {point.title: _colour(point) for point in points}
    numbers = {title: number for number, title in enumerate(colours, 1)}
    kinds = dict.fromkeys(point.kind for point in points)
    notes = ["circles: objects, squares: styles"] if len(kinds) > 1 else []
    height = 2 * (SIDE + GAP) + 2 * MARGIN + LINE * (len(colours) + len(notes))
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">',
        f"<!-- {MARK} -->",
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="{MARGIN}" y="24" font-size="15">{escape(title.replace("`", ""))}</text>',
    ]
    for place, (x, y) in enumerate(panels):
        left, top = MARGIN + place % 2 * (SIDE + GAP), MARGIN + place // 2 * (SIDE + GAP)
        lines += [f'<g transform="translate({left},{top})">', *_panel(points, numbers, x, y), "</g>"]
    legend = [(f"{numbers[title]}  {title}", colour) for title, colour in colours.items()]
    for line, (words, colour) in enumerate([*legend, *((note, "#222") for note in notes)], 1):
        lines.append(_text(MARGIN, 2 * (SIDE + GAP) + MARGIN + LINE * line, words, colour=colour))
    return "\n".join([*lines, "</svg>"]) + "\n"


def _panel(points: Sequence[Point], numbers: Mapping[str, int], x: str, y: str) -> Iterator[str]:
    yield f'<rect width="{SIDE}" height="{SIDE}" fill="none" stroke="#888"/>'
    yield _text(SIDE / 2, SIDE + 34, WORDS[x], "middle")
    yield f'<text transform="translate(-40,{SIDE / 2}) rotate(-90)" text-anchor="middle">{escape(WORDS[y])}</text>'
    shown = [(numbers[p.title], p, p.values.get(x), p.values.get(y)) for p in points]
    pairs = [(n, p, max(a, FLOOR[x]), b) for n, p, a, b in shown if a is not None and b is not None]
    pairs.sort(key=lambda pair: pair[1].ours)  # drawn last, on top
    if not pairs:
        yield _text(SIDE / 2, SIDE / 2, "not measured", "middle")
        return
    low = math.floor(min(math.log10(a) for _, _, a, _ in pairs))
    high = max(math.ceil(max(math.log10(a) for _, _, a, _ in pairs)), low + 1)
    top = 1.0 if y != "unasked" else max(0.1, math.ceil(10 * max(b for *_, b in pairs)) / 10)
    for power in range(low, high + 1):
        at = SIDE * (power - low) / (high - low)
        yield f'<path d="M{at:.1f} 0V{SIDE}" stroke="#ddd"/>' + _text(at, SIDE + 16, f"{10.0**power:g}", "middle")
    for step in range(6):
        at = SIDE * (1 - step / 5)
        yield f'<path d="M0 {at:.1f}H{SIDE}" stroke="#ddd"/>' + _text(-6, at + 4, f"{top * step / 5:.2g}", "end")
    for method, point, a, b in pairs:
        cx, cy = SIDE * (math.log10(a) - low) / (high - low), SIDE * (1 - b / top)
        rounded = 1 if point.kind == "style" else 8
        yield (
            f'<rect x="{cx - 8:.1f}" y="{cy - 8:.1f}" width="16" height="16" rx="{rounded}" fill="{_colour(point)}" '
            'fill-opacity="0.85"/>'
        )
        yield _text(cx, cy + 4, str(method), "middle", "white")


def _colour(point: Point) -> str:
    return "#c0392b" if point.ours else "#34495e"


def _text(x: float, y: float, words: str, anchor: str = "start", colour: str = "#222") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{escape(words)}</text>'
