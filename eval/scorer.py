"""Sample a model by its questions and let judges answer: the same before and after, for classes and concepts alike."""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal

import torch

from semu_diffusion.domains.questions import GROUPS, NAMED_GROUPS, Question, Questions, conditions
from semu_diffusion.errors import InputError
from semu_diffusion.eval.images import to_uint8
from semu_diffusion.eval.judges.clip import Clip, clip_score
from semu_diffusion.eval.judges.judge import Judge
from semu_diffusion.eval.metrics import load_metrics
from semu_diffusion.eval.metrics.fid import FeatureExtractor, SmallSampleWarning
from semu_diffusion.eval.metrics.unlearning import accuracies, clustered_interval, judged_as, mean, wilson_interval
from semu_diffusion.eval.results import ClipScore, Distance, Network, Protocol, Scores
from semu_diffusion.models.base import DiffusionModel
from semu_diffusion.models.precision import autocast, sampler_name

__all__ = ["NO_CONDITION", "Progress", "Reference", "Samples", "Sampling", "Scorer"]

NO_CONDITION = ""
AT_A_TIME = 256  # pictures that a judge is given, which are copied for it
FIRST_IMAGES = 8  # of a condition, before the intervals are looked at
NOTHING: Mapping[str, torch.Tensor] = MappingProxyType({})
OWN_SAMPLES = "the original model's own samples, same seeds: a drift, not comparable with distances from unseen images"
Progress = Callable[[str, int, int], None]  # (stage, done, total)
Samples = dict[str, torch.Tensor]  # uint8 images (n, C, H, W) by condition


@dataclass(frozen=True)
class Sampling:
    """How many samples of every condition, and how. ``unconditional`` of them without a condition, at guidance scale 1.

    With an ``interval_width``, ``images`` is the most that are made to reach it: see `Scorer.narrowed`.
    """

    images: int
    unconditional: int
    steps: int
    guidance_scale: float
    seed: int = 0
    precision: str = "fp32"
    batch_size: int = 16
    interval_width: float | None = None

    def seeds(self, condition: str, count: int) -> range:
        """Those of a condition's samples: from its letters and the run's seed, so that nothing else decides its noise.

        Below 2^31, where the erasure's own images have none (`semu_diffusion.erase.phases`).
        """
        first = (zlib.crc32(condition.encode()) + self.seed * 1_000_003) % 2**30
        return range(first, first + count)


@dataclass(frozen=True)
class Reference:
    """Images (N, C, H, W) that FID and KID compare with, and what they are."""

    images: torch.Tensor
    name: str


