"""What all rectified flows have in common: their process and sampler, by the pipeline's flow-matching scheduler."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any

from diffusers import FlowMatchEulerDiscreteScheduler

from semu_diffusion.errors import InputError
from semu_diffusion.models.process import RectifiedFlow
from semu_diffusion.models.text_conditional import TextConditional

__all__ = ["FlowModel", "check_flow"]


class FlowModel(TextConditional):
    """A text-to-image flow, sampled by Euler's method at the scheduler's own, shifted sigmas."""

    @property
    def patch_size(self) -> int:
        """Side of the square of latents that is one token: the shift of some schedulers grows with the number of tokens."""
        return int(self.denoiser.config.patch_size)

    @cached_property
    def schedule(self) -> FlowMatchEulerDiscreteScheduler:
        """The pipeline's scheduler, without its random numbers if it has any."""
        return FlowMatchEulerDiscreteScheduler.from_config(dict(self.pipeline.scheduler.config), stochastic_sampling=False)

    @property
    def process(self) -> RectifiedFlow:
        shift = math.exp(self._mu) if self._mu is not None else float(self.schedule.config.shift)
        return RectifiedFlow(int(self.schedule.config.num_train_timesteps), shift)

    @property
    def _mu(self) -> float | None:
        """Logarithm of the shift at this size, linear in the number of tokens; None for a shift that is always the same."""
        config = self.schedule.config
        if not config.use_dynamic_shifting:
            return None
        _, height, width = self.latent_shape
        tokens = (height // self.patch_size) * (width // self.patch_size)
        slope = (config.max_shift - config.base_shift) / (config.max_image_seq_len - config.base_image_seq_len)
        return float(config.base_shift + slope * (tokens - config.base_image_seq_len))

    def sigmas(self, steps: int) -> list[float] | None:
        """The sigmas before they are shifted, where they are not the scheduler's own."""
        return None

    def sampler(self, steps: int) -> Any:
        sampler = FlowMatchEulerDiscreteScheduler.from_config(self.schedule.config)
        sampler.set_timesteps(steps, device=self.device, sigmas=self.sigmas(steps), mu=self._mu)
        return sampler


def check_flow(pipeline: Any, source: str) -> None:
    """InputError for a scheduler that is none of flow matching."""
    name = type(pipeline.scheduler).__name__
    if not name.startswith("FlowMatch"):
        raise InputError(f"{source}: the scheduler ({name}) is none of flow matching: take FlowMatchEulerDiscreteScheduler")
