"""What a run must know of its kind: how its model is loaded, what it is asked, who judges it, which LoRA it becomes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from semu_diffusion.assets import EMBEDDED, Kind
from semu_diffusion.domains import classes, concepts
from semu_diffusion.domains.named_questions import named_questions
from semu_diffusion.domains.prompts import bare, singular
from semu_diffusion.domains.questions import Questions, class_questions, concept_questions, conditions
from semu_diffusion.domains.vocabulary import read_vocabulary
from semu_diffusion.erase.task import EditResult, Images, Progress, Task
from semu_diffusion.errors import InputError
from semu_diffusion.eval.judges.clip import sentence_of
from semu_diffusion.models.base import DiffusionModel
from semu_diffusion.models.checkpoints import hub_revision
from semu_diffusion.models.class_conditional import ClassConditional
from semu_diffusion.models.families import family_of
from semu_diffusion.models.text_conditional import TextConditional
from semu_diffusion.patch import ErasurePatch
from semu_diffusion.pipelines.data.images import spread, to_stderr
from semu_diffusion.pipelines.runs.config import settled
from semu_diffusion.pipelines.runs.inputs import forget_images, retain_images
from semu_diffusion.pipelines.runs.models import load_model, load_text_model

__all__ = ["ClassSubject", "ConceptSubject", "Subject", "classes_of", "concepts_of", "load_classes", "load_concepts"]


@dataclass(frozen=True)
class Subject(ABC):
    """What a run erases from which model, before any work: words, questions, judges.

    ``model`` knows every condition of the ``questions``; in ``config`` everything is settled that depends on kind and model;
    ``base``: source and revision of the model, for run.json.
    """

    kind: ClassVar[Kind]
    model: Any
    plan: Any
    config: Any
    base: Mapping[str, Any]
    questions: Questions

    @property
    def erased(self) -> tuple[str, ...]:
        found: tuple[str, ...] = self.plan.erased
        return found

    @property
    @abstractmethod
    def judges(self) -> Mapping[str, str]:
        """The judges that the model itself names, by kind."""

    @abstractmethod
    def class_names(self, kind: str) -> Sequence[str]:
        """What a judge of this kind must tell apart."""

    @abstractmethod
    def forget_images(self) -> torch.Tensor | None:
        """The pictures of --forget-images (N, C, H, W) in [-1, 1]."""

    @abstractmethod
    def task(self, progress: Progress, images: torch.Tensor | None) -> Task[Any]:
        """What is to be erased; ``images`` are those of `forget_images`."""

    @abstractmethod
    def anchors(self, task: Task[Any], result: EditResult) -> dict[str, str]:
        """What replaces each thing erased, in words."""

    @abstractmethod
    def anchored(self, task: Task[Any], result: EditResult) -> tuple[DiffusionModel, dict[str, str]]:
        """The condition that replaces each erased one, and the model that knows them all."""

    @abstractmethod
    def learned_sentence(self, condition: str) -> str | None:
        """The condition with ``{}`` for what was erased; "" where conditions are no sentences, None if it names it not once."""

    @abstractmethod
    def sentence(self, condition: str) -> str:
        """What CLIP is told of a condition."""

    def save_lora(self, patch: ErasurePatch, folder: Path) -> None:
        family_of(self.model.pipeline).save_lora(patch, folder)


class ClassSubject(Subject):
    """Classes of a class-conditional model."""

    kind = "class"
    model: ClassConditional
    plan: classes.ClassPlan

    @property
    def judges(self) -> dict[str, str]:
        return {"object": EMBEDDED}

    def class_names(self, kind: str) -> Sequence[str]:
        return self.model.names

    def forget_images(self) -> torch.Tensor | None:
        return forget_images(self.config.forget_images, self.model, self.erased, to_stderr)

    def task(self, progress: Progress, images: torch.Tensor | None) -> Task[Any]:
        retained: Images | None = retain_images(self.config.retain, self.model, self.erased, to_stderr)
        return classes.task(self.model, self.plan, self.config, progress, images, retained)

    def anchors(self, task: Task[Any], result: EditResult) -> dict[str, str]:
        return {self.model.names[erased]: self.model.names[anchor] for erased, anchor in result.anchors.items()}

    def anchored(self, task: Task[Any], result: EditResult) -> tuple[DiffusionModel, dict[str, str]]:
        return self.model, self.anchors(task, result)

    def learned_sentence(self, condition: str) -> str | None:
        return ""

    def sentence(self, condition: str) -> str:
        return sentence_of(condition)


class ConceptSubject(Subject):
    """Concepts of a text-to-image pipeline."""

    kind = "concept"
    model: TextConditional
    plan: concepts.ConceptsPlan

    @property
    def judges(self) -> Mapping[str, str]:
        return self.plan.vocabulary.judges if self.plan.vocabulary is not None and _known(self.plan) else {}

    def class_names(self, kind: str) -> Sequence[str]:
        if self.plan.vocabulary is not None and _known(self.plan):
            return self.plan.vocabulary.names(kind)
        asked = (q for group in self.questions.values() for q in group if q.kind == kind and q.answer is not None)
        return tuple(dict.fromkeys(str(q.answer) for q in asked))

    def forget_images(self) -> torch.Tensor | None:
        return forget_images(self.config.forget_images, self.model, self.plan.concepts[0].words, to_stderr)

    def task(self, progress: Progress, images: torch.Tensor | None) -> Task[Any]:
        return concepts.task(self.model, self.plan, self.config, progress, images)

    def anchors(self, task: Task[Any], result: EditResult) -> dict[str, str]:
        return dict(task.anchor_words)

    def anchored(self, task: Task[Any], result: EditResult) -> tuple[DiffusionModel, dict[str, str]]:
        if not task.anchor_words:
            return self.model, {}
        prompts = (*task.model.names, "")
        trained = {prompts[row]: prompts[anchor] for row, anchor in (task.anchors or {}).items()}
        asked = {condition: task.reworded(condition) for condition in conditions(self.questions, "forget", "paraphrase")}
        found = {condition: anchor for condition, anchor in (asked | trained).items() if anchor is not None}
        return self.model.with_prompts(list(found.values())), found

    def learned_sentence(self, condition: str) -> str | None:
        return next((found for one in self.plan.concepts if (found := one.sentence(condition)) is not None), None)

    def sentence(self, condition: str) -> str:
        return condition


def load_classes(config: Any) -> ClassSubject:
    """The classes of an `EraseClassConfig` on its model; InputError for anything that this model cannot do."""
    model = load_model(config)
    return classes_of(model, classes.plan(model, config, config.forget_images is not None), config)


def classes_of(loaded: ClassConditional, plan: classes.ClassPlan, config: Any) -> ClassSubject:
    """The same from a plan."""
    model = classes.bind(loaded, plan)
    kept = [name for name in model.names if name not in plan.erased]
    asked = {*plan.erased, *(kept[index] for index in spread(len(kept), config.judged_classes))}
    questions = class_questions([name for name in model.names if name in asked], plan.erased, model.conditional)
    base = {"source": model.source, "revision": model.revision, **_loaded_by(model.pipeline)}
    return ClassSubject(model, plan, settled(config, "class", model.usual), base, questions)


def load_concepts(config: Any) -> ConceptSubject:
    """The concepts of an `EraseConceptConfig` on its model; InputError for anything that this model cannot do."""
    pipeline, source = load_text_model(config)
    vocabulary = read_vocabulary(source)
    plan = concepts.plan(pipeline, config, vocabulary, config.model, config.forget_images is not None)
    return concepts_of(pipeline, plan, config, source)


def concepts_of(pipeline: Any, plan: concepts.ConceptsPlan, config: Any, source: str) -> ConceptSubject:
    """The same from a plan; ``source`` is the folder or id that the pipeline was loaded from."""
    questions = _concept_questions(plan, config)
    model = concepts.bind(pipeline, plan, conditions(questions))
    config = settled(concepts.with_guidance_scale(config, plan.vocabulary, model.usual), "concept", model.usual)
    base = {"source": config.model, "revision": hub_revision(source), **_loaded_by(pipeline)}
    return ConceptSubject(model, plan, config, base, questions)


def _loaded_by(pipeline: Any) -> dict[str, str]:
    """What a report says of how the patch is used: the pipeline's name of the network, and the form of its LoRA."""
    family = family_of(pipeline)
    return {"network": family.adapter.part, "lora": family.lora}


