"""The front of the methods: two of a table's numbers against each other, a mark for each method, as SVG in a page or a file."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap
from typing import Any
from xml.sax.saxutils import escape

from semu_diffusion.errors import InputError
from semu_diffusion.pipelines.report.columns import COLUMNS
from semu_diffusion.pipelines.report.mark import MARK

__all__ = ["Axes", "Point", "axes_of", "free_axes", "front", "legend", "note", "panels", "plot"]

Axes = tuple[str, str]  # columns of the table: what is shown to the right, and upward

SIDE, PAD = 320, 14  # of a panel; no mark is nearer to its frame, so that none hides a number of an axis
LEFT, TOP, RIGHT, BOTTOM = 60, 12, 20, 48  # around it
WIDTH, HEIGHT = LEFT + SIDE + RIGHT, TOP + SIDE + BOTTOM
MARGIN, LINE = 16, 18  # around a picture of its own; height of a line of its text
STYLE = Path(__file__).parent / "page" / "templates" / "plot.css"
# these axes are logarithmic; what does not move at all, or costs nothing, stands at their left end
FLOOR = {
    "drift": 1e-5, "drift, held out": 1e-5, "KID ×10³": 1e-2, "trained": 1e-6, "kB": 1e-1, "passes": 100, "erase s": 1e-2,
}  # fmt: skip
WORDS = {
    "drift": "drift of what is kept, MSE", "unprompted": "erased thing, unprompted", "UA": "unlearning accuracy",
    "trained": "share of the parameters trained", "passes": "image passes of the erasure", "erase s": "seconds of the erasure",
}  # fmt: skip
HIGHER = ("UA", "kept", "look-alikes", "SSIM")  # is better; of all others lower


@dataclass(frozen=True)
class Point:
    """A method in the picture: its title, whether it is ours, its numbers by column (None: not measured), the kind of what it
    erased (a style is drawn as a square)."""

    title: str
    ours: bool
    values: Mapping[str, float | None]
    kind: str = "class"


@dataclass(frozen=True)
class Axis:
    """What an axis shows, its ticks and the place of each point, as shares of its length (None: not measured)."""

    words: str
    ticks: tuple[tuple[float, str], ...]
    at: tuple[float | None, ...]


def axes_of(text: str) -> Axes:
    """The two columns that ``--axes`` names, in any case; InputError with the known names for anything else."""
    known = {column.heading.lower(): column.heading for column in COLUMNS}
    parts = text.split(",")  # a heading may have a comma of its own
    for cut in range(1, len(parts)):
        x, y = (",".join(side).strip().lower() for side in (parts[:cut], parts[cut:]))
        if x in known and y in known:
            return known[x], known[y]
    raise InputError(f"--axes {text}: give two of these, with a comma between them: {'; '.join(known.values())}")


def panels(points: Sequence[Point], axes: Axes | None = None) -> tuple[Axes, ...]:
    """What the front shows: ``axes``, or depth, the unprompted share and unlearning against drift, and depth against cost."""
    if axes is not None:
        return (axes,)
    cost = "passes" if points and all(point.values.get("passes") is not None for point in points) else "erase s"
    return ("drift", "revival"), ("drift", "unprompted"), ("drift", "UA"), (cost, "revival")


def front(points: Sequence[Point], title: str, axes: Axes | None = None) -> str:
    """A picture of the `panels`, a mark with its method's number for each point, and the legend; it follows the reader's colour
    scheme as a page does."""
    shown = panels(points, axes)
    across = min(len(shown), 2)
    entries = [(f"{number}  {name}", "ours" if ours else "") for number, name, ours in legend(points)]
    entries += [(words, "muted")] if (words := note(points)) else []
    head, rows = wrap(title.replace("`", ""), 52 * across), math.ceil(len(entries) / across)
    top = MARGIN + 20 * len(head) + 8
    bottom = top + math.ceil(len(shown) / across) * HEIGHT
    width, height = across * WIDTH + 2 * MARGIN, bottom + LINE * rows + MARGIN
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="plot" viewBox="0 0 {width} {height}" font-family="sans-serif">',
        f"<!-- {MARK} -->",
        f"<style>\n{STYLE.read_text(encoding='utf-8')}</style>",
        f'<rect class="paper" width="{width}" height="{height}" fill="white"/>',
        *(_text(MARGIN, MARGIN + 14 + 20 * row, words, "title") for row, words in enumerate(head)),
    ]
    for place, (x, y) in enumerate(shown):
        left, down = MARGIN + place % across * WIDTH, top + place // across * HEIGHT
        lines += [f'<g transform="translate({left},{down})">', *_panel(points, x, y), "</g>"]
    for place, (words, kind) in enumerate(entries):
        left, down = MARGIN + place // rows * WIDTH, bottom + LINE * (place % rows + 1)
        lines.append(_text(left, down, words, kind))
    return "\n".join([*lines, "</svg>"]) + "\n"


def legend(points: Sequence[Point]) -> list[tuple[int, str, bool]]:
    """The number of each method, its title, and whether it is ours."""
    ours = {point.title: point.ours for point in points}
    return [(number, title, ours[title]) for number, title in enumerate(ours, 1)]


def note(points: Sequence[Point]) -> str:
    """What the shapes of the marks mean, where there are two."""
    return "circles: objects, squares: styles" if len({point.kind for point in points}) > 1 else ""


def plot(points: Sequence[Point], x: str, y: str) -> str:
    """One panel as an SVG of a page, which has its style and its legend."""
    about = f'role="img" aria-label="{escape(_name(y))} against {escape(_name(x))}"'
    return "\n".join([f'<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" {about}>', *_panel(points, x, y), "</svg>"])


def free_axes(points: Sequence[Point], shown: Axes) -> dict[str, Any]:
    """For a script that draws a panel again: its measures, and of every column that is ``shown`` or has a number both axes as
    SVG and where on them the marks are, in the panel's order."""
    drawn = _drawn(points)
    axes: dict[str, dict[str, Any]] = {}
    for name in (column.heading for column in COLUMNS):
        if name in shown or any(point.values.get(name) is not None for point in points):
            one = _axis(name, drawn)
            axes[name] = {"words": one.words, "x": _ticks(one, upward=False), "y": _ticks(one, upward=True), "at": one.at}
    return {"side": SIDE, "pad": PAD, "axes": axes}


