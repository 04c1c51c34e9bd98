"""A Stable Diffusion pipeline as one safetensors file in the original layout, as ComfyUI, A1111 and others read it.

UNet, autoencoder and text encoders under the names of the original code. Its second text encoder (SD 2's only one, XL's
second) is open_clip's, which keeps the three projections of an attention in one matrix.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from semu_diffusion.errors import InputError
from semu_diffusion.patches.original_names import original_unet_key, uniform

__all__ = ["original_tensors"]

Tensors = Iterator[tuple[str, torch.Tensor]]

UNET, VAE = "model.diffusion_model.", "first_stage_model."
CLIP = {"sd1": "cond_stage_model.transformer.", "sdxl": "conditioner.embedders.0.transformer."}
OPEN_CLIP = {"sd2": "cond_stage_model.model.", "sdxl": "conditioner.embedders.1.model."}
_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_OPEN_CLIP = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm": "ln_final",
    "encoder.layers": "transformer.resblocks",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


def original_tensors(pipeline: Any, family: str) -> dict[str, torch.Tensor]:
    """The file of a pipeline of ``family`` (sd1, sd2, sdxl). Scheduler and safety checker are no part of it.

    Raises InputError for a pipeline with a part that the original code does not have (a small autoencoder), and for a
    prediction that it has no word for.
    """
    predicts = pipeline.scheduler.config.get("prediction_type", "epsilon")
    if predicts not in ("epsilon", "v_prediction"):
        raise InputError(f"a single file is read as predicting noise or v, and this model predicts {predicts!r}: take --merged")
    parts = [_unet(pipeline.unet), _autoencoder(pipeline.vae)]
    if family in CLIP:
        parts.append(_clip(pipeline.text_encoder, CLIP[family]))
    if family in OPEN_CLIP:
        encoder = pipeline.text_encoder_2 if family == "sdxl" else pipeline.text_encoder
        parts.append(_open_clip(encoder, OPEN_CLIP[family]))
    found = {name: value.detach().cpu().contiguous() for part in parts for name, value in part}
    config = pipeline.scheduler.config
    if config.get("prediction_type") == "v_prediction":  # else ComfyUI and A1111 take it for one that predicts noise
        found["v_pred"] = torch.zeros(0)
    if config.get("rescale_betas_zero_snr"):
        found["ztsnr"] = torch.zeros(0)
    return found


def _unet(unet: Any) -> Tensors:
    state, layers = unet.state_dict(), uniform(unet.config.layers_per_block)
    if layers is None:
        raise InputError("a single file holds a UNet whose blocks have equally many layers: --merged writes any as a folder")
    for key, value in state.items():
        yield UNET + original_unet_key(key, state, layers), value


def _autoencoder(vae: Any) -> Tensors:
    if type(vae).__name__ != "AutoencoderKL":
        raise InputError(f"a single file holds an AutoencoderKL, and the pipeline has an {type(vae).__name__}")
    blocks = len(vae.config.block_out_channels)
    for key, value in vae.state_dict().items():
        name, _, kind = key.rpartition(".")
        found = original_vae_name(name, blocks)
        dense = ".attn_1." in found and value.ndim == 2  # a Linear of diffusers, a 1 x 1 convolution there
        yield f"{VAE}{found}.{kind}", value[:, :, None, None] if dense else value


def original_vae_name(name: str, blocks: int) -> str:
    """The original name of a module of an AutoencoderKL of so many ``blocks``, whose decoder counts them backwards."""
    parts = name.split(".")
    if parts[1:2] == ["mid_block"]:
        kind, step, rest = parts[2], int(parts[3]), ".".join(parts[4:])
        if kind == "attentions":
            return f"{parts[0]}.mid.attn_{step + 1}.{_ATTENTION[rest]}"
        return f"{parts[0]}.mid.block_{step + 1}.{rest.replace('conv_shortcut', 'nin_shortcut')}"
    if parts[1:2] in (["down_blocks"], ["up_blocks"]):
        down, block = parts[1] == "down_blocks", int(parts[2])
        place = f"{parts[0]}.down.{block}" if down else f"{parts[0]}.up.{blocks - 1 - block}"
        if parts[3] == "resnets":
            return f"{place}.block.{parts[4]}.{parts[5].replace('conv_shortcut', 'nin_shortcut')}"
        return f"{place}.{'downsample' if down else 'upsample'}.conv"
    return name.replace("conv_norm_out", "norm_out")


def _clip(encoder: Any, prefix: str) -> Tensors:
    for key, value in encoder.state_dict().items():
        if not key.endswith("position_ids"):
            yield f"{prefix}text_model.{key.removeprefix('text_model.')}", value


def _open_clip(encoder: Any, prefix: str) -> Tensors:
    state = {key.removeprefix("text_model."): value for key, value in encoder.state_dict().items()}
    for key, value in state.items():
        if key == "text_projection.weight":
            yield f"{prefix}text_projection", value.T
        elif ".self_attn.q_proj." in key:
            yield prefix + _joined_name(key), torch.cat([state[key.replace("q_proj", f"{one}_proj")] for one in "qkv"])
        elif not key.endswith("position_ids") and ".self_attn.k_proj." not in key and ".self_attn.v_proj." not in key:
            yield prefix + _replaced(key, _OPEN_CLIP), value


def _joined_name(key: str) -> str:
    """``….self_attn.q_proj.weight`` to ``….attn.in_proj_weight``, of the matrix of all three projections."""
    name, _, kind = _replaced(key, _OPEN_CLIP).rpartition(".self_attn.q_proj.")
    return f"{name}.attn.in_proj_{kind}"


def _replaced(key: str, words: Mapping[str, str]) -> str:
    for word, other in words.items():
        key = key.replace(word, other)
    return key
