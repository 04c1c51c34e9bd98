"""Tiny random pipelines of the families that are told by a language model in a chat, of the real classes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from text_models import WORDS

TOKENS = 64  # of a prompt and the chat around it
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
INSTRUCTION = "Describe the image by detailing the color, shape, size, texture, quantity, text, spatial relationships"
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def tiny_chat_tokenizer(texts: Sequence[str] = ()) -> Any:
    """A Qwen2Tokenizer that has learned to say ``texts`` in few tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import Qwen2Tokenizer

    letters = pre_tokenizers.ByteLevel(add_prefix_space=False)
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = letters
    trainer = trainers.BpeTrainer(
        vocab_size=500, initial_alphabet=letters.alphabet(), special_tokens=SPECIAL, show_progress=False
    )
    said = [*texts, "user\n", "assistant\n", *(f"a photo of a {word}" for word in WORDS)]
    learner.train_from_iterator(said * 3, trainer)
    model = json.loads(learner.to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        vocab=model["vocab"], merges=[tuple(pair) for pair in model["merges"]], model_max_length=TOKENS,
        additional_special_tokens=SPECIAL[1:],
    )  # fmt: skip
    tokenizer.chat_template = CHAT
    return tokenizer


def tiny_qwen3(tokenizer: Any, layers: int, whole: bool = False) -> Any:
    """A Qwen3 of so many layers, with its language head if ``whole``."""
    from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3Model

    config = Qwen3Config(
        vocab_size=len(tokenizer) + 5, hidden_size=16, intermediate_size=16, num_hidden_layers=layers, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, pad_token_id=0, eos_token_id=0, bos_token_id=None,
    )  # fmt: skip
    return (Qwen3ForCausalLM if whole else Qwen3Model)(config)


def tiny_z_image(shift: float = 6.0) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel
    from family_models import tiny_vae

    tokenizer = tiny_chat_tokenizer()
    transformer = ZImageTransformer2DModel(
        in_channels=4, dim=32, n_layers=1, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=16, axes_dims=[4, 6, 6],
        axes_lens=[128, 16, 16],
    )  # fmt: skip
    vae = tiny_vae(shift_factor=0.1, scaling_factor=1.5)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    return ZImagePipeline(scheduler, vae, tiny_qwen3(tokenizer, 2), tokenizer, transformer)


def tiny_qwen_image() -> Any:
    from diffusers import (
        AutoencoderKLQwenImage,
        FlowMatchEulerDiscreteScheduler,
        QwenImagePipeline,
        QwenImageTransformer2DModel,
    )
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    tokenizer = tiny_chat_tokenizer(["system\n", f"{INSTRUCTION} of the objects and background:"])
    text = {
        "vocab_size": len(tokenizer) + 5, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 1, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0,
        "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]},
    }  # fmt: skip
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16, "patch_size": 2}
    encoder = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision))
    transformer = QwenImageTransformer2DModel(
        in_channels=16, out_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=2, joint_attention_dim=16,
        axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    transformer.register_to_config(sample_size=4)  # else it draws at 1024 pixels
    vae = AutoencoderKLQwenImage(
        base_dim=8, z_dim=4, dim_mult=[1, 1], num_res_blocks=1, temperal_downsample=[False],
        latents_mean=[0.1, -0.2, 0.3, 0.0], latents_std=[1.5, 2.0, 0.7, 1.0],
    )  # fmt: skip
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=0.02)
    return QwenImagePipeline(scheduler, vae, encoder, tokenizer, transformer)


def tiny_flux2_parts(width: int, guidance_embeds: bool) -> dict[str, Any]:
    """Everything but the text encoder, of ``width`` for each of three layers, and its tokenizer."""
    from diffusers import AutoencoderKLFlux2, FlowMatchEulerDiscreteScheduler, Flux2Transformer2DModel

    vae = AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, block_out_channels=(8, 8),
        norm_num_groups=4, latent_channels=4, sample_size=16, layers_per_block=1,
    )  # fmt: skip
    vae.bn.running_mean.normal_()
    vae.bn.running_var.uniform_(0.5, 2)
    transformer = Flux2Transformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=3 * width, timestep_guidance_channels=16, axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=guidance_embeds,
    )  # fmt: skip
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    return {"vae": vae, "transformer": transformer, "scheduler": scheduler}


def tiny_flux2() -> Any:
    """The pipeline takes the text from three of a Mistral's layers, the thirtieth among them."""
    from diffusers import Flux2Pipeline
    from diffusers.pipelines.flux2.system_messages import SYSTEM_MESSAGE
    from transformers import Mistral3Config, Mistral3ForConditionalGeneration, PixtralImageProcessor, PixtralProcessor

    tokenizer = tiny_chat_tokenizer(["system\n", SYSTEM_MESSAGE])
    tokenizer.add_tokens(["[IMG]", "[IMG_BREAK]", "[IMG_END]"])
    chat = CHAT.replace("message['content']", "message['content'][0]['text']")
    processor = PixtralProcessor(PixtralImageProcessor(), tokenizer, patch_size=2, chat_template=chat)
    text = {
        "vocab_size": len(tokenizer) + 5, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 30, "head_dim": 4,
        "num_attention_heads": 2, "num_key_value_heads": 1, "model_type": "mistral", "pad_token_id": 0, "eos_token_id": 0,
        "rope_theta": 1e9,
    }  # fmt: skip
    vision = {
        "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 2,
        "image_size": 4, "model_type": "pixtral",
    }  # fmt: skip
    encoder = Mistral3ForConditionalGeneration(Mistral3Config(text_config=text, vision_config=vision))
    return Flux2Pipeline(text_encoder=encoder, tokenizer=processor, **tiny_flux2_parts(8, True))


def tiny_flux2_klein(distilled: bool = False) -> Any:
    from diffusers import Flux2KleinPipeline

    tokenizer = tiny_chat_tokenizer()
    encoder = tiny_qwen3(tokenizer, 27, whole=True)
    return Flux2KleinPipeline(text_encoder=encoder, tokenizer=tokenizer, is_distilled=distilled, **tiny_flux2_parts(16, False))
