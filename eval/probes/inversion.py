"""Inversion without text: the noise from which the erased model, without any condition, makes a given picture.

Pictures of the concept are carried up to pure noise by DDIM inversion without a condition, and sampled down again in the same
way. What comes back is in the model, whatever its words mean (TINA, arXiv 2603.17828, searches that noise by optimisation; this
is its first step alone). The control is the same on pictures of what is kept.
"""

from __future__ import annotations

from typing import Any

import torch

from semu_diffusion.eval.probes.probe import Shown, seen
from semu_diffusion.eval.probes.trajectory import TrajectoryProbe, levels, travel

__all__ = ["InversionProbe"]


class InversionProbe(TrajectoryProbe):
    """Inverts pictures and makes them again, without a condition."""

    name = "inversion"
    labelled = False
    seeded = False
    needs = frozenset({"images", "kept"})

    @classmethod
    def applies(cls, model: Any) -> bool:
        return super().applies(model) and model.null is not None

    def made(self, model: Any, shown: Shown) -> tuple[torch.Tensor, int]:
        return self._again(model, shown.images(model)[: self.how.samples])

    def control(self, model: Any, shown: Shown) -> tuple[float, int] | None:
        if shown.kept is None:
            return None
        samples, each = self._again(model, shown.kept.clean)
        return seen(shown.kept.judge, model.decode(samples), shown.kept.answers), each * len(samples)

    def _again(self, model: Any, clean: torch.Tensor) -> tuple[torch.Tensor, int]:
        down = levels(model, self.how.sampling_steps)
        noise = travel(model, clean, None, down[::-1])
        return travel(model, noise, None, down), self.passes(model, 2 * self.how.sampling_steps, 1.0)
