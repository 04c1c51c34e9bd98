"""The domain of concepts: what the user's words mean on a text-to-image pipeline."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from semu_diffusion.domains.config import ConceptErasureConfig
from semu_diffusion.domains.plan import ConceptPlan, plan_words
from semu_diffusion.domains.prompts import contains, with_anchor
from semu_diffusion.domains.vocabulary import Vocabulary
from semu_diffusion.erase.anchors import second_nearest
from semu_diffusion.erase.phases import phase_generator
from semu_diffusion.erase.samples import training_images
from semu_diffusion.erase.task import Images, Progress, Task
from semu_diffusion.erase.trainable import require_trainable
from semu_diffusion.errors import InputError
from semu_diffusion.files import public_name
from semu_diffusion.models.families import adapt_text_pipeline, check_family, network_of
from semu_diffusion.models.text_conditional import TextConditional
from semu_diffusion.patches.original_names import uniform
from semu_diffusion.patches.wrappers import eager, unwrapped

__all__ = ["ConceptsPlan", "bind", "plan", "task", "with_guidance_scale"]

STABLE_DIFFUSION_GUIDANCE = 7.5
ANCHOR_IMAGES = 16  # pictures of the concept by which an anchor is chosen


@dataclass(frozen=True)
class ConceptsPlan:
    """The plan of each concept of a run, in words, and the prompts that are to stay as they are."""

    concepts: tuple[ConceptPlan, ...]
    kept: tuple[str, ...]
    vocabulary: Vocabulary | None
    source: str

    @property
    def erased(self) -> tuple[str, ...]:
        return tuple(one.concept for one in self.concepts)

    @property
    def forget(self) -> tuple[str, ...]:
        """The prompts that name the concepts."""
        return tuple(dict.fromkeys(prompt for one in self.concepts for prompt in one.prompts))


def with_guidance_scale(config: Any, vocabulary: Vocabulary | None, usual: Mapping[str, Any]) -> Any:
    """The settings with a guidance scale: the given one, the model's own, its family's, or 7.5 as Stable Diffusion is used."""
    if config.guidance_scale is not None:
        return config
    family = usual.get("guidance_scale", STABLE_DIFFUSION_GUIDANCE)
    return dataclasses.replace(config, guidance_scale=family if vocabulary is None else vocabulary.guidance_scale)


def plan(
    pipeline: Any,
    config: ConceptErasureConfig,
    vocabulary: Vocabulary | None = None,
    source: str = "",
    images_given: bool = False,
) -> ConceptsPlan:
    """What ``config`` means on ``pipeline``, before any work.

    Raises InputError for a pipeline of another family, prompts that contradict the concept, and layers that are not there.
    """
    concepts, kept = plan_words(config, vocabulary)
    check_family(pipeline, source)
    network = eager(unwrapped(network_of(pipeline)))
    require_trainable(network, config)
    if images_given and len(concepts) > 1:
        raise InputError("--forget-images shows one concept: erase several in runs of their own, then semu apply")
    return ConceptsPlan(tuple(concepts), tuple(kept), vocabulary, source)


def bind(pipeline: Any, plan: ConceptsPlan, extra: Sequence[str] = ()) -> TextConditional:
    """The model with the plan's prompts, and the ``extra`` ones, in its table. Raises InputError for prompts too long."""
    return adapt_text_pipeline(pipeline, [*plan.forget, *plan.kept, *extra], plan.source)


def task(
    model: TextConditional,
    plan: ConceptsPlan,
    config: ConceptErasureConfig,
    progress: Progress | None = None,
    forget_images: torch.Tensor | None = None,
) -> Task[TextConditional]:
    """The task of a plan on its model, with an anchor for each concept, chosen if none is given.

    ``forget_images`` (N, C, H, W) in [-1, 1] show the concept. The task's model also has the anchors' prompts.
    """
    anchors = {one.concept: _anchor(model, plan, one, config, progress) for one in plan.concepts}
    pairs = _answers(plan.concepts, anchors)
    model = model.with_prompts(list(pairs.values()))
    shown = anchors if config.target != "ascent" else {}  # ascent has no anchor: the concept's own images get less likely
    share = len(plan.concepts) / len(pairs)  # the user's counts are for each concept, the task's for each prompt
    metadata = {
        "concept": list(plan.erased),
        "anchor": list(shown.values()),
        "base_model": public_name(plan.source),
        "family": model.family,
        "prompts": list(pairs),
        **_unusual_blocks(model),
    }
    return Task(
        model,
        [model.row(prompt) for prompt in pairs],
        [model.row(prompt) for prompt in plan.kept],
        config.target,
        {model.row(prompt): model.row(answer) for prompt, answer in pairs.items()},
        _given_images(model, forget_images, plan.concepts, config.retain != "none" or config.protect != "none"),
        None,
        metadata,
        dict(shown),
        math.ceil(config.forget_samples * share),
        partial(_reworded, plan.concepts, anchors),
    )


