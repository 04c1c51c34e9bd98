"""Condition vectors learned, while training goes on, to bring the erased condition back; the erasure is trained on them too."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from semu_diffusion.models.base import DiffusionModel
from semu_diffusion.objectives import NoisyBatch, squared_errors

__all__ = ["Adversary", "adversarial_share"]

DEFAULT = 0.5  # of a batch, where the model takes vectors


def adversarial_share(model: DiffusionModel, asked: float | None) -> float:
    """The share that was asked for; of None `DEFAULT`, or 0 for a model that takes no condition vectors."""
    if asked is not None:
        return asked
    return DEFAULT if model.takes_vectors else 0.0


class Adversary:
    """``count`` vectors (count, D), moved by one Adam step each time they are used, towards what the original says of the
    erased condition on the same noised images: a target without noise in it, unlike the images' own."""

    count = 8
    attacked = 4  # images of an attack

    def __init__(self, model: DiffusionModel, rows: Sequence[int], generator: torch.Generator) -> None:
        """They start around the null row, as far apart as ``rows``."""
        self.model, self.generator = model, generator
        null = [] if model.null is None else [model.null]
        known = model.condition_vectors(torch.tensor([*rows, *null], device=model.device)).float()
        noise = torch.randn(self.count, known.shape[1], generator=generator).to(known)
        start = known[-1] if null else known.mean(0)
        self.vectors = (start + 0.5 * known.std(0) * noise).requires_grad_(True)
        self.optimizer = torch.optim.Adam([self.vectors], lr=5e-2)

    def attack(self, batch: NoisyBatch, erased: torch.Tensor) -> None:
        """One step of the vectors down w_t ||eps'(x_t, t, v) - eps(x_t, t, c)||^2, ``erased`` being what the original says."""
        vectors = self.vectors[self._drawn(len(batch.x_t))]
        loss = squared_errors(self.model.predict(batch.x_t, batch.t, vectors), erased, batch.weight)
        (self.vectors.grad,) = torch.autograd.grad(loss, self.vectors)
        self.optimizer.step()

    def draw(self, count: int) -> torch.Tensor:
        """``count`` of the vectors as they are now, (count, D), without gradient."""
        return self.vectors.detach()[self._drawn(count)]

    def _drawn(self, count: int) -> torch.Tensor:
        return torch.randint(0, self.count, (count,), generator=self.generator).to(self.vectors.device)
