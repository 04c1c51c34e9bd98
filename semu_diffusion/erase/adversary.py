"""Condition vectors learned to bring the erased condition back: the erasure is chosen and trained on them too.

A name that means something else is no depth: any other vector may still mean the erased. So the gradient that chooses the
subspace sees vectors that were found first, and they are moved on while R is trained (as STEREO, Srivatsan et al. 2025, and
AdvUnlearn, Zhang et al. 2024, search before and while they erase).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from semu_diffusion import distributed
from semu_diffusion.erase.config import ErasureConfig, TrainingConfig
from semu_diffusion.erase.phases import phase_generator
from semu_diffusion.erase.pool import Source
from semu_diffusion.erase.task import Task
from semu_diffusion.models.base import DiffusionModel
from semu_diffusion.models.precision import autocast
from semu_diffusion.objectives import NoisyBatch, Predict, squared_errors

__all__ = ["Adversary", "adversarial_share", "adversary_of"]

DEFAULT = 0.5  # of a batch, where the model takes vectors


def adversarial_share(model: DiffusionModel, asked: float | None) -> float:
    """The share that was asked for; of None `DEFAULT`, or 0 for a model that takes no condition vectors."""
    if asked is not None:
        return asked
    return DEFAULT if model.takes_vectors else 0.0


def adversary_of(task: Task[DiffusionModel], config: ErasureConfig, source: Source, original: Predict) -> Adversary | None:
    """The vectors that the task is trained against, found on the model as it is; None where none are asked for."""
    model = task.model
    if not adversarial_share(model, config.adversarial) or task.target == "ascent":
        return None
    adversary = Adversary(model, config, [*task.forget, *task.kept], source, phase_generator(config.seed, "adversary"))
    with autocast(config.precision, model.device)():
        adversary.prepare(original)
    return adversary


class Adversary:
    """``count`` vectors (count, D) that learn, by Adam, to say what the erased condition says to the original model:

        min_v  E w_t ||eps'(x_t, t, v) - eps(x_t, t, c)||^2

    a target without noise in it, unlike the images' own. They start around the null row, as far apart as ``rows`` are.
    """

    count = 8
    prepared, shown = 20, 16  # steps before the erasure begins, and images of each
    attacked = 4  # images of each step that follows

    def __init__(
        self, model: DiffusionModel, config: TrainingConfig, rows: Sequence[int], source: Source, generator: torch.Generator
    ) -> None:
        self.model, self.source, self.generator = model, source, generator
        self.weighted = config.weighting == "image"
        null = [] if model.null is None else [model.null]
        known = model.condition_vectors(torch.tensor([*rows, *null], device=model.device)).float()
        noise = torch.randn(self.count, known.shape[1], generator=generator).to(known)
        start = known[-1] if null else known.mean(0)
        self.vectors = (start + 0.5 * known.std(0) * noise).requires_grad_(True)
        self.optimizer = torch.optim.Adam([self.vectors], lr=5e-2)

    def prepare(self, original: Predict) -> None:
        """The steps before the erasure begins."""
        for _ in range(self.prepared):
            self.attack(original, self.shown)

    def attack(self, original: Predict, count: int | None = None) -> None:
        """One step of the vectors against the model as it is now."""
        drawn = self.source.draw(count or self.attacked, self.generator)
        batch = drawn.batch
        with torch.no_grad():
            erased = drawn.recall(original)(batch.x_t, batch.t, batch.condition)
        weight = self.model.process.image_weight(batch.t) if self.weighted else None
        mine = NoisyBatch(batch.x_t, batch.t, self._drawn(len(batch.x_t)), erased, weight=weight).mine()
        with torch.enable_grad():
            said = self.model.predict(mine.x_t, mine.t, self.vectors[mine.condition])
            error = distributed.part(len(batch.x_t)) * squared_errors(said, mine.target, mine.weight)
            (self.vectors.grad,) = torch.autograd.grad(error, self.vectors)
        distributed.average([self.vectors.grad])
        self.optimizer.step()

    def draw(self, count: int) -> torch.Tensor:
        """``count`` of the vectors as they are now, (count, D), without gradient."""
        return self.vectors.detach()[self._drawn(count)]

    def _drawn(self, count: int) -> torch.Tensor:
        return torch.randint(0, self.count, (count,), generator=self.generator).to(self.vectors.device)
