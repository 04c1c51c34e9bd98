"""Drawings as inline SVG, 400 units wide, in the page's colours (classes of style.css), each with a text for who hears it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import groupby

from markupsafe import Markup, escape

from semu_diffusion.pipelines.report.page.run import Layer

__all__ = ["curves", "flow", "layer_bars"]

WIDTH = 400
LINES = ("line", "line second", "line third", "line fourth")
MOST, OTHERS = 7, "others"  # names on a side of a flow, and what the rest is called


def _svg(height: float, words: str, parts: Sequence[str]) -> Markup:
    body = "".join(parts)
    return Markup(
        f'<svg class="plot" viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(words)}" '
        f'preserveAspectRatio="xMidYMin meet">{body}</svg>'
    )


def _text(x: float, y: float, text: str, kind: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}">{escape(text)}</text>'


def curves(series: Mapping[str, Sequence[float]], words: str) -> Markup:
    """Lines over the steps 1, 2, …, by name; the axis is of tenfold steps, so values must be above 0 to be drawn."""
    left, right, top, bottom = 44, WIDTH - 8, 30, 170
    drawn = {name: [(x, v) for x, v in enumerate(values, 1) if v > 0] for name, values in series.items()}
    drawn = {name: points for name, points in drawn.items() if points}
    values = [v for points in drawn.values() for _, v in points]
    if not values:
        return Markup("")
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    high, last = max(high, low + 1), max(x for points in drawn.values() for x, _ in points)
    parts = []
    for power in range(low, high + 1, max(1, (high - low) // 4)):
        y = bottom - (power - low) / (high - low) * (bottom - top)
        parts += [f'<path class="grid" d="M{left} {y:.1f}H{right}"/>', _text(left - 6, y + 4, f"1e{power}", "end")]
    for step in sorted({1, (last + 1) // 2, last}):
        x = left + (step - 1) / max(last - 1, 1) * (right - left)
        parts.append(_text(x, bottom + 16, str(step), "end" if step == last else "middle" if step > 1 else ""))
    parts.append(_text((left + right) / 2, bottom + 30, "step", "middle"))
    x = left
    for kind, (name, points) in zip(LINES, drawn.items(), strict=False):
        places = (
            f"{left + (at - 1) / max(last - 1, 1) * (right - left):.1f},"
            f"{bottom - (math.log10(v) - low) / (high - low) * (bottom - top):.1f}"
            for at, v in points
        )
        parts.append(f'<polyline class="{kind}" points="{" ".join(places)}"/>')
        parts += [f'<path class="{kind}" d="M{x} 12h18"/>', _text(x + 23, 16, name)]
        x += 34 + 7 * len(name)
    return _svg(bottom + 34, words, parts)


def layer_bars(layers: Sequence[Layer]) -> Markup:
    """For every layer, in the order in which a sample passes them: rank, size of the update, and what the protection says."""
    measures: dict[str, list[float | None]] = {
        "rank": [layer.rank for layer in layers],
        "size of the update ‖ΔW‖": [layer.size for layer in layers],
    }
    for key in dict.fromkeys(key for layer in layers for key in layer.protection):
        measures[key.replace("_", " ")] = [layer.protection.get(key) for layer in layers]
    parts, top, step = [], 0, WIDTH / max(len(layers), 1)
    stages = [(name, len(list(group))) for name, group in groupby(layers, key=_stage)]
    starts = [sum(count for _, count in stages[:place]) for place in range(len(stages))]
    for words, values in measures.items():
        most = max((value for value in values if value is not None), default=0)
        if not most > 0:
            continue
        parts += [_text(0, top + 12, words), _text(WIDTH, top + 12, f"highest {most:.3g}", "end muted")]
        parts += [f'<path class="grid" d="M0 {top + 62}H{WIDTH}"/>']
        parts += [f'<path class="grid" d="M{start * step:.1f} {top + 20}v42"/>' for start in starts[1:]]
        for place, (layer, value) in enumerate(zip(layers, values, strict=True)):
            height = 42 * (value or 0) / most
            title = f"{layer.name}: {words} {'not measured' if value is None else f'{value:.4g}'}"
            parts.append(
                f'<rect class="bar" x="{(place + 0.1) * step:.2f}" y="{top + 62 - height:.2f}" width="{0.8 * step:.2f}" '
                f'height="{height:.2f}"><title>{escape(title)}</title></rect>'
            )
        top += 76
    for start, (stage, count) in zip(starts, stages, strict=True):
        if count * step >= 7 * len(stage):
            parts.append(_text((start + count / 2) * step, top + 2, stage, "middle muted"))
    largest = max(layers, key=lambda layer: layer.size).name
    words = f"Rank, size of the update and protection of {len(layers)} layers; the largest update is in {largest}."
    return _svg(top + 8, words, parts)


def _stage(layer: Layer) -> str:
    """``down`` of down_blocks.0.resnets.1.conv2."""
    return layer.name.split(".")[0].split("_")[0]


def flow(became: Mapping[str, Mapping[str, int]], erased: str) -> Markup:
    """What the judge called the samples before, on the left, and after, on the right, as bands of so many samples."""
    pairs = Counter({(source, label): count for source, row in became.items() for label, count in row.items()})
    old, new = (_largest(sum((Counter({pair[side]: count}) for pair, count in pairs.items()), Counter())) for side in (0, 1))
    total = sum(old.values())
    unit, left, right = 150 / total, 118, WIDTH - 118
    middle, starts, ends = WIDTH / 2, _places(old, unit), _places(new, unit)
    height = max(bottom for places in (starts, ends) for _, bottom in places.values()) + 6
    parts = [_text(left, 12, "before", "end muted"), _text(right, 12, "after", "muted")]
    at, to = ({name: y for name, (y, _) in places.items()} for places in (starts, ends))
    bands: Counter[tuple[str, str]] = Counter()
    for (source, label), count in pairs.items():
        bands[source if source in old else OTHERS, label if label in new else OTHERS] += count
    for name, target in sorted(bands, key=lambda pair: (list(old).index(pair[0]), list(new).index(pair[1]))):
        count = bands[name, target]
        y0, y1, thick = at[name], to[target], count * unit
        at[name], to[target] = y0 + thick, y1 + thick
        kind = "band still" if target == erased else "band gone" if name == erased else "band"
        parts.append(
            f'<path class="{kind}" d="M{left + 6} {y0:.1f}C{middle} {y0:.1f} {middle} {y1:.1f} {right - 6} {y1:.1f}v'
            f'{thick:.1f}C{middle} {y1 + thick:.1f} {middle} {y0 + thick:.1f} {left + 6} {y0 + thick:.1f}Z">'
            f"<title>{escape(f'{name} to {target}: {count} of {total}')}</title></path>"
        )
    for names, places, x, side in ((old, starts, left, "end"), (new, ends, right, "")):
        for name, count in names.items():
            y, _ = places[name]
            parts.append(f'<rect class="node" x="{x - 3}" y="{y:.1f}" width="6" height="{max(count * unit, 1):.1f}"/>')
            label = f"{name if len(name) <= 16 else name[:15] + '…'} {count}"
            parts.append(_text(x - 9 if side else x + 9, y + count * unit / 2 + 4, label, side))
    words = "; ".join(f"{name} to {target}, {count}" for (name, target), count in bands.most_common(12))
    return _svg(height, f"What the judge called {total} samples before and after: {words}.", parts)


def _largest(counts: Mapping[str, int]) -> dict[str, int]:
    """The most frequent names, and the rest as others."""
    ranked = sorted(counts.items(), key=lambda one: -one[1])
    rest = sum(count for _, count in ranked[MOST:])
    return dict(ranked[:MOST]) | ({OTHERS: rest} if rest else {})


def _places(counts: Mapping[str, int], unit: float) -> dict[str, tuple[float, float]]:
    """(top, bottom) of each name's slot, which is high enough for its label."""
    found, y = {}, 24.0
    for name, count in counts.items():
        slot = max(count * unit, 16.0)
        found[name] = (y + (slot - count * unit) / 2, y + slot)
        y += slot + 5
    return found
