"""Qwen-Image: a rectified flow on 2x2 packed latents of a video autoencoder, told by a Qwen2.5-VL in a chat.

The guided prediction keeps, token by token, the length of the conditional one. The empty prompt is a space, as in the examples
of its pipeline.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import QwenImageTransformer2DModel
from torch.nn import functional

from semu_diffusion.errors import InputError
from semu_diffusion.models.adapters.flow import AnySizeFlow
from semu_diffusion.models.prompt_table import Text

__all__ = ["QwenImage"]

TOKENS = 512  # of a prompt and what is said after it: the pipeline's default
PACKED = 2  # side of the square of latents that is one token


class QwenImage(AnySizeFlow):
    """A QwenImagePipeline and the prompts that are spoken of.

    Nothing in a folder says a size: it is the pipeline's ``default_sample_size``, in latents, or the ``sample_size`` of the
    transformer's config where someone has set it.
    """

    network = QwenImageTransformer2DModel
    named = "qwen-image"

    @classmethod
    def check(cls, pipeline: Any, source: str) -> None:
        super().check(pipeline, source)
        config = pipeline.transformer.config
        if type(pipeline).__name__ != "QwenImagePipeline" or config.zero_cond_t or config.use_layer3d_rope:
            raise InputError(f"{source} is a {type(pipeline).__name__} for editing; erase-concept takes Qwen-Image itself")
        if pipeline.vae.config.get("z_dim") is None:
            raise InputError(f"{source}: its autoencoder is a {type(pipeline.vae).__name__}, not an AutoencoderKLQwenImage")

    @classmethod
    def max_tokens(cls, pipeline: Any, ending: str) -> int | None:
        said_before = pipeline.prompt_template_encode_start_idx
        return int(min(TOKENS + said_before, pipeline.tokenizer.model_max_length))

    @classmethod
    def spoken(cls, pipeline: Any, prompts: list[str]) -> list[str]:
        return [pipeline.prompt_template_encode.format(prompt or " ") for prompt in prompts]

    @classmethod
    def encode_text(cls, pipeline: Any, prompts: list[str]) -> Text:
        """Padded to the most tokens that there may be: the pipeline pads to the longest prompt of those it gets."""
        said_before = pipeline.prompt_template_encode_start_idx
        most = int(min(TOKENS, pipeline.tokenizer.model_max_length - said_before))
        embeddings, mask = pipeline.encode_prompt(
            [prompt or " " for prompt in prompts], device=pipeline.transformer.device, max_sequence_length=most
        )
        if mask is None:
            mask = torch.ones(embeddings.shape[:2], device=embeddings.device)
        missing = most - mask.shape[1]
        return Text(functional.pad(embeddings, (0, 0, 0, missing)), mask=functional.pad(mask, (0, missing)))

    @classmethod
    def size_of(cls, pipeline: Any) -> int:
        latents = pipeline.transformer.config.get("sample_size") or pipeline.default_sample_size
        return int(latents) * int(pipeline.vae_scale_factor)

    @property
    def channels(self) -> int:
        return int(self.pipeline.vae.config.z_dim)

    @property
    def patch_size(self) -> int:
        return PACKED

    @property
    def usual(self) -> Mapping[str, Any]:
        return {"guidance_scale": 4.0, "sampling_steps": 50}

    def encoded(self, vae: Any, images: torch.Tensor) -> torch.Tensor:
        return super().encoded(vae, images[:, :, None])[:, :, 0]  # as films of one picture

    def decoded(self, vae: Any, latents: torch.Tensor) -> torch.Tensor:
        return super().decoded(vae, latents[:, :, None])[:, :, 0]

    def scaled(self, latents: torch.Tensor) -> torch.Tensor:
        return (latents - self._each("latents_mean", latents)) / self._each("latents_std", latents)

    def unscaled(self, clean: torch.Tensor) -> torch.Tensor:
        return clean * self._each("latents_std", clean) + self._each("latents_mean", clean)

    def _each(self, name: str, like: torch.Tensor) -> torch.Tensor:
        """A number of the autoencoder's config for each channel."""
        return torch.tensor(self.pipeline.vae.config[name]).to(like).view(1, -1, 1, 1)

    def guide(self, conditional: torch.Tensor, unconditional: torch.Tensor, guidance_scale: float) -> torch.Tensor:
        """Classifier-free guidance, each token of it as long as the conditional prediction's."""
        guided = super().guide(conditional, unconditional, guidance_scale)
        return guided * _lengths(conditional) / _lengths(guided)

    def denoise(self, x_t: torch.Tensor, t: torch.Tensor, text: Text) -> torch.Tensor:
        count, channels, height, width = x_t.shape
        pipeline: Any = self.pipeline
        packed = self.denoiser(
            hidden_states=pipeline._pack_latents(x_t, count, channels, height, width),
            timestep=t.float() / self.process.num_timesteps,
            encoder_hidden_states=text.embeddings,
            encoder_hidden_states_mask=text.mask,
            img_shapes=[[(1, height // PACKED, width // PACKED)]] * count,
        ).sample
        factor = self.scale_factor
        return pipeline._unpack_latents(packed, height * factor, width * factor, factor)[:, :, 0]


def _lengths(latents: torch.Tensor) -> torch.Tensor:
    """Of each (N, C, h, w) latent the length of the token that it is packed into, (N, 1, h, w)."""
    squares = functional.avg_pool2d(latents.square().sum(1, keepdim=True), PACKED) * PACKED**2
    return squares.sqrt().repeat_interleave(PACKED, -1).repeat_interleave(PACKED, -2)
