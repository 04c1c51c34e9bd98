"""One erasure, from a task and its settings to a patch; no files, no printing.

samples -> the name in closed form -> moments of kept inputs -> forget gradient -> subspaces -> training of R -> patch
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch

from semu_diffusion.erase.adversary import Adversary, adversary_of
from semu_diffusion.erase.anchors import chosen_anchors, named_anchors
from semu_diffusion.erase.closed_form import NameEdit, name_layers, name_of
from semu_diffusion.erase.collect import (
    ForgetLoss,
    Found,
    denoising_loss,
    find_subspaces,
    forget_gradient,
    found_of,
    gradient_rounds,
    gradient_sketches,
    kept_moments,
    objective_loss,
    protection_of,
    random_gradient,
)
from semu_diffusion.erase.config import ErasureConfig, SamplesConfig
from semu_diffusion.erase.loss import ErasureLoss
from semu_diffusion.erase.meter import Meter
from semu_diffusion.erase.phases import phase_generator
from semu_diffusion.erase.pool import Noised, Pool, Source, paths, pooled
from semu_diffusion.erase.samples import SELF_MADE_STEPS, in_turn
from semu_diffusion.erase.task import EditResult, Images, Progress, Protection, Task
from semu_diffusion.erase.trainable import layers_to_train
from semu_diffusion.erasure import Diverged, Step, train_patch
from semu_diffusion.errors import InputError, Notice
from semu_diffusion.gradients import only_trainable
from semu_diffusion.models.base import DiffusionModel
from semu_diffusion.models.precision import autocast
from semu_diffusion.objectives import Predict
from semu_diffusion.patch import ErasurePatch
from semu_diffusion.patches.patched import PatchedLayers
from semu_diffusion.protection import InputMoments

__all__ = ["Samples", "gather", "kept_source", "loss_of", "run_erasure", "run_to_end"]

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
    if config.method != "closed-form":  # too little to train, or too little memory for it, is refused before any work
        named_layers = name_layers(model) if config.method == "semu" and task.target == "fixed" else {}
        _announce(gradient_rounds(config, layers_to_train(model.denoiser, config, named_layers)), config)
    with Meter(model.denoiser) as meter:
        # a model fresh from training may be in train mode: its dropout would draw from torch's global generator
        with meter.phase("collect"), only_trainable(model.denoiser, ()):
            if config.method == "closed-form":
                anchors = named_anchors(task, config, progress)
            else:
                samples = gather(task, config, progress)
                anchors = samples.anchors
            named = name_of(task, config, anchors)
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
    layers = layers_to_train(model.denoiser, config, named.subspaces)
    renamed = PatchedLayers(model.denoiser, {}, named.subspaces, named.cores)
    with meter.phase("collect"), only_trainable(model.denoiser, ()), renamed.attached():
        adversary = adversary_of(task, config, samples.forget, _original(model, renamed))
        forget = _forget_loss(task, config, samples, _original(model, renamed), adversary)
    found = _found(task, config, samples, layers, forget, renamed, meter, progress)
    del forget  # its batches are not needed while R is trained
    subspaces = {name: one.subspace for name, one in found.items()}
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
    return patch, protection_of(patch, found)


def _found(
    task: Task[DiffusionModel], config: ErasureConfig, samples: Samples, layers: Mapping[str, Any], forget: ForgetLoss | None,
    renamed: PatchedLayers, meter: Meter, progress: Progress | None,
) -> dict[str, Found]:  # fmt: skip
    """The subspaces of the layers, in the rounds that ``--memory`` allows: what one has collected is free before the next."""
    model = task.model
    generators = {phase: phase_generator(config.seed, phase) for phase in ("sketches", "gradient", "subspace")}

    def collected(sketched: Mapping[str, bool]) -> dict[str, Found]:
        some = {name: layers[name] for name in sketched}
        moments: dict[str, InputMoments] = {}
        if config.protect == "null-space":
            assert samples.retain is not None
            with meter.phase("collect"), only_trainable(model.denoiser, ()), renamed.attached():
                moments = kept_moments(model, config, some, samples.retain, phase_generator(config.seed, "moments"), progress)
            with meter.phase("subspace"):
                for one in moments.values():
                    one.settle(config.protected_energy)
        with meter.phase("collect"), renamed.attached():
            if forget is None:
                gradients = random_gradient(some, generators["gradient"])
            else:
                sketches = gradient_sketches(config, some, sketched, moments, generators["sketches"])
                gradients = forget_gradient(model, some, forget, config.gradient_clip, progress, sketches)
        with meter.phase("subspace"):
            subspaces = find_subspaces(config, some, gradients, moments, generators["subspace"], progress)
            return found_of(some, gradients, moments, subspaces)

    return {name: one for group in gradient_rounds(config, layers) for name, one in collected(group).items()}


def _announce(rounds: Sequence[Mapping[str, bool]], config: ErasureConfig) -> None:
    """Say what a budget costs that is too small for the gradients of all layers at once."""
    if len(rounds) > 1:
        sketched, layers = sum(sum(one.values()) for one in rounds), sum(map(len, rounds))
        message = (
            f"--memory {config.memory}: gradients are collected in {len(rounds)} rounds, each of a part of the layers "
            f"({sketched} of {layers} sketched), so the image passes for them are made {len(rounds)} times"
        )
        warnings.warn(Notice(message), stacklevel=2)


def _metadata(task: Task[DiffusionModel], named: NameEdit) -> dict[str, Any]:
    """What the patch says of itself; ``closed_form`` are the layers in which nothing was trained."""
    return {**task.metadata, **({"closed_form": sorted(named.subspaces)} if named.subspaces else {})}


def _original(model: DiffusionModel, patched: PatchedLayers) -> Predict:
    def predict(x_t: torch.Tensor, t: torch.Tensor, labels: Any) -> torch.Tensor:
        with patched.original():
            return model.predict(x_t, t, labels)

    return predict


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


def _forget_loss(
    task: Task[DiffusionModel], config: ErasureConfig, samples: Samples, original: Predict, adversary: Adversary | None
) -> ForgetLoss | None:
    """The loss whose gradient's subspace is kept: the training's own, or of denoising the condition's own images; or none."""
    if config.gradient == "random":
        return None
    if config.gradient == "objective":
        return objective_loss(loss_of(task, config, samples, original, "gradient", adversary))
    precision, draws = autocast(config.precision, task.model.device), partial(phase_generator, config.seed, "gradient")
    return denoising_loss(task.model, samples.own, config.guidance_scale, precision, draws)
