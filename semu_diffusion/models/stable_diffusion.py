"""The text-to-image family: Stable Diffusion 1.x, 2.x and XL, conditioned on the prompts of a fixed table.

The table is made once: its embeddings are all that the erasure needs of the text encoders, so that these (and the
autoencoder, while nothing is decoded) may leave the device. A row of the table is to this model what a class is to a DDPM.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from torch import nn

from semu_diffusion.errors import InputError
from semu_diffusion.models.base import DiffusionModel
from semu_diffusion.models.guards import (
    check_network,
    check_parts,
    check_text_condition,
    noise_schedule,
    sides,
    with_plain_unet,
)
from semu_diffusion.models.prompt_table import PromptTable, encode_prompts, on_device
from semu_diffusion.models.sampling import ddim, in_pieces
from semu_diffusion.patches.wrappers import unwrapped

__all__ = [
    "PromptTable",
    "TextConditional",
    "adapt_text_pipeline",
    "check_family",
    "encode_prompts",
    "family_of",
    "image_shape",
    "on_device",
]


SAMPLER = {"clip_sample": False, "timestep_spacing": "trailing"}  # how DDIM is to differ from the model's own scheduler


@dataclass(frozen=True)
class TextConditional(DiffusionModel):
    """A Stable Diffusion pipeline and the prompts that are spoken of; ``names`` are the prompts of its table.

    ``schedule`` is the noise schedule of the training (a DDPMScheduler made from the pipeline's config).
    """

    pipeline: Any
    table: PromptTable
    schedule: DDPMScheduler
    source: str = ""
    revision: str | None = None

    @property
    def names(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.table.prompts[:-1]

    @property
    def null(self) -> int:  # type: ignore[override]
        """The row of the empty prompt."""
        return len(self.table.prompts) - 1

    @property
    def denoiser(self) -> Any:
        return self.pipeline.unet

    @property
    def scheduler(self) -> Any:
        return self.schedule

    @property
    def conditional(self) -> bool:
        return True

    @property
    def family(self) -> Literal["sd1", "sd2", "sdxl"]:
        return family_of(self.pipeline)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        return int(self.denoiser.config.in_channels), *sides(self.denoiser.config.sample_size, self.source)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return image_shape(self.pipeline)

    def with_prompts(self, prompts: Sequence[str]) -> TextConditional:
        """The model with those of the prompts that its table lacks; InputError for one that is too long."""
        missing = [prompt for prompt in dict.fromkeys(prompts) if prompt.strip() and prompt not in self.table.prompts]
        if not missing:
            return self
        more = encode_prompts(self.pipeline, missing)
        old = self.table

        def joined(mine: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
            return torch.cat([mine[:-1], theirs])

        table = PromptTable(
            (*old.prompts[:-1], *more.prompts),
            joined(old.embeddings, more.embeddings),
            None if old.pooled is None or more.pooled is None else joined(old.pooled, more.pooled),
            old.time_ids,
        )
        return dataclasses.replace(self, table=table)

    def with_rows(self, names: Sequence[str], embeddings: torch.Tensor) -> TextConditional:
        """The model with more rows after the named prompts, of ``embeddings`` (n, T, D); InputError for SDXL."""
        if self.table.pooled is not None:
            raise InputError("rows of given embeddings are not made for SDXL, which has a pooled condition too")
        more = embeddings.to(self.table.embeddings)
        table = PromptTable(
            (*self.table.prompts[:-1], *names, ""),
            torch.cat([self.table.embeddings[:-1], more, self.table.embeddings[-1:]]),
        )
        return dataclasses.replace(self, table=table)

    def predict(self, x_t: torch.Tensor, t: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        """The UNet's prediction (N, C, h, w) for rows (N,) int64, or for flattened embeddings (N, T D) float."""
        if labels is None:
            labels = torch.full((len(x_t),), self.null, device=x_t.device)
        rows = torch.full_like(labels[:, 0], self.null, dtype=torch.long) if labels.is_floating_point() else labels
        if labels.is_floating_point():
            text = labels.view(len(labels), *self.table.embeddings.shape[1:])
        else:
            text = self.table.embeddings[labels]
        added = None
        if self.table.pooled is not None and self.table.time_ids is not None:
            pooled, time_ids = self.table.pooled[rows], self.table.time_ids.expand(len(rows), -1)
            added = {"text_embeds": pooled.to(self.dtype), "time_ids": time_ids.to(self.dtype)}
        return self.denoiser(x_t.to(self.dtype), t, text.to(self.dtype), added_cond_kwargs=added).sample

    def condition_vectors(self, labels: torch.Tensor) -> torch.Tensor:
        return self.table.embeddings[labels].flatten(1)

    @property
    def takes_vectors(self) -> bool:
        return self.table.pooled is None

    @property
    def name_layers(self) -> list[str]:
        """Keys and values of cross-attention."""
        names = (name for name, module in self.denoiser.named_modules() if isinstance(module, nn.Linear))
        return [name for name in names if name.endswith((".attn2.to_k", ".attn2.to_v"))]

    def name_inputs(self, labels: torch.Tensor) -> torch.Tensor:
        """Every token of each prompt."""
        return self.table.embeddings[labels].flatten(0, 1)

    @torch.no_grad()
    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Latents (N, C, h, w): the mean of the posterior, shifted and scaled to variance about 1."""
        config = self.pipeline.vae.config
        shift = getattr(config, "shift_factor", None) or 0.0
        means = self._by_autoencoder(images, lambda vae, part: _mean(vae.encode(part)))
        return ((means - shift) * config.scaling_factor).to(self.device)

    @torch.no_grad()
    def decode(self, clean: torch.Tensor) -> torch.Tensor:
        config = self.pipeline.vae.config
        shift = getattr(config, "shift_factor", None) or 0.0
        images = self._by_autoencoder(clean / config.scaling_factor + shift, lambda vae, part: vae.decode(part).sample)
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
        self,
        labels: Sequence[int] | None,
        seeds: Sequence[int],
        steps: int = 50,
        guidance_scale: float = 3.0,
        batch_size: int = 64,
    ) -> Iterator[torch.Tensor]:
        """Latents by DDIM with guidance against the empty prompt; latent i depends on ``seeds[i]`` alone."""
        self.check_steps(steps)
        sampler = ddim(self.schedule.config, **SAMPLER)
        sampler.set_timesteps(steps, device=self.device)

        @torch.no_grad()
        def make(rows: list[int] | None, noise: torch.Tensor) -> torch.Tensor:
            # The latent stays in float32 whatever the network computes in: half precision would round it at every step.
            x = noise.to(self.device)
            given = [self.null] * len(noise) if rows is None else rows
            labels = torch.tensor(given, device=self.device)
            for t in sampler.timesteps:
                predicted = self.predict_guided(x, t.expand(len(x)), labels, guidance_scale).float()
                x = sampler.step(predicted, t, x).prev_sample
            return x

        yield from in_pieces(self.denoiser, self.latent_shape, labels, seeds, batch_size, make)


def _mean(encoded: Any) -> torch.Tensor:
    """The mean of an autoencoder's posterior; AutoencoderTiny has the latents alone."""
    return encoded.latent_dist.mean if hasattr(encoded, "latent_dist") else encoded.latents


def image_shape(pipeline: Any) -> tuple[int, int, int]:
    """(channels, height, width) of the pictures that a pipeline is made for."""
    height, width = sides(pipeline.unet.config.sample_size, "the pipeline")
    factor = pipeline.vae_scale_factor
    return int(pipeline.vae.config.in_channels), height * factor, width * factor


def check_family(pipeline: Any, source: str = "") -> None:
    """InputError for anything but a text-to-image pipeline of text encoders, a UNet and an autoencoder, all of it loaded."""
    name = source or "the pipeline"
    parts = all(getattr(pipeline, part, None) is not None for part in ("vae", "unet", "encode_prompt"))
    if not parts or all(getattr(pipeline, part, None) is None for part in ("tokenizer", "tokenizer_2")):
        raise InputError(f"{name} is a {type(pipeline).__name__}; erase-concept takes Stable Diffusion 1, 2 or XL")
    unet = unwrapped(pipeline.unet)
    if not isinstance(unet, UNet2DConditionModel):
        raise InputError(
            f"{name} has a {type(unet).__name__}; erase-concept takes the UNet2DConditionModel of Stable Diffusion 1, 2 or XL"
        )
    components = {part: module for part, module in vars(pipeline).items() if isinstance(module, nn.Module)}
    if any(hasattr(module, "_hf_hook") for module in components.values()):
        raise InputError(
            "the pipeline is offloaded to the CPU: call pipe.remove_all_hooks() and put pipe.unet on the GPU; the text "
            "encoders and the autoencoder leave the GPU by themselves"
        )
    for part, module in components.items():
        if any(parameter.is_meta for parameter in module.parameters()):
            raise InputError(f"{name}: the weights of the {part} are not loaded (they are on the meta device)")
    check_network(unet, name)
    check_text_condition(pipeline, unet.config, name)
    noise_schedule(pipeline.scheduler.config, name, **SAMPLER)


def family_of(pipeline: Any) -> Literal["sd1", "sd2", "sdxl"]:
    """What other tools call this kind: by its second text encoder, or by the width of the text (1024 is SD 2's)."""
    if getattr(pipeline, "text_encoder_2", None) is not None:
        return "sdxl"
    return "sd2" if pipeline.unet.config.cross_attention_dim == 1024 else "sd1"


def adapt_text_pipeline(pipeline: Any, prompts: Sequence[str], source: str = "") -> TextConditional:
    """The adapter of a pipeline in memory, with a table of the prompts.

    Raises InputError for a pipeline of another family, without a noise schedule, or a prompt that is too long.
    """
    check_family(pipeline, source)
    name = source or "the pipeline"
    pipeline = with_plain_unet(pipeline, name)
    schedule = noise_schedule(pipeline.scheduler.config, name, **SAMPLER)
    model = TextConditional(pipeline, encode_prompts(pipeline, prompts), schedule, source)
    check_parts(model, name, len(model.denoiser.config.block_out_channels))
    return model