def _concept_questions(plan: concepts.ConceptsPlan, config: Any) -> Questions:
    """The questions of the vocabulary, or of the words: what a judge of words must tell the concepts from."""
    known, judged = _known(plan), config.classifier not in ("auto", "none")
    if known and config.alternatives:
        raise InputError("--alternatives: the model's vocabulary names what else a picture may show; leave them out")
    erased = {singular(word).lower() for one in plan.concepts for word in one.words}
    for other in config.alternatives:
        if singular(bare(other)).lower() in erased:
            raise InputError(f"--alternatives {other}: is what shall be erased; name what else a picture may show")
    words = [word for one in plan.concepts for word in one.words]
    alternatives = config.alternatives or (tuple(plan.concepts[0].candidates(words)) if judged and not known else ())
    if judged and not known and config.anchor and config.anchor.strip():
        alternatives = tuple(dict.fromkeys((*alternatives, bare(config.anchor))))  # what an erased picture shall show
    compared = [plan.kept[index] for index in spread(len(plan.kept), config.judged_prompts)]
    vocabulary = plan.vocabulary if known else None
    named = None if config.questions is None else named_questions(config.questions)
    return concept_questions(
        plan.erased,
        plan.forget,
        compared,
        config.paraphrases,
        vocabulary,
        alternatives,
        named,
        _by_name(plan, config),
        plan.kept,
    )


def _by_name(plan: concepts.ConceptsPlan, config: Any) -> tuple[str, ...]:
    """Prompts of the user's own by which a concept of a vocabulary is asked for too, as it is erased by them."""
    if getattr(config, "forget_prompts", ()):
        return plan.forget
    words = plan.vocabulary
    made = () if words is None else (words.prompt(words.plain_style, one) for one in getattr(config, "synonyms", ()))
    return tuple(prompt for prompt in made if prompt in plan.forget)


def _known(plan: concepts.ConceptsPlan) -> bool:
    """True if the model's vocabulary knows every concept."""
    return plan.vocabulary is not None and all(one.subject is not None for one in plan.concepts)
