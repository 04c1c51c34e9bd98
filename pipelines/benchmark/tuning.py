"""Equal tuning effort: each method's main setting, searched over as many values, on things and a seed that are not reported."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from semu_diffusion.erasure import Diverged
from semu_diffusion.errors import InputError
from semu_diffusion.peers.methods import METHODS, Method
from semu_diffusion.pipelines.benchmark.rows import Row, Rows
from semu_diffusion.pipelines.benchmark.subjects import Subjects

__all__ = ["CRITERION", "Tuning", "tuning_of"]

SEED = 10_000  # of the validation
VALIDATED_ON = 2  # things, if nobody names them
FURTHER = 2  # steps beyond the declared values, where the best one lies at their edge
EDGE = f"and, where the best value lies at the edge, one step further in that direction, at most {FURTHER} times"
CRITERION = "mean of unlearning accuracy and of the accuracies on what is kept, of its own kind and of the other"
GROUPS = ("in_domain_accuracy", "cross_domain_accuracy")


@dataclass(frozen=True)
class Tuning:
    """The search: what every candidate erases (``names``, not reported), and from which ``seed``."""

    names: tuple[str, ...]
    seed: int
    subjects: Subjects

    def protocol(self) -> dict[str, Any]:
        """The whole search space, for the page and for run after run: all of the domain's methods, asked for or not."""
        domain = self.subjects.domain
        knobs = {name: method.knob for name, method in METHODS.items() if domain in method.domains and method.knob is not None}
        return {"knobs": knobs, "edge": EDGE, "erased": self.names, "seed": self.seed, "criterion": CRITERION}

    def values(self, method: Method) -> list[float]:
        """The values of the method's knob, its own one first; [] of one that has none.

        A variant that sets the knob itself has been decided on, and is not searched.
        """
        if method.knob is None:
            return []
        setting, factors = method.knob
        own: float = method.overrides.get(setting, method.own.get(setting))
        if own is None:
            own = getattr(self.subjects.settings(self.subjects.names[0], method), setting)
        return [own, *(times(own, factor) for factor in factors if factor != 1)]

    def tuned(
        self, methods: Sequence[Method], work: Path, protocol: Mapping[str, Any],
        measure: Callable[[Method, str, int], Row], note: Callable[[str], None],
    ) -> list[Method]:  # fmt: skip
        """Each method with the value that validates best; every candidate is a row of ``work``'s tuning file, measured once.

        ``measure`` gives the row of a method, a thing and a seed; a candidate that diverges is the worst.
        """
        rows = Rows(work / f"tuning-{self.subjects.domain}.jsonl", {**protocol, "tuning": self.protocol()})
        return [self._best(method, rows, measure, note) for method in methods]

    def _best(
        self, method: Method, rows: Rows, measure: Callable[[Method, str, int], Row], note: Callable[[str], None]
    ) -> Method:
        if method.knob is None:
            return method
        setting, scores = method.knob[0], dict[float, float]()
        asked, best = self.values(method), 0.0
        for _ in range(1 + FURTHER):
            for value in asked:
                candidate = with_value(method, value)
                scores[value] = self._score(f"{method.name}: {setting} {value:g}", candidate, rows, measure, note)
            best = max(scores, key=lambda value: scores[value])  # of equal ones its own, then the first asked for
            asked = beyond(best, sorted(scores))
            if not asked:
                break
        note(f"{method.name}: {setting} {best:g} ({', '.join(f'{value:g} {scores[value]:.3f}' for value in sorted(scores))})")
        return dataclasses.replace(with_value(method, best), title=f"{method.title}, tuned: {setting} {best:g}")

    def _score(
        self, key: str, candidate: Method, rows: Rows, measure: Callable[[Method, str, int], Row], note: Callable[[str], None]
    ) -> float:
        """The candidate's mean score; what is not measured yet is, and becomes a row."""
        for name in self.names:
            if rows.has(key, name, self.seed, candidate.overrides):
                continue
            note(f"tuning {key}, {name}")
            try:
                row = measure(candidate, name, self.seed)
            except (Diverged, FloatingPointError) as error:
                row = {"diverged": str(error), "settings": dict(candidate.overrides)}
            rows.add({**row, "method": key, "erased": name, "seed": self.seed, "score": score(row)})
        return fmean(row["score"] for row in rows.found[1:] if row["method"] == key and row["erased"] in self.names)


def with_value(method: Method, value: float) -> Method:
    """The method with this value of its knob."""
    return method if method.knob is None else dataclasses.replace(method, overrides={**method.overrides, method.knob[0]: value})


def times(value: float, factor: float) -> float:
    """Three digits of the product, of the value's own type."""
    return type(value)(float(f"{factor * value:.3g}"))


def beyond(best: float, values: Sequence[float]) -> list[float]:
    """The next value after ``best`` where it is the first or the last of the sorted ``values``, as far as its neighbour is."""
    if len(values) < 2 or best not in (values[0], values[-1]):
        return []
    return [times(best, best / values[1 if best == values[0] else -2])]


def score(row: Row) -> float:
    """The criterion, in [0, 1]; 0 for a candidate that diverged or destroyed the model."""
    evaluation = row.get("evaluation")
    if evaluation is None or evaluation.get("collapsed"):
        return 0.0
    found = [evaluation["after"]["unlearning_accuracy"], *(evaluation["after"].get(group) for group in GROUPS)]
    return fmean(value for value in found if value is not None)


def tuning_of(subjects: Subjects, reported: Sequence[str]) -> Tuning | None:
    """The tuning that the config asks for, None if it asks for none.

    Raises InputError if nothing is left to validate on, or what is named is reported.
    """
    config = subjects.config
    if not config.tune:
        return None
    taken = {name for one in reported for name in one.split("+")}
    left = [name for name in subjects.names if name not in taken]
    names = tuple(subjects.checked(name) for name in config.tune_on) or tuple(left[:VALIDATED_ON])
    twice = [name for name in names if taken & set(name.split("+"))]
    if twice:
        raise InputError(f"--tune-on {twice[0]}: is reported, and what is reported is not tuned on")
    if not names:
        raise InputError("--tune: everything that the model names is reported: erase some, and the others are tuned on")
    if SEED in map(int, config.seeds):
        raise InputError(f"--tune: the seed {SEED} is that of the validation, so it is not reported")
    return Tuning(names, SEED, subjects)
