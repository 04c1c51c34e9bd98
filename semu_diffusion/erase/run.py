"""One erasure, from a task and its settings to a patch; no files, no printing.

samples -> the name in closed form -> forget gradient -> moments of kept inputs -> subspaces -> training of R -> patch
"""

from __future__ import annotations

from collections.abc import Callable, Container, Generator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch import nn

from semu_diffusion.erase.adversary import Adversary, adversarial_share
from semu_diffusion.erase.anchors import chosen_anchors, named_anchors
from semu_diffusion.erase.closed_form import NameEdit, name_edit, name_layers
from semu_diffusion.erase.collect import (
    Gradient,
    denoising_gradient,
    find_subspaces,
    gradient_sketches,
    kept_moments,
    layers_to_sketch,
    objective_gradient,
    protection_of,
)
from semu_diffusion.erase.config import ErasureConfig, SamplesConfig, SubspaceConfig
from semu_diffusion.erase.loss import ErasureLoss
from semu_diffusion.erase.meter import Meter
from semu_diffusion.erase.phases import phase_generator
from semu_diffusion.erase.pool import Noised, Pool, Source, paths, pooled
from semu_diffusion.erase.samples import SELF_MADE_STEPS, in_turn
from semu_diffusion.erase.task import EditResult, Images, Progress, Protection, Task
from semu_diffusion.erasure import Diverged, Step, train_patch
from semu_diffusion.errors import InputError
from semu_diffusion.gradients import only_trainable
from semu_diffusion.layers import select_layers
from semu_diffusion.models.base import DiffusionModel
from semu_diffusion.models.precision import autocast
from semu_diffusion.objectives import Predict
from semu_diffusion.patch import ErasurePatch
from semu_diffusion.patches.patched import PatchedLayers
from semu_diffusion.protection import InputMoments
from semu_diffusion.sketch import GradientSketch

__all__ = ["Samples", "gather", "kept_source", "loss_of", "require_trainable", "run_erasure", "run_to_end"]

Result = TypeVar("Result")

POOL = 320  # noised samples of images that were given


@dataclass(frozen=True)
class Samples:
    """What an erasure works on: the forgotten condition's ``own`` images, noised ones of it and of the kept, the anchors."""

    own: Images
    forget: Source
    retain: Source | None
    anchors: Mapping[int, int]


def run_erasure(
    task: Task[DiffusionModel], config: ErasureConfig, progress: Progress | None = None
) -> Generator[Step, None, EditResult]:
    """Do the task; yields training steps, returns the `EditResult`. The model is unchanged.

    Raises InputError if no layer is left with a direction to train, Diverged if the loss leaves the finite numbers.
    """
    model = task.model
    if config.memory is not None and config.method != "closed-form":  # too little is refused before any work
        free = name_layers(model) if config.method == "semu" and task.target == "fixed" else {}
        layers_to_sketch(config, _edited(model, config, free))
    with Meter(model.denoiser) as meter:
        # a model fresh from training may be in train mode: its dropout would draw from torch's global generator
        with meter.phase("collect"), only_trainable(model.denoiser, ()):
            if config.method == "closed-form":
                anchors = named_anchors(task, config, progress)
            else:
                samples = gather(task, config, progress)
                anchors = samples.anchors
            named = _name(task, config, anchors)
        if config.method == "closed-form":
            return EditResult(_named_patch(task, named), anchors, None, meter.seconds, meter.passes)
        patch, protection = yield from _train(task, config, samples, named, meter, progress)
    return EditResult(patch, anchors, protection, meter.seconds, meter.passes)


