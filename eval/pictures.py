"""The pairs of pictures that a person should see, and what the judge says of each: the content of pictures.json.

Of each group of questions the first samples of its conditions, and beyond them whatever is worth a look: pictures in which
what was erased is still seen, kept ones that are not recognised any more or changed most, and those of which the judge is least
sure. The counts in ``became`` are of all samples.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from semu_diffusion.domains.questions import Question
from semu_diffusion.eval.images import to_uint8
from semu_diffusion.eval.metrics import load_metrics
from semu_diffusion.eval.metrics.paired import paired_mse
from semu_diffusion.eval.metrics.unlearning import NO_CLASS
from semu_diffusion.eval.scorer import NO_CONDITION, Progress, Samples, Scorer
from semu_diffusion.models.base import DiffusionModel
from semu_diffusion.models.precision import autocast

__all__ = [
    "ATTEMPTS",
    "UNPROMPTED",
    "Picture",
    "Pictures",
    "Tried",
    "anchor_images",
    "choose_pictures",
    "with_tried",
]

UNPROMPTED = "unprompted"
ATTEMPTS = "attempts by "  # a probe, to bring it back
ROOM, WORST = 48, 12  # pictures of a group that are its first ones, and of each kind that is worth a look
OF_PROBE = 8  # both, of what a probe made
UNSURE = 0.6  # below this greatest share the judge is unsure
TOP = 3

Became = dict[str, dict[str, dict[str, int]]]  # right answer -> called so before -> called so after -> samples


@dataclass(frozen=True)
class Seen:
    """What the judge calls a picture, and its greatest shares."""

    label: str
    shares: dict[str, float]


@dataclass(frozen=True)
class Picture:
    """Sample ``index`` of a condition, before and after, from one seed (None: from one picture, not from noise).

    ``answer`` is what the judge should say, None where nobody judges; ``erased``: it was asked for what was erased, or for
    nothing. ``notable``: still_seen, lost (recognised before, not after), changed_most, unsure. ``change``: the paired metrics.
    ``images`` are data addresses: before, after and, where something replaces it, anchor.
    """

    group: str
    condition: str
    answer: str | None
    erased: bool
    index: int
    seed: int | None
    before: Seen | None
    after: Seen | None
    change: dict[str, float]
    notable: tuple[str, ...]
    images: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Pictures:
    """``became``: by group and answer, how many samples the judge called so before and so after."""

    rows: tuple[Picture, ...]
    became: dict[str, Became]

    @classmethod
    def from_json(cls, content: Any) -> Pictures:
        """Of the content of a pictures.json; KeyError or TypeError for anything else."""

        def seen(found: Any) -> Seen | None:
            return None if found is None else Seen(**found)

        rows = (
            Picture(**{**row, "before": seen(row["before"]), "after": seen(row["after"]), "notable": tuple(row["notable"])})
            for row in content["rows"]
        )
        return cls(tuple(rows), content["became"])


@dataclass(frozen=True)
class Tried:
    """What a probe made of an erased name: ``question`` is the name's and calls it by probe and name; ``before`` and ``after``
    are uint8 images (n, C, H, W) of the same ``seeds``, None where the probe starts from pictures."""

    probe: str
    question: Question
    before: torch.Tensor
    after: torch.Tensor
    seeds: range | None


@dataclass(frozen=True)
class _Pair:
    """All samples of one question: predictions (n,) and shares (n, K + 1) before and after, squared change (n,)."""

    question: Question
    gone: frozenset[str]  # what should not be seen in them; empty of kept ones
    names: tuple[str, ...] | None
    verdicts: tuple[tuple[torch.Tensor, torch.Tensor], ...]
    moved: torch.Tensor

    def label(self, when: int, index: int) -> str:
        assert self.names is not None
        found = int(self.verdicts[when][0][index])
        return NO_CLASS if found < 0 else self.names[found]

    def seen(self, when: int, index: int) -> Seen | None:
        if self.names is None:
            return None
        shares = self.verdicts[when][1][index]
        top = shares.topk(min(TOP, len(shares)))
        names = (*self.names, NO_CLASS)
        found = {names[place]: round(share, 4) for share, place in zip(top.values.tolist(), top.indices.tolist(), strict=True)}
        return Seen(self.label(when, index), found)

    def row(self, group: str, index: int, seed: int | None, change: dict[str, float], notable: tuple[str, ...]) -> Picture:
        q, judged = self.question, self.names is not None
        seen = self.seen(0, index), self.seen(1, index)
        return Picture(group, q.condition, q.answer if judged else None, bool(self.gone), index, seed, *seen, change, notable)


def choose_pictures(scorer: Scorer, before: Samples, after: Samples, tried: Sequence[Tried] = ()) -> Pictures:
    """The pictures of a run that are shown, without their images, out of all its samples and what its probes made."""
    groups = _groups(scorer, before, tried)
    before, after = with_tried(before, after, tried)
    seeds = {one.question.condition: one.seeds for one in tried}
    metrics = load_metrics("pairs", torch.device("cpu"))
    every = [q for asked in groups.values() for q, _ in asked]
    seen = [scorer.verdicts(samples, every) for samples in (before, after)]
    rows, became = [], {}
    for group, asked in groups.items():
        pairs = [
            _Pair(
                question=q,
                gone=gone,
                names=scorer.judges[q.kind].class_names if q in seen[0] else None,
                verdicts=tuple(found[q] for found in seen if q in found),
                moved=paired_mse(before[q.condition] / 255, after[q.condition] / 255),
            )
            for q, gone in asked
        ]
        judged = [pair for pair in pairs if pair.names is not None]
        if judged:
            became[group] = _became(judged)
        limits = (OF_PROBE, OF_PROBE) if group.startswith(ATTEMPTS) else (ROOM, WORST)
        for pair, index, notable in _chosen(pairs, *limits):
            condition = pair.question.condition
            old, new = (samples[condition][index][None] / 255 for samples in (before, after))
            change = {name: round(float(measure(old, new)[0]), 5) for name, measure in metrics.items()}
            own = seeds[condition] if condition in seeds else scorer.sampling.seeds(condition, index + 1)
            rows.append(pair.row(group, index, None if own is None else own[index], change, notable))
    return Pictures(tuple(rows), became)


def _groups(scorer: Scorer, before: Samples, tried: Sequence[Tried]) -> dict[str, list[tuple[Question, frozenset[str]]]]:
    """By group the questions whose samples may be shown, and what should not be seen in them: nothing of kept ones."""
    gone = dict.fromkeys((q.kind, str(q.answer)) for q in scorer.questions["forget"] if q.answer is not None)

    def erased(q: Question) -> frozenset[str]:
        return frozenset({str(q.answer)} if (q.kind, str(q.answer)) in gone else ())

    groups = {
        group: [(q, erased(q)) for q in asked if q.condition in before and q.condition != NO_CONDITION]
        for group, asked in scorer.questions.items()
    }
    for one in tried:
        groups.setdefault(ATTEMPTS + one.probe, []).append((one.question, erased(one.question)))
    if NO_CONDITION in before and gone:
        kind, answer = next(iter(gone))
        groups[UNPROMPTED] = [(Question(NO_CONDITION, kind, answer), frozenset(a for k, a in gone if k == kind))]
    return groups


def with_tried(before: Samples, after: Samples, tried: Sequence[Tried]) -> tuple[Samples, Samples]:
    """The samples with what probes made beside them."""
    made = ({one.question.condition: one.before for one in tried}, {one.question.condition: one.after for one in tried})
    return before | made[0], after | made[1]


def _became(pairs: Sequence[_Pair]) -> Became:
    """By the right answer: how many samples were called so before and so after."""
    found: Became = {}
    for pair in pairs:
        counts = Counter((pair.label(0, i), pair.label(1, i)) for i in range(len(pair.moved)))
        of_answer = found.setdefault(str(pair.question.answer), {})
        for (old, new), count in counts.most_common():
            row = of_answer.setdefault(old, {})
            row[new] = row.get(new, 0) + count
    return found


def _chosen(pairs: Sequence[_Pair], room: int, worst: int) -> list[tuple[_Pair, int, tuple[str, ...]]]:
    """The first samples of evenly spaced conditions, and at most ``worst`` of each kind that is worth a look; why, for each."""
    each, shown = -(-room // max(len(pairs), 1)), min(room, len(pairs))
    spread = [place * len(pairs) // shown for place in range(shown)]
    wanted = {(at, i) for at in spread for i in range(min(each, len(pairs[at].moved)))}
    flags: dict[tuple[int, int], list[str]] = {}
    for name, worth in _worth(pairs).items():
        for rank, place in enumerate(sorted(worth, key=lambda one: (-worth[one], one))):
            if name == "changed_most" and rank >= worst:
                break
            if rank < worst:
                wanted.add(place)
            flags.setdefault(place, []).append(name)
    return [(pairs[at], i, tuple(flags.get((at, i), ()))) for at, i in sorted(wanted)]


def _worth(pairs: Sequence[_Pair]) -> dict[str, dict[tuple[int, int], float]]:
    """By what makes a picture worth a look: how much, for each that is."""
    found: dict[str, dict[tuple[int, int], float]] = {"still_seen": {}, "lost": {}, "changed_most": {}, "unsure": {}}
    for at, pair in enumerate(pairs):
        for i, moved in enumerate(pair.moved.tolist()):
            if not pair.gone:
                found["changed_most"][at, i] = moved
            if pair.names is None:
                continue
            old, new, top = pair.label(0, i), pair.label(1, i), float(pair.verdicts[1][1][i].max())
            if new in pair.gone:
                found["still_seen"][at, i] = top
            if not pair.gone and old == pair.question.answer != new:
                found["lost"][at, i] = moved
            if top < UNSURE:
                found["unsure"][at, i] = -top
    return found


def anchor_images(
    scorer: Scorer, model: DiffusionModel, anchors: Mapping[str, str], rows: Sequence[Picture], progress: Progress | None = None
) -> dict[int, torch.Tensor]:
    """By number of the row: what the original ``model`` makes of the anchor (C, H, W), uint8, from the picture's own seed.

    ``anchors``: the condition that replaces each erased one; rows of others have none.
    """
    s, places = scorer.sampling, [place for place, row in enumerate(rows) if row.condition and row.condition in anchors]
    if not places:
        return {}
    asked = [model.row(anchors[rows[place].condition]) for place in places]
    seeds = [seed for place in places if (seed := rows[place].seed) is not None]  # a condition of ours, not of a probe: has one
    made: list[torch.Tensor] = []
    with autocast(s.precision, model.device)():
        for batch in model.sample(asked, seeds, s.steps, s.guidance_scale, s.batch_size):
            made += to_uint8(batch)
            if progress is not None:
                progress("sampling the anchors", len(made), len(places))
    return dict(zip(places, made, strict=True))
