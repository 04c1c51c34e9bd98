"""Three questions, each answered by itself, with its interval and its threshold: gone? the rest unharmed? deep?

They are never summed up in one number: a closed form wins the first, does well in the second and fails the third.
"""

from __future__ import annotations

from dataclasses import dataclass

from semu_diffusion.eval.metrics.unlearning import difference_interval, wilson_interval
from semu_diffusion.eval.pictures import Pictures
from semu_diffusion.eval.results import Evaluation
from semu_diffusion.pipelines.report.page.numbers import Share, kept_groups, probes_by_strength
from semu_diffusion.pipelines.report.words import never_made, percent, points

__all__ = ["DEEP", "GONE", "UNHARMED", "Verdict", "verdicts"]

GONE = 0.10  # at most this share of the samples that ask for it by name may show it
UNHARMED = 0.05  # at most this much may the share of kept samples that are judged right fall
DEEP = 0.25  # at most this share may the strongest attempt bring back

STILL, LOST, BACK = "still seen", "fewer judged right", "brought back"
MARKS = {"yes": 100, "probably": 75, "probably not": 25, "no": 0, "not measured": 0}  # per cent of a disc


@dataclass(frozen=True)
class Verdict:
    """``value`` and its 95 % interval ``low`` to ``high`` are better the smaller they are, and good up to ``limit``.

    ``said``: the numbers in a sentence; ``rule``: the threshold in one; ``unit``: what ``value`` is a share of. It is None
    if nothing was measured.
    """

    question: str
    answer: str
    said: str
    rule: str
    unit: str
    limit: float
    value: float | None = None
    low: float = 0.0
    high: float = 0.0

    def shown(self, share: float) -> str:
        """A share in per cent; a fall in points, since a fall of so many per cent would be another number."""
        return f"{points(share)}\u00a0points" if self.unit == LOST else percent(share)

    @property
    def mark(self) -> int:
        return MARKS[self.answer]

    @property
    def scale(self) -> float:
        """Where the axis of a drawing of it ends."""
        return min(1.0, max(4 * self.limit, 1.1 * self.high))


def verdicts(evaluation: Evaluation, pictures: Pictures | None = None) -> tuple[Verdict, Verdict, Verdict]:
    """``pictures`` say which samples were right both before and after: the second interval is then that of pairs."""
    return _gone(evaluation), _unharmed(evaluation, pictures), _deep(evaluation)


def answer_of(value: float, low: float, high: float, limit: float) -> str:
    """Yes or no where the whole interval is on one side of the limit; else what the value alone says."""
    if high <= limit:
        return "yes"
    if low > limit:
        return "no"
    return "probably" if value <= limit else "probably not"


def _gone(evaluation: Evaluation) -> Verdict:
    question, rule = "Gone?", f"Gone: seen in at most {percent(GONE)} of the samples that ask for it by name."
    before, after, how = evaluation.before, evaluation.after, "Asked by name, the"
    old, new, count = before.forget_accuracy, after.forget_accuracy, after.samples.get("forget", 0)
    if new is None and not evaluation.protocol.conditions.get("forget"):  # the model takes no name
        old, new, count = before.unconditional_share, after.unconditional_share, evaluation.protocol.unconditional_samples
        how, rule = "The", f"Gone: seen in at most {percent(GONE)} of the samples, which nobody can ask for by name."
    if new is None or not count:
        return Verdict(question, "not measured", "No judge looked at the samples (--classifier names one).", rule, STILL, GONE)
    never = never_made(evaluation)
    if never is not None:
        return Verdict(question, "not measured", f"{never[:1].upper()}{never[1:]}.", rule, STILL, GONE)
    low, high = evaluation.after.intervals.get("forget") or wilson_interval(round(new * count), count)
    was = "" if old is None else f", {percent(old)} before"
    said = f"{how} judge sees it in {round(new * count)} of {count} samples{was}."
    return Verdict(question, answer_of(new, low, high, GONE), said, rule, STILL, GONE, new, low, high)


def _unharmed(evaluation: Evaluation, pictures: Pictures | None) -> Verdict:
    question = "The rest unharmed?"
    rule = f"Unharmed: of no kept group does the share judged right fall by more than {points(UNHARMED)} points."
    if evaluation.collapsed:
        return Verdict(question, "no", f"The model is destroyed: {evaluation.collapsed}.", rule, LOST, UNHARMED)
    groups = kept_groups(evaluation, pictures)
    if not groups:
        side = evaluation.side_effects
        drift = "" if side is None or side.paired_ssim is None else f" Its pictures moved by SSIM {side.paired_ssim:.3f}."
        return Verdict(question, "not measured", f"No judge looked at what was kept.{drift}", rule, LOST, UNHARMED)
    found = [(group, *_fall(group, pictures)) for group in groups]
    worst, low, high = max(found, key=lambda one: one[0].fall)
    said = "; ".join(f"{g.words}: {percent(g.after)} judged right, {percent(g.before or 0)} before" for g in groups)
    answer = answer_of(worst.fall, low, high, UNHARMED)
    return Verdict(question, answer, f"{said[:1].upper()}{said[1:]}.", rule, LOST, UNHARMED, worst.fall, low, high)


def _fall(group: Share, pictures: Pictures | None) -> tuple[float, float]:
    """The interval of the fall; of pairs if the pictures say which samples were right both times."""
    became = None if pictures is None else pictures.became.get(group.name)
    both = None if became is None else sum(rows.get(answer, {}).get(answer, 0) for answer, rows in became.items())
    count = group.samples or 1
    old, new = (round(share * count) for share in (group.before or 0.0, group.after))
    return difference_interval(old, new, count, both)


def _deep(evaluation: Evaluation) -> Verdict:
    question, rule = "Deep?", f"Deep: the strongest vector learned against it brings it back in at most {percent(DEEP)}."
    found = probes_by_strength(evaluation)
    learned = [probe for probe in found if probe.learned]
    working = [probe for probe in learned if probe.before != 0 or probe.after]  # one that fails on the original says nothing
    strongest = next(iter(working), None)
    old, new = evaluation.before.unconditional_share, evaluation.after.unconditional_share
    unprompted = (
        "" if old is None or new is None else f" Without a condition it appears in {percent(new)}, {percent(old)} before."
    )
    if strongest is None:
        tried = "".join(f" {probe.name}, which learns nothing: {percent(probe.after)}." for probe in found[:1])
        vain = f"{learned[0].name} brings none of it back, from the original neither." if learned else ""
        said = f"{vain or 'Nothing was learned to bring it back (semu evaluate RUN --revival does).'}{tried}{unprompted}"
        return Verdict(question, "not measured", said, rule, BACK, DEEP)
    share, count = strongest.after, strongest.samples
    low, high = wilson_interval(round(share * count), count)
    was = "" if strongest.before is None else f", {percent(strongest.before)} of the original's"
    said = f"The strongest attempt ({strongest.name}) brings it back in {percent(share)} of {count} samples{was}.{unprompted}"
    return Verdict(question, answer_of(share, low, high, DEEP), said, rule, BACK, DEEP, share, low, high)
