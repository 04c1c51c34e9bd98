"""PixArt-Σ (Chen et al. 2024): a transformer with cross-attention to T5's tokens, noised as a DDPM."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import PixArtTransformer2DModel

from semu_diffusion.errors import InputError
from semu_diffusion.models.adapters.latents import SAMPLER, check_components
from semu_diffusion.models.guards import check_network, notice_few_steps, sides
from semu_diffusion.models.prompt_table import Text
from semu_diffusion.models.sampling import noise_schedule
from semu_diffusion.models.text_conditional import TextConditional
from semu_diffusion.patches.wrappers import unwrapped

__all__ = ["PixArt"]

NO_SIZES = {"resolution": None, "aspect_ratio": None}  # which PixArt-α of 1024 pixels is told


class PixArt(TextConditional):
    """A PixArtSigmaPipeline and the prompts that are spoken of. Of twice the channels the first half is the noise."""

    network = PixArtTransformer2DModel
    named = "pixart"
    most_tokens = 300
    cross_attention = True

    @classmethod
    def check(cls, pipeline: Any, source: str) -> None:
        check_components(pipeline, source, "vae", "transformer", "text_encoder", "tokenizer")
        network: Any = unwrapped(pipeline.transformer)
        check_network(network, source)
        noise_schedule(pipeline.scheduler.config, source, **SAMPLER)
        sides(network.config.sample_size, source)
        notice_few_steps(pipeline.scheduler, source)
        if getattr(network, "use_additional_conditions", False) or "Sigma" not in type(pipeline).__name__:
            raise InputError(f"{source} is a {type(pipeline).__name__}; of the PixArt models erase-concept takes PixArt-Σ")

    @classmethod
    def encode_text(cls, pipeline: Any, prompts: list[str]) -> Text:
        embeddings, mask, _, _ = cls.by_pipeline(pipeline, prompts)
        return Text(embeddings, mask=mask)

    @property
    def usual(self) -> Mapping[str, Any]:
        return {"guidance_scale": 4.5}

    def attended(self, embeddings: torch.Tensor) -> torch.Tensor:
        seen: torch.Tensor = self.denoiser.caption_projection(embeddings)
        return seen

    def denoise(self, x_t: torch.Tensor, t: torch.Tensor, text: Text) -> torch.Tensor:
        found = self.denoiser(
            x_t,
            encoder_hidden_states=text.embeddings,
            timestep=t,
            added_cond_kwargs=NO_SIZES,
            encoder_attention_mask=text.mask,
        ).sample
        return found[:, : x_t.shape[1]]
