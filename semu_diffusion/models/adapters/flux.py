"""Flux.1: a rectified flow on 2x2 packed latents; dev is distilled for guidance, schnell for few steps.

Guidance is an input of dev's network, and nothing is guided against the empty prompt; schnell has none at all. T5 gives the
tokens, CLIP the pooled condition.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import FluxTransformer2DModel

from semu_diffusion.errors import InputError
from semu_diffusion.models.adapters.flow import AnySizeFlow
from semu_diffusion.models.prompt_table import Text

__all__ = ["Flux"]

GUIDANCE = 3.5
T5_TOKENS = {"dev": 512, "schnell": 256}
PACKED = 2  # side of the square of latents that is one token


class Flux(AnySizeFlow):
    """A FluxPipeline and the prompts that are spoken of. Latents (N, 16, h, w) are packed for each call of the network."""

    network = FluxTransformer2DModel
    named = "flux"
    texts = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")

    @classmethod
    def check(cls, pipeline: Any, source: str) -> None:
        super().check(pipeline, source)
        config = pipeline.transformer.config
        if config.in_channels != PACKED**2 * pipeline.vae.config.latent_channels:
            raise InputError(
                f"{source} is made for filling, redrawing or editing (its transformer takes {config.in_channels} channels a "
                f"token); erase-concept takes FLUX.1 dev and schnell"
            )

    @classmethod
    def max_tokens(cls, pipeline: Any, ending: str) -> int | None:
        if ending == "":
            return int(pipeline.tokenizer_max_length)
        most = T5_TOKENS["dev" if pipeline.transformer.config.guidance_embeds else "schnell"]
        return int(min(most, pipeline.tokenizer_2.model_max_length))

    @classmethod
    def encode_text(cls, pipeline: Any, prompts: list[str]) -> Text:
        embeddings, pooled, _ = pipeline.encode_prompt(
            prompts, device=pipeline.transformer.device, max_sequence_length=cls.max_tokens(pipeline, "_2")
        )
        return Text(embeddings, pooled)

    @property
    def guided_by_null(self) -> bool:
        return False

    @property
    def distilled_for_steps(self) -> bool:
        return not self.denoiser.config.guidance_embeds

    @property
    def usual(self) -> Mapping[str, Any]:
        if self.distilled_for_steps:
            return {"guidance_scale": 1.0, "sampling_steps": 4}
        return {"guidance_scale": GUIDANCE, "sampling_steps": 28}

    @property
    def patch_size(self) -> int:
        return PACKED

    def predict_guided(
        self, x_t: torch.Tensor, t: torch.Tensor, labels: torch.Tensor | None, guidance_scale: float
    ) -> torch.Tensor:
        """The prediction told to be guided so far; without this input (schnell) the plain one."""
        return self.denoise(x_t.to(self.dtype), t, self.told(labels, len(x_t)), guidance_scale)

    def denoise(self, x_t: torch.Tensor, t: torch.Tensor, text: Text, guidance_scale: float = GUIDANCE) -> torch.Tensor:
        count, channels, height, width = x_t.shape
        pipeline: Any = self.pipeline
        like: dict[str, Any] = {"device": x_t.device, "dtype": x_t.dtype}
        packed = self.denoiser(
            hidden_states=pipeline._pack_latents(x_t, count, channels, height, width),
            timestep=t.float() / self.process.num_timesteps,
            guidance=None if self.distilled_for_steps else torch.full((count,), guidance_scale, device=x_t.device),
            encoder_hidden_states=text.embeddings,
            pooled_projections=text.pooled,
            txt_ids=torch.zeros(text.embeddings.shape[1], 3, **like),
            img_ids=pipeline._prepare_latent_image_ids(count, height // PACKED, width // PACKED, **like),
        ).sample
        return pipeline._unpack_latents(packed, height * self.scale_factor, width * self.scale_factor, self.scale_factor)
