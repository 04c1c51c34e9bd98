"""Z-Image: a flow by a transformer in which image and text tokens are one sequence, told by a Qwen3 in a chat.

Guidance w is here what it is everywhere in this package, 1 without any; its pipeline's own ``guidance_scale`` is w - 1. Turbo,
distilled for few steps and w = 1, is known by the shift of its schedule, 3, where that of the base model is greater.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from diffusers import ZImageTransformer2DModel
from torch.nn import functional

from semu_diffusion.errors import InputError
from semu_diffusion.models.adapters.flow import AnySizeFlow
from semu_diffusion.models.prompt_table import Text, in_chat

__all__ = ["ZImage"]

TURBO_SHIFT = 3.0


class ZImage(AnySizeFlow):
    """A ZImagePipeline and the prompts that are spoken of. The network takes of each prompt the tokens that count."""

    network = ZImageTransformer2DModel
    named = "z-image"
    most_tokens: ClassVar[int] = 512

    @classmethod
    def check(cls, pipeline: Any, source: str) -> None:
        super().check(pipeline, source)
        if pipeline.transformer.config.siglip_feat_dim is not None:
            raise InputError(
                f"{source} is a Z-Image for editing, which also looks at pictures; erase-concept takes Z-Image itself"
            )

    @classmethod
    def spoken(cls, pipeline: Any, prompts: list[str]) -> list[str]:
        return in_chat(pipeline.tokenizer, prompts, enable_thinking=True)

    @classmethod
    def encode_text(cls, pipeline: Any, prompts: list[str]) -> Text:
        most = cls.max_tokens(pipeline, "") or cls.most_tokens
        given, _ = cls.by_pipeline(pipeline, list(prompts))  # it writes into the list
        masks = [torch.ones(len(tokens), device=tokens.device) for tokens in given]
        embeddings = torch.stack([functional.pad(tokens, (0, 0, 0, most - len(tokens))) for tokens in given])
        return Text(embeddings, mask=torch.stack([functional.pad(mask, (0, most - len(mask))) for mask in masks]))

    @property
    def patch_size(self) -> int:
        return int(self.denoiser.config.all_patch_size[0])

    @property
    def usual(self) -> Mapping[str, Any]:
        if float(self.schedule.config.shift) <= TURBO_SHIFT:
            return {"guidance_scale": 1.0, "sampling_steps": 8}
        return {"guidance_scale": 5.0, "sampling_steps": 50}

    def denoise(self, x_t: torch.Tensor, t: torch.Tensor, text: Text) -> torch.Tensor:
        """The network is told 1 - sigma, and predicts x_0 - eps."""
        assert text.mask is not None
        told = [tokens[counts > 0] for tokens, counts in zip(text.embeddings, text.mask, strict=True)]
        cleanness = 1 - t.float() / self.process.num_timesteps
        return -torch.stack(self.denoiser(list(x_t[:, :, None].unbind()), cleanness, told).sample)[:, :, 0]
