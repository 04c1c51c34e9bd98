"""The erasure of conditions (classes, prompts) from a task and settings to a patch; no files, no printing.

forget set -> gradient -> (moments of kept inputs) -> subspaces -> training of R -> patch
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch
from torch import nn

from semu_diffusion.erase.config import ErasureConfig
from semu_diffusion.erase.loss import second_nearest, training_loss
from semu_diffusion.erase.samples import (
    Images,
    Progress,
    forget_batches,
    kept_batches,
    kept_images,
    training_images,
    with_anchor_images,
)
from semu_diffusion.erasure import Diverged, Step, erase
from semu_diffusion.errors import InputError
from semu_diffusion.gradients import collect_gradients, only_trainable
from semu_diffusion.layers import select_layers
from semu_diffusion.matrices import to_matrices
from semu_diffusion.models.base import DiffusionModel
from semu_diffusion.models.precision import autocast
from semu_diffusion.objectives import NoisyBatch
from semu_diffusion.patch import ErasurePatch
from semu_diffusion.patched import PatchedLayers
from semu_diffusion.protection import InputMoments, collect_moments
from semu_diffusion.subspace import Subspace, layer_subspace

__all__ = ["Outcome", "Task", "chosen_anchors", "require_trainable", "run_erasure", "run_to_end"]

OBJECTIVE_BATCHES = 8
Made = TypeVar("Made")
Model = TypeVar("Model", bound=DiffusionModel, covariant=True)


@dataclass(frozen=True)
class Task(Generic[Model]):
    """Rows ``forget`` to be erased from ``model``, and rows ``kept`` that it shall go on answering as before.

    ``target``: fixed, random, unconditional or ascent. ``anchors``: what each erased row is answered with under ``fixed``;
    None leaves the choice to `second_nearest`. ``forget_set`` and ``retain_set`` are clean samples that were given; the
    model makes those that were not. ``metadata`` goes into the patch.
    """

    model: Model
    forget: list[int]
    kept: list[int]
    target: str
    anchors: Mapping[int, int] | None = None
    forget_set: Images | None = None
    retain_set: Images | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """A patch, and what making it took and left.

    ``anchors``: what each erased class is answered with. ``gradient_left``: share of the forget gradient's energy that the
    protection leaves. ``felt``: root mean square of the update's output on kept inputs, relative to the layers' own
    output there (the bound that protection promises to keep small). ``held``: share of the kept inputs' energy that the
    protected directions hold, in the layer where it is least. ``by_layer``: the three for every layer.
    """

    patch: ErasurePatch
    anchors: Mapping[int, int]
    gradient_left: float
    felt: float | None
    held: float | None
    by_layer: Mapping[str, Mapping[str, float | None]]
    seconds: Mapping[str, float]


def run_erasure(
    task: Task[DiffusionModel], config: ErasureConfig, progress: Progress | None = None
) -> Generator[Step, None, Outcome]:
    """Do the task; yields training steps, returns the `Outcome`. The model is unchanged.

    Raises InputError if no layer is left with a direction to train, Diverged if the loss leaves the finite numbers.
    """
    model, forget, kept, target, retain_set = task.model, task.forget, task.kept, task.target, task.retain_set
    clock = _Clock()
    generator = torch.Generator().manual_seed(config.seed)
    layers = select_layers(model.denoiser, config.layers)
    # a model fresh from training may be in train mode: its dropout would draw from torch's global generator
    with clock.measure("collect"), only_trainable(model.denoiser, ()):
        own_images = training_images(model, config, forget, task.forget_set, progress)
        anchors = chosen_anchors(task, own_images, generator)
        forget_set = with_anchor_images(model, config, own_images, anchors, progress)
        if (config.protect == "null-space" or config.retain == "self") and retain_set is None:
            retain_set = kept_images(model, config, kept, progress)
        # the anchor's images are no images of the condition
        shown = own_images if config.gradient == "denoising" else forget_set
        gradients = _forget_gradient(model, config, target, layers, shown, anchors, kept, generator, progress)
        moments: dict[str, InputMoments] = {}
        if config.protect == "null-space":
            assert retain_set is not None
            some = retain_set.some(config.kept_samples, generator)
            moments = collect_moments(
                layers,
                kept_batches(model, some, generator, progress),
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
    patch = yield from erase(patched, loss, config.steps, config.lr, decay=config.lr_decay, metadata=task.metadata)
    if not all(torch.isfinite(layer.core).all() for layer in patch.layers.values()):
        raise Diverged("the last step left the finite numbers: lower --lr or the rank")
    clock.seconds["train"] = time.perf_counter() - start
    felt = _felt(patch, layers, moments)
    update, own = (sum(pair[place] for pair in felt.values()) for place in (0, 1))
    by_layer = {
        name: {
            "gradient_left": float(subspace.remaining),
            "felt": (felt[name][0] / max(felt[name][1], 1e-30)) ** 0.5 if name in felt else None,
            "held": moments[name].held if name in moments else None,
        }
        for name, subspace in subspaces.items()
    }
    total = (update / max(own, 1e-30)) ** 0.5 if felt else None
    held = min((one.held for one in moments.values()), default=None)
    return Outcome(patch, anchors, gradient_left, total, held, by_layer, clock.seconds)


def require_trainable(denoiser: nn.Module, config: ErasureConfig) -> None:
    """InputError for float16 weights that would be trained in float16, in which small gradients vanish."""
    weight = next(denoiser.parameters())
    if weight.dtype == torch.float16 and autocast(config.precision, weight.device) is nullcontext:
        raise InputError(
            "float16 weights are trained in bfloat16, or small gradients vanish: give --precision bf16 (slow where the "
            "hardware has none), or load the model in float32"
        )


def chosen_anchors(task: Task[DiffusionModel], forget_set: Images, generator: torch.Generator) -> Mapping[int, int]:
    """What each erased row is answered with: the task's anchors, or `second_nearest` of the kept rows; {} for other targets."""
    if task.target != "fixed":
        return {}
    if task.anchors is not None:
        return task.anchors
    return {row: second_nearest(task.model, row, task.kept, forget_set, generator) for row in task.forget}


def run_to_end(steps: Generator[Step, None, Made], watch: Callable[[Step], None] | None = None) -> Made:
    """Run the generator of a training to its end and return what it made; ``watch`` sees every step."""
    while True:
        try:
            step = next(steps)
        except StopIteration as done:
            made: Made = done.value
            return made
        if watch is not None:
            watch(step)


def _forget_gradient(
    model: DiffusionModel,
    config: ErasureConfig,
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


def _guided_loss(model: DiffusionModel, batch: NoisyBatch, guidance_scale: float) -> torch.Tensor:
    """Sum over pixels, mean over images, of (target - guided prediction)^2: the loss whose gradient is decomposed."""
    predicted = model.predict_guided(batch.x_t, batch.t, batch.condition, guidance_scale)
    return (batch.target - predicted.float()).square().flatten(1).sum(1).mean()


def _felt(
    patch: ErasurePatch, layers: Mapping[str, Any], moments: Mapping[str, InputMoments]
) -> dict[str, tuple[float, float]]:
    """Mean squared output on kept inputs of each layer's update, and of its weight; {} if nothing was protected."""
    found = {}
    for name, layer_patch in patch.layers.items() if moments else ():
        update = moments[name].felt(to_matrices(patch.delta(name).to(layers[name].weight.device), layer_patch.matricisation))
        own = moments[name].felt(to_matrices(layers[name].weight.detach().float(), layer_patch.matricisation))
        found[name] = (update, own)
    return found


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
