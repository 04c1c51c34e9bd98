"""What all rectified flows have in common: their process and sampler, by the pipeline's flow-matching scheduler."""

from __future__ import annotations

import inspect
import math
from functools import cached_property
from typing import Any, ClassVar

from diffusers import FlowMatchEulerDiscreteScheduler

from semu_diffusion.errors import InputError
from semu_diffusion.models.adapters.latents import check_components
from semu_diffusion.models.guards import check_network, sides
from semu_diffusion.models.process import RectifiedFlow
from semu_diffusion.models.text_conditional import TextConditional
from semu_diffusion.patches.wrappers import unwrapped

__all__ = ["AnySizeFlow", "FlowModel"]

PIXELS = 1024  # a side, of pipelines that name none


class FlowModel(TextConditional):
    """A text-to-image flow, sampled by Euler's method at the scheduler's own, shifted sigmas."""

    texts: ClassVar[tuple[str, ...]] = ("text_encoder", "tokenizer")  # the pipeline's parts that read prompts

    @classmethod
    def size_of(cls, pipeline: Any) -> Any:
        """How large the pipeline draws, as its config has it: a side or (height, width), in latents."""
        return pipeline.transformer.config.sample_size

    @classmethod
    def check(cls, pipeline: Any, source: str) -> None:
        check_components(pipeline, source, "vae", "transformer", *cls.texts)
        check_network(unwrapped(pipeline.transformer), source)
        check_flow(pipeline, source)
        sides(cls.size_of(pipeline), source)

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
        """The flow, its timesteps shifted as in a sampling of as many steps as usual."""
        config = self.schedule.config
        shift = float(config.shift)
        if config.use_dynamic_shifting:
            mu = self.log_shift(self.usual["sampling_steps"])
            shift = mu if config.time_shift_type == "linear" else math.exp(mu)
        return RectifiedFlow(int(config.num_train_timesteps), shift)

    @property
    def tokens(self) -> int:
        """Tokens of an image."""
        _, height, width = self.latent_shape
        return (height // self.patch_size) * (width // self.patch_size)

    def log_shift(self, steps: int) -> float:
        """Logarithm of a dynamic shift in a sampling of so many steps: by most schedulers linear in the number of tokens."""
        config = self.schedule.config
        slope = (config.max_shift - config.base_shift) / (config.max_image_seq_len - config.base_image_seq_len)
        return float(config.base_shift + slope * (self.tokens - config.base_image_seq_len))

    def sigmas(self, steps: int) -> list[float] | None:
        """The sigmas before they are shifted, where they are not the scheduler's own."""
        return None

    def check_steps(self, steps: int) -> None:
        super().check_steps(steps)
        end = self.schedule.config.shift_terminal
        if steps < 2 and end:
            raise InputError(f"{steps} sampling step, but the schedule's last one is at {end:g}: take at least two")

    def sampler(self, steps: int) -> Any:
        sampler = FlowMatchEulerDiscreteScheduler.from_config(self.schedule.config)
        mu = self.log_shift(steps) if sampler.config.use_dynamic_shifting else None
        sampler.set_timesteps(steps, device=self.device, sigmas=self.sigmas(steps), mu=mu)
        return sampler


class AnySizeFlow(FlowModel):
    """A flow whose network has no size of its own: it draws at the one that its autoencoder names, in even steps.

    An autoencoder that was made without one has its class's, which says nothing: the pipeline's own counts then.
    """

    @property
    def channels(self) -> int:
        """Of a latent."""
        return int(self.pipeline.vae.config.latent_channels)

    @classmethod
    def size_of(cls, pipeline: Any) -> Any:
        """Pixels a side, or (height, width)."""
        given = getattr(pipeline.vae.config, "sample_size", None)
        usual = inspect.signature(type(pipeline.vae).__init__).parameters.get("sample_size")
        if given is not None and (usual is None or given != usual.default):
            return given
        latents = getattr(pipeline, "default_sample_size", None)
        return PIXELS if latents is None else latents * pipeline.vae_scale_factor

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        height, width = sides(self.size_of(self.pipeline), self.source)
        return self.channels, height // self.scale_factor, width // self.scale_factor

    def sigmas(self, steps: int) -> list[float]:
        return [1 - step / steps for step in range(steps)]


def check_flow(pipeline: Any, source: str) -> None:
    """InputError for a scheduler that is none of flow matching."""
    name = type(pipeline.scheduler).__name__
    if not name.startswith("FlowMatch"):
        raise InputError(f"{source}: the scheduler ({name}) is none of flow matching: take FlowMatchEulerDiscreteScheduler")
