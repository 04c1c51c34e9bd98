"""The forget gradient: the gradient of any loss over any batches, per layer, with the model left as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import TypeVar

import torch
from torch import nn

from semu_diffusion.patches.modes import evaluating
from semu_diffusion.sketch import GradientSketch

__all__ = ["antithetic_timesteps", "collect_gradients", "only_trainable"]

Batch = TypeVar("Batch")
HALF_SCALE = 2.0**10  # of the loss where weights are float16: the gradients of a mean over pixels lie below its 6e-8


def collect_gradients(
    model: nn.Module,
    layers: Mapping[str, nn.Linear | nn.Conv2d],
    batches: Iterable[Batch],
    loss: Callable[[Batch], torch.Tensor],
    clip: float | None = None,
    weight: Callable[[Batch], float] = lambda _: 1.0,
    sketches: Mapping[str, GradientSketch] = MappingProxyType({}),
) -> dict[str, torch.Tensor]:
    """Mean over the batches of the gradient of ``loss(batch)`` by the weight of each layer, float32, on its device.

    ``weight(batch)`` is what the batch counts in that mean: for a loss that is a mean over images, their number, so that an
    image in a smaller last batch counts no more than the others.

    ``clip`` rescales each batch's gradient (all layers together) to at most this norm before it is added, as the
    reference code does with 1.0. A gradient has its weight's dtype: that of float16 weights is taken of a larger loss, and
    divided again in float32. The model runs in eval mode; its modes, ``requires_grad`` flags and ``.grad`` fields are
    as before on return, also after an exception. A layer that no batch uses gets a zero gradient.

    Without ``clip`` each layer's gradient is added and freed as soon as backward makes it, so that beside the sums only
    one layer's gradient exists at a time. The layers of ``sketches`` are added to these instead, and are not in the result.

    Raises ValueError if there is no batch, FloatingPointError if a gradient is not finite.
    """
    sums = {name: torch.zeros_like(one.weight, dtype=torch.float32) for name, one in layers.items() if name not in sketches}
    counted = 0.0
    names = {id(layer.weight): name for name, layer in layers.items()}
    weights = [layer.weight for layer in layers.values()]
    scale = HALF_SCALE if any(each.dtype == torch.float16 for each in weights) else 1.0

    def add(parameter: torch.Tensor) -> None:
        if parameter.grad is not None:
            name, gradient, parameter.grad = names[id(parameter)], parameter.grad, None
            if name in sketches:
                sketches[name].add(gradient, share)
            else:
                sums[name].add_(gradient, alpha=share)

    with only_trainable(model, weights):
        handles = [] if clip is not None else [each.register_post_accumulate_grad_hook(add) for each in weights]
        try:
            for batch in batches:
                counts = float(weight(batch))
                share = counts / scale
                error = loss(batch)
                if error.requires_grad:  # else no layer is used
                    (error * scale).backward()
                if clip is not None:
                    share *= _clipped(weights, clip * scale)
                    for each in weights:
                        add(each)
                counted += counts
        finally:
            for handle in handles:
                handle.remove()
    if counted <= 0:
        raise ValueError("collect_gradients needs at least one batch")
    _divide({**sums, **sketches}, counted)
    return sums


def _divide(sums: Mapping[str, torch.Tensor | GradientSketch], count: float) -> None:
    """From sums to means; FloatingPointError for a sum that is not finite."""
    for name, one in sums.items():
        if not (one.isfinite() if isinstance(one, GradientSketch) else torch.isfinite(one).all()):
            raise FloatingPointError(f"the forget gradient of {name} is not finite")
        one.div_(count)


def _clipped(weights: Iterable[torch.Tensor], most: float) -> float:
    """The factor that takes the norm of all gradients together, in float32, down to ``most``."""
    norms = [torch.linalg.vector_norm(each.grad, dtype=torch.float32) for each in weights if each.grad is not None]
    norm = float(torch.stack(norms).norm()) if norms else 0.0
    return most / norm if norm > most else 1.0


@contextmanager
def only_trainable(model: nn.Module, parameters: Iterable[torch.Tensor]) -> Iterator[None]:
    """Inside, ``model`` is in eval mode and only ``parameters`` require a gradient; afterwards it is as it was."""
    flags = [(parameter, parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    wanted = {id(parameter) for parameter in parameters}
    try:
        for parameter, _, _ in flags:
            parameter.requires_grad_(id(parameter) in wanted)
            parameter.grad = None
        with evaluating(model), torch.enable_grad():
            yield
    finally:
        for parameter, flag, grad in flags:
            parameter.requires_grad_(flag)
            parameter.grad = grad


def antithetic_timesteps(count: int, num_timesteps: int, generator: torch.Generator) -> torch.Tensor:
    """(count,) int64: half drawn uniformly from 0..T-1, the other half T-1-t (Ho et al.'s reference sampling of t)."""
    half = torch.randint(0, num_timesteps, ((count + 1) // 2,), generator=generator)
    return torch.cat([half, num_timesteps - 1 - half])[:count]