def _answers(concepts: Sequence[ConceptPlan], anchors: Mapping[str, str]) -> dict[str, str]:
    """What each prompt is answered with: with its own concept replaced, and any other that is erased and still in it."""
    found = {}
    for one in concepts:
        others = [other for other in concepts if other is not one]
        for prompt, answer in zip(one.prompts, one.answers(anchors[one.concept]), strict=True):
            found[prompt] = _reworded(others, anchors, answer) or answer
    return found


def _unusual_blocks(model: TextConditional) -> dict[str, Any]:
    """What the LoRA's names are found by, of an XL that is not built as the published one: the layers of its blocks, 0 where
    these differ, and its up blocks without attention that are not the last."""
    if model.family != "sdxl":
        return {}
    config = model.denoiser.config
    layers = uniform(config.layers_per_block) or 0
    plain = [place for place, kind in enumerate(config.up_block_types[:-1]) if "Attn" not in kind]
    return ({"layers_per_block": layers} if layers != 2 else {}) | ({"plain_up_blocks": plain} if plain else {})


def _reworded(concepts: Sequence[ConceptPlan], anchors: Mapping[str, str], prompt: str) -> str | None:
    """The prompt with the anchors in the concepts' places, by the words that an edit may know; None if it has none of them."""
    found = prompt
    for one in concepts:
        if any(contains(found, word) for word in one.disclosed_words):
            found = with_anchor(found, one.disclosed_words, anchors[one.concept])
    return None if found == prompt else found


def _anchor(
    model: TextConditional, plan: ConceptsPlan, one: ConceptPlan, config: ConceptErasureConfig, progress: Progress | None
) -> str:
    """The words that replace a concept: the config's, else the second nearest of the plan's candidates.

    Nearness is that of the predictions for the first prompt with each candidate in its place.
    """
    if config.anchor is not None or config.target != "fixed":
        return config.anchor or ""
    others = [word for other in plan.concepts for word in other.words]
    first = dataclasses.replace(one, prompts=one.prompts[:1], scenes=one.scenes[:1])
    answers = {noun: first.answers(noun)[0] for noun in one.candidates(others)}
    answers = {noun: answer for noun, answer in answers.items() if answer != first.prompts[0]}
    if not answers:
        raise InputError(f"nothing is left that could replace {one.concept!r}: name it with --anchor")
    if len(answers) == 1:
        return next(iter(answers))
    model = model.with_prompts(list(answers.values()))
    row = model.row(first.prompts[0])
    images = training_images(model, config, [row], None, progress, min(ANCHOR_IMAGES, config.forget_samples))
    rows = [model.row(answer) for answer in answers.values()]
    chosen = second_nearest(model, row, rows, images, phase_generator(config.seed, "anchors"))
    return next(noun for noun, answer in answers.items() if model.row(answer) == chosen)


def _given_images(
    model: TextConditional, images: torch.Tensor | None, plans: Sequence[ConceptPlan], beside_its_own: bool
) -> Images | None:
    """The given images as latents, under the concept's prompts in turn; None if the model shall make them.

    Photos are not shown as sketches: of an object's prompts only those in the plain style.
    """
    if images is None:
        return None
    if beside_its_own and tuple(images.shape[1:]) != model.image_shape:
        raise InputError(f"the forget images are {tuple(images.shape[1:])}, but the model makes {model.image_shape}")
    one = plans[0]
    prompts = list(one.prompts)
    if one.vocabulary is not None and one.subject is not None and one.subject.kind == "object" and one.scenes:
        prompts = [p for p, (style, _) in zip(prompts, one.scenes, strict=True) if style == one.vocabulary.plain_style]
    rows = [model.row(prompt) for prompt in prompts]
    latents = model.encode(images)
    pairs = range(max(len(latents), len(rows)))  # every image and every prompt at least once
    labels = torch.tensor([rows[index % len(rows)] for index in pairs], device=model.device)
    return Images(latents[[index % len(latents) for index in pairs]], labels)
