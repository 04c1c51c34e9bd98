"""FLUX.2 dev, and klein in both kinds: a rectified flow on 2x2 packed, normalised latents, told by a language model in a chat.

dev is told how far to guide; klein is guided against the empty prompt, or distilled for few steps and not guided at all. The
schedule's shift grows with the number of steps, too. No token is masked: what fills up a short prompt is seen as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import Flux2Transformer2DModel

from semu_diffusion.errors import InputError
from semu_diffusion.models.adapters.flow import AnySizeFlow
from semu_diffusion.models.prompt_table import Text, in_chat

__all__ = ["Flux2"]

GUIDANCE = 4.0
PACKED = 2  # side of the square of the autoencoder's latents that is one of ours
PIPELINES = ("Flux2Pipeline", "Flux2KleinPipeline")


class Flux2(AnySizeFlow):
    """A Flux2Pipeline or Flux2KleinPipeline and the prompts that are spoken of. A latent (N, 4 C, h, w) is a token each."""

    network = Flux2Transformer2DModel
    named = "flux2"
    most_tokens = 512

    @classmethod
    def check(cls, pipeline: Any, source: str) -> None:
        super().check(pipeline, source)
        if type(pipeline).__name__ not in PIPELINES:
            raise InputError(f"{source} is a {type(pipeline).__name__}; erase-concept takes FLUX.2 dev and klein themselves")

    @classmethod
    def spoken(cls, pipeline: Any, prompts: list[str]) -> list[str]:
        message = getattr(pipeline, "system_message", None)
        if message is None:
            return in_chat(pipeline.tokenizer, prompts, enable_thinking=False)
        from diffusers.pipelines.flux2.pipeline_flux2 import format_input

        chats = format_input(prompts, message)
        return [pipeline.tokenizer.apply_chat_template(chat, tokenize=False) for chat in chats]

    @classmethod
    def encode_text(cls, pipeline: Any, prompts: list[str]) -> Text:
        device, most = pipeline.transformer.device, cls.max_tokens(pipeline, "")
        embeddings, _ = pipeline.encode_prompt(prompts, device=device, max_sequence_length=most)
        return Text(embeddings)

    @property
    def told_guidance(self) -> bool:
        """Whether the network is told how far to guide, as dev's is."""
        return bool(self.denoiser.config.guidance_embeds)

    @property
    def guided_by_null(self) -> bool:
        return not self.told_guidance and not self.pipeline.config.get("is_distilled", False)

    @property
    def usual(self) -> Mapping[str, Any]:
        if self.told_guidance or self.guided_by_null:
            return {"guidance_scale": GUIDANCE, "sampling_steps": 50}
        return {"guidance_scale": 1.0, "sampling_steps": 4}

    @property
    def patch_size(self) -> int:
        return 1

    @property
    def channels(self) -> int:
        return int(self.denoiser.config.in_channels)

    @property
    def scale_factor(self) -> int:
        return PACKED * super().scale_factor

    def log_shift(self, steps: int) -> float:
        from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu

        return float(compute_empirical_mu(self.tokens, steps))

    def scaled(self, latents: torch.Tensor) -> torch.Tensor:
        mean, deviation = self._statistics(latents)
        return (self.pipeline._patchify_latents(latents) - mean) / deviation

    def unscaled(self, clean: torch.Tensor) -> torch.Tensor:
        mean, deviation = self._statistics(clean)
        return self.pipeline._unpatchify_latents(clean * deviation + mean)

    def _statistics(self, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation of each packed channel, which the autoencoder has seen in its training."""
        vae = self.pipeline.vae
        variance = vae.bn.running_var + vae.config.batch_norm_eps
        return vae.bn.running_mean.to(like).view(1, -1, 1, 1), variance.to(like).sqrt().view(1, -1, 1, 1)

    def predict_guided(
        self, x_t: torch.Tensor, t: torch.Tensor, labels: torch.Tensor | None, guidance_scale: float
    ) -> torch.Tensor:
        """Of dev the prediction told to be guided so far, of klein that of classifier-free guidance, or the plain one."""
        if self.told_guidance:
            return self.denoise(x_t.to(self.dtype), t, self.told(labels, len(x_t)), guidance_scale)
        return super().predict_guided(x_t, t, labels, guidance_scale)

    def denoise(self, x_t: torch.Tensor, t: torch.Tensor, text: Text, guidance_scale: float = GUIDANCE) -> torch.Tensor:
        pipeline: Any = self.pipeline
        packed = self.denoiser(
            hidden_states=pipeline._pack_latents(x_t),
            timestep=t.float() / self.process.num_timesteps,
            guidance=torch.full((len(x_t),), guidance_scale, device=x_t.device) if self.told_guidance else None,
            encoder_hidden_states=text.embeddings,
            txt_ids=pipeline._prepare_text_ids(text.embeddings).to(x_t.device),
            img_ids=pipeline._prepare_latent_ids(x_t).to(x_t.device),
        ).sample
        return packed.transpose(1, 2).reshape(x_t.shape)
