"""Stable Diffusion 3 and 3.5: a rectified flow by a transformer in which image and text tokens attend to each other.

Two CLIP encoders and T5, which may be absent: the network is then told zeros in its place, as the pipeline does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import SD3Transformer2DModel

from semu_diffusion.models.adapters.flow import FlowModel
from semu_diffusion.models.prompt_table import Text

__all__ = ["StableDiffusion3"]

T5_TOKENS = 256  # the pipeline's default


class StableDiffusion3(FlowModel):
    """A StableDiffusion3Pipeline and the prompts that are spoken of."""

    network = SD3Transformer2DModel
    named = "sd3"
    texts = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")

    @classmethod
    def max_tokens(cls, pipeline: Any, ending: str) -> int | None:
        if ending != "_3":
            return int(pipeline.tokenizer_max_length)  # what the pipeline pads and cuts to, for both
        own = T5_TOKENS if pipeline.tokenizer_3 is None else pipeline.tokenizer_3.model_max_length
        return int(min(T5_TOKENS, own))

    @classmethod
    def encode_text(cls, pipeline: Any, prompts: list[str]) -> Text:
        embeddings, _, pooled, _ = cls.by_pipeline(pipeline, prompts, "_3", prompt_2=None, prompt_3=None)
        return Text(embeddings, pooled)

    @property
    def usual(self) -> Mapping[str, Any]:
        return {"guidance_scale": 7.0, "sampling_steps": 28}

    def denoise(self, x_t: torch.Tensor, t: torch.Tensor, text: Text) -> torch.Tensor:
        return self.denoiser(x_t, text.embeddings, text.pooled, t).sample
