"""The neighbours' matrix: of each erasure, by what was measured, what the judge still saw of it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from semu_diffusion.domains.prompts import contains
from semu_diffusion.names.words import replace_nouns
from semu_diffusion.pipelines.report.page.entries import Entry

__all__ = ["Matrix", "matrices"]

NEIGHBOURS = ("forget", "in_domain", "cross_domain")  # the other groups ask for the same answers in other ways
OTHER = {"object": "style", "style": "object"}  # what a cross_domain condition of a row of a kind is asked for
Things = Mapping[tuple[str, str], str]


@dataclass(frozen=True)
class Asked:
    """A condition, asked to see something of a ``kind``; ``thing``: the erased one that it asks for, if it does."""

    kind: str
    condition: str
    thing: str | None = None


Matrix = tuple[list[str], list[tuple[str, list[dict[str, Any] | None]]]]


def matrices(groups: Mapping[str, Sequence[Entry]]) -> dict[str, Matrix]:
    """The matrix of each group; what their conditions show is told by the names that all of them have."""
    things = _things([entry for entries in groups.values() for entry in entries])
    return {name: _matrix(entries, things) for name, entries in groups.items()}


def _matrix(entries: Sequence[Entry], things: Things) -> Matrix:
    """(measured, rows): of each erasure, by what was measured, judged right before and after, and whether it was erased."""
    found = [(entry, _measured(entry, things)) for entry in entries]
    own = [name for entry, cells in found for name in cells if _erased(name, entry)]
    names = list(dict.fromkeys([*own, *(name for _, cells in found for name in cells)]))
    rows: list[tuple[str, list[dict[str, Any] | None]]] = []
    for entry, cells in found:
        line: list[dict[str, Any] | None] = []
        for name in names:
            old, new = cells.get(name, (None, None))
            known = old is not None and new is not None
            fall = max(old - new, 0.0) if old is not None and new is not None else 0.0
            line.append({"before": old, "after": new, "fall": fall, "own": _erased(name, entry)} if known else None)
        rows.append((entry.name, line))
    return names, rows


def _measured(entry: Entry, things: Things) -> dict[str, tuple[float, float]]:
    """Judged right before and after: by answer where the pictures tell it, else by what the conditions show."""
    if entry.pictures is None or not entry.pictures.became:
        old, new = entry.evaluation.before.per_condition, entry.evaluation.after.per_condition
        shown: dict[str, list[str]] = {}
        for one in _asked(entry):
            shown.setdefault(one.thing or things[one.kind, one.condition], []).append(one.condition)
        return {thing: (fmean(map(old.__getitem__, each)), fmean(map(new.__getitem__, each))) for thing, each in shown.items()}
    found = {}
    for group, by_answer in entry.pictures.became.items():
        for answer, rows in by_answer.items() if group in NEIGHBOURS else ():
            total = sum(sum(row.values()) for row in rows.values())
            before = sum(rows.get(answer, {}).values()) / total
            found[answer] = (before, sum(row.get(answer, 0) for row in rows.values()) / total)
    return found


def _asked(entry: Entry) -> Iterator[Asked]:
    """The judged conditions of an entry without pictures; one of two groups in the first, whose answer its number is of."""
    evaluation = entry.evaluation
    kind: str = entry.row["kind"]
    seen = set()
    for group in NEIGHBOURS:
        for condition in evaluation.protocol.conditions.get(group, ()):
            known = condition in evaluation.before.per_condition and condition in evaluation.after.per_condition
            if not known or condition in seen:
                continue
            seen.add(condition)
            erased = [name for name in evaluation.erased if len(evaluation.erased) == 1 or contains(condition, name)]
            thing = erased[0] if group == "forget" and erased else None
            yield Asked(OTHER.get(kind, kind) if group == "cross_domain" else kind, condition, thing)


def _things(entries: Sequence[Entry]) -> Things:
    """What each (kind, condition) shows: a name that the rows have, or else the condition's own words.

    "a sepia photo of a cat" and "a photo of a cat" both name the style "photo". With the objects out of the sentences, the
    shortest one is what the name means; the other stays as it is: "a sepia photo of …".
    """
    names: dict[str, set[str]] = {}
    for entry in entries:
        labels = [shares for when in (entry.evaluation.before, entry.evaluation.after) for shares in when.judged_as.values()]
        names.setdefault(entry.row["kind"], set()).update(entry.evaluation.erased, *labels)
    asked = {(one.kind, one.condition) for entry in entries for one in _asked(entry) if one.thing is None}
    sentences = {(kind, words): _without(words, names.get(OTHER.get(kind, ""), ())) for kind, words in asked}
    named: dict[tuple[str, str], str] = {}  # (kind, sentence) -> name
    shortest: dict[tuple[str, str], str] = {}  # (kind, name) -> sentence
    for kind, sentence in sorted({(kind, sentence) for (kind, _), sentence in sentences.items()}, key=lambda one: len(one[1])):
        known = names.get(kind, set())
        name = sentence if sentence in known else max((n for n in known if contains(sentence, n)), key=len, default=sentence)
        meant = shortest.setdefault((kind, name), sentence) == sentence
        named[kind, sentence] = name if meant else sentence
    return {(kind, words): named[kind, sentence] for (kind, words), sentence in sentences.items()}


def _without(sentence: str, names: Iterable[str]) -> str:
    """The sentence with … in the place of the names and their articles."""
    known = sorted(names)
    return re.sub(r"\b(?:an?|the) …", "…", replace_nouns(sentence, known, "…")) if known else sentence


def _erased(name: str, entry: Entry) -> bool:
    evaluation = entry.evaluation
    return name in (*evaluation.erased, *evaluation.after.judged_as, *evaluation.protocol.conditions.get("forget", ()))
