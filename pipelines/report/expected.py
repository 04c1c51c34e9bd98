"""What is known of methods elsewhere, beside the rows: the same figure, thing and model, within its tolerance or not."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from semu_diffusion.assets import placed
from semu_diffusion.peers.methods import FIGURES, Expected, Method
from semu_diffusion.pipelines.benchmark.rows import Row
from semu_diffusion.pipelines.report.columns import COLUMNS, at

__all__ = ["Beside", "beside", "beside_table", "missed"]

HEADINGS = dict(
    zip(FIGURES, ("UA", "paraphrases", "kept, own kind", "kept, other kind", "drift", "revival", "unprompted"), strict=True)
)
WORDS = (
    "A figure that was found elsewhere agrees if the row lies within the tolerance, to either side. It was found by another "
    "protocol of the attack and of the samples, and where the weights are others, of another model: what does not agree says "
    "that the two differ, not which is wrong."
)


@dataclass(frozen=True)
class Beside:
    """What is ``known`` of a method, and the mean of the ``rows`` that it is said of."""

    method: Method
    known: Expected
    value: float
    same_weights: bool

    @property
    def agrees(self) -> bool:
        return abs(self.value - self.known.value) <= self.known.tolerance + 1e-9


def beside(methods: Iterable[Method], measured: Sequence[Row]) -> Iterator[Beside]:
    """For each of the methods what is known of the things that it has rows of, after their protocol, on an embedded model."""
    protocol, *rows = measured
    model, weights = str(protocol["protocol"].get("model")), str(protocol["protocol"].get("weights"))
    for method in methods if placed(model) != model else ():
        for known in method.expected:
            of = [row for row in rows if row["method"] == method.name and known.thing in (None, row["erased"])]
            found = [value for row in of if (value := _figure(row, known.figure)) is not None]
            if found and known.model in (None, model):
                same = known.weights is None or weights.startswith(known.weights)
                yield Beside(method, known, fmean(found), same)


def missed(methods: Iterable[Method], measured: Sequence[Row]) -> Iterator[str]:
    """A line for every figure that was found on these very weights, and that the rows do not reach."""
    for one in beside(methods, measured):
        if one.same_weights and not one.agrees:
            known = one.known
            yield f"{one.method.name}: {known.figure} {one.value:.3f}, expected {known.value:g} within {known.tolerance:g}"


def beside_table(methods: Mapping[str, Method], measured: Sequence[Row]) -> Iterator[str]:
    """Markdown: what is known elsewhere of the rows' methods and things; then of which methods nobody knows anything."""
    _, *rows = measured
    there = [methods[name] for name in dict.fromkeys(row["method"] for row in rows) if name in methods]
    found = [one for one in beside(there, measured) if one.known.thing is not None]
    notes: dict[str, list[str]] = {}
    for method in there:
        if method.note:
            notes.setdefault(method.note, []).append(method.title)
    if found or notes:
        yield from ("", "## Beside what was found elsewhere", "")
    if found:
        yield from (WORDS, "", "| method | erased | figure | here | there | tolerance | agrees | there by |")
        yield "|---|---|---|---:|---:|---:|---|---|"
    for one in found:
        known, form = one.known, _form(one.known.figure)
        numbers = " | ".join(format(number, form) for number in (one.value, known.value, known.tolerance))
        where = "on this model" if one.same_weights else f"on other weights of this model ({known.weights})"
        verdict = f"{'yes' if one.agrees else '**no**'} | {known.source}, {where}"
        yield f"| {one.method.title} | {known.thing} | {HEADINGS[known.figure]} | {numbers} | {verdict} |"
    yield from ("",) if found and notes else ()
    yield from (f"{', '.join(titles)}: {note}." for note, titles in notes.items())


def _figure(row: Row, figure: str) -> float | None:
    path = ("side_effects", "paired", "mse") if figure == "drift" else ("after", figure)
    return at("evaluation", *path)(row)


def _form(figure: str) -> str:
    """As the tables of the rows write it."""
    return next((column.form for column in COLUMNS if column.heading == HEADINGS[figure]), ".3f")
