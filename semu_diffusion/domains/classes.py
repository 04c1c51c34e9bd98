"""The domain of classes: what the user's words mean on a class-conditional DDPM."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from semu_diffusion.domains.config import ClassErasureConfig
from semu_diffusion.erase.task import Images, Progress, Task
from semu_diffusion.erase.trainable import require_trainable
from semu_diffusion.errors import InputError
from semu_diffusion.files import public_name
from semu_diffusion.models.class_conditional import ClassConditional
from semu_diffusion.models.class_names import NO_NULL

__all__ = ["ClassPlan", "bind", "forget_set_of", "plan", "task"]


@dataclass(frozen=True)
class ClassPlan:
    """Rows ``forget`` and ``kept`` of ``model``, the objective, and the row that answers the erased ones if it was named."""

    model: ClassConditional
    forget: tuple[int, ...]
    kept: tuple[int, ...]
    target: str
    anchor: int | None

    @property
    def erased(self) -> tuple[str, ...]:
        return tuple(self.model.names[row] for row in self.forget)


def plan(model: ClassConditional, config: ClassErasureConfig, images_given: bool = False) -> ClassPlan:
    """What ``config`` means on ``model``; InputError for anything that this model cannot do, before any work.

    An unconditional model has the class that its images are given for.
    """
    if not model.conditional and not model.names:
        model = dataclasses.replace(model, names=tuple(dict.fromkeys(config.forget)))
    forget = tuple(dict.fromkeys(model.class_index(name) for name in config.forget))
    kept = tuple(row for row in range(len(model.names)) if row not in forget)
    if not kept and model.conditional and model.null is None:
        raise InputError("every class is to be erased, and the model has no null class: nothing would be left to keep")
    target = _target_of(model, config)
    anchor = _given_anchor(model, config, target, forget, kept)
    if config.adversarial and not model.conditional:
        raise InputError("--adversarial needs class labels, and the model is unconditional")
    require_trainable(model.denoiser, config, model.name_layers if config.method == "semu" and target == "fixed" else ())
    if not images_given and not model.conditional:
        raise InputError("the model is unconditional, so it cannot make images of one class: give them with --forget-images")
    if images_given and len(forget) > 1:
        raise InputError("--forget-images holds the images of one class: give one --forget with it")
    return ClassPlan(model, forget, kept, target, anchor)


def bind(model: ClassConditional, plan: ClassPlan, extra: Sequence[str] = ()) -> ClassConditional:
    """The plan's model: its classes are all its conditions. Raises KeyError for an ``extra`` one that is no class."""
    for condition in extra:
        plan.model.row(condition)
    return plan.model


def task(
    model: ClassConditional,
    plan: ClassPlan,
    config: ClassErasureConfig,
    progress: Progress | None = None,
    forget_images: torch.Tensor | None = None,
    retain_set: Images | None = None,
) -> Task[ClassConditional]:
    """The task of a plan. ``forget_images`` (N, C, H, W) in [-1, 1] show the class, ``retain_set`` kept ones."""
    metadata = {
        "forget": list(plan.erased),
        "base_model": public_name(model.source),
        "class_names": list(model.names),
        "null_class": NO_NULL if model.null_index is None else model.null_index,
    }
    return Task(
        model,
        list(plan.forget),
        list(plan.kept),
        plan.target,
        None if plan.anchor is None else dict.fromkeys(plan.forget, plan.anchor),
        forget_set_of(model, plan.forget, forget_images),
        retain_set,
        metadata,
        {},
        config.forget_samples,
    )


def forget_set_of(model: ClassConditional, forget: Sequence[int], images: torch.Tensor | None) -> Images | None:
    """The given images as those of the class to forget, None if the model makes them; InputError if they do not fit."""
    if images is None:
        return None
    if tuple(images.shape[1:]) != model.image_shape:
        raise InputError(f"the forget images are {tuple(images.shape[1:])}, but the model makes {model.image_shape}")
    return Images(model.encode(images).to(model.device), torch.full((len(images),), forget[0], device=model.device))


def _target_of(model: ClassConditional, config: ClassErasureConfig) -> str:
    """The objective that ``auto`` means, or the one asked for, if this model can have it."""
    target = config.target
    if target == "auto":
        return "fixed" if model.conditional else "ascent"
    if target != "ascent" and not model.conditional:
        raise InputError(f"--target {target} needs class labels, and the model is unconditional: use --target ascent")
    if target == "unconditional" and model.null is None:
        raise InputError("--target unconditional needs a null class, and the model has none")
    return target


def _given_anchor(
    model: ClassConditional, config: ClassErasureConfig, target: str, forget: Sequence[int], kept: Sequence[int]
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
