"""Sample a text-to-image model by its questions and let judges answer: the same before and after an erasure."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch

from semu_diffusion.domains.plan import ConceptPlan
from semu_diffusion.domains.prompts import bare, singular
from semu_diffusion.domains.questions import Question, questions
from semu_diffusion.domains.vocabulary import Vocabulary
from semu_diffusion.erase.samples import self_made
from semu_diffusion.errors import InputError
from semu_diffusion.eval.images import to_uint8
from semu_diffusion.eval.judges.judge import load_judge
from semu_diffusion.eval.metrics.unlearning import answers
from semu_diffusion.eval.probes.pseudo_word import text_revival
from semu_diffusion.models.precision import autocast, sampler_name
from semu_diffusion.models.stable_diffusion import TextConditional
from semu_diffusion.pipelines.data.images import spread
from semu_diffusion.pipelines.runs.concept_settings import EraseConceptRun

__all__ = ["NO_PROMPT", "ConceptScorer", "Samples"]

NO_PROMPT = ""
UNPROMPTED = 10  # times as many images without a prompt as of a prompt
REVIVAL_STEPS, REVIVAL_IMAGES, REVIVAL_SAMPLES = 200, 64, 60
NOTHING: Mapping[str, torch.Tensor] = MappingProxyType({})
Samples = dict[str, torch.Tensor]  # uint8 images (n, C, H, W) by prompt
Show = Callable[[str, int, int], None]


class ConceptScorer:
    """Questions, judges and protocol of one run. Everything that can be missing is missed at the start, by InputError."""

    def __init__(
        self,
        config: EraseConceptRun,
        plans: Sequence[ConceptPlan],
        kept: Sequence[str],
        vocabulary: Vocabulary | None,
        device: torch.device,
    ) -> None:
        self.config, self.plans, self.device = config, plans, device
        self.concepts = [one.concept for one in plans]
        self.subjects = [one.subject.name if one.subject is not None else one.concept for one in plans]
        forget = [prompt for one in plans for prompt in one.prompts]
        known = vocabulary is not None and all(one.subject is not None for one in plans)
        judged = config.classifier not in ("auto", "none")
        if known and config.alternatives:
            raise InputError("--alternatives: the model's vocabulary names what else a picture may show; leave them out")
        erased = {singular(word).lower() for one in plans for word in one.words}
        for other in config.alternatives:
            if singular(bare(other)) in erased:
                raise InputError(f"--alternatives {other}: is what shall be erased; name what else a picture may show")
        alternatives = config.alternatives or (tuple(_shared(plans)) if judged and not known else ())
        if judged and not known and config.anchor and config.anchor.strip():
            alternatives = tuple(dict.fromkeys((*alternatives, bare(config.anchor))))  # what an erased picture shall show
        compared = [kept[index] for index in spread(len(kept), config.judged_prompts)]
        self.questions = questions(
            self.concepts, forget, compared, config.paraphrases, vocabulary if known else None, alternatives
        )
        self.judges: dict[str, Any] = {}
        if config.classifier == "auto":
            if vocabulary is not None and known:
                for kind, name in vocabulary.judges.items():
                    self.judges[kind] = load_judge(name, vocabulary.names(kind), device)
        elif config.classifier != "none":
            if known and vocabulary is not None and any(q.kind == "style" for q in self.questions["forget"]):
                names: Sequence[str] = vocabulary.names("style")
                self.judges["style"] = _judge(config.classifier, names, device)
            else:
                names = vocabulary.names("object") if known and vocabulary is not None else (*self.concepts, *alternatives)
                self.judges["object"] = _judge(config.classifier, tuple(dict.fromkeys(names)), device)
        for question in self.questions["forget"]:
            judge = self.judges.get(question.kind)
            if judge is not None and question.answer in judge.unjudged:
                raise InputError(f"the judge {judge.name} knows no class like {question.answer!r}")
        self.clip: Any = None
        if config.clip_score is not None:
            from semu_diffusion.eval.judges.clip import load_clip

            self.clip = load_clip(config.clip_score, device)

    @property
    def prompts(self) -> list[str]:
        """Every prompt that is asked, once, in the order of the groups."""
        return list(dict.fromkeys(question.prompt for group in self.questions.values() for question in group))

    def group(self, name: str) -> list[str]:
        return list(dict.fromkeys(question.prompt for question in self.questions[name]))

    @property
    def retained(self) -> list[str]:
        """Prompts whose pictures shall not change: those of both domains."""
        return list(dict.fromkeys((*self.group("in_domain"), *self.group("cross_domain"))))

    def sample(self, model: TextConditional, show: Show, stage: str, known: Mapping[str, torch.Tensor] = NOTHING) -> Samples:
        """Images of each prompt, and without one at w = 1; those ``known`` are not made again.

        Image i of a prompt has the same seed in every call and run: a prompt's seeds come from its letters alone.
        """
        config, unprompted = self.config, UNPROMPTED * self.config.images_per_prompt
        missing = [prompt for prompt in self.prompts if prompt not in known]
        rows = [model.row(prompt) for prompt in missing for _ in range(config.images_per_prompt)]
        seeds = [seed for prompt in missing for seed in self._seeds(prompt, config.images_per_prompt)]
        jobs = [(rows, seeds, config.guidance_scale or 1.0)]
        if NO_PROMPT not in known:
            jobs.append(([model.null] * unprompted, self._seeds(NO_PROMPT, unprompted), 1.0))
        total, images = sum(len(rows) for rows, _, _ in jobs), []
        with autocast(config.sampling_precision, model.device)():
            for rows, seeds, w in jobs:
                for batch in model.sample(rows, seeds, config.sampling_steps, w, batch_size=16) if rows else ():
                    images.append(to_uint8(batch))
                    show(stage, sum(map(len, images)), total)
        found = {prompt: known[prompt] for prompt in (*self.prompts, NO_PROMPT) if prompt in known}
        made = torch.cat(images) if images else torch.empty(0)
        for number, prompt in enumerate(missing):
            found[prompt] = made[number * config.images_per_prompt :][: config.images_per_prompt]
        if NO_PROMPT not in known:
            found[NO_PROMPT] = made[-unprompted:]
        return found

    def _seeds(self, prompt: str, count: int) -> list[int]:
        """Below 2^31: the other half of 32 bits is for the erasure's own images."""
        first = (zlib.crc32(prompt.encode()) + self.config.seed * 1_000_003) % 2**30
        return list(range(first, first + count))

    def score(self, samples: Samples) -> dict[str, Any]:
        """``before`` or ``after`` of metrics.json; null where no judge could say."""
        judged = [question for asked in self.questions.values() for question in asked if self._judged(question)]
        seen = {question: self.judges[question.kind].predict(samples[question.prompt]) for question in dict.fromkeys(judged)}
        per_prompt: dict[str, float] = {}
        means: dict[str, float | None] = {}
        count: dict[str, int] = {}
        for name, asked in self.questions.items():
            shares = {q: self._share(q, seen[q]) for q in asked if q in seen}
            means[name] = sum(shares.values()) / len(shares) if shares else None
            count[name] = len(shares) * self.config.images_per_prompt
            if name != "cross_domain":
                per_prompt |= {q.prompt: share for q, share in shares.items()}
        forget = means["forget"]
        return {
            "forget_accuracy": forget,
            "unlearning_accuracy": None if forget is None else 1 - forget,
            "paraphrase_forget_accuracy": means["paraphrase"],
            "in_domain_retain_accuracy": means["in_domain"],
            "cross_domain_retain_accuracy": means["cross_domain"],
            "unconditional_share": self._unconditional(samples),
            "revival": None,
            "clip_score": self._clip_score(samples),
            "per_prompt": per_prompt,
            "answers": self._answers(seen),
            "samples": count,
        }

    def _judged(self, question: Question) -> bool:
        judge = self.judges.get(question.kind)
        return judge is not None and question.answer is not None and question.answer not in judge.unjudged

    def _share(self, question: Question, seen: torch.Tensor) -> float:
        return float((seen == self.judges[question.kind].class_names.index(question.answer)).double().mean())

    def _answers(self, seen: Mapping[Question, torch.Tensor]) -> dict[str, dict[str, float]]:
        """By concept, what its judge sees in the pictures of the prompts it was erased with, and in which share of them."""
        asked = [question for question in self.questions["forget"] if question in seen]
        return {
            str(answer): answers(torch.cat([seen[q] for q in asked if q.answer == answer]), self.judges[kind].class_names)
            for answer, kind in dict.fromkeys((q.answer, q.kind) for q in asked)
        }

    def _unconditional(self, samples: Samples) -> float | None:
        """Share of the pictures without a prompt in which a judge sees one of the concepts."""
        hit = torch.zeros(len(samples[NO_PROMPT]), dtype=torch.bool)
        asked = {(q.kind, q.answer) for q in self.questions["forget"] if q.kind in self.judges and q.answer is not None}
        for kind, answer in asked:
            judge = self.judges[kind]
            hit |= judge.predict(samples[NO_PROMPT]) == judge.class_names.index(answer)
        return float(hit.double().mean()) if asked else None

    def _clip_score(self, samples: Samples) -> dict[str, Any] | None:
        if self.clip is None:
            return None
        from semu_diffusion.eval.judges.clip import clip_score

        found: dict[str, Any] = {"model": self.clip.name}
        for name, prompts in (("forget", self.group("forget")), ("retain", self.retained)):
            images = torch.cat([samples[prompt] for prompt in prompts])
            texts = [prompt for prompt in prompts for _ in samples[prompt]]
            score = clip_score(self.clip, images, texts)
            found[name] = {"score": score.score, "clipscore": score.clipscore}
        return found

    def concept_latents(self, model: TextConditional, show: Show | None = None) -> list[tuple[str, list[str], torch.Tensor]]:
        """For each concept that is judged: its name, sentences with ``{}`` and as many latents the original makes of them."""
        found = []
        if not self.config.revival or model.table.pooled is not None:  # of SDXL's two text encoders no word is learned
            return []
        for number, (one, subject) in enumerate(zip(self.plans, self.subjects, strict=True)):
            asked = [q for q in self.questions["forget"] if q.answer == subject and q.kind in self.judges]
            pairs = [(q.prompt, sentence) for q in asked if (sentence := one.sentence(q.prompt)) is not None]
            if not pairs:
                continue
            chosen = [pairs[index % len(pairs)] for index in range(REVIVAL_IMAGES)]
            first = 2**31 + 5 * 10_000_000 + number * 10_000 + self.config.seed * 80_000_000 % 2**30
            rows, seeds = [model.row(prompt) for prompt, _ in chosen], range(first, first + REVIVAL_IMAGES)
            w, precision = self.config.guidance_scale or 1.0, self.config.sampling_precision
            made = self_made(model, rows, seeds, w, precision, show, "concept", self.config.sampling_steps)
            found.append((subject, [sentence for _, sentence in chosen], made.images))
        return found

    def revive(self, model: TextConditional, shown: Sequence[tuple[str, list[str], torch.Tensor]]) -> float | None:
        """Mean share of the concepts ``shown`` that one learned pseudo-word brings back; None if nothing could be measured."""
        shares = []
        for subject, sentences, latents in shown:
            kind = next(q.kind for q in self.questions["forget"] if q.answer == subject)
            judge = self.judges[kind]
            # float16 has no room for the gradients of a learned word
            precision = "bf16" if model.dtype == torch.float16 else self.config.sampling_precision
            with autocast(precision, model.device)():
                found = text_revival(
                    model,
                    latents,
                    sentences,
                    judge,
                    judge.class_names.index(subject),
                    steps=REVIVAL_STEPS,
                    samples=REVIVAL_SAMPLES,
                    sampling_steps=self.config.sampling_steps,
                    guidance_scale=self.config.guidance_scale or 1.0,
                    seed=self.config.seed,
                    progress=True,
                )
            if found is not None:
                shares.append(found.share)
        return sum(shares) / len(shares) if shares else None

    def protocol(self) -> dict[str, Any]:
        config = self.config
        judges: Mapping[str, Any] = {k: {"name": j.name, "sha256": j.sha256} for k, j in self.judges.items()}
        return {
            "seed": config.seed,
            "images_per_prompt": config.images_per_prompt,
            "sampler": sampler_name(config.sampling_precision, self.device),
            "steps": config.sampling_steps,
            "guidance_scale": config.guidance_scale,
            "forget_prompts": self.group("forget"),
            "paraphrase_prompts": self.group("paraphrase"),
            "in_domain_prompts": self.group("in_domain"),
            "cross_domain_prompts": self.group("cross_domain"),
            "unconditional_samples": UNPROMPTED * config.images_per_prompt,
            "classifiers": judges or None,
            "revival": {
                "steps": REVIVAL_STEPS, "lr": 0.3, "batch_size": 16, "samples": REVIVAL_SAMPLES,
                "training_images": REVIVAL_IMAGES, "start": "mean token embedding",
            } if config.revival and judges else None,
        }  # fmt: skip


def _judge(name: str, class_names: Sequence[str], device: torch.device) -> Any:
    if name.partition(":")[0] != "clip":
        return load_judge(name, class_names, device)
    from semu_diffusion.eval.judges.clip import load_clip, zero_shot_judge

    return zero_shot_judge(load_clip(name, device), class_names)


def _shared(plans: Sequence[ConceptPlan]) -> list[str]:
    words = [word for one in plans for word in one.words]
    return plans[0].candidates(words) if plans else []
