"""The public face: erase by words from a pipeline in memory."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import torch

from semu_diffusion.domains import classes, concepts
from semu_diffusion.domains.config import PRESETS, ClassErasureConfig, ConceptErasureConfig
from semu_diffusion.domains.vocabulary import read_vocabulary
from semu_diffusion.erase.run import run_erasure, run_to_end
from semu_diffusion.errors import InputError, Notice
from semu_diffusion.models.families import adapt_pipeline
from semu_diffusion.options import build_config
from semu_diffusion.patch import ErasurePatch
from semu_diffusion.patches.modes import own_modes

__all__ = ["erase_class", "erase_concept"]

BEYOND = 1.6  # resized bicubically, a picture goes so far over its bounds at edges; those parts are cut off


def erase_class(pipeline: Any, *names: str, forget_images: torch.Tensor | None = None, **settings: Any) -> ErasurePatch:
    """Erase the classes ``names`` from a `ClassConditionalPipeline` or a DiTPipeline.

        patch = erase_class(pipe, "cat", explained_variance=0.9)

    ``settings`` are the fields of `ClassErasureConfig`; ``forget_images`` (N, C, H, W) in [-1, 1] define the class, and the
    model makes its own without them. The pipeline is unchanged: apply the patch to its network. Raises InputError for an
    unknown class or setting, Diverged if training left the finite numbers. Nothing is sampled to evaluate the patch: the
    command line does that.
    """
    _check_pipeline(pipeline)
    config, forget_images = _config(ClassErasureConfig, _named(names, "forget", settings)), _images(forget_images)
    with own_modes():
        planned = classes.plan(adapt_pipeline(pipeline), config, forget_images is not None)
        model = classes.bind(planned.model, planned)
        return run_to_end(run_erasure(classes.task(model, planned, config, forget_images=forget_images), config)).edit


def erase_concept(pipeline: Any, *words: str, forget_images: torch.Tensor | None = None, **settings: Any) -> ErasurePatch:
    """Erase concepts, in words, from a text-to-image pipeline of one of the `FAMILIES`.

        patch = erase_concept(pipe, "cassette player", anchor="a radio")

    ``settings`` are the fields of `ConceptErasureConfig`, ``forget_images`` (N, C, H, W) in [-1, 1] pictures of the concept.
    The pipeline is unchanged: apply the patch to its network. Raises InputError for settings that make no sense together
    or a pipeline of another family, Diverged if training left the finite numbers. Nothing is sampled to evaluate the patch.
    """
    _check_pipeline(pipeline)
    config, forget_images = _config(ConceptErasureConfig, _named(words, "concept", settings)), _images(forget_images)
    with own_modes():
        source = str(getattr(pipeline.config, "_name_or_path", ""))
        vocabulary = read_vocabulary(source) if source else None
        planned = concepts.plan(pipeline, config, vocabulary, source, forget_images is not None)
        model = concepts.bind(pipeline, planned)
        config = concepts.with_guidance_scale(config, vocabulary, model.usual)
        return run_to_end(run_erasure(concepts.task(model, planned, config, forget_images=forget_images), config)).edit


def _named(names: tuple[str, ...], setting: str, settings: dict[str, Any]) -> dict[str, Any]:
    """The settings with what is named by position; InputError if both say what to erase."""
    if names and setting in settings:
        raise InputError(f"what to erase is given twice: {', '.join(map(str, names))}, and as {setting}={settings[setting]!r}")
    return {setting: names, **settings}


def _check_pipeline(pipeline: Any) -> None:
    if not hasattr(pipeline, "components"):
        given = type(pipeline).__name__
        raise InputError(
            f"a {given} is given where a pipeline is wanted: DiffusionPipeline.from_pretrained makes one of a folder"
        )


def _images(given: Any) -> torch.Tensor | None:
    """The forget images as numbers alone, whatever made them."""
    if given is None:
        return None
    if not isinstance(given, torch.Tensor):
        raise InputError("forget_images must be a tensor (N, C, H, W) in [-1, 1]; the command line reads folders")
    images = given.detach()
    low, high = (float(bound) for bound in images.aminmax()) if images.numel() and not images.is_complex() else (0.0, 0.0)
    if not (images.is_floating_point() and low >= -BEYOND and high <= BEYOND):
        raise InputError(f"forget_images must be floats in [-1, 1], and are {images.dtype} from {low:g} to {high:g}")
    if 0 <= low < high:
        warnings.warn("forget_images: no number is below 0; [-1, 1] is wanted, and ToTensor gives [0, 1]", Notice, stacklevel=3)
    if images.ndim != 4 or not len(images):
        raise InputError(f"forget_images must be (N, C, H, W) with at least one image, and are {tuple(images.shape)}")
    return images.float().clamp(-1, 1)


def _config(kind: type, settings: dict[str, Any]) -> Any:
    unknown = sorted(set(settings) - {field.name for field in dataclasses.fields(kind)})
    if unknown:
        raise InputError(f"unknown settings: {', '.join(unknown)}")
    return build_config(kind, settings, PRESETS if kind is ClassErasureConfig else None)
