"""What the probes of a run are shown: images that no erasure has seen, made by the original before it is edited."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch

from semu_diffusion.erase.phases import image_seeds
from semu_diffusion.erase.samples import self_made
from semu_diffusion.errors import InputError
from semu_diffusion.eval.probes.completion import begun
from semu_diffusion.eval.probes.probe import Kept, Sampled, Shown
from semu_diffusion.eval.scorer import Progress, Scorer
from semu_diffusion.pipelines.runs.domains import Subject

__all__ = ["ProbeImages", "Recall"]

T = TypeVar("T")
Recall = Callable[[str, Callable[[], torch.Tensor]], torch.Tensor]
LEARNED_FROM = 64  # images


@dataclass(frozen=True)
class ProbeImages:
    """Where what is shown comes from: ``images`` that were given, or the subject's model, which is not edited yet."""

    subject: Subject
    scorer: Scorer
    images: torch.Tensor | None
    progress: Progress | None
    recall: Recall
    how: Sampled
    made: dict[str, torch.Tensor] = field(default_factory=dict)

    def shown(self, name: str, kind: str, needs: frozenset[str]) -> Shown:
        """What the probes are shown of ``name``; conditions that name it exactly once come alone if there are any."""
        subject, judge = self.subject, self.scorer.judges[kind]
        asked = [q.condition for q in self.scorer.questions["forget"] if (q.answer, q.kind) == (name, kind)]
        pairs = [(c, sentence) for c in asked if (sentence := subject.learned_sentence(c)) is not None]
        conditions = tuple(condition for condition, _ in pairs) or tuple(asked)
        clean, source = None, "made by the original model"
        if "images" in needs and self.images is not None:
            clean, source = subject.model.encode(self.images), str(subject.config.forget_images)
        elif "images" in needs and subject.model.conditional:
            clean = self._made(_in_turn(conditions, LEARNED_FROM), "probe")
        sentences = tuple(_in_turn([sentence for _, sentence in pairs if sentence], 0 if clean is None else len(clean)))
        started = None
        if "started" in needs:
            started = self.recall(f"begun {conditions} {self.how}", lambda: begun(subject.model, conditions, self.how))
        return Shown(name, judge, clean, sentences, source, conditions, started, self._kept(kind) if "kept" in needs else None)

    def _kept(self, kind: str) -> Kept | None:
        """Samples of the conditions of the same domain that are kept, by one judge; None if it knows none of them."""
        judge = self.scorer.judges[kind]
        asked = [q for q in self.scorer.questions.get("in_domain", ()) if q.kind == kind and q.answer not in judge.unjudged]
        if not asked or any(q.answer is None for q in asked):
            return None
        chosen = _in_turn(asked, self.how.samples)
        conditions = tuple(q.condition for q in chosen)
        return Kept(self._made(conditions, "probe, kept"), conditions, tuple(str(q.answer) for q in chosen), judge)

    def _made(self, conditions: Sequence[str], purpose: str) -> torch.Tensor:
        """A clean sample of each of the conditions that the original makes, from seeds that only probes have."""
        model, how = self.subject.model, self.how
        seeds = image_seeds(conditions, how.seed, purpose)
        rows = [model.row(condition) for condition in conditions]

        def make() -> torch.Tensor:
            made = self_made(
                model, rows, seeds, how.guidance_scale, how.precision, self.progress, "probe images", how.sampling_steps
            )
            return made.images

        name = f"{purpose} {tuple(conditions)} {how}"
        if name not in self.made:  # the kept ones are the same for everything erased
            self.made[name] = self.recall(name, make)
        if len(self.made[name]) != len(conditions):
            raise InputError(f"the cached probe images are {len(self.made[name])} of {len(conditions)}: delete the cache")
        return self.made[name]


def _in_turn(values: Sequence[T], count: int) -> list[T]:
    """``count`` of the values, in turn; none of none."""
    return [values[index % len(values)] for index in range(count)] if values else []
