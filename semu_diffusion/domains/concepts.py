"""The erasure of concepts from a text-to-image pipeline: from words to a task over the prompts of a book."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from semu_diffusion.domains.config import ConceptErasureConfig
from semu_diffusion.domains.plan import ConceptPlan, plan
from semu_diffusion.domains.vocabulary import Vocabulary, read_vocabulary
from semu_diffusion.erase.loss import second_nearest
from semu_diffusion.erase.run import Task, require_trainable, run_erasure, run_to_end
from semu_diffusion.erase.samples import Images, Progress, training_images
from semu_diffusion.errors import InputError
from semu_diffusion.layers import select_layers
from semu_diffusion.models.stable_diffusion import TextConditional, adapt_text_pipeline, check_family
from semu_diffusion.options import build_config
from semu_diffusion.patch import ErasurePatch

__all__ = ["ConceptTask", "erase_concept", "guided", "prepare"]

STABLE_DIFFUSION_GUIDANCE = 7.5
ANCHOR_IMAGES = 16  # pictures of the concept by which an anchor is chosen


@dataclasses.dataclass(frozen=True)
class ConceptTask:
    """The task over a book of prompts, its settings by the prompt, the plan of each concept and its anchor in words."""

    task: Task[TextConditional]
    config: ConceptErasureConfig
    plans: Sequence[ConceptPlan]
    anchors: Mapping[str, str]

    @property
    def answers(self) -> dict[str, str]:
        """The answer of every forget prompt."""
        names = (*self.task.model.names, "")
        return {names[row]: names[answer] for row, answer in (self.task.anchors or {}).items()}


def prepare(
    pipeline: Any,
    config: ConceptErasureConfig,
    source: str = "",
    vocabulary: Vocabulary | None = None,
    asked: Sequence[str] = (),
    progress: Progress | None = None,
    forget_images: torch.Tensor | None = None,
) -> ConceptTask:
    """What ``config`` means on ``pipeline``; an anchor is chosen for each concept if none is given.

    The book also gets the prompts ``asked``. Raises InputError for a pipeline of another family, prompts that are too long
    or contradict the concept, and layers that are not there.
    """
    config = guided(config, vocabulary)
    plans, kept = plan(config, vocabulary)
    check_family(pipeline, source)
    require_trainable(pipeline.unet, config)
    anchors: dict[str, str] = {}
    for one in plans:
        if config.anchor is not None or config.target != "fixed":
            anchors[one.concept] = config.anchor or ""
        else:
            others = [word for other in plans for word in other.words]
            anchors[one.concept] = _chosen_anchor(pipeline, one, others, config, progress)
    pairs = {p: a for one in plans for p, a in zip(one.prompts, one.answers(anchors[one.concept]), strict=True)}
    model = adapt_text_pipeline(pipeline, [*pairs, *pairs.values(), *kept, *asked], source)
    if config.adversarial and model.table.pooled is not None:
        raise InputError("--adversarial is not made for SDXL, which has a pooled condition beside the text")
    select_layers(model.denoiser, config.layers)
    forget = [model.row(prompt) for prompt in pairs]
    metadata = {
        "concept": [one.concept for one in plans],
        "anchor": [anchors[one.concept] for one in plans] if config.target != "ascent" else [],
        "base_model": source,
        "family": model.family,
        "prompts": list(pairs),
    }
    task = Task(
        model,
        forget,
        [model.row(prompt) for prompt in kept],
        config.target,
        {model.row(prompt): model.row(answer) for prompt, answer in pairs.items()},
        _given_images(model, forget_images, plans),
        None,
        metadata,
    )
    # ascent has no answer: it only makes the concept's own images less likely
    return ConceptTask(task, _by_prompt(config, len(plans), len(forget)), plans, anchors if config.target != "ascent" else {})


def guided(config: Any, vocabulary: Vocabulary | None) -> Any:
    """The settings with a guidance scale: the given one, the model's own, or 7.5 as Stable Diffusion is used."""
    if config.guidance_scale is not None:
        return config
    own = STABLE_DIFFUSION_GUIDANCE if vocabulary is None else vocabulary.guidance_scale
    return dataclasses.replace(config, guidance_scale=own)