def _train(
    task: Task[DiffusionModel], config: ErasureConfig, samples: Samples, named: NameEdit, meter: Meter,
    progress: Progress | None,
) -> Generator[Step, None, tuple[ErasurePatch, Protection]]:  # fmt: skip
    """R inside the subspaces of the model that has the name edit."""
    model = task.model
    layers = _edited(model, config, named.subspaces)
    renamed = PatchedLayers(model.denoiser, {}, named.subspaces, named.cores)
    moments: dict[str, InputMoments] = {}
    if config.protect == "null-space":
        assert samples.retain is not None
        with meter.phase("collect"), only_trainable(model.denoiser, ()), renamed.attached():
            moments = kept_moments(model, config, layers, samples.retain, phase_generator(config.seed, "moments"), progress)
        with meter.phase("subspace"):
            for one in moments.values():
                one.settle(config.protected_energy)
    with meter.phase("collect"), only_trainable(model.denoiser, ()), renamed.attached():
        adversary = adversary_of(task, config, samples, _original(model, renamed))
        loss = loss_of(task, config, samples, _original(model, renamed), "gradient", adversary)
        sketches = gradient_sketches(config, layers, moments, phase_generator(config.seed, "sketches"))
        gradients = _forget_gradient(task, config, samples, layers, loss, progress, sketches)
    with meter.phase("subspace"):
        generator = phase_generator(config.seed, "subspace")
        subspaces = find_subspaces(config, layers, gradients, moments, generator, progress)
    patched = PatchedLayers(model.denoiser, subspaces, named.subspaces, named.cores)
    if not patched.parameters():
        raise InputError("no layer has a direction to train: lower --protected-energy, or choose other --layers")
    with meter.phase("train"):
        patch = yield from train_patch(
            patched,
            loss_of(task, config, samples, _original(model, patched), "training", adversary),
            config.steps,
            config.lr,
            betas=(0.9, config.adam_beta2),
            warmup=config.warmup,
            decay=config.lr_decay,
            metadata=_metadata(task, named),
        )
    if not all(torch.isfinite(layer.core).all() for layer in patch.layers.values()):
        raise Diverged("the last step left the finite numbers: lower --lr or the rank")
    return patch, protection_of(patch, layers, gradients, moments, subspaces)


def _edited(model: DiffusionModel, config: SubspaceConfig, named: Container[str]) -> dict[str, Any]:
    """The layers in which R is trained: those of the settings, but for the ``named`` ones."""
    return {name: layer for name, layer in select_layers(model.denoiser, config.layers).items() if name not in named}


def _metadata(task: Task[DiffusionModel], named: NameEdit) -> dict[str, Any]:
    """What the patch says of itself; ``closed_form`` are the layers in which nothing was trained."""
    return {**task.metadata, **({"closed_form": sorted(named.subspaces)} if named.subspaces else {})}


def _original(model: DiffusionModel, patched: PatchedLayers) -> Predict:
    def predict(x_t: torch.Tensor, t: torch.Tensor, labels: Any) -> torch.Tensor:
        with patched.original():
            return model.predict(x_t, t, labels)

    return predict


def _name(task: Task[DiffusionModel], config: ErasureConfig, anchors: Mapping[int, int]) -> NameEdit:
    """The name in closed form, where the method has it and the model the layers for it; else an edit of nothing."""
    possible = task.target == "fixed" and anchors and name_layers(task.model)
    if config.method == "closed-form" and not possible:
        raise InputError(
            "--method closed-form needs --target fixed and layers that see nothing but the condition, which this model "
            "has not: take --method trained"
        )
    if config.method == "trained" or not possible:
        return NameEdit({}, {})
    return name_edit(task.model, anchors, task.kept)


def _named_patch(task: Task[DiffusionModel], named: NameEdit) -> ErasurePatch:
    return PatchedLayers(task.model.denoiser, {}, named.subspaces, named.cores).patch(_metadata(task, named))


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
    """The samples of a task: of images that were given, or of those that the model makes; and the anchors, chosen on them."""
    model = task.model
    fresh = config.moving_target or task.target == "ascent"  # nothing of the original's to remember
    own, forget = task.forget_set, None
    if own is None:
        count = (task.forget_samples or config.forget_samples) * len(task.forget)
        forget, own = _own_paths(model, config, task.forget, count, "forget set", progress)
    anchors = chosen_anchors(task, own, phase_generator(config.seed, "anchors"))
    source: Source = Noised(model, own)
    if not fresh:
        pool = forget or pooled(Noised(model, own), POOL, phase_generator(config.seed, "forget pool"))
        source = _with_anchors(model, config, pool, anchors, progress)
    return Samples(own, source, kept_source(task, config, progress), anchors)


