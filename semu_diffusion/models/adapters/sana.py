"""Sana: a flow by a linear-attention transformer on the latents of a deep autoencoder, told by a Gemma.

The pipeline puts an instruction before each prompt, but not before the empty one; so is it here.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from diffusers import SanaTransformer2DModel

from semu_diffusion.errors import InputError
from semu_diffusion.models.adapters.latents import check_components
from semu_diffusion.models.guards import check_network, sides
from semu_diffusion.models.process import RectifiedFlow
from semu_diffusion.models.prompt_table import Text
from semu_diffusion.models.text_conditional import TextConditional
from semu_diffusion.patches.wrappers import unwrapped

__all__ = ["Sana"]


class Sana(TextConditional):
    """A SanaPipeline and the prompts that are spoken of, sampled by the pipeline's own scheduler."""

    network = SanaTransformer2DModel
    named = "sana"
    most_tokens = 300
    cross_attention = True

    @classmethod
    def check(cls, pipeline: Any, source: str) -> None:
        check_components(pipeline, source, "vae", "transformer", "text_encoder", "tokenizer")
        network: Any = unwrapped(pipeline.transformer)
        config = network.config
        check_network(network, source)
        sides(config.sample_size, source)
        if config.guidance_embeds:
            raise InputError(f"{source} is a Sana-Sprint, distilled for guidance and few steps: erase from Sana itself")
        scheduler = pipeline.scheduler.config
        if not scheduler.get("use_flow_sigmas") or str(scheduler.get("algorithm_type")).startswith("sde"):
            name = type(pipeline.scheduler).__name__
            raise InputError(
                f"{source}: the scheduler ({name}) is no flow's: take DPMSolverMultistepScheduler as the folder does"
            )

    @classmethod
    def encode_text(cls, pipeline: Any, prompts: list[str]) -> Text:
        call = inspect.signature(pipeline.__call__).parameters
        instruction = call["complex_human_instruction"].default
        parts: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        for said, words in ((True, instruction), (False, None)):
            places = [place for place, prompt in enumerate(prompts) if (prompt != "") is said]
            if places:
                part = [prompts[place] for place in places]
                embeddings, mask, _, _ = cls.by_pipeline(pipeline, part, complex_human_instruction=words)
                parts |= dict(zip(places, zip(embeddings, mask, strict=True), strict=True))
        rows = [parts[place] for place in range(len(prompts))]
        return Text(torch.stack([embeddings for embeddings, _ in rows]), mask=torch.stack([mask for _, mask in rows]))

    @property
    def usual(self) -> Mapping[str, Any]:
        return {"guidance_scale": 4.5, "sampling_steps": 20}

    @property
    def process(self) -> RectifiedFlow:
        config = self.pipeline.scheduler.config
        return RectifiedFlow(int(config.num_train_timesteps), float(config.flow_shift))

    def sampler(self, steps: int) -> Any:
        own = self.pipeline.scheduler
        sampler = type(own).from_config(own.config)
        sampler.set_timesteps(steps, device=self.device)
        return sampler

    def attended(self, embeddings: torch.Tensor) -> torch.Tensor:
        seen: torch.Tensor = self.denoiser.caption_norm(self.denoiser.caption_projection(embeddings))
        return seen

    def denoise(self, x_t: torch.Tensor, t: torch.Tensor, text: Text) -> torch.Tensor:
        scaled = t * self.denoiser.config.timestep_scale
        found = self.denoiser(x_t, text.embeddings, scaled, encoder_attention_mask=text.mask).sample
        return found[:, : x_t.shape[1]]
