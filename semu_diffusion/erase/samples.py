"""The images an erasure works on: given ones, or ones that the model makes for itself; and their noised batches."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence

import torch

from semu_diffusion.erase.config import SamplesConfig, TrainingConfig
from semu_diffusion.erase.phases import image_seeds
from semu_diffusion.erase.task import Images, Progress
from semu_diffusion.models.base import DiffusionModel
from semu_diffusion.models.precision import autocast
from semu_diffusion.objectives import NoisyBatch

__all__ = [
    "forget_batches",
    "kept_batches",
    "kept_images",
    "noisy",
    "protected_conditions",
    "self_made",
    "training_images",
    "trains_unlabelled",
    "with_anchor_images",
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
    count = (each or config.forget_samples) * len(forget)
    return _made(model, forget, count, config, progress, "forget set")


def with_anchor_images(
    model: DiffusionModel,
    config: SamplesConfig,
    forget_set: Images,
    anchors: Mapping[int, int],
    progress: Progress | None = None,
    each: int | None = None,
) -> Images:
    """The forget set and ``each`` images (default: the config's) of each row's anchor, labelled as the erased row.

    Once the erasure works, sampling the erased class leads to the anchor's images: there too the label must mean the anchor,
    or it would pull them back.
    """
    count = config.anchor_samples if each is None else each
    if not count or not anchors:
        return forget_set
    shown = [anchor for anchor in anchors.values() for _ in range(count)]
    asked = [f"{_name(model, anchor)} for {_name(model, e)}" for e, anchor in anchors.items() for _ in range(count)]
    seeds = image_seeds(asked, config.seed, "anchor")
    made = self_made(model, shown, seeds, config.guidance_scale, config.precision, progress, "anchor samples")
    meant = torch.tensor([erased for erased in anchors for _ in range(count)], device=model.device)
    return Images(torch.cat([forget_set.images, made.images]), torch.cat([forget_set.labels, meant]))


def kept_images(model: DiffusionModel, config: SamplesConfig, kept: Sequence[int], progress: Progress | None = None) -> Images:
    """Images of the kept classes that the model makes, for protection and for the self-generated retain term.

    Of no class if none is kept (the label says nothing to an unconditional model).
    """
    classes = list(kept) or [model.null or 0]
    return _made(model, classes, config.kept_samples, config, progress, "kept samples")


def _made(
    model: DiffusionModel,
    conditions: Sequence[int],
    count: int,
    config: SamplesConfig,
    progress: Progress | None,
    stage: str,
) -> Images:
    """``count`` images of the rows in turn; of more rows than images, evenly spaced ones."""
    rows = [conditions[i * len(conditions) // count if len(conditions) > count else i % len(conditions)] for i in range(count)]
    seeds = image_seeds([_name(model, row) for row in rows], config.seed, stage)
    return self_made(model, rows, seeds, config.guidance_scale, config.precision, progress, stage)


def _name(model: DiffusionModel, row: int) -> str:
    return model.names[row] if row < len(model.names) else ""


def noisy(model: DiffusionModel, images: torch.Tensor, labels: torch.Tensor, generator: torch.Generator) -> NoisyBatch:
    """Images noised at antithetic timesteps, with the network's training target."""
    t = model.process.timesteps(len(images), generator).to(images.device)
    noise = torch.randn(images.shape, generator=generator).to(images)
    return NoisyBatch(model.process.add_noise(images, noise, t), t, labels, model.process.target(images, noise, t))


def forget_batches(
    model: DiffusionModel, forget_set: Images, generator: torch.Generator, progress: Progress | None
) -> Iterator[NoisyBatch]:
    """The forget set once, in batches, each image with a timestep of its own."""
    total, size = len(forget_set.images), _batch(model)
    for start in range(0, total, size):
        part = slice(start, start + size)
        yield noisy(model, forget_set.images[part], forget_set.labels[part], generator)
        if progress is not None:
            progress("gradient", min(start + size, total), total)


def kept_batches(
    model: DiffusionModel, kept: Images, generator: torch.Generator, progress: Progress | None = None
) -> Iterator[NoisyBatch]:
    """Kept samples under the conditions that are to be protected, in batches."""
    total, size = len(kept.images), _batch(model)
    # self-made images have their labels in turn: of 8 labels every fourth would always be the same two, never protected
    every = next(n for n in itertools.count(4) if len(kept.labels.unique()) % n)
    conditions = protected_conditions(model, kept.labels, every)
    for start in range(0, total, size):
        part = slice(start, start + size)
        yield noisy(model, kept.images[part], conditions[part], generator)
        if progress is not None:
            progress("kept inputs", min(start + size, total), total)


def _batch(model: DiffusionModel) -> int:
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
