"""What an erasure reads off the model before it trains: the forget gradient, the moments of kept inputs, the subspaces."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from types import MappingProxyType
from typing import Any

import torch

from semu_diffusion import distributed
from semu_diffusion.erase.config import SubspaceConfig
from semu_diffusion.erase.pool import Source
from semu_diffusion.erase.samples import batch_size, forget_batches, protected_conditions
from semu_diffusion.erase.task import Images, Progress, Protection
from semu_diffusion.errors import InputError
from semu_diffusion.gradients import collect_gradients
from semu_diffusion.matrices import to_matrices
from semu_diffusion.models.base import DiffusionModel
from semu_diffusion.objectives import NoisyBatch
from semu_diffusion.options import byte_size
from semu_diffusion.patch import ErasurePatch
from semu_diffusion.protection import InputMoments, collect_moments
from semu_diffusion.sketch import GradientSketch, moment_sizes, sketch_width, sketched_layers
from semu_diffusion.subspace import Subspace, layer_subspace

__all__ = [
    "Gradient",
    "denoising_gradient",
    "find_subspaces",
    "gradient_sketches",
    "kept_moments",
    "layers_to_sketch",
    "objective_gradient",
    "protection_of",
]

Gradient = torch.Tensor | GradientSketch  # of a layer

OBJECTIVE_BATCHES = 8
MOMENT_SAMPLES = 192  # noised kept samples that a layer's inputs are read on


def objective_gradient(
    model: DiffusionModel,
    layers: Mapping[str, Any],
    loss: Callable[[int], Mapping[str, torch.Tensor]],
    clip: float | None,
    progress: Progress | None,
    sketches: Mapping[str, GradientSketch] = MappingProxyType({}),
) -> dict[str, Gradient]:
    """The gradient of the training's own forget term, over `OBJECTIVE_BATCHES` batches.

    At the trained weights the denoising gradient is mostly noise of the draw; the objective's target has none.
    """

    def counted() -> Iterator[int]:
        for step in range(OBJECTIVE_BATCHES):
            yield step
            if progress is not None:
                progress("gradient", step + 1, OBJECTIVE_BATCHES)

    with nullcontext() if clip is None else distributed.apart():  # a clipped gradient is that of a whole batch
        dense = collect_gradients(model.denoiser, layers, counted(), lambda step: loss(step)["forget"], clip, sketches=sketches)
    if clip is None:
        distributed.average([*dense.values(), *(one for sketch in sketches.values() for one in sketch.sums)])
    return {**dense, **sketches}


def denoising_gradient(
    model: DiffusionModel,
    layers: Mapping[str, Any],
    forget_set: Images,
    guidance_scale: float,
    clip: float | None,
    generator: torch.Generator,
    progress: Progress | None,
    sketches: Mapping[str, GradientSketch] = MappingProxyType({}),
) -> dict[str, Gradient]:
    """The gradient of guided denoising, as in SEMU: sum over pixels, mean over images, of (target - guided prediction)^2."""

    def loss(batch: NoisyBatch) -> torch.Tensor:
        predicted = model.predict_guided(batch.x_t, batch.t, batch.condition, guidance_scale)
        return (batch.target - predicted.float()).square().flatten(1).sum(1).mean()

    batches = forget_batches(model, forget_set, generator, progress)
    dense = collect_gradients(model.denoiser, layers, batches, loss, clip, lambda batch: len(batch.x_t), sketches)
    return {**dense, **sketches}


def kept_moments(
    model: DiffusionModel,
    config: SubspaceConfig,
    layers: Mapping[str, Any],
    kept: Source,
    generator: torch.Generator,
    progress: Progress | None,
) -> dict[str, InputMoments]:
    """Second moments of each layer's inputs on kept samples, with and without their condition; a quarter is held out."""

    read = kept.spread(MOMENT_SAMPLES, generator).batch
    conditions = protected_conditions(model, read.condition)
    total, size = len(conditions), batch_size(model)

    def batches() -> Iterator[NoisyBatch]:
        for start in range(0, total, size):
            part = slice(start, start + size)
            yield NoisyBatch(read.x_t[part], read.t[part], conditions[part], read.target[part])
            if progress is not None:
                progress("kept inputs", min(start + size, total), total)

    return collect_moments(
        layers,
        batches(),
        lambda batch: model.predict(batch.x_t, batch.t, batch.condition),
        config.matricisation,
        generator=generator,
        model=model.denoiser,
        **moment_sizes(layers, _budget(config)),
    )


def gradient_sketches(
    config: SubspaceConfig, layers: Mapping[str, Any], moments: Mapping[str, InputMoments], generator: torch.Generator
) -> dict[str, GradientSketch]:
    """Empty sketches for the layers whose gradients would not fit into ``--memory``; {} without a budget."""
    return {
        name: GradientSketch(
            layers[name].weight, sketch_width(config.max_rank or 0), generator, _basis(config, moments, name), config.projection
        )
        for name in layers_to_sketch(config, layers)
    }


