"""The erasure of classes: what a config means on a class-conditional model, and the public face."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch

from semu_diffusion.errors import InputError
from semu_diffusion.layers import select_layers
from semu_diffusion.models.class_conditional import ClassConditional
from semu_diffusion.models.loading import adapt_pipeline
from semu_diffusion.patch import ErasurePatch
from semu_diffusion.pipelines.condition_erasure import Task, erase_conditions, finished, require_trainable
from semu_diffusion.pipelines.console import build_config
from semu_diffusion.pipelines.image_sets import Images
from semu_diffusion.pipelines.settings import PRESETS, EraseClassConfig

__all__ = ["erase_class", "given_forget_set", "prepare"]


def prepare(model: ClassConditional, config: EraseClassConfig) -> Task[ClassConditional]:
    """The task that ``config`` means on ``model``; InputError for anything that this model cannot do, before any work.

    An unconditional model has the class that its images are given for.
    """
    if not model.conditional and not model.class_names:
        model = dataclasses.replace(model, class_names=tuple(dict.fromkeys(config.forget)))
    forget = list(dict.fromkeys(model.class_index(name) for name in config.forget))
    kept = [index for index in range(len(model.class_names)) if index not in forget]
    target = _target_of(model, config)
    anchor = _given_anchor(model, config, target, forget, kept)
    if config.adversarial and not model.conditional:
        raise InputError("--adversarial needs class labels, and the model is unconditional")
    select_layers(model.denoiser, config.layers)
    require_trainable(model.denoiser, config)
    metadata = {
        "forget": [model.class_names[index] for index in forget],
        "base_model": model.source,
        "class_names": list(model.class_names),
    }
    return Task(
        model,
        forget,
        kept,
        target,
        None if anchor is None else dict.fromkeys(forget, anchor),
        given_forget_set(model, config, forget),
        _given_retain_set(model, config, forget),
        metadata,
    )


def erase_class(pipeline: Any, *names: str, **settings: Any) -> ErasurePatch:
    """The public face: erase the classes ``names`` from a `ClassConditionalPipeline`; ``settings`` as on the command line.

        patch = erase_class(pipe, "cat", explained_variance=0.9)

    The pipeline is unchanged: apply the patch to ``pipe.unet``. Raises InputError for an unknown class or setting, and
    Diverged if training left the finite numbers. Nothing is sampled to prove the patch: the command line does that.
    """
    unknown = sorted(set(settings) - {f.name for f in dataclasses.fields(EraseClassConfig)})
    if unknown:
        raise InputError(f"unknown settings: {', '.join(unknown)}")
    config = build_config(EraseClassConfig, {"forget": names, **settings}, PRESETS)
    task = prepare(adapt_pipeline(pipeline), config)
    return finished(erase_conditions(task, config)).patch


def _target_of(model: ClassConditional, config: EraseClassConfig) -> str:
    """The objective that ``auto`` means, or the one asked for, if this model can have it."""
    target = config.target
    if target == "auto":
        return "fixed" if model.conditional else "ascent"
    if target != "ascent" and not model.conditional:
        raise InputError(f"--target {target} needs class labels, and the model is unconditional: use --target ascent")
    if target == "unconditional" and model.null_class is None:
        raise InputError("--target unconditional needs a null class, and the model has none")
    return target


def _given_anchor(
    model: ClassConditional, config: EraseClassConfig, target: str, forget: Sequence[int], kept: Sequence[int]
) -> int | None:
    if target in ("fixed", "random") and not kept:
        raise InputError("every class is to be erased: no class is left to relabel to (--target unconditional needs none)")
    if config.anchor is None:
        return None
    if target != "fixed":
        raise InputError("--anchor needs class labels, and the model is unconditional")
    anchor = model.class_index(config.anchor)
    if anchor in forget:
        raise InputError(f"--anchor {config.anchor} is itself to be erased")
    return anchor


def given_forget_set(model: ClassConditional, config: EraseClassConfig, forget: Sequence[int]) -> Images | None:
    """The images of --forget-images, or None if the model shall make them; InputError if they do not fit."""
    if config.forget_images is None:
        if not model.conditional:
            raise InputError(
                "the model is unconditional, so it cannot make images of one class: give them with --forget-images"
            )
        return None
    from semu_diffusion.pipelines.datasets import load_plain_images

    if len(forget) > 1:
        raise InputError("--forget-images holds the images of one class: give one --forget with it")
    images = load_plain_images(config.forget_images, model.image_shape)
    return Images(images.to(model.device), torch.full((len(images),), forget[0], device=model.device))


def _given_retain_set(model: ClassConditional, config: EraseClassConfig, forget: Sequence[int]) -> Images | None:
    """The kept classes' images of --retain DATASET, or None for ``none`` and ``self``; InputError if they do not fit."""
    if config.retain in ("none", "self"):
        return None
    from semu_diffusion.pipelines.datasets import load_images

    data = load_images(config.retain, "train")
    if data.image_shape != model.image_shape:
        raise InputError(f"--retain {config.retain}: images {data.image_shape}, but the model makes {model.image_shape}")
    known = {name: index for index, name in enumerate(model.class_names)}
    table = torch.tensor([known.get(name, -1) for name in data.class_names])
    labels = table[data.labels]
    wanted = ~torch.isin(labels, torch.tensor(forget))
    if model.conditional:
        wanted &= labels >= 0
    if not wanted.any():
        raise InputError(f"--retain {config.retain}: none of its classes is a kept class of the model")
    images = data.images[wanted].float().div(127.5).sub(1)
    return Images(images.to(model.device), labels[wanted].to(model.device))
