"""The images an erasure works on: given ones, or ones that the model makes for itself; and their noised batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from semu_diffusion.erase.config import SamplesConfig, TrainingConfig
from semu_diffusion.erase.phases import image_seeds
from semu_diffusion.erase.task import Images, Progress
from semu_diffusion.models.base import DiffusionModel
from semu_diffusion.models.precision import autocast
from semu_diffusion.objectives import NoisyBatch

__all__ = [
    "batch_size",
    "forget_batches",
    "in_turn",
    "noisy",
    "protected_conditions",
    "self_made",
    "training_images",
    "trains_unlabelled",
]

BATCH = 64
SELF_MADE_STEPS = 10  # DDIM steps of the images the model makes for its own erasure: content matters, not finish


def self_made(
    model: DiffusionModel,
    rows: Sequence[int],
    seeds: Sequence[int],
    guidance_scale: float = 3.0,
    precision: str = "auto",
    progress: Progress | None = None,
    stage: str = "samples",
    steps: int = SELF_MADE_STEPS,
) -> Images:
    """An image that the model makes of each of ``rows``, image i from ``seeds[i]``."""
    batches: list[torch.Tensor] = []
    with autocast(precision, model.device)():
        for batch in model.sample_latents(rows, seeds, steps, guidance_scale, batch_size=32):
            batches.append(batch)
            if progress is not None:
                progress(stage, sum(map(len, batches)), len(rows))
    return Images(torch.cat(batches).to(model.device), torch.tensor(rows, device=model.device))


def training_images(
    model: DiffusionModel,
    config: SamplesConfig,
    forget: Sequence[int],
    forget_set: Images | None = None,
    progress: Progress | None = None,
    each: int | None = None,
) -> Images:
    """The forget set of a run: the one given, or ``each`` images (default: the config's) that the model makes of each row."""
    if forget_set is not None:
        return forget_set
    rows, seeds = in_turn(model, forget, (each or config.forget_samples) * len(forget), config.seed, "forget set")
    return self_made(model, rows, seeds, config.guidance_scale, config.precision, progress, "forget set")


def in_turn(
    model: DiffusionModel, conditions: Sequence[int], count: int, seed: int, purpose: str
) -> tuple[list[int], list[int]]:
    """``count`` rows, the conditions in turn (of more than so many, evenly spaced ones), and a seed for an image of each."""
    many = len(conditions)
    rows = [conditions[i * many // count if many > count else i % many] for i in range(count)]
    return rows, image_seeds([_name(model, row) for row in rows], seed, purpose)


def _name(model: DiffusionModel, row: int) -> str:
    return model.names[row] if row < len(model.names) else ""


def noisy(model: DiffusionModel, images: torch.Tensor, labels: torch.Tensor, generator: torch.Generator) -> NoisyBatch:
    """Images noised at antithetic timesteps, with the network's training target."""
    t = model.process.timesteps(len(images), generator).to(images.device)
    noise = torch.randn(images.shape, generator=generator).to(images)
    return NoisyBatch(model.process.add_noise(images, noise, t), t, labels, model.process.target(images, noise, t))


def forget_batches(model: DiffusionModel, forget_set: Images, generator: torch.Generator) -> Iterator[NoisyBatch]:
    """The forget set once, in batches, each image with a timestep of its own."""
    size = batch_size(model)
    for images, labels in zip(forget_set.images.split(size), forget_set.labels.split(size), strict=True):
        yield noisy(model, images, labels, generator)


def batch_size(model: DiffusionModel) -> int:
    """Images in a batch of the collecting passes: `BATCH` up to 32x32, fewer of larger ones, so that memory suffices."""
    _, height, width = model.latent_shape
    return max(4, min(BATCH, BATCH * 32 * 32 // (height * width)))


def protected_conditions(model: DiffusionModel, labels: torch.Tensor, every: int = 4) -> torch.Tensor:
    """The labels with every fourth taken away, where the model has a null class: guidance rests on both predictions."""
    labels = labels.clone()
    if model.null is not None:
        labels[::every] = model.null
    return labels


def trains_unlabelled(model: DiffusionModel, config: TrainingConfig) -> bool:
    """True if predictions without a label are trained to leave the erased class too, by way of an anchor."""
    return config.unlabelled > 0 and model.null is not None and config.target in ("auto", "fixed", "random")