def kept_source(task: Task[DiffusionModel], config: ErasureConfig, progress: Progress | None = None) -> Source | None:
    """Noised samples of what is kept: of the images that were given, else the model's own paths where a setting needs them."""
    model = task.model
    if task.retain_set is not None:
        return Noised(model, task.retain_set)
    if config.retain not in ("self", "none"):
        raise InputError(f"retain {config.retain!r}: only erase-class reads a data set; give self or none")
    if config.protect != "null-space" and config.retain != "self":
        return None
    # of no class if none is kept: the label says nothing to an unconditional model
    kept = list(task.kept) or [model.null or 0]
    return _own_paths(model, config, kept, config.kept_samples, "kept samples", progress)[0]


def _with_anchors(
    model: DiffusionModel, config: SamplesConfig, pool: Pool, anchors: Mapping[int, int], progress: Progress | None
) -> Pool:
    """The pool and paths of the anchors, shown as what they replace: once it is erased, its own paths lead there."""
    for erased, anchor in anchors.items() if config.anchor_samples else ():
        shown, _ = _own_paths(model, config, [anchor], config.anchor_samples, f"anchor samples of {erased}", progress)
        pool = pool.joined(shown, torch.full_like(shown.labels, erased))
    return pool


def _own_paths(
    model: DiffusionModel, config: SamplesConfig, conditions: Sequence[int], count: int, stage: str, progress: Progress | None
) -> tuple[Pool, Images]:
    rows, seeds = in_turn(model, conditions, count, config.seed, stage)
    show = partial(progress, stage) if progress is not None else lambda done, total: None
    return paths(model, rows, seeds, SELF_MADE_STEPS, config.guidance_scale, config.precision, show)


def adversary_of(task: Task[DiffusionModel], config: ErasureConfig, samples: Samples, original: Predict) -> Adversary | None:
    """The vectors that the task is trained against, found on the model as it is; None where none are asked for."""
    model = task.model
    if not adversarial_share(model, config.adversarial) or task.target == "ascent":
        return None
    generator = phase_generator(config.seed, "adversary")
    adversary = Adversary(model, config, [*task.forget, *task.kept], samples.forget, generator)
    with autocast(config.precision, model.device)():
        adversary.prepare(original)
    return adversary


def loss_of(
    task: Task[DiffusionModel],
    config: ErasureConfig,
    samples: Samples,
    original: Predict,
    phase: str,
    adversary: Adversary | None = None,
) -> ErasureLoss:
    """The loss by which the task is trained, its draws those of the ``phase``."""
    return ErasureLoss(
        task.model,
        config,
        task.target,
        original,
        samples.forget,
        samples.retain if phase == "training" else None,
        samples.anchors,
        task.kept,
        autocast(config.precision, task.model.device),
        phase_generator(config.seed, phase),
        adversary,
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
    loss: ErasureLoss,
    progress: Progress | None,
    sketches: Mapping[str, GradientSketch],
) -> dict[str, Gradient]:
    """The gradient whose subspace is kept: of the training's own loss, or of denoising the condition's own images."""
    model, clip = task.model, config.gradient_clip
    if config.gradient == "random":
        generator = phase_generator(config.seed, "gradient")
        return {name: torch.randn(layer.weight.shape, generator=generator).to(layer.weight) for name, layer in layers.items()}
    with autocast(config.precision, model.device)():
        if config.gradient == "denoising":
            generator = phase_generator(config.seed, "gradient")
            return denoising_gradient(model, layers, samples.own, config.guidance_scale, clip, generator, progress, sketches)
        return objective_gradient(model, layers, loss, clip, progress, sketches)
