"""Every number of an evaluation as rows of a table, found by looking: a new score, group, probe or metric appears by itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from semu_diffusion.eval.metrics.unlearning import wilson_interval
from semu_diffusion.eval.pictures import Pictures
from semu_diffusion.eval.results import Evaluation, Scores, SideEffects
from semu_diffusion.pipelines.report.words import percent

__all__ = [
    "Probe",
    "Share",
    "about_erased",
    "conditions_table",
    "kept_groups",
    "measures",
    "probes_by_strength",
    "shares",
    "title_of",
]

# What a score or a group of questions is called, where its own name would not say it; any other goes by its name.
TITLES = {
    "forget": "asked for by name",
    "paraphrase": "asked for in other words or sentences",
    "in_domain": "others of its kind",
    "cross_domain": "the other kind",
    "unprompted": "without a condition",
    "unconditional": "without a condition",
    "kept_held_out": "what was kept, in other words or sentences",
    "binomial": "what was kept, asked for beside it",
    "implicit": "described without its name",
    "language": "asked for in other languages",
    "look_alike": "what was kept and only looks or sounds like it",
}
OF_KEPT = ("domain", "kept", "retain", "binomial", "look_alike")  # in the name of a group that asks for what was kept
EFFECTS = ("side_effects", "forget_effect", "unprompted_effect")  # those that need no word of their own
LEFT_OUT = ("unlearning", "retain", "revival")  # 1 - forget, a mean of the others, and what the probes say one by one


@dataclass(frozen=True)
class Share:
    """A share of samples before and after, with the 95 % interval of the latter if it is known of how many it is."""

    name: str
    words: str
    before: float | None
    after: float
    samples: int | None
    known: tuple[float, float] | None = None

    @property
    def interval(self) -> tuple[float, float] | None:
        """The one that was measured (of prompts clustered by prompt), else that of so many independent samples."""
        independent = wilson_interval(round(self.after * self.samples), self.samples) if self.samples else None
        return self.known or independent

    @property
    def fall(self) -> float:
        return 0.0 if self.before is None else self.before - self.after


@dataclass(frozen=True)
class Probe:
    """What an attempt brings back, over everything that was erased; ``control``: of kept pictures; ``how``: its settings in
    words, of each; ``learned``: from images of what was erased."""

    name: str
    learned: bool
    before: float | None
    after: float
    samples: int
    by_erased: dict[str, tuple[float | None, float]]
    control: float | None
    how: str

    @property
    def share(self) -> Share:
        return Share(self.name, f"brought back: {self.name}", self.before, self.after, self.samples)


def title_of(group: str) -> str:
    return TITLES.get(group, group.replace("_", " "))


def shares(evaluation: Evaluation) -> dict[str, Share]:
    """All shares that were measured, by what they are of: the group's name for accuracies."""
    found = {}
    for field in dataclasses.fields(Scores):
        old, new = (getattr(scores, field.name) for scores in (evaluation.before, evaluation.after))
        name = field.name.removesuffix("_accuracy").removesuffix("_share")
        if isinstance(new, int | float) and name not in LEFT_OUT:
            count = evaluation.protocol.unconditional_samples if name == "unconditional" else evaluation.after.samples.get(name)
            found[name] = Share(name, title_of(name), old, float(new), count, evaluation.after.intervals.get(name))
    return found


def about_erased(group: str, pictures: Pictures | None) -> bool:
    """True for a group that asks for what was erased, as its pictures tell; without any, unless its name says otherwise."""
    told = {row.group: row.erased for row in (() if pictures is None else pictures.rows)}
    return told.get(group, not any(word in group for word in OF_KEPT))


def kept_groups(evaluation: Evaluation, pictures: Pictures | None) -> list[Share]:
    """The groups of what was kept that were judged both times."""
    found = (one for name, one in shares(evaluation).items() if not about_erased(name, pictures))
    return [one for one in found if one.before is not None and one.samples]


