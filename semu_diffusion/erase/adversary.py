"""Condition vectors learned, while training goes on, to bring the erased condition back; the erasure is trained on them too."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from semu_diffusion.models.base import DiffusionModel
from semu_diffusion.objectives import NoisyBatch, denoising

__all__ = ["Adversary"]


class Adversary:
    """``count`` vectors (count, D), each moved by one Adam step down the denoising loss on forget images when it is used."""

    count = 8

    def __init__(self, model: DiffusionModel, rows: Sequence[int], share: float, generator: torch.Generator) -> None:
        """``share`` of a batch is conditioned on the vectors; they start around the null row, as far apart as ``rows``."""
        self.model, self.share, self.generator = model, share, generator
        null = [] if model.null is None else [model.null]
        known = model.condition_vectors(torch.tensor([*rows, *null], device=model.device))
        noise = torch.randn(self.count, known.shape[1], generator=generator).to(known)
        start = known[-1] if null else known.mean(0)
        self.vectors = (start + 0.5 * known.std(0) * noise).requires_grad_(True)
        self.optimizer = torch.optim.Adam([self.vectors], lr=5e-2)

    def mix(self, batch: NoisyBatch, condition: torch.Tensor) -> torch.Tensor:
        """Rows (N,) as condition vectors (N, D), the last share of them adversarial."""
        share = max(1, round(self.share * len(condition)))
        chosen = torch.randint(0, self.count, (share,), generator=self.generator).to(condition.device)
        attacked = NoisyBatch(batch.x_t[-share:], batch.t[-share:], self.vectors[chosen], batch.target[-share:])
        gradient = torch.autograd.grad(denoising(self.model.predict, attacked), self.vectors)[0]
        self.vectors.grad = gradient
        self.optimizer.step()
        vectors = self.model.condition_vectors(condition)
        return torch.cat([vectors[:-share], self.vectors.detach()[chosen]])
