"""Stable Diffusion 3 and 3.5: a rectified flow by a transformer in which image and text tokens attend to each other.

Two CLIP encoders and T5, which may be absent: the network is then told zeros in its place, as the pipeline does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import SD3Transformer2DModel

from semu_diffusion.models.adapters.flow import FlowModel, check_flow
from semu_diffusion.models.adapters.latents import check_components
from semu_diffusion.models.guards import check_network, sides
from semu_diffusion.models.prompt_table import Text
from semu_diffusion.patches.wrappers import unwrapped

__all__ = ["StableDiffusion3"]

T5_TOKENS = 256  # the pipeline's default


class StableDiffusion3(FlowModel):
    """A StableDiffusion3Pipeline and the prompts that are spoken of."""

    network = SD3Transformer2DModel

    @classmethod
    def family_of(cls, pipeline: Any) -> str:
        return "sd3"

    @classmethod
    def check(cls, pipeline: Any, source: str) -> None:
        clip = [f"{part}{ending}" for ending in ("", "_2") for part in ("text_encoder", "tokenizer")]
        check_components(pipeline, source, "vae", "transformer", *clip)
        check_network(unwrapped(pipeline.transformer), source)
        check_flow(pipeline, source)
        sides(pipeline.transformer.config.sample_size, source)

    @classmethod
    def max_tokens(cls, pipeline: Any, ending: str) -> int | None:
        if ending != "_3":
            return int(pipeline.tokenizer_max_length)  # what the pipeline pads and cuts to, for both
        own = T5_TOKENS if pipeline.tokenizer_3 is None else pipeline.tokenizer_3.model_max_length
        return int(min(T5_TOKENS, own))

    @classmethod
    def encode_text(cls, pipeline: Any, prompts: list[str]) -> Text:
        embeddings, _, pooled, _ = pipeline.encode_prompt(
            prompts,
            None,
            None,
            device=pipeline.transformer.device,
            do_classifier_free_guidance=False,
            max_sequence_length=cls.max_tokens(pipeline, "_3"),
        )
        return Text(embeddings, pooled)

    @property
    def usual(self) -> Mapping[str, Any]:
        return {"guidance_scale": 7.0, "sampling_steps": 28}

    def denoise(self, x_t: torch.Tensor, t: torch.Tensor, text: Text) -> torch.Tensor:
        return self.denoiser(x_t, text.embeddings, text.pooled, t).sample
