"""Builders of the tiny models that the tests run on."""

from __future__ import annotations

import torch
from diffusers import DDPMScheduler, UNet2DModel

from semu_diffusion.models.adapters.ddpm import PixelDdpm
from semu_diffusion.models.class_conditional import ClassConditional
from semu_diffusion.models.pipeline import ClassConditionalPipeline

NAMES = ("red", "green", "blue")


def tiny_unet(seed: int = 0, **changes: object) -> UNet2DModel:
    settings = {
        "sample_size": 8,
        "in_channels": 3,
        "out_channels": 3,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "attention_head_dim": 8,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "num_class_embeds": 4,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return UNet2DModel(**{**settings, **changes}).eval()


def tiny_model(seed: int = 0, names: tuple[str, ...] = NAMES, **changes: object) -> ClassConditional:
    unet = tiny_unet(seed, **changes)
    scheduler = DDPMScheduler(num_train_timesteps=100, clip_sample=True)
    null = len(names) if unet.config.num_class_embeds == len(names) + 1 else None
    pipeline = ClassConditionalPipeline(unet, scheduler, dict(enumerate(names)), null)
    pipeline.set_progress_bar_config(disable=True)
    return PixelDdpm(pipeline, names, null, "tiny")