@dataclass(frozen=True)
class Scorer:
    """The questions, judges and measures of one run, which erased ``erased``.

    ``judges`` by kind of question; ``sentence``: what CLIP is told of a condition (a class's name is no sentence);
    ``asked``: metrics of pairs that are measured when asked for alone. Raises InputError if a judge does not know what was
    erased.
    """

    kind: Literal["class", "concept"]
    erased: tuple[str, ...]
    questions: Questions
    sampling: Sampling
    judges: Mapping[str, Judge] = field(default_factory=dict)
    extractor: FeatureExtractor | None = None
    reference: Reference | None = None
    clip: Clip | None = None
    sentence: Callable[[str], str] = str
    asked: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for question in self.questions["forget"]:
            judge = self.judges.get(question.kind)
            if judge is not None and question.answer in judge.unjudged:
                raise InputError(
                    f"the judge {judge.name} knows no class like the erased {question.answer!r}; give a --class-mapping"
                )

    def kept(self, samples: Mapping[str, torch.Tensor]) -> list[str]:
        """Conditions whose samples shall not change; of a model that keeps none, no condition, or at last all there are."""
        found = conditions(self.questions, "in_domain", "cross_domain")
        return found or ([NO_CONDITION] if NO_CONDITION in samples else list(samples))

    # ------------------------------------------------------------------ samples

    def sample(
        self, model: DiffusionModel, progress: Progress | None = None, stage: str = "sampling",
        known: Mapping[str, torch.Tensor] = NOTHING,
    ) -> Samples:  # fmt: skip
        """Samples of each condition, and without one if the model can; the first ones are not made again if they are ``known``.

        Image i of a condition has the same seed in every call and run.
        """
        s, asked = self.sampling, conditions(self.questions)
        counts = dict.fromkeys(asked, s.images)
        if _unconditional(model):
            counts[NO_CONDITION] = s.unconditional
        have = {name: known[name][:count] for name, count in counts.items() if name in known}
        seeds = {name: list(s.seeds(name, count))[len(have.get(name, ())) :] for name, count in counts.items()}
        total, done = sum(map(len, seeds.values())), 0
        made: Samples = {}
        for part, guidance_scale in ((asked, s.guidance_scale), ([NO_CONDITION], 1.0)):
            names = [name for name in part if seeds.get(name)]
            every = [seed for name in names for seed in seeds[name]]
            rows = [model.row(name) for name in names for _ in seeds[name]] if model.conditional else None
            batches = []
            with autocast(s.precision, model.device)():
                for batch in model.sample(rows, every, s.steps, guidance_scale, s.batch_size) if every else ():
                    batches.append(to_uint8(batch))
                    done += len(batch)
                    if progress is not None:
                        progress(stage, done, total)
            if batches:
                made |= dict(zip(names, torch.cat(batches).split([len(seeds[name]) for name in names]), strict=True))
        return {name: torch.cat([found[name] for found in (have, made) if name in found]) for name in counts}

    def narrowed(self, model: DiffusionModel, progress: Progress | None = None) -> tuple[Scorer, Samples]:
        """The scorer with as few images of each condition as make its intervals narrow enough, and the samples of ``model``.

        They are doubled from `FIRST_IMAGES` until every group's interval is at most ``sampling.interval_width`` wide.
        """
        count, found = min(FIRST_IMAGES, self.sampling.images), dict(NOTHING)
        while True:
            scorer = replace(self, sampling=replace(self.sampling, images=count))
            found = scorer.sample(model, progress, "sampling after", found)
            widths = [high - low for low, high in scorer.score(found).intervals.values()]
            if count == self.sampling.images or max(widths, default=0.0) <= (self.sampling.interval_width or 0.0):
                return scorer, found
            count = min(2 * count, self.sampling.images)

    # ------------------------------------------------------------------ numbers

    def score(self, samples: Mapping[str, torch.Tensor]) -> Scores:
        """What the judges see in them; everything is None without a judge."""
        asked = [q for group in self.questions.values() for q in group if q.condition]
        seen = {question: predicted for question, (predicted, _) in self.verdicts(samples, asked).items()}
        found = accuracies(self.questions, seen, {kind: judge.class_names for kind, judge in self.judges.items()})
        means = {group: mean(each.values()) for group, each in found.items()}
        forget, kept = means["forget"], [*found.get("in_domain", {}).values(), *found.get("cross_domain", {}).values()]
        per_condition: dict[str, float] = {}
        for each in found.values():
            for question, share in each.items():
                per_condition.setdefault(question.condition, share)
        of_groups: dict[str, Any] = {f"{group}_accuracy": means.get(group) for group in (*GROUPS, *NAMED_GROUPS)}
        return Scores(
            **of_groups,
            unlearning_accuracy=None if forget is None else 1 - forget,
            retain_accuracy=mean(kept),
            unconditional_share=self._unconditional_share(samples),
            clip_score=self._clip_scores(samples),
            per_condition=per_condition,
            judged_as=self._judged_as(seen),
            samples={group: sum(len(samples[q.condition]) for q in each) for group, each in found.items() if each},
            intervals=self._intervals(found),
        )

    def verdicts(
        self, samples: Mapping[str, torch.Tensor], asked: Sequence[Question]
    ) -> dict[Question, tuple[torch.Tensor, torch.Tensor]]:
        """What a judge says of the samples of each question that has one: predictions (n,) and shares (n, K + 1).

        A judge looks at pictures in chunks of one size, so that one alone costs as much as many: it gets those of many
        questions at a time.
        """
        found: dict[Question, tuple[torch.Tensor, torch.Tensor]] = {}
        for kind, judge in self.judges.items():
            own = [q for q in dict.fromkeys(asked) if q.kind == kind and self._judged(q)]
            each = max(AT_A_TIME // max((len(samples[q.condition]) for q in own), default=1), 1)
            for part in (own[start : start + each] for start in range(0, len(own), each)):
                pictures = [samples[q.condition] for q in part]
                predicted, shares = (one.split([*map(len, pictures)]) for one in judge.verdicts(torch.cat(pictures)))
                found |= dict(zip(part, zip(predicted, shares, strict=True), strict=True))
        return found

    def distances(self, before: Mapping[str, torch.Tensor], after: Mapping[str, torch.Tensor]) -> dict[str, Distance]:
        """FID and KID of the kept conditions' samples from the reference; {} without an extractor, and of a single image."""
        kept = self._compared() or self.kept(before)
        images = [torch.cat([samples[name] for name in kept]) for samples in (before, after)]
        if self.extractor is None or len(images[0]) < 2:
            return {}
        extractor, reference = self.extractor, self.reference
        old, new = (extractor(one) for one in images)
        theirs = old if reference is None else extractor(reference.images)
        found = {}
        for name, distance in load_metrics("sets", torch.device("cpu")).items():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", SmallSampleWarning)  # the counts stand beside the number
                values = [distance(one, theirs, reference is None) for one in (old, new)]
            found[name] = Distance(
                before=0.0 if reference is None else values[0],
                after=values[1],
                images=len(new),
                reference_images=len(theirs),
                reference=OWN_SAMPLES if reference is None else reference.name,
                paired=reference is None,
                extractor=extractor.network,
            )
        return found

    def protocol(self, model: DiffusionModel) -> Protocol:
        s = self.sampling
        return Protocol(
            seed=s.seed,
            sampler=sampler_name(model, s.precision),
            steps=s.steps,
            guidance_scale=s.guidance_scale if model.null is not None else 1.0,
            images_per_condition=s.images,
            unconditional_samples=s.unconditional if _unconditional(model) else 0,
            conditions={group: tuple(conditions(self.questions, group)) for group in self.questions},
            judges={kind: Network(judge.name, judge.sha256) for kind, judge in self.judges.items()},
            metrics={name: metric.network for name, metric in self.asked.items()},
            features=None if self.extractor is None else self.extractor.network,
        )

    # ------------------------------------------------------------------ parts

    def _judged(self, question: Question) -> bool:
        judge = self.judges.get(question.kind)
        return judge is not None and question.answer is not None and question.answer not in judge.unjudged

    def _compared(self) -> list[str]:
        """Conditions that a reference has images like: those of kept objects; styles are in no data set."""
        asked = (q for group in ("in_domain", "cross_domain") for q in self.questions.get(group, ()))
        objects = (q.condition for q in asked if q.kind == "object" and q.answer is not None and q.condition)
        return list(dict.fromkeys(objects)) if self.reference is not None else []

    def _erased(self) -> list[tuple[str, str]]:
        """(kind, answer) of what was erased and can be judged."""
        return list(dict.fromkeys((q.kind, str(q.answer)) for q in self.questions["forget"] if self._judged(q)))

    def _intervals(self, found: Mapping[str, Mapping[Question, float]]) -> dict[str, tuple[float, float]]:
        """Of each group's accuracy. Prompts are a few of the many there are; the classes of a model are all there are."""
        each = self.sampling.images
        if self.kind == "concept":
            return {group: clustered_interval(list(shares.values()), each) for group, shares in found.items() if shares}
        counts = {group: (sum(shares.values()) * each, len(shares) * each) for group, shares in found.items() if shares}
        return {group: wilson_interval(*pair) for group, pair in counts.items()}

    def _judged_as(self, seen: Mapping[Question, torch.Tensor]) -> dict[str, dict[str, float]]:
        """Of each thing erased, what its judge sees in the samples of the conditions it was erased with."""
        found = {}
        for kind, answer in self._erased():
            parts = [seen[q] for q in self.questions["forget"] if q in seen and (q.kind, q.answer) == (kind, answer)]
            if parts:
                found[answer] = judged_as(torch.cat(parts), self.judges[kind].class_names)
        return found

    def _unconditional_share(self, samples: Mapping[str, torch.Tensor]) -> float | None:
        """Share of the samples without a condition in which a judge sees something that was erased."""
        if NO_CONDITION not in samples or not self._erased():
            return None
        hit = torch.zeros(len(samples[NO_CONDITION]), dtype=torch.bool)
        for kind, answer in self._erased():
            hit |= self.judges[kind].sees(samples[NO_CONDITION], answer)
        return float(hit.double().mean())

    def _clip_scores(self, samples: Mapping[str, torch.Tensor]) -> dict[str, ClipScore] | None:
        if self.clip is None:
            return None
        groups: dict[str, Any] = {"forget": ("forget",), "retain": ("in_domain", "cross_domain")}
        found = {}
        for name, parts in groups.items():
            asked = conditions(self.questions, *parts)
            if asked:
                texts = [self.sentence(condition) for condition in asked for _ in samples[condition]]
                found[name] = clip_score(self.clip, torch.cat([samples[condition] for condition in asked]), texts)
        return found


def _unconditional(model: DiffusionModel) -> bool:
    """Whether the model makes samples without a condition: it knows a null condition, or no condition at all."""
    return model.null is not None or not model.conditional
