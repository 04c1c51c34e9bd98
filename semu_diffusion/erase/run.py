"""One erasure, from a task and its settings to a patch; no files, no printing.

forget set -> gradient -> (moments of kept inputs) -> subspaces -> training of R -> patch
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn

from semu_diffusion.erase.anchors import chosen_anchors
from semu_diffusion.erase.collect import (
    denoising_gradient,
    find_subspaces,
    kept_moments,
    objective_gradient,
    protection_of,
)
from semu_diffusion.erase.config import ErasureConfig, SamplesConfig
from semu_diffusion.erase.loss import ErasureLoss
from semu_diffusion.erase.phases import phase_generator
from semu_diffusion.erase.samples import kept_images, training_images, with_anchor_images
from semu_diffusion.erase.task import EditResult, Images, Progress, Task
from semu_diffusion.erasure import Diverged, Step, train_patch
from semu_diffusion.errors import InputError
from semu_diffusion.gradients import only_trainable
from semu_diffusion.layers import select_layers
from semu_diffusion.models.base import DiffusionModel
from semu_diffusion.models.precision import autocast
from semu_diffusion.objectives import Predict
from semu_diffusion.patched import PatchedLayers
from semu_diffusion.protection import InputMoments

__all__ = ["Samples", "gather", "loss_of", "require_trainable", "run_erasure", "run_to_end"]

Result = TypeVar("Result")


@dataclass(frozen=True)
class Samples:
    """What an erasure works on: the forgotten condition's ``own`` images, these with images of its anchor, kept ones."""

    own: Images
    forget_set: Images
    retain_set: Images | None
    anchors: Mapping[int, int]


def run_erasure(
    task: Task[DiffusionModel], config: ErasureConfig, progress: Progress | None = None
) -> Generator[Step, None, EditResult]:
    """Do the task; yields training steps, returns the `EditResult`. The model is unchanged.

    Raises InputError if no layer is left with a direction to train, Diverged if the loss leaves the finite numbers.
    """
    model, clock = task.model, Clock()
    layers = select_layers(model.denoiser, config.layers)
    # a model fresh from training may be in train mode: its dropout would draw from torch's global generator
    with clock.measure("collect"), only_trainable(model.denoiser, ()):
        samples = gather(task, config, progress)
        gradients = _forget_gradient(task, config, samples, layers, progress)
        moments: dict[str, InputMoments] = {}
        if config.protect == "null-space":
            assert samples.retain_set is not None
            generator = phase_generator(config.seed, "moments")
            kept = samples.retain_set.subset(config.kept_samples, generator)
            moments = kept_moments(model, config, layers, kept, generator, progress)
    with clock.measure("subspace"):
        generator = phase_generator(config.seed, "subspace")
        subspaces = find_subspaces(config, layers, gradients, moments, generator, progress)
    patched = PatchedLayers(model.denoiser, subspaces)
    if not patched.core:
        raise InputError("no layer has a direction to train: lower --protected-energy, or choose other --layers")

    def original(x_t: torch.Tensor, t: torch.Tensor, labels: Any) -> torch.Tensor:
        with patched.original():
            return model.predict(x_t, t, labels)

    with clock.measure("train"):
        loss = loss_of(task, config, samples, original, "training")
        patch = yield from train_patch(
            patched,
            loss,
            config.steps,
            config.lr,
            betas=(0.9, config.adam_beta2),
            warmup=config.warmup,
            decay=config.lr_decay,
            metadata=task.metadata,
        )
    if not all(torch.isfinite(layer.core).all() for layer in patch.layers.values()):
        raise Diverged("the last step left the finite numbers: lower --lr or the rank")
    protection = protection_of(patch, layers, gradients, moments, subspaces)
    return EditResult(patch, samples.anchors, protection, clock.seconds)


def run_to_end(steps: Generator[Step, None, Result], watch: Callable[[Step], None] | None = None) -> Result:
    """Run the generator of a training to its end and return its result; ``watch`` sees every step."""
    while True:
        try:
            step = next(steps)
        except StopIteration as done:
            result: Result = done.value
            return result
        if watch is not None:
            watch(step)


def gather(task: Task[DiffusionModel], config: ErasureConfig, progress: Progress | None = None) -> Samples:
    """The images of a task: those given, and those that the model makes; and the anchors, chosen on them."""
    model = task.model
    own = training_images(model, config, task.forget, task.forget_set, progress, task.forget_samples)
    anchors = chosen_anchors(task, own, phase_generator(config.seed, "anchors"))
    forget_set = with_anchor_images(model, config, own, anchors, progress, task.anchor_samples)
    retain_set = task.retain_set
    if retain_set is None and (config.protect == "null-space" or config.retain == "self"):
        retain_set = kept_images(model, config, task.kept, progress)
    return Samples(own, forget_set, retain_set, anchors)


def loss_of(task: Task[DiffusionModel], config: ErasureConfig, samples: Samples, original: Predict, phase: str) -> ErasureLoss:
    """The loss by which the task is trained, its draws those of the ``phase``."""
    return ErasureLoss(
        task.model,
        config,
        task.target,
        original,
        samples.forget_set,
        samples.retain_set if phase == "training" else None,
        samples.anchors,
        task.kept,
        autocast(config.precision, task.model.device),
        phase_generator(config.seed, phase),
    )


def require_trainable(denoiser: nn.Module, config: SamplesConfig) -> None:
    """InputError for float16 weights that would be trained in float16, in which small gradients vanish."""
    weight = next(denoiser.parameters())
    if weight.dtype == torch.float16 and autocast(config.precision, weight.device) is nullcontext:
        raise InputError(
            "float16 weights are trained in bfloat16, or small gradients vanish: give --precision bf16 (slow where the "
            "hardware has none), or load the model in float32"
        )


def _forget_gradient(
    task: Task[DiffusionModel],
    config: ErasureConfig,
    samples: Samples,
    layers: Mapping[str, Any],
    progress: Progress | None,
) -> dict[str, torch.Tensor]:
    """The gradient whose subspace is kept. That of denoising is of the condition's own images: its anchor's are not of it."""
    model, clip = task.model, config.gradient_clip
    with autocast(config.precision, model.device)():
        if config.gradient == "denoising":
            generator = phase_generator(config.seed, "gradient")
            return denoising_gradient(model, layers, samples.own, config.guidance_scale, clip, generator, progress)
        loss = loss_of(task, config, samples, model.predict, "gradient")
        return objective_gradient(model, layers, loss, clip, progress)


class Clock:
    """Wall-clock seconds by stage."""

    def __init__(self) -> None:
        self.seconds = {"collect": 0.0, "subspace": 0.0, "train": 0.0}

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - start
