"""Noise probe: the sampler adds fresh noise at each step, more of it than it takes away.

A path that the erasure bends away from the concept is shaken off it (Lu et al. 2025, arXiv 2505.17013, section 4).
"""

from __future__ import annotations

from typing import Any

import torch

from semu_diffusion.eval.probes.probe import Shown
from semu_diffusion.eval.probes.trajectory import TrajectoryProbe, levels, travel
from semu_diffusion.models.sampling import start_noise

__all__ = ["NoiseProbe"]

SCALE = 1.1  # of the noise that DDIM with eta 1 adds


class NoiseProbe(TrajectoryProbe):
    """Samples under the erased conditions with too much noise."""

    name = "noise"

    def made(self, model: Any, shown: Shown) -> tuple[torch.Tensor, int]:
        how = self.how
        path = levels(model, how.sampling_steps)
        shape = (how.sampling_steps + 1, *model.latent_shape)
        first, *later = start_noise(how.seeds, shape).unbind(1)
        rows = shown.rows(model, how.samples)
        made = travel(model, first, rows, path, how.guidance_scale, torch.stack(later), SCALE)
        return made, self.passes(model, how.sampling_steps)