def layers_to_sketch(config: SubspaceConfig, layers: Mapping[str, Any]) -> list[str]:
    """The layers whose gradients would not fit into ``--memory``. Raises InputError if it is too little even for sketches."""
    budget = _budget(config)
    if budget is None:
        return []
    chosen = sketched_layers(layers, sketch_width(config.max_rank or 0), budget)
    return [name for name in layers if name in chosen]


def _budget(config: SubspaceConfig) -> int | None:
    return None if config.memory is None else byte_size(config.memory, "--memory")


def _basis(config: SubspaceConfig, moments: Mapping[str, InputMoments], name: str) -> torch.Tensor | None:
    return moments[name].protected_basis(config.protected_energy) if name in moments else None


def find_subspaces(
    config: SubspaceConfig,
    layers: Mapping[str, Any],
    gradients: Mapping[str, Gradient],
    moments: Mapping[str, InputMoments],
    generator: torch.Generator,
    progress: Progress | None,
) -> dict[str, Subspace]:
    """U and V of every layer: the dominant directions of its gradient outside the protected ones.

    Raises InputError if a layer that the loss reaches is to be protected and none of its inputs were seen.
    """
    found: dict[str, Subspace] = {}
    for done, (name, layer) in enumerate(layers.items(), 1):
        gradient = gradients[name]
        if config.protect == "null-space" and name not in moments and gradient.any():
            raise InputError(
                f"no kept input of {name} was seen, so it cannot be protected: give the network as it is loaded, not compiled "
                f"or wrapped, leave the layer out (--layers !{name}), or take --protect none"
            )
        if isinstance(gradient, GradientSketch):
            found[name] = gradient.subspace(config.explained_variance, config.rank_rule, config.min_rank, config.max_rank)
        else:
            found[name] = layer_subspace(
                gradient,
                layer.weight.detach(),
                explained_variance=config.explained_variance,
                projection=config.projection,
                matricisation=config.matricisation,
                rule=config.rank_rule,
                min_rank=config.min_rank,
                max_rank=config.max_rank,
                protected=_basis(config, moments, name),
                generator=generator,
            )
        if progress is not None:
            progress("subspaces", done, len(layers))
    return _of_the_first(found)


def _of_the_first(subspaces: dict[str, Subspace]) -> dict[str, Subspace]:
    """Those of the first process for all: R is averaged, and a last bit may turn the sign of a direction."""
    if distributed.processes() == 1:
        return subspaces
    sides = distributed.first({name: (one.left, one.right, one.ranks) for name, one in subspaces.items()})
    return {
        name: dataclasses.replace(one, left=left.to(one.left), right=right.to(one.right), ranks=ranks.to(one.ranks))
        for (name, one), (left, right, ranks) in zip(subspaces.items(), sides.values(), strict=True)
    }


def protection_of(
    patch: ErasurePatch,
    layers: Mapping[str, Any],
    gradients: Mapping[str, Gradient],
    moments: Mapping[str, InputMoments],
    subspaces: Mapping[str, Subspace],
) -> Protection:
    """The figures of the protection, of every layer and of all together."""
    energies = {
        name: one.energy if isinstance(one, GradientSketch) else float(one.double().square().sum())
        for name, one in gradients.items()
    }
    left = sum(subspaces[name].gradient_energy_kept * energy for name, energy in energies.items())
    responses = _responses(patch, layers, moments)
    by_layer = {
        name: {
            "gradient_energy_kept": float(subspace.gradient_energy_kept),
            "response_on_kept": _relative([responses[name]]) if name in responses else None,
            "energy_covered": moments[name].energy_covered if name in moments else None,
        }
        for name, subspace in subspaces.items()
    }
    return Protection(
        left / max(sum(energies.values()), 1e-30),
        _relative(responses.values()) if responses else None,
        min((one.energy_covered for one in moments.values() if one.energy_covered is not None), default=None),
        by_layer,
    )


def _relative(responses: Iterable[tuple[float, float]]) -> float:
    update, own = (sum(column) for column in zip(*responses, strict=True))
    return (update / max(own, 1e-30)) ** 0.5


def _responses(
    patch: ErasurePatch, layers: Mapping[str, Any], moments: Mapping[str, InputMoments]
) -> dict[str, tuple[float, float]]:
    """Mean squared output on held-out kept inputs of each layer's update, and of its weight; {} if nothing was protected."""
    found = {}
    for name in [name for name in moments if name in patch.layers]:
        layer_patch = patch.layers[name]
        weight = layers[name].weight.detach().float()
        update = to_matrices(patch.delta(name).to(weight.device), layer_patch.matricisation)
        own = to_matrices(weight, layer_patch.matricisation)
        found[name] = (moments[name].response_on_kept(update), moments[name].response_on_kept(own))
    return found
