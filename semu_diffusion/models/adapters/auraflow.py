"""AuraFlow: a rectified flow by a transformer of joint and of single blocks, told by a T5 whose padding is zero."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import AuraFlowTransformer2DModel

from semu_diffusion.models.adapters.flow import FlowModel
from semu_diffusion.models.prompt_table import Text

__all__ = ["AuraFlow"]


class AuraFlow(FlowModel):
    """An AuraFlowPipeline and the prompts that are spoken of."""

    network = AuraFlowTransformer2DModel
    named = "auraflow"
    most_tokens = 256

    @classmethod
    def encode_text(cls, pipeline: Any, prompts: list[str]) -> Text:
        embeddings, _, _, _ = cls.by_pipeline(pipeline, prompts)
        return Text(embeddings)

    @property
    def usual(self) -> Mapping[str, Any]:
        return {"guidance_scale": 3.5, "sampling_steps": 50}

    def denoise(self, x_t: torch.Tensor, t: torch.Tensor, text: Text) -> torch.Tensor:
        return self.denoiser(x_t, text.embeddings, t.to(x_t.dtype) / self.process.num_timesteps).sample
