"""Half-noised recovery: pictures of the concept, noised half way, are denoised again by the erased model.

With the erased condition and without one: a model without the concept cannot finish its pictures. What is noised half way
still shows something, so the original's value and the control, the same on pictures of what is kept, belong beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from semu_diffusion.eval.probes.probe import Shown, seen
from semu_diffusion.eval.probes.trajectory import TrajectoryProbe, levels, travel
from semu_diffusion.models.sampling import start_noise

__all__ = ["RecoveryProbe", "UnlabelledRecoveryProbe"]


class RecoveryProbe(TrajectoryProbe):
    """Denoises half-noised pictures of the concept under the erased conditions."""

    name = "recovery"
    needs = frozenset({"images", "kept"})

    def made(self, model: Any, shown: Shown) -> tuple[torch.Tensor, int]:
        clean = shown.images(model)[: self.how.samples]
        return self._denoised(model, clean, shown.rows(model, len(clean)) if self.labelled else None)

    def control(self, model: Any, shown: Shown) -> tuple[float, int] | None:
        kept = shown.kept
        if kept is None:
            return None
        rows = [model.row(condition) for condition in kept.conditions]
        samples, each = self._denoised(model, kept.clean, rows if self.labelled else None)
        return seen(kept.judge, model.decode(samples), kept.answers), each * len(samples)

    def _denoised(self, model: Any, clean: torch.Tensor, rows: Sequence[int] | None) -> tuple[torch.Tensor, int]:
        how = self.how
        path = levels(model, how.sampling_steps)[how.sampling_steps // 2 :]
        seeds = range(how.seed, how.seed + len(clean))
        noise, t = start_noise(seeds, model.latent_shape), torch.full((len(clean),), path[0])
        x = model.process.add_noise(clean.cpu().float(), noise, t)
        scale = how.guidance_scale if self.labelled else 1.0
        return travel(model, x, rows, path, scale), self.passes(model, len(path) - 1, scale)


class UnlabelledRecoveryProbe(RecoveryProbe):
    """The same without a condition."""

    name = "recovery-unlabelled"
    labelled = False

    @classmethod
    def applies(cls, model: Any) -> bool:
        return super().applies(model) and (model.null is not None)
