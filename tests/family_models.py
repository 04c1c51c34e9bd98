"""A tiny random pipeline of every family in `FAMILIES`, of the real classes of diffusers and transformers."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import torch
from chat_models import tiny_flux2, tiny_qwen_image, tiny_z_image
from text_models import WORDS, tiny_pipeline
from tiny_models import tiny_model

from semu_diffusion.pipelines.train.text_to_image_parts import new_tokenizer

TOKENS = 32  # of a prompt: the letters of a sentence, for a T5 that knows few words

IMAGENET = {
    **{index: f"thing {index}, item {index}" for index in range(1000)},
    0: "tench, Tinca tinca",
    134: "crane",
    207: "golden retriever",
    517: "crane",
}


def tiny_vae(**changes: Any) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, block_out_channels=(8, 8),
        norm_num_groups=4, latent_channels=4, sample_size=8, **changes,
    )  # fmt: skip


def tiny_clip(width: int, projected: bool) -> tuple[Any, Any]:
    """A CLIP text encoder, with its projection or without, and its tokenizer."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    tokenizer = new_tokenizer(WORDS, TOKENS)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=2 * width, num_hidden_layers=3, num_attention_heads=2,
        max_position_embeddings=TOKENS, projection_dim=width, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config), tokenizer


def tiny_t5(width: int = 32) -> tuple[Any, Any]:
    """A T5 encoder, and a tokenizer of letters and the tests' words."""
    from transformers import T5Config, T5EncoderModel, T5TokenizerFast

    pieces = ["▁", *(f"▁{word}" for word in ("a", "photo", "of", *WORDS)), *"abcdefghijklmnopqrstuvwxyz,.-'"]
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((piece, -float(len(piece) < 3)) for piece in pieces)]
    tokenizer = T5TokenizerFast(vocab=vocabulary, extra_ids=0, model_max_length=TOKENS)
    config = T5Config(
        vocab_size=len(vocabulary) + 5,
        d_model=width,
        d_kv=8,
        d_ff=32,
        num_layers=2,
        num_heads=2,
        pad_token_id=0,
        eos_token_id=1,
    )  # more rows than the tokenizer knows, as T5 has
    return T5EncoderModel(config), tokenizer


def tiny_dit(alike: bool = False, variance: bool = True) -> Any:
    """With an embedder of its own in every block or, as published, copies of one; with channels of the variance or without."""
    from diffusers import DDIMScheduler, DiTPipeline, DiTTransformer2DModel

    transformer = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8 if variance else 4, num_layers=2,
        sample_size=4, patch_size=2, num_embeds_ada_norm=1000,
    )  # fmt: skip
    first, *others = (block.norm1.emb for block in transformer.transformer_blocks)
    for other in others if alike else ():
        other.load_state_dict(first.state_dict())
    scheduler = DDIMScheduler(num_train_timesteps=100, clip_sample=False)
    pipeline = DiTPipeline(transformer, tiny_vae(), scheduler, IMAGENET)
    pipeline.register_to_config(id2label={str(index): name for index, name in IMAGENET.items()})  # as the Hub's folders have it
    return pipeline


def tiny_sd3(t5: bool = True) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

    transformer = SD3Transformer2DModel(
        sample_size=4, patch_size=2, in_channels=4, out_channels=4, num_layers=3, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=32, caption_projection_dim=16, pooled_projection_dim=24, pos_embed_max_size=4,
        dual_attention_layers=(0,), qk_norm="rms_norm",
    )  # fmt: skip
    (first, tokenizer), (second, tokenizer_2) = tiny_clip(8, True), tiny_clip(16, True)
    third, tokenizer_3 = tiny_t5() if t5 else (None, None)
    vae = tiny_vae(shift_factor=0.1, scaling_factor=1.5)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    return StableDiffusion3Pipeline(transformer, scheduler, vae, first, tokenizer, second, tokenizer_2, third, tokenizer_3)


def tiny_flux(schnell: bool = False) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    transformer = FluxTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=2, attention_head_dim=16, num_attention_heads=2, joint_attention_dim=32,
        pooled_projection_dim=16, guidance_embeds=not schnell, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    (first, tokenizer), (second, tokenizer_2) = tiny_clip(16, False), tiny_t5()
    scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0 if schnell else 3.0, use_dynamic_shifting=not schnell)
    vae = tiny_vae(shift_factor=0.1, scaling_factor=1.5)
    return FluxPipeline(scheduler, vae, first, tokenizer, second, tokenizer_2, transformer)


