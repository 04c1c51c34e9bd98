"""The erasure of concepts from a text-to-image pipeline: from words to a task over the prompts of a book."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch

from semu_diffusion.errors import InputError
from semu_diffusion.layers import select_layers
from semu_diffusion.models.text_conditional import TextConditional, adapt_text_pipeline
from semu_diffusion.patch import ErasurePatch
from semu_diffusion.pipelines.concept_settings import EraseConceptConfig
from semu_diffusion.pipelines.condition_erasure import Task, erase_conditions, finished
from semu_diffusion.pipelines.console import build_config
from semu_diffusion.pipelines.erasure_objective import second_nearest
from semu_diffusion.pipelines.image_sets import Images, Progress, training_images
from semu_diffusion.pipelines.prompts import ANCHORS, RETAIN_PROMPTS, prompts_of, retained, with_anchor

__all__ = ["ConceptTask", "erase_concept", "prepare"]

ANCHOR_IMAGES = 16  # pictures of the concept by which an anchor is chosen


@dataclasses.dataclass(frozen=True)
class ConceptTask:
    """The task over a book of prompts, its settings by the prompt, and the anchor in words."""

    task: Task[TextConditional]
    config: EraseConceptConfig
    anchor: str


def prepare(pipeline: Any, config: EraseConceptConfig, source: str = "", progress: Progress | None = None) -> ConceptTask:
    """What ``config`` means on ``pipeline``; an anchor is chosen if none is given.

    Raises InputError for a pipeline of another family, prompts that are too long or contradict the concept, and layers
    that are not there.
    """
    words = [word.strip() for word in (*config.concept, *config.synonyms) if word.strip()]
    prompts = prompts_of(config.concept, config.synonyms, config.forget_prompts)
    kept = retained(config.retain_prompts or RETAIN_PROMPTS, words)
    anchor = config.anchor
    if anchor is None:
        anchor = _chosen_anchor(pipeline, prompts, words, config, progress) if config.target == "fixed" else ""
    answers = [with_anchor(prompt, words, anchor) for prompt in prompts]
    model = adapt_text_pipeline(pipeline, [*prompts, *answers, *kept], source)
    select_layers(model.denoiser, config.layers)
    forget = [model.row(prompt) for prompt in prompts]
    anchors = {model.row(prompt): model.row(answer) for prompt, answer in zip(prompts, answers, strict=True)}
    metadata = {"concept": list(config.concept), "anchor": anchor, "base_model": source, "prompts": prompts}
    task = Task(
        model,
        forget,
        [model.row(prompt) for prompt in kept],
        config.target,
        anchors,
        _given_images(model, config, forget),
        None,
        metadata,
    )
    return ConceptTask(task, _by_prompt(config, len(forget)), anchor)


def erase_concept(pipeline: Any, *concepts: str, **settings: Any) -> ErasurePatch:
    """The public face: erase concepts, in words, from a Stable Diffusion pipeline (1.x, 2.x, XL).

        patch = erase_concept(pipe, "cassette player", anchor="radio")

    ``settings`` are the fields of `EraseConceptConfig`. The pipeline is unchanged: apply the patch to ``pipe.unet``. Raises
    InputError for settings that make no sense together or a pipeline of another family, Diverged if training left the
    finite numbers. Nothing is sampled to prove the patch.
    """
    unknown = sorted(set(settings) - {f.name for f in dataclasses.fields(EraseConceptConfig)})
    if unknown:
        raise InputError(f"unknown settings: {', '.join(unknown)}")
    config = build_config(EraseConceptConfig, {"concept": concepts, **settings})
    prepared = prepare(pipeline, config, str(getattr(pipeline.config, "_name_or_path", "")))
    return finished(erase_conditions(prepared.task, prepared.config)).patch


def _by_prompt(config: EraseConceptConfig, prompts: int) -> EraseConceptConfig:
    """The settings with sample counts for each prompt: the user's are for the concept as a whole."""
    share = {name: math.ceil(getattr(config, name) / prompts) for name in ("forget_samples", "anchor_samples")}
    return dataclasses.replace(config, **share)


def _chosen_anchor(
    pipeline: Any, prompts: Sequence[str], words: Sequence[str], config: EraseConceptConfig, progress: Progress | None
) -> str:
    """Of a few plain nouns the second nearest, by the predictions for the first prompt with each in the concept's place."""
    candidates = {noun: with_anchor(prompts[0], words, noun) for noun in ANCHORS if noun not in {w.lower() for w in words}}
    candidates = {noun: prompt for noun, prompt in candidates.items() if prompt != prompts[0]}
    model = adapt_text_pipeline(pipeline, [prompts[0], *candidates.values()])
    few = dataclasses.replace(config, forget_samples=min(ANCHOR_IMAGES, config.forget_samples))
    images = training_images(model, few, [0], None, progress)
    rows = [model.row(prompt) for prompt in candidates.values()]
    chosen = second_nearest(model, 0, rows, images, torch.Generator().manual_seed(config.seed))
    return next(noun for noun, prompt in candidates.items() if model.row(prompt) == chosen)


def _given_images(model: TextConditional, config: EraseConceptConfig, forget: Sequence[int]) -> Images | None:
    """The images of --forget-images as latents, under the concept's prompts in turn; None if the model shall make them."""
    if config.forget_images is None:
        return None
    from semu_diffusion.pipelines.datasets import load_plain_images

    latents = model.encode(load_plain_images(config.forget_images, model.image_shape))
    labels = torch.tensor([forget[index % len(forget)] for index in range(len(latents))], device=model.device)
    return Images(latents, labels)
