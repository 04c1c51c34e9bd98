"""Diffusion completion: the original makes the first quarter of the path, the erased model finishes it.

Where a model was only taught not to begin, it finishes what was begun (Lu et al. 2025, arXiv 2505.17013).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from semu_diffusion.eval.probes.probe import Progress, Sampled, Shown
from semu_diffusion.eval.probes.trajectory import TrajectoryProbe, levels, travel
from semu_diffusion.eval.results import Revival
from semu_diffusion.models.base import DiffusionModel
from semu_diffusion.models.precision import autocast
from semu_diffusion.models.sampling import start_noise

__all__ = ["CompletionProbe", "begun"]


def first_steps(how: Sampled) -> int:
    """A quarter of the steps, at least one: 5 of 20."""
    return max(how.sampling_steps // 4, 1)


class CompletionProbe(TrajectoryProbe):
    """Finishes what the original began under the erased conditions, under the same conditions."""

    name = "completion"
    needs = frozenset({"started"})

    def run(
        self, model: Any, progress: Progress | None = None, samples: dict[str, torch.Tensor] | None = None
    ) -> dict[str, Revival]:
        """Nothing of a path of one step, which the original would make alone."""
        return {} if self.how.sampling_steps < 2 else super().run(model, progress, samples)

    def made(self, model: Any, shown: Shown) -> tuple[torch.Tensor, int]:
        how, begun = self.how, shown.started
        if begun is None:
            raise ValueError("completion needs what the original began")
        path = levels(model, how.sampling_steps)[first_steps(how) :]
        rows = shown.rows(model, len(begun))
        return travel(model, begun, rows, path, how.guidance_scale), self.passes(model, len(path) - 1)


def begun(model: DiffusionModel, conditions: Sequence[str], how: Sampled) -> torch.Tensor:
    """The first steps of the original ``model`` under the conditions in turn, one sample a seed: (N, C, h, w)."""
    own = [model.row(condition) for condition in conditions]
    rows = [own[index % len(own)] for index in range(how.samples)]
    path = levels(model, how.sampling_steps)[: first_steps(how) + 1]
    with autocast(how.precision, model.device)():
        return travel(model, start_noise(how.seeds, model.latent_shape), rows, path, how.guidance_scale)