def tiny_pixart() -> Any:
    from diffusers import DDIMScheduler, PixArtSigmaPipeline, PixArtTransformer2DModel

    transformer = PixArtTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=2, cross_attention_dim=16,
        sample_size=4, patch_size=2, caption_channels=32, use_additional_conditions=False,
    )  # fmt: skip
    encoder, tokenizer = tiny_t5()
    scheduler = DDIMScheduler(num_train_timesteps=100, clip_sample=False)
    return PixArtSigmaPipeline(tokenizer, encoder, tiny_vae(), transformer, scheduler)


def tiny_auraflow() -> Any:
    from diffusers import AuraFlowPipeline, AuraFlowTransformer2DModel, FlowMatchEulerDiscreteScheduler

    transformer = AuraFlowTransformer2DModel(
        sample_size=4, patch_size=2, in_channels=4, out_channels=4, num_mmdit_layers=1, num_single_dit_layers=2,
        attention_head_dim=8, num_attention_heads=2, joint_attention_dim=32, caption_projection_dim=16, pos_embed_max_size=16,
    )  # fmt: skip
    encoder, tokenizer = tiny_t5()
    return AuraFlowPipeline(tokenizer, encoder, tiny_vae(), transformer, FlowMatchEulerDiscreteScheduler(shift=1.73))


def tiny_gemma() -> tuple[Any, Any]:
    """A Gemma 2, and a tokenizer to which the long instruction of Sana's pipeline is a hundred tokens or two."""
    import inspect

    from diffusers import SanaPipeline
    from tokenizers import Tokenizer, models, normalizers, trainers
    from transformers import Gemma2Config, Gemma2Model, GemmaTokenizer

    instruction = inspect.signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    learner = Tokenizer(models.BPE(unk_token="<unk>"))
    learner.normalizer = normalizers.Replace(" ", "▁")
    letters = list("▁abcdefghijklmnopqrstuvwxyz,.-'")
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=letters, special_tokens=special, show_progress=False)
    learner.train_from_iterator([*instruction, "a photo of a cat", "a photo of a dog", "a photo of a bird"], trainer)
    model = json.loads(learner.to_str())["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    tokenizer = GemmaTokenizer(vocab=model["vocab"], merges=merges, model_max_length=2 * TOKENS)
    config = Gemma2Config(
        vocab_size=len(model["vocab"]) + 5, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, pad_token_id=0, eos_token_id=1, bos_token_id=2,
    )  # fmt: skip
    return Gemma2Model(config), tokenizer


def tiny_sana() -> Any:
    from diffusers import AutoencoderDC, DPMSolverMultistepScheduler, SanaPipeline, SanaTransformer2DModel

    transformer = SanaTransformer2DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=8, num_layers=2, num_cross_attention_heads=2,
        cross_attention_head_dim=8, cross_attention_dim=16, caption_channels=16, sample_size=8, patch_size=1,
    )  # fmt: skip
    widths: dict[str, Any] = {
        f"{part}_{name}": value
        for part in ("encoder", "decoder")
        for name, value in {"block_out_channels": (8, 8, 8), "layers_per_block": (1,) * 3, "qkv_multiscales": ((),) * 3}.items()
    }
    vae = AutoencoderDC(latent_channels=4, attention_head_dim=4, scaling_factor=0.41, **widths)
    scheduler = DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0)
    encoder, tokenizer = tiny_gemma()
    return SanaPipeline(tokenizer, encoder, vae, transformer, scheduler)


BUILDERS: dict[str, Callable[[], Any]] = {
    "ddpm": lambda: tiny_model().pipeline,
    "dit": tiny_dit,
    "sd1": tiny_pipeline,
    "sd2": lambda: tiny_pipeline("sd21"),
    "sdxl": lambda: tiny_pipeline("sdxl"),
    "sd3": tiny_sd3,
    "flux": tiny_flux,
    "pixart": tiny_pixart,
    "sana": tiny_sana,
    "auraflow": tiny_auraflow,
    "z-image": tiny_z_image,
    "qwen-image": tiny_qwen_image,
    "flux2": tiny_flux2,
}


def built(family: str | Callable[[], Any], seed: int = 0) -> Any:
    """The pipeline of a family, or of a builder; every call with this seed builds the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipeline = (BUILDERS[family] if isinstance(family, str) else family)()
    for part in vars(pipeline).values():
        if isinstance(part, torch.nn.Module):
            part.eval()  # as what is loaded from a folder
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
