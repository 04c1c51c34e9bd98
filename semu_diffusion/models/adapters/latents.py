"""What all latent families have in common: an autoencoder between images and latents, and one way of sampling."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import cached_property
from typing import Any

import torch
from torch import nn

from semu_diffusion.errors import InputError
from semu_diffusion.models.base import DiffusionModel, Rows
from semu_diffusion.models.guards import sides
from semu_diffusion.models.prompt_table import on_device
from semu_diffusion.models.sampling import ddim, in_pieces, noise_schedule, set_steps

__all__ = ["SAMPLER", "LatentModel", "check_components"]

SAMPLER = {"clip_sample": False, "timestep_spacing": "trailing"}  # how DDIM is to differ from the model's own scheduler
SAMPLERS = {
    "DDIMScheduler": "DDIM",
    "FlowMatchEulerDiscreteScheduler": "Euler",
    "DPMSolverMultistepScheduler": "DPM-Solver++",
}
COLOURS = 3  # of images whose autoencoder does not say it


class LatentModel(DiffusionModel):
    """A diffusers pipeline with an autoencoder ``vae``, which may rest off the device while nothing is decoded."""

    pipeline: Any

    @cached_property
    def schedule(self) -> Any:
        """The noise schedule of the training: a DDPM's, if the family has no other."""
        return noise_schedule(self.pipeline.scheduler.config, self.source or "the pipeline", **SAMPLER)

    @property
    def scheduler(self) -> Any:
        return self.schedule

    def sampler(self, steps: int) -> Any:
        """A diffusers scheduler with its ``steps`` timesteps set, whose ``step`` draws no random numbers."""
        return set_steps(ddim(self.schedule.config, **SAMPLER), steps, self.device)

    @property
    def sampler_name(self) -> str:
        name = type(self.sampler(2)).__name__
        return SAMPLERS.get(name, name.removesuffix("Scheduler"))

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        config: Any = self.denoiser.config
        return int(config.in_channels), *sides(config.sample_size, self.source)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        _, height, width = self.latent_shape
        channels = int(self.pipeline.vae.config.get("in_channels", COLOURS))
        return channels, height * self.scale_factor, width * self.scale_factor

    @property
    def scale_factor(self) -> int:
        """Pixels of an image for one of its latent, each way."""
        factor = getattr(self.pipeline, "vae_scale_factor", None)
        return int(factor or 2 ** (len(self.pipeline.vae.config.block_out_channels) - 1))

    def scaled(self, latents: torch.Tensor) -> torch.Tensor:
        """The autoencoder's latents as the network knows them, of variance about 1."""
        config = self.pipeline.vae.config
        return (latents - (getattr(config, "shift_factor", None) or 0.0)) * config.scaling_factor

    def unscaled(self, clean: torch.Tensor) -> torch.Tensor:
        """The inverse of `scaled`."""
        config = self.pipeline.vae.config
        return clean / config.scaling_factor + (getattr(config, "shift_factor", None) or 0.0)

    def encoded(self, vae: Any, images: torch.Tensor) -> torch.Tensor:
        """The mean of the autoencoder's posterior; AutoencoderTiny and AutoencoderDC have the latents alone."""
        found = vae.encode(images)
        if hasattr(found, "latent_dist"):
            return found.latent_dist.mean
        return found.latents if hasattr(found, "latents") else found.latent

    def decoded(self, vae: Any, latents: torch.Tensor) -> torch.Tensor:
        """The autoencoder's images in [-1, 1]."""
        return vae.decode(latents).sample

    @torch.no_grad()
    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Latents (N, C, h, w): the mean of the posterior, `scaled`."""
        return self.scaled(self._by_autoencoder(images, self.encoded)).to(self.device)

    @torch.no_grad()
    def decode(self, clean: torch.Tensor) -> torch.Tensor:
        images = self._by_autoencoder(self.unscaled(clean), self.decoded)
        if torch.isfinite(clean).all() and not torch.isfinite(images).all():
            raise FloatingPointError("the autoencoder's pictures are not finite numbers: load it in float32 or bfloat16")
        return (images / 2 + 0.5).clamp(0, 1)

    def _by_autoencoder(self, batch: torch.Tensor, step: Callable[[Any, torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """``step`` over chunks of one fixed size, the last one filled up, so that an image does not depend on its neighbours.

        Half precision overflows in most autoencoders (``force_upcast``): they work in float32 then, whatever is around.
        """
        vae, dtype = self.pipeline.vae, self.pipeline.vae.dtype
        upcast = dtype == torch.float16 and getattr(vae.config, "force_upcast", True)
        _, height, width = self.image_shape
        size = max(1, min(8, 8 * 512 * 512 // (height * width)))
        parts = []
        with on_device(vae, self.device), torch.autocast(self.device.type, enabled=False) if upcast else nullcontext():
            try:
                if upcast:
                    vae.float()
                for part in batch.split(size):
                    filled = torch.cat([part, part[-1:].expand(size - len(part), *part.shape[1:])])
                    parts.append(step(vae, filled.to(vae.device, vae.dtype))[: len(part)].float().cpu())
            finally:
                if upcast:
                    vae.to(dtype)
        return torch.cat(parts)

    def sample_latents(
        self, labels: Rows, seeds: Sequence[int], steps: int = 50, guidance_scale: float = 3.0, batch_size: int = 64
    ) -> Iterator[torch.Tensor]:
        """Latents by the family's own sampler, with its guidance; latent i depends on ``seeds[i]`` alone."""
        self.check_steps(steps)

        @torch.no_grad()
        def make(rows: list[int] | None, noise: torch.Tensor) -> torch.Tensor:
            # The latent stays in float32 whatever the network computes in: half precision would round it at every step.
            sampler, x = self.sampler(steps), noise.to(self.device)
            given = [self.null] * len(noise) if rows is None else rows
            labels = torch.tensor(given, device=self.device)
            for t in sampler.timesteps:
                predicted = self.predict_guided(x, t.expand(len(x)), labels, guidance_scale).float()
                x = sampler.step(predicted, t, x).prev_sample
            return x

        yield from in_pieces(self.denoiser, self.latent_shape, labels, seeds, batch_size, make)


def check_components(pipeline: Any, source: str, *parts: str) -> None:
    """InputError for parts that are missing, spread by hooks, or not loaded."""
    missing = [part for part in ("scheduler", *parts) if getattr(pipeline, part, None) is None]
    if missing:
        raise InputError(f"{source} has no {missing[0]}: load the pipeline with all of its parts")
    decoder = type(getattr(pipeline, "vae", None)).__name__
    if decoder == "ConsistencyDecoderVAE":
        raise InputError(
            f"{source}: a {decoder} decodes by chance, so that no two pictures can be compared: put an AutoencoderKL back"
        )
    components = {part: module for part, module in vars(pipeline).items() if isinstance(module, nn.Module)}
    if any(hasattr(module, "_hf_hook") for module in components.values()):
        raise InputError(
            "the pipeline is offloaded to the CPU: call pipe.remove_all_hooks() and put the network on the GPU; the text "
            "encoders and the autoencoder leave the GPU by themselves"
        )
    for part, module in components.items():
        if hasattr(module, "module") and part not in ("unet", "transformer"):  # DataParallel, what accelerate prepares
            raise InputError(f"{source}: the {part} is wrapped ({type(module).__name__}): set pipe.{part} to what is inside")
        if any(parameter.is_meta for parameter in module.parameters()):
            raise InputError(f"{source}: the weights of the {part} are not loaded (they are on the meta device)")