def _drawn(points: Sequence[Point]) -> list[Point]:
    """The points in the order in which they are drawn: ours last, on top."""
    return sorted(points, key=lambda point: point.ours)


def _panel(points: Sequence[Point], x: str, y: str) -> Iterator[str]:
    numbers = {title: number for number, title, _ in legend(points)}
    drawn = _drawn(points)
    across, up = _axis(x, drawn), _axis(y, drawn)
    yield f'<g transform="translate({LEFT},{TOP})"><rect class="frame" width="{SIDE}" height="{SIDE}"/>'
    yield f'<g class="x">{_ticks(across, upward=False)}</g><g class="y">{_ticks(up, upward=True)}</g>'
    dots = [None if a is None or b is None else (_place(a), SIDE - _place(b)) for a, b in zip(across.at, up.at, strict=True)]
    offsets = _offsets(dots, [len(str(numbers[point.title])) for point in drawn])
    for point, dot, (dx, dy) in zip(drawn, dots, offsets, strict=True):
        hidden, (cx, cy) = (' display="none"', (0.0, 0.0)) if dot is None else ("", dot)
        share = 1 - 8 / max(math.hypot(dx, dy), 8)  # of the way to the number; under the mark if that is near
        spot = '<rect class="spot" x="-4.5" y="-4.5" width="9" height="9"/>' if point.kind == "style" else ""
        yield (
            f'<g class="point{" ours" if point.ours else ""}" transform="translate({cx:.1f},{cy:.1f})"{hidden}>'
            f"<title>{escape(point.title)}, {escape(point.kind)}</title>"
            f'<path class="leader" d="M0 0L{dx * share:.1f} {dy * share:.1f}"/>{spot or CIRCLE}'
            f"{_text(dx, dy + 4, str(numbers[point.title]), 'middle')}</g>"
        )
    hidden = ' display="none"' if any(dots) else ""
    yield _text(SIDE / 2, SIDE / 2, "not measured", "middle none", hidden) + "</g>"


