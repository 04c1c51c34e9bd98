"""What replaces the erased condition: its anchor, named or chosen by the model's own predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from semu_diffusion.erase.config import SamplesConfig
from semu_diffusion.erase.phases import phase_generator
from semu_diffusion.erase.samples import noisy, training_images
from semu_diffusion.erase.task import Images, Progress, Task
from semu_diffusion.models.base import DiffusionModel
from semu_diffusion.objectives import squared_errors

__all__ = ["chosen_anchors", "named_anchors", "second_nearest"]

CANDIDATES = 16  # rows compared by their predictions when an anchor is looked for
IMAGES = 32  # noised forget images that they are compared on


def chosen_anchors(task: Task[DiffusionModel], forget_set: Images, generator: torch.Generator) -> Mapping[int, int]:
    """The row that replaces each erased one: the task's anchors, or `second_nearest` of the kept; {} for other targets."""
    if task.target != "fixed":
        return {}
    if task.anchors is not None:
        return task.anchors
    return {row: second_nearest(task.model, row, task.kept, forget_set, generator) for row in task.forget}


def named_anchors(task: Task[DiffusionModel], config: SamplesConfig, progress: Progress | None = None) -> Mapping[int, int]:
    """The same where nothing else needs pictures of what is erased: chosen on `IMAGES` of each that the model makes."""
    if task.target != "fixed" or task.anchors is not None:
        return task.anchors or {}
    images = training_images(task.model, config, task.forget, task.forget_set, progress, IMAGES)
    return chosen_anchors(task, images, phase_generator(config.seed, "anchors"))


def second_nearest(
    model: DiffusionModel, erased: int, kept: Sequence[int], forget_set: Images, generator: torch.Generator
) -> int:
    """The kept row k with the second smallest E w_t ||eps(x_t, t, c) - eps(x_t, t, k)||^2 on noised forget images.

    A far one needs a large update, which is felt elsewhere and is not learned to the end; the nearest needs the smallest
    but may be mistaken for the erased one (a dog for a cat). Of many rows only those with the nearest embeddings are
    compared; of a single one there is no choice.
    """
    rows = model.condition_vectors(torch.tensor([erased, *kept], device=model.device))
    near = (rows[1:] - rows[0]).norm(dim=1).argsort()[:CANDIDATES].tolist()
    images = forget_set.images[forget_set.labels == erased][:IMAGES]
    batch = noisy(model, images, torch.full((len(images),), erased, device=model.device), generator)
    weight = model.process.image_weight(batch.t)
    with torch.no_grad():
        own = model.predict(batch.x_t, batch.t, batch.condition)
        distances = {}
        for k in sorted(kept[i] for i in near):
            other = model.predict(batch.x_t, batch.t, torch.full_like(batch.condition, k))
            distances[k] = float(squared_errors(own, other, weight))
    return sorted(distances, key=lambda k: distances[k])[:2][-1]