def probes_by_strength(evaluation: Evaluation) -> list[Probe]:
    """The attempts to bring it back, the one that brings back most first."""
    found = []
    for name, each in evaluation.after.probes.items():
        if not each:
            continue
        old = evaluation.before.probes.get(name, {})
        by_erased = {erased: (old[erased].share if erased in old else None, one.share) for erased, one in each.items()}
        found.append(
            Probe(
                name=name,
                learned=all(one.learned for one in each.values()),
                before=_mean(before for before, _ in by_erased.values()),
                after=sum(after for _, after in by_erased.values()) / len(by_erased),
                samples=sum(one.samples for one in each.values()),
                by_erased=by_erased,
                control=_mean(one.control for one in each.values()),
                how=_settings(next(iter(each.values()))),
            )
        )
    return sorted(found, key=lambda probe: -probe.after)


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _settings(found: Any) -> str:
    """``steps: 150; lr: 0.03; …``: the fields of a probe's result but its numbers."""
    names = [field.name for field in dataclasses.fields(found) if field.name not in ("share", "samples", "control")]
    values = {name: getattr(found, name) for name in names}
    return "; ".join(f"{name.replace('_', ' ')}: {_written(v)}" for name, v in values.items() if v not in (None, ()))


def _written(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(_written, value))
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def measures(evaluation: Evaluation) -> Iterator[tuple[str, str, str, str]]:
    """(what it is of, words, value before, value after) of everything that is no share; it is of erased, kept or unprompted."""
    for field in dataclasses.fields(evaluation):
        effect = getattr(evaluation, field.name)
        if isinstance(effect, SideEffects):
            of = {"forget_effect": "erased", "unprompted_effect": "unprompted"}.get(field.name, "kept")
            rest = "" if field.name in EFFECTS else f", {field.name.removesuffix('_effect').replace('_', ' ')}"
            for metric, value in effect.paired.items():
                yield of, f"{metric.upper()} of pairs of one seed{rest}", "1" if metric == "ssim" else "0", f"{value:.4g}"
    for name, found in evaluation.distances.items():
        to = "the original's own samples, same seeds" if found.paired else found.reference
        words = f"{name.upper()} to {to} ({found.images} samples, {found.extractor.name})"
        yield "kept", words, f"{found.before:.4g}", f"{found.after:.4g}"
    old, new = evaluation.before.clip_score or {}, evaluation.after.clip_score or {}
    for group in (group for group in old if group in new):
        of = "erased" if group == "forget" else "kept"
        yield of, f"CLIP score ({old[group].model})", f"{old[group].score:.2f}", f"{new[group].score:.2f}"


def conditions_table(
    evaluation: Evaluation, pictures: Pictures | None, erased: bool
) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """(headings, rows) of every condition that asks for what was erased, or that does not: judged right, paired metrics."""
    old, new = evaluation.before.per_condition, evaluation.after.per_condition
    effects = (getattr(evaluation, field.name) for field in dataclasses.fields(evaluation))
    moves = {name: each for one in effects if isinstance(one, SideEffects) for name, each in one.per_condition.items()}
    asked = evaluation.protocol.conditions
    names = dict.fromkeys(name for group in asked if about_erased(group, pictures) == erased for name in asked[group])
    metrics = list(dict.fromkeys(metric for name in names for metric in moves.get(name, {})))
    judged = any(name in new for name in names)
    rows = []
    for name in sorted(names, key=lambda one: new.get(one, 0.0) - old.get(one, 0.0)):
        moved = moves.get(name, {})
        if name not in new and not moved:
            continue
        right = [percent(scores[name]) if name in scores else "–" for scores in (old, new)] if judged else []
        rows.append((name, *right, *(f"{moved[metric]:.3f}" if metric in moved else "–" for metric in metrics)))
    seen = "seen" if erased else "judged right"
    headings = ("asked for", *((f"{seen} before", f"{seen} after") if judged else ()), *(m.upper() for m in metrics))
    return headings, rows
