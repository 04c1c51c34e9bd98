"""Tiny random Stable Diffusion pipelines in the shapes of 1.5, 2.1 and XL."""

from __future__ import annotations

from typing import Any

import torch

from semu_diffusion.pipelines.train.text_to_image_parts import new_tokenizer

FAMILIES = ("sd15", "sd21", "sdxl")
WORDS = ("cat", "dog", "bird")


def tiny_pipeline(family: str = "sd15", seed: int = 0) -> Any:
    from diffusers import (
        AutoencoderKL,
        DDIMScheduler,
        StableDiffusionPipeline,
        StableDiffusionXLPipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    tokenizer = new_tokenizer(WORDS, 24)
    xl = family == "sdxl"

    def text_config(width: int) -> CLIPTextConfig:
        return CLIPTextConfig(
            vocab_size=len(tokenizer), hidden_size=width, intermediate_size=2 * width, num_hidden_layers=3,
            num_attention_heads=2, max_position_embeddings=24, projection_dim=width, bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        )  # fmt: skip

    shape: dict[str, Any] = {"attention_head_dim": 2, "cross_attention_dim": 16}
    if family == "sd21":
        shape = {"attention_head_dim": (2, 2), "cross_attention_dim": 16, "use_linear_projection": True}
    if xl:
        shape = {
            "attention_head_dim": (2, 2), "cross_attention_dim": 40, "use_linear_projection": True,
            "addition_embed_type": "text_time", "addition_time_embed_dim": 4, "transformer_layers_per_block": (1, 2),
            "projection_class_embeddings_input_dim": 24 + 6 * 4,
        }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = UNet2DConditionModel(
            sample_size=4, in_channels=4, out_channels=4, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            **shape,
        )  # fmt: skip
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, block_out_channels=(8, 8),
            norm_num_groups=4, latent_channels=4, sample_size=8,
        )  # fmt: skip
        encoders = [CLIPTextModel(text_config(16))]
        if xl:
            encoders.append(CLIPTextModelWithProjection(text_config(24)))
    for name, parameter in unet.named_parameters():
        if ".attn2.to_v" in name or ".attn2.to_out" in name:
            parameter.data *= 6  # at random weights the text says next to nothing
    scheduler = DDIMScheduler(
        num_train_timesteps=100,
        beta_schedule="scaled_linear",
        clip_sample=False,
        prediction_type="v_prediction" if family == "sd21" else "epsilon",
    )
    parts: dict[str, Any] = {
        "vae": vae,
        "text_encoder": encoders[0],
        "tokenizer": tokenizer,
        "unet": unet,
        "scheduler": scheduler,
    }
    if xl:
        found: Any = StableDiffusionXLPipeline(**parts, text_encoder_2=encoders[1], tokenizer_2=tokenizer)
    else:
        parts |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        found = StableDiffusionPipeline(**parts)
    found.set_progress_bar_config(disable=True)
    return found
