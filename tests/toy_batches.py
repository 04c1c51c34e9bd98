"""A batch, subspaces and an answer of a tiny model, for the tests of what is trained in it."""

from __future__ import annotations

import torch

from semu_diffusion.gradients import collect_gradients
from semu_diffusion.layers import select_layers
from semu_diffusion.models.class_conditional import ClassConditional
from semu_diffusion.objectives import NoisyBatch, Predict, denoising, relabelled, squared_errors
from semu_diffusion.subspace import layer_subspace


def batch_of(model: ClassConditional, seed: int = 0, count: int = 8) -> NoisyBatch:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 3, 8, 8, generator=generator).clamp(-1, 1)
    noise = torch.randn(images.shape, generator=generator)
    t = torch.randint(0, model.num_timesteps, (count,), generator=generator)
    erased, anchor = torch.zeros(count, dtype=torch.long), torch.ones(count, dtype=torch.long)
    return NoisyBatch(model.process.add_noise(images, noise, t), t, erased, noise, anchor)


def subspaces_of(model: ClassConditional, matricisation: str = "full", rank: int = 8):  # type: ignore[no-untyped-def]
    layers = select_layers(model.denoiser)
    gradients = collect_gradients(
        model.denoiser, layers, [batch_of(model, seed) for seed in range(2)], lambda batch: denoising(model.predict, batch)
    )
    return {
        name: layer_subspace(gradients[name], layer.weight.detach(), max_rank=rank, matricisation=matricisation)  # type: ignore[arg-type]
        for name, layer in layers.items()
    }


def predict(model: ClassConditional) -> torch.Tensor:
    batch = batch_of(model, seed=5)
    with torch.no_grad():
        return model.predict(batch.x_t, batch.t, batch.condition)


def relabel(predict: Predict, original: Predict, batch: NoisyBatch) -> torch.Tensor:
    """The forget term of a batch, as the training puts it together."""
    return squared_errors(predict(batch.x_t, batch.t, batch.condition), relabelled(original, batch), batch.weight)
