"""What an erasure reads off the model before it trains: the forget gradient, the moments of kept inputs, the subspaces."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch

from semu_diffusion import distributed
from semu_diffusion.erase.config import SubspaceConfig
from semu_diffusion.erase.loss import ErasureLoss
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
from semu_diffusion.patches.patched import rounded
from semu_diffusion.protection import InputMoments, collect_moments, squared_output
from semu_diffusion.sketch import GradientSketch, collecting_rounds, moment_sizes, sketch_width
from semu_diffusion.subspace import Subspace, layer_subspace

__all__ = [
    "ForgetLoss",
    "Found",
    "Gradient",
    "denoising_loss",
    "find_subspaces",
    "forget_gradient",
    "found_of",
    "gradient_rounds",
    "gradient_sketches",
    "kept_moments",
    "objective_loss",
    "protection_of",
    "random_gradient",
]

Gradient = torch.Tensor | GradientSketch  # of a layer

OBJECTIVE_BATCHES = 8
MOMENT_SAMPLES = 192  # noised kept samples that a layer's inputs are read on


@dataclass(frozen=True)
class ForgetLoss:
    """The loss of a batch, and the ``count`` batches its gradient is the mean of, which are the same in every round."""

    batches: Callable[[], Iterable[Any]]
    count: int
    loss: Callable[[Any], torch.Tensor]
    weight: Callable[[Any], float] = lambda _: 1.0


def objective_loss(loss: ErasureLoss) -> ForgetLoss:
    """The training's own forget term, over `OBJECTIVE_BATCHES` batches.

    At the trained weights the denoising gradient is mostly noise of the draw; the objective's target has none.
    """
    drawn = [loss.draw() for _ in range(OBJECTIVE_BATCHES)]
    return ForgetLoss(lambda: drawn, len(drawn), lambda batches: loss.errors(batches)["forget"])


def denoising_loss(
    model: DiffusionModel,
    forget_set: Images,
    guidance_scale: float,
    precision: Callable,
    generator: Callable[[], torch.Generator],
) -> ForgetLoss:
    """Guided denoising, as in SEMU: sum over pixels, mean over images, of (target - guided prediction)^2.

    The images may be many: they are noised batch by batch, in every round by a ``generator`` in the same state.
    """

    def loss(batch: NoisyBatch) -> torch.Tensor:
        with precision():
            predicted = model.predict_guided(batch.x_t, batch.t, batch.condition, guidance_scale)
            return (batch.target - predicted.float()).square().flatten(1).sum(1).mean()

    def batches() -> Iterator[NoisyBatch]:
        return forget_batches(model, forget_set, generator())

    return ForgetLoss(batches, math.ceil(len(forget_set.images) / batch_size(model)), loss, lambda batch: len(batch.x_t))


def forget_gradient(
    model: DiffusionModel,
    layers: Mapping[str, Any],
    forget: ForgetLoss,
    clip: float | None,
    progress: Progress | None,
    sketches: Mapping[str, GradientSketch] = MappingProxyType({}),
) -> dict[str, Gradient]:
    """The gradient of the layers; of those that have one, in their sketch."""

    def counted() -> Iterator[Any]:
        for done, batch in enumerate(forget.batches(), 1):
            yield batch
            if progress is not None:
                progress("gradient", done, forget.count)

    with nullcontext() if clip is None else distributed.apart():  # a clipped gradient is that of a whole batch
        dense = collect_gradients(model.denoiser, layers, counted(), forget.loss, clip, forget.weight, sketches)
    if clip is None:
        distributed.average([*dense.values(), *(one for sketch in sketches.values() for one in sketch.sums)])
    return {**dense, **sketches}


def random_gradient(layers: Mapping[str, Any], generator: torch.Generator) -> dict[str, Gradient]:
    """No gradient at all, the control."""
    return {name: torch.randn(layer.weight.shape, generator=generator).to(layer.weight) for name, layer in layers.items()}


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


def gradient_rounds(config: SubspaceConfig, layers: Mapping[str, Any]) -> list[dict[str, bool]]:
    """The layers by the rounds in which they are collected, and which are sketched: one, of none, without ``--memory``.

    Raises InputError if it is too little for one layer.
    """
    budget = _budget(config)
    if budget is None or not layers:
        return [dict.fromkeys(layers, False)]
    return collecting_rounds(layers, sketch_width(config.max_rank or 0), budget, config.protect == "null-space")


def gradient_sketches(
    config: SubspaceConfig,
    layers: Mapping[str, Any],
    sketched: Mapping[str, bool],
    moments: Mapping[str, InputMoments],
    generator: torch.Generator,
) -> dict[str, GradientSketch]:
    """Empty sketches for the layers that are to be ``sketched``."""
    width = sketch_width(config.max_rank or 0)
    return {
        name: GradientSketch(layers[name].weight, width, generator, _basis(config, moments, name), config.projection)
        for name, wanted in sketched.items()
        if wanted
    }


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


@dataclass(frozen=True)
class Found:
    """What is left of a layer's gradient and moments: the ``subspace``, the gradient's ``energy`` ||G||_F^2, and, if it is
    protected, `InputMoments.energy_covered`; the held-out kept inputs as the update ``seen`` them, V^T x (C, P, groups, r); the
    mean squared output of its ``own`` weight on them."""

    subspace: Subspace
    energy: float
    energy_covered: float | None = None
    seen: torch.Tensor | None = None
    own: float | None = None


def found_of(
    layers: Mapping[str, Any],
    gradients: Mapping[str, Gradient],
    moments: Mapping[str, InputMoments],
    subspaces: Mapping[str, Subspace],
) -> dict[str, Found]:
    """`Found` of every layer."""
    found = {}
    for name, space in subspaces.items():
        gradient, kept = gradients[name], moments.get(name)
        energy = gradient.energy if isinstance(gradient, GradientSketch) else float(gradient.double().square().sum())
        found[name] = Found(space, energy)
        if kept is not None:
            own = kept.response_on_kept(to_matrices(layers[name].weight.detach().float(), space.matricisation))
            found[name] = Found(space, energy, kept.energy_covered, kept.held_through(rounded(space.right)[0].float()), own)
    return found


def protection_of(patch: ErasurePatch, found: Mapping[str, Found]) -> Protection:
    """The figures of the protection, of every layer and of all together; the update is that of the patch."""
    responses = {
        name: (squared_output(one.seen, patch.layers[name].left.float() @ patch.layers[name].core), one.own)
        for name, one in found.items()
        if one.seen is not None and one.own is not None and name in patch.layers
    }
    by_layer = {
        name: {
            "gradient_energy_kept": float(one.subspace.gradient_energy_kept),
            "response_on_kept": _relative([responses[name]]) if name in responses else None,
            "energy_covered": one.energy_covered,
        }
        for name, one in found.items()
    }
    left = sum(one.subspace.gradient_energy_kept * one.energy for one in found.values())
    return Protection(
        left / max(sum(one.energy for one in found.values()), 1e-30),
        _relative(responses.values()) if responses else None,
        min((one.energy_covered for one in found.values() if one.energy_covered is not None), default=None),
        by_layer,
    )


def _relative(responses: Iterable[tuple[float, float]]) -> float:
    update, own = (sum(column) for column in zip(*responses, strict=True))
    return (update / max(own, 1e-30)) ** 0.5