CIRCLE = '<circle class="spot" r="5"/>'


def _axis(name: str, points: Sequence[Point]) -> Axis:
    values = [point.values.get(name) for point in points]
    known = [max(value, FLOOR.get(name, value)) for value in values if value is not None]
    if not known:
        return Axis(_name(name), (), tuple(None for _ in values))
    least, most = min(known), max(known)
    if name in FLOOR:
        low = math.floor(math.log10(least))
        high = max(math.ceil(math.log10(most)), low + 1)
        powers = range(low, high + 1, max(1, (high - low) // 5))
        ticks = tuple(((power - low) / (high - low), f"{10.0**power:g}") for power in powers)
        at = [None if v is None else (math.log10(max(v, FLOOR[name])) - low) / (high - low) for v in values]
    else:
        start = 0.0 if 0 <= least < 0.5 else min(math.floor(10 * least) / 10, 0.9)
        end = 1.0 if most > 0.5 else max(math.ceil(10 * most) / 10, start + 0.1)
        ticks = tuple((step / 5, f"{start + (end - start) * step / 5:.3g}") for step in range(6))
        at = [None if v is None else (v - start) / (end - start) for v in values]
    return Axis(_name(name), ticks, tuple(None if share is None else round(share, 4) for share in at))


def _name(name: str) -> str:
    scale, better = "log, " if name in FLOOR else "", "higher" if name.startswith(HIGHER) else "lower"
    return f"{WORDS.get(name, name)} ({scale}{better} is better)"


def _ticks(axis: Axis, upward: bool) -> str:
    parts = []
    for share, words in axis.ticks:
        at = _place(share)
        if upward:
            parts.append(f'<path class="grid" d="M0 {SIDE - at:.1f}H{SIDE}"/>{_text(-6, SIDE - at + 4, words, "end")}')
        else:
            parts.append(f'<path class="grid" d="M{at:.1f} 0V{SIDE}"/>{_text(at, SIDE + 16, words, "middle")}')
    turned = f' transform="translate(-44,{SIDE / 2}) rotate(-90)"'
    parts.append(_text(0, 0, axis.words, "middle", turned) if upward else _text(SIDE / 2, SIDE + 37, axis.words, "middle"))
    return "".join(parts)


def _place(share: float) -> float:
    return PAD + share * (SIDE - 2 * PAD)


def _offsets(dots: Sequence[tuple[float, float] | None], digits: Sequence[int]) -> list[tuple[float, float]]:
    """Where the number of each dot stands, from it: the nearest place where it hides no dot and no other number."""
    taken = [(*dot, 5.0, 5.0) for dot in dots if dot is not None]
    tried = [(r * math.cos(k * math.pi / 6), r * math.sin(k * math.pi / 6)) for r in range(12, 100, 8) for k in range(-2, 10)]
    found = []
    for dot, count in zip(dots, digits, strict=True):
        (x, y), wide, high = dot or (0.0, 0.0), 4.0 * count, 6.0
        free = (
            (dx, dy) for dx, dy in tried
            if wide < x + dx < SIDE - wide and high < y + dy < SIDE - high
            and all(abs(x + dx - a) >= wide + w or abs(y + dy - b) >= high + h for a, b, w, h in taken)
        )  # fmt: skip
        dx, dy = tried[0] if dot is None else next(free, tried[0])
        found.append((dx, dy))
        taken += [] if dot is None else [(x + dx, y + dy, wide, high)]
    return found


def _text(x: float, y: float, words: str, kind: str = "", more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}"{more}>{escape(words)}</text>'
