"""The erasure of a class, from a model and settings to a patch; no files, no printing.

forget set -> gradient -> (moments of kept inputs) -> subspaces -> training of R -> patch
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from semu_diffusion.erasure import Diverged, PatchedLayers, Step, erase
from semu_diffusion.errors import InputError
from semu_diffusion.gradients import collect_gradients
from semu_diffusion.layers import select_layers
from semu_diffusion.matrices import to_matrices
from semu_diffusion.models.class_conditional import ClassConditional
from semu_diffusion.models.loading import adapt_pipeline
from semu_diffusion.objectives import NoisyBatch
from semu_diffusion.patch import ErasurePatch
from semu_diffusion.pipelines.class_objective import anchors_of, check_objective, target_of, training_loss
from semu_diffusion.pipelines.console import build_config
from semu_diffusion.pipelines.image_sets import (
    Images,
    Progress,
    forget_batches,
    given_forget_set,
    given_retain_set,
    kept_batches,
    kept_images,
    training_images,
    with_anchor_images,
)
from semu_diffusion.pipelines.precision import autocast
from semu_diffusion.pipelines.settings import PRESETS, EraseClassConfig
from semu_diffusion.protection import InputMoments, collect_moments
from semu_diffusion.subspace import Subspace, layer_subspace

__all__ = ["Outcome", "Task", "erase_class", "erase_classes", "prepare"]


@dataclass(frozen=True)
class Task:
    """What is to be erased from what: the model with its class names, the indices to erase, images that were given."""

    model: ClassConditional
    forget: list[int]
    forget_set: Images | None
    retain_set: Images | None


def prepare(model: ClassConditional, config: EraseClassConfig) -> Task:
    """The task that ``config`` means on ``model``; InputError for anything that this model cannot do, before any work.

    An unconditional model has the class that its images are given for.
    """
    if not model.conditional and not model.class_names:
        model = dataclasses.replace(model, class_names=tuple(dict.fromkeys(config.forget)))
    forget = list(dict.fromkeys(model.class_index(name) for name in config.forget))
    check_objective(model, config, forget, _kept(model, forget))
    select_layers(model.denoiser, config.layers)
    return Task(model, forget, given_forget_set(model, config, forget), given_retain_set(model, config, forget))


OBJECTIVE_BATCHES = 8


@dataclass(frozen=True)
class Outcome:
    """A patch, and what making it took and left.

    ``anchors``: what each erased class is answered with. ``gradient_left``: share of the forget gradient's energy that the
    protection leaves. ``felt``: root mean square of the update's output on kept inputs, relative to the layers' own
    output there (the bound that protection promises to keep small).
    """

    patch: ErasurePatch
    anchors: Mapping[int, int]
    gradient_left: float
    felt: float | None
    seconds: Mapping[str, float]


def erase_classes(
    model: ClassConditional,
    forget: Sequence[int],
    config: EraseClassConfig,
    forget_set: Images | None = None,
    retain_set: Images | None = None,
    progress: Progress | None = None,
) -> Generator[Step, None, Outcome]:
    """Erase the classes ``forget`` from ``model``; yields training steps, returns the `Outcome`. The model is unchanged.

    ``forget_set`` defaults to images the model makes of the classes; ``retain_set`` is used where the config asks for a
    retain term and defaults to images of the kept classes that the model makes.
    """
    kept = _kept(model, forget)
    target = target_of(model, config)
    clock = _Clock()
    generator = torch.Generator().manual_seed(config.seed)
    layers = select_layers(model.denoiser, config.layers)
    with clock.measure("collect"):
        forget_set = training_images(model, config, forget, forget_set, progress)
        anchors = anchors_of(model, config, target, forget, kept, forget_set, generator)
        forget_set = with_anchor_images(model, config, forget_set, anchors, progress)
        if (config.protect == "null-space" or config.retain == "self") and retain_set is None:
            retain_set = kept_images(model, config, kept, progress)
        gradients = _forget_gradient(model, config, target, layers, forget_set, anchors, kept, generator, progress)
        moments: dict[str, InputMoments] = {}
        if config.protect == "null-space":
            assert retain_set is not None
            moments = collect_moments(
                layers,
                kept_batches(model, retain_set, generator),
                lambda batch: model.predict(batch.x_t, batch.t, batch.condition),
                config.matricisation,
                generator=generator,
            )
    with clock.measure("subspace"):
        subspaces: dict[str, Subspace] = {}
        for done, (name, layer) in enumerate(layers.items(), 1):
            basis = moments[name].protected_basis(config.protected_energy) if name in moments else None
            subspaces[name] = layer_subspace(
                gradients[name],
                layer.weight.detach(),
                explained_variance=config.explained_variance,
                projection=config.projection,
                matricisation=config.matricisation,
                rule=config.rank_rule,
                min_rank=config.min_rank,
                max_rank=config.max_rank,
                protected=basis,
                generator=generator,
            )
            if progress is not None:
                progress("subspaces", done, len(layers))
        energies = {name: float(gradient.double().square().sum()) for name, gradient in gradients.items()}
        left = sum(subspaces[name].remaining * energy for name, energy in energies.items())
        gradient_left = left / max(sum(energies.values()), 1e-30)
    patched = PatchedLayers(model.denoiser, subspaces)
    if not patched.core:
        raise InputError("no layer has a direction to train: lower --protected-energy, or choose other --layers")
    start = time.perf_counter()

    def original(x_t: torch.Tensor, t: torch.Tensor, labels: Any) -> torch.Tensor:
        with patched.original():
            return model.predict(x_t, t, labels)

    loss = training_loss(model, config, target, original, forget_set, retain_set, anchors, kept, generator)
    metadata = {
        "forget": [model.class_names[c] for c in forget] if model.class_names else [],
        "base_model": model.source,
        "class_names": list(model.class_names),
    }
    patch = yield from erase(patched, loss, config.steps, config.lr, decay=config.lr_decay, metadata=metadata)
    if not all(torch.isfinite(layer.core).all() for layer in patch.layers.values()):
        raise Diverged("the last step left the finite numbers: lower --lr or the rank")
    clock.seconds["train"] = time.perf_counter() - start
    return Outcome(patch, anchors, gradient_left, _felt(patch, layers, moments), clock.seconds)


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
    steps = erase_classes(task.model, task.forget, config, task.forget_set, task.retain_set)
    while True:
        try:
            next(steps)
        except StopIteration as done:
            return done.value.patch


def _kept(model: ClassConditional, forget: Sequence[int]) -> list[int]:
    return [index for index in range(len(model.class_names)) if index not in set(forget)]


def _forget_gradient(
    model: ClassConditional,
    config: EraseClassConfig,
    target: str,
    layers: Mapping[str, Any],
    forget_set: Images,
    anchors: Mapping[int, int],
    kept: Sequence[int],
    generator: torch.Generator,
    progress: Progress | None,
) -> dict[str, torch.Tensor]:
    """The gradient whose subspace is kept: of the guided denoising loss, as in SEMU, or of the training's forget term.

    At the trained weights the denoising gradient is mostly noise of the draw; the objective's target has none.
    """
    with autocast(config.precision, model.device)():
        if config.gradient == "denoising":
            return collect_gradients(
                model.denoiser,
                layers,
                forget_batches(model, forget_set, generator, progress),
                lambda batch: _guided_loss(model, batch, config.guidance_scale),
                clip=config.gradient_clip,
            )
        loss = training_loss(model, config, target, model.predict, forget_set, None, anchors, kept, generator)
        steps = range(OBJECTIVE_BATCHES)

        def counted() -> Iterator[int]:
            for step in steps:
                yield step
                if progress is not None:
                    progress("gradient", step + 1, len(steps))

        return collect_gradients(model.denoiser, layers, counted(), lambda step: loss(step)["forget"], config.gradient_clip)


def _guided_loss(model: ClassConditional, batch: NoisyBatch, guidance_scale: float) -> torch.Tensor:
    """Sum over pixels, mean over images, of (target - guided prediction)^2: the loss whose gradient is decomposed."""
    predicted = model.predict_guided(batch.x_t, batch.t, batch.condition, guidance_scale)
    return (batch.target - predicted.float()).square().flatten(1).sum(1).mean()


def _felt(patch: ErasurePatch, layers: Mapping[str, Any], moments: Mapping[str, InputMoments]) -> float | None:
    if not moments:
        return None
    update = own = 0.0
    for name, layer_patch in patch.layers.items():
        update += moments[name].felt(to_matrices(patch.delta(name).to(layers[name].weight.device), layer_patch.matricisation))
        own += moments[name].felt(to_matrices(layers[name].weight.detach().float(), layer_patch.matricisation))
    return (update / max(own, 1e-30)) ** 0.5


class _Clock:
    def __init__(self) -> None:
        self.seconds = {"collect": 0.0, "subspace": 0.0, "train": 0.0}

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - start