def erase_concept(pipeline: Any, *concepts: str, forget_images: torch.Tensor | None = None, **settings: Any) -> ErasurePatch:
    """The public face: erase concepts, in words, from a Stable Diffusion pipeline (1.x, 2.x, XL).

        patch = erase_concept(pipe, "cassette player", anchor="radio")

    ``settings`` are the fields of `ConceptErasureConfig`. The pipeline is unchanged: apply the patch to ``pipe.unet``. Raises
    InputError for settings that make no sense together or a pipeline of another family, Diverged if training left the
    finite numbers. Nothing is sampled to prove the patch.
    """
    unknown = sorted(set(settings) - {f.name for f in dataclasses.fields(ConceptErasureConfig)})
    if unknown:
        raise InputError(f"unknown settings: {', '.join(unknown)}")
    config = build_config(ConceptErasureConfig, {"concept": concepts, **settings})
    source = str(getattr(pipeline.config, "_name_or_path", ""))
    prepared = prepare(pipeline, config, source, read_vocabulary(source) if source else None, forget_images=forget_images)
    return run_to_end(run_erasure(prepared.task, prepared.config)).patch


def _by_prompt(config: ConceptErasureConfig, concepts: int, prompts: int) -> ConceptErasureConfig:
    """The settings with sample counts for each prompt: the user's are for each concept."""
    share = {name: math.ceil(getattr(config, name) * concepts / prompts) for name in ("forget_samples", "anchor_samples")}
    return dataclasses.replace(config, **share)


def _chosen_anchor(
    pipeline: Any, one: ConceptPlan, others: Sequence[str], config: ConceptErasureConfig, progress: Progress | None
) -> str:
    """Of the plan's candidates the second nearest, by the predictions for the first prompt with each in its place."""
    first = dataclasses.replace(one, prompts=one.prompts[:1], scenes=one.scenes[:1])
    answers = {noun: first.answers(noun)[0] for noun in one.candidates(others)}
    answers = {noun: answer for noun, answer in answers.items() if answer != first.prompts[0]}
    if not answers:
        raise InputError(f"nothing is left that could answer {one.concept!r}: name it with --anchor")
    if len(answers) == 1:
        return next(iter(answers))
    model = adapt_text_pipeline(pipeline, [first.prompts[0], *answers.values()])
    few = dataclasses.replace(config, forget_samples=min(ANCHOR_IMAGES, config.forget_samples))
    images = training_images(model, few, [0], None, progress)
    rows = [model.row(answer) for answer in answers.values()]
    chosen = second_nearest(model, 0, rows, images, torch.Generator().manual_seed(config.seed))
    return next(noun for noun, answer in answers.items() if model.row(answer) == chosen)


def _given_images(model: TextConditional, images: torch.Tensor | None, plans: Sequence[ConceptPlan]) -> Images | None:
    """The images of --forget-images as latents, under the concept's prompts in turn; None if the model shall make them.

    Photos are not shown as sketches: of an object's prompts only those in the plain style.
    """
    if images is None:
        return None
    if len(plans) > 1:
        raise InputError("--forget-images shows one concept: erase several in runs of their own, then semu apply")
    one = plans[0]
    prompts = list(one.prompts)
    if one.vocabulary is not None and one.subject is not None and one.subject.kind == "object" and one.scenes:
        prompts = [p for p, (style, _) in zip(prompts, one.scenes, strict=True) if style == one.vocabulary.plain_style]
    rows = [model.row(prompt) for prompt in prompts]
    latents = model.encode(images)
    pairs = range(max(len(latents), len(rows)))  # every image and every prompt at least once
    labels = torch.tensor([rows[index % len(rows)] for index in pairs], device=model.device)
    return Images(latents[[index % len(latents) for index in pairs]], labels)
