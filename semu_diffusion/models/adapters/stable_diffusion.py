"""Stable Diffusion 1.x, 2.x and XL: a UNet with cross-attention, noised as a DDPM."""

from __future__ import annotations

from typing import Any, Literal

import torch
from diffusers import UNet2DConditionModel

from semu_diffusion.models.adapters.latents import SAMPLER, check_components
from semu_diffusion.models.guards import check_network, check_text_condition, sides
from semu_diffusion.models.prompt_table import Text
from semu_diffusion.models.sampling import noise_schedule
from semu_diffusion.models.text_conditional import TextConditional
from semu_diffusion.patches.wrappers import unwrapped

__all__ = ["StableDiffusion"]


class StableDiffusion(TextConditional):
    """A Stable Diffusion pipeline and the prompts that are spoken of."""

    part = "unet"
    network = UNet2DConditionModel
    cross_attention = True

    @classmethod
    def family_of(cls, pipeline: Any) -> Literal["sd1", "sd2", "sdxl"]:
        """What other tools call this kind: by its second text encoder, or by the width of the text (1024 is SD 2's)."""
        if getattr(pipeline, "text_encoder_2", None) is not None:
            return "sdxl"
        return "sd2" if pipeline.unet.config.cross_attention_dim == 1024 else "sd1"

    @classmethod
    def check(cls, pipeline: Any, source: str) -> None:
        check_components(pipeline, source)
        unet = unwrapped(pipeline.unet)
        check_network(unet, source)
        check_text_condition(pipeline, unet.config, source)
        noise_schedule(pipeline.scheduler.config, source, **SAMPLER)

    @classmethod
    def encode_text(cls, pipeline: Any, prompts: list[str]) -> Text:
        found = pipeline.encode_prompt(
            prompts, device=pipeline.unet.device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        embeddings, pooled = found[0], found[2] if len(found) == 4 else None
        if pooled is not None and pipeline.config.force_zeros_for_empty_prompt:
            # XL was trained with zeros, not with an encoded empty prompt
            said = torch.tensor([prompt != "" for prompt in prompts], device=embeddings.device)
            embeddings, pooled = embeddings * said[:, None, None], pooled * said[:, None]
        return Text(embeddings, pooled)

    @classmethod
    def time_ids(cls, pipeline: Any) -> torch.Tensor | None:
        """XL is told the size it draws at, uncropped."""
        if getattr(pipeline, "text_encoder_2", None) is None:
            return None
        size = [side * pipeline.vae_scale_factor for side in sides(pipeline.unet.config.sample_size, "the pipeline")]
        return torch.tensor([*size, 0, 0, *size], dtype=torch.float32, device=pipeline.unet.device)

    def attended(self, embeddings: torch.Tensor) -> torch.Tensor:
        if self.denoiser.config.encoder_hid_dim_type != "text_proj":
            return embeddings
        found: torch.Tensor = self.denoiser.encoder_hid_proj(embeddings)
        return found

    def denoise(self, x_t: torch.Tensor, t: torch.Tensor, text: Text) -> torch.Tensor:
        added = None
        if text.pooled is not None and self.table.time_ids is not None:
            time_ids = self.table.time_ids.expand(len(x_t), -1)
            added = {"text_embeds": text.pooled, "time_ids": time_ids.to(self.dtype)}
        return self.denoiser(x_t, t, text.embeddings, added_cond_kwargs=added).sample
