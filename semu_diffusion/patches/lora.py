r"""A patch as LoRA: with the ``full`` matricisation the update U R V^T of rank r is exactly one.

With U and V made orthonormal (the stored ones are rounded), the tiny SVD R = P S Q^T gives balanced factors
up = U P sqrt(S) (m, r),  down = sqrt(S) Q^T V^T (r, n); for a convolution
down is reshaped to (r, in, kh, kw) and up to (m, r, 1, 1). The same SVD gives the exact spectrum of the update.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from semu_diffusion.errors import InputError
from semu_diffusion.files import save_tensors, write_text
from semu_diffusion.patch import ErasurePatch, LayerPatch
from semu_diffusion.patches.modes import own_defaults
from semu_diffusion.patches.original_names import original_unet_name
from semu_diffusion.patches.transformer_names import original_place

__all__ = ["DIFFUSERS_LORA", "KOHYA_LORA", "lora_factors", "no_lora", "save_lora", "save_peft_folder"]

DIFFUSERS_LORA = "pytorch_lora_weights.safetensors"  # the name that load_lora_weights looks for in a folder
KOHYA_LORA = "comfyui_a1111_lora.safetensors"  # says who takes it: they load next to nothing of the other, without a word
FAMILIES: dict[str, dict[str, str]] = {  # header fields by which A1111 and Forge sort LoRA files
    "sd1": {"ss_base_model_version": "sd_v1"},
    "sd2": {"ss_base_model_version": "sd_v2", "ss_v2": "True"},
    "sdxl": {"ss_base_model_version": "sdxl_base_v1-0"},
    "sd3": {"ss_base_model_version": "sd3"},
    "flux": {"ss_base_model_version": "flux1"},
}
UNETS = ("sd1", "sd2", "sdxl")
WITHOUT_LOADER = ("ddpm", "dit", "pixart")  # diffusers' pipelines of these have no load_lora_weights
OF_A_UNET = ("conv_", "time_embedding.", "add_embedding.", "down_blocks.", "mid_block.", "up_blocks.")
Factors = tuple[torch.Tensor, torch.Tensor]  # up and down


PER_CHANNEL = "a patch with per-channel convolutions is not a LoRA: erase with --matricisation full to export one"


def no_lora(patch: ErasurePatch) -> str | None:
    """Why the patch cannot be exported as a LoRA, or None."""
    if any(len(layer.core) != 1 for layer in patch.layers.values()):
        return PER_CHANNEL
    grouped = patch.metadata.get("grouped")
    if grouped:
        return f"{grouped[0]} is a convolution with groups, which no LoRA is for: leave it out, by --layers …,!{grouped[0]}"
    return None


def lora_factors(layer: LayerPatch, strength: float = 1.0) -> Factors:
    """``up`` (m, r) and ``down`` (r, n), float32, with up @ down = strength * U R V^T; r is the update's numerical rank.

    Raises InputError for a per-channel convolution, whose update is no LoRA of its rank.
    """
    if len(layer.core) != 1:
        raise InputError(PER_CHANNEL)
    left, left_rest = torch.linalg.qr(layer.left[0].double())
    right, right_rest = torch.linalg.qr(layer.right[0].double())
    p, s, qt = torch.linalg.svd(left_rest @ layer.core[0].double() @ right_rest.T)
    rank = max(int((s > s.max() * 1e-7).sum()), 1)
    root = s[:rank].sqrt()
    up = left @ p[:, :rank] * root * strength
    down = root[:, None] * qt[:rank] @ right.T
    return up.float(), down.float()


@own_defaults()
def save_lora(patch: ErasurePatch, folder: str | Path, family: str | None = None) -> Path:
    """Write the patch of a text-to-image model as LoRA files that other tools load, and return the folder.

    ``pytorch_lora_weights.safetensors``: PEFT keys for diffusers' ``load_lora_weights``, each layer's rank and alpha in the
    header (without it diffusers before 0.40 takes the first layer's alpha for all).
    ``comfyui_a1111_lora.safetensors``: for ComfyUI, A1111, Forge and sd-scripts (of the families in `FAMILIES`), with alpha 1
    everywhere and ``up`` times the rank, since diffusers reads a per-layer alpha of this format wrongly on attention layers. Of
    SDXL, SD3 and Flux.1 it has the original network's names, by which these tools know it, of SD 1 and 2 diffusers' names. An
    SDXL whose blocks have unequally many layers has none there, and no such file is written.

    ``family`` (default: the patch's own, else sd1) says whether the network is the pipeline's ``unet`` or its ``transformer``,
    and is written for A1111, which would else file every patch under SD 1. Raises InputError for convolutions per channel or
    with groups, a family of other layers, and one whose pipeline loads no LoRA, before anything is written.
    """
    _require_lora(patch)
    family = family or str(patch.metadata.get("family", "sd1"))
    if family in WITHOUT_LOADER or "class_names" in patch.metadata:
        raise InputError(
            "the pipelines of this model load no LoRA files: save_peft_folder writes what PEFT loads onto its network"
        )
    prefix = "unet" if family in UNETS else "transformer"
    if (family in UNETS) != any(name.startswith(OF_A_UNET) for name in patch.layers):
        raise InputError(
            f"family {family!r} has other layers than this patch: of a UNet with text it is {', '.join(UNETS)}; "
            "any other network's goes into a PEFT folder, by save_peft_folder"
        )
    factors = {name: _shaped_factors(layer, patch.strength) for name, layer in patch.layers.items()}
    diffusers: dict[str, torch.Tensor] = {}
    for name, (up, down) in factors.items():
        diffusers[f"{prefix}.{name}.lora_A.weight"], diffusers[f"{prefix}.{name}.lora_B.weight"] = down, up
    ranks = {f"^{re.escape(name)}": len(down) for name, (_, down) in factors.items()}
    about = json.dumps({"semu_patch": dict(patch.metadata), "strength": patch.strength})
    config = {"r": 1, "lora_alpha": 1, "rank_pattern": ranks, "alpha_pattern": ranks, "target_modules": sorted(patch.layers)}
    adapter = json.dumps({f"{prefix}.{key}": value for key, value in config.items()})
    header = {"format": "pt", "lora_adapter_metadata": adapter, "semu": about}
    twin: dict[str, torch.Tensor] = {}
    if family in FAMILIES and not (family == "sdxl" and patch.metadata.get("layers_per_block") == 0):
        for name, (up, down) in _by_original_name(factors, family, patch.metadata).items():
            key = f"lora_unet_{name.replace('.', '_')}"
            twin[f"{key}.lora_down.weight"], twin[f"{key}.lora_up.weight"] = down, up * len(down)
            twin[f"{key}.alpha"] = torch.tensor(1.0)
    folder = Path(folder).expanduser()
    save_tensors(diffusers, folder / DIFFUSERS_LORA, header)
    if twin:
        save_tensors(twin, folder / KOHYA_LORA, {"format": "pt", **FAMILIES[family], "semu": about})
    return folder


def _require_lora(patch: ErasurePatch) -> None:
    refusal = no_lora(patch)
    if refusal is not None:
        raise InputError(refusal)


def _by_original_name(factors: Mapping[str, Factors], family: str, metadata: Mapping[str, Any]) -> dict[str, Factors]:
    """The factors by the names of other tools. Of layers that are parts of one there, ``down`` are one below the other, and
    each ``up`` is a block of a matrix that is zero elsewhere: the rank of the whole is the sum of theirs."""
    if family == "sdxl":
        layers, plain = int(metadata.get("layers_per_block", 2)), metadata.get("plain_up_blocks", ())
        without = tuple(f"up_blocks.{place}." for place in plain)
        return {original_unet_name(n, layers, 1 if n.startswith(without) else 2): pair for n, pair in factors.items()}
    if family not in ("sd3", "flux"):
        return dict(factors)
    found: dict[str, Factors] = {}
    for name, (up, down) in factors.items():
        place = original_place(name, family, (len(up), down[0].numel()))
        unit = len(up) // place.sizes[place.index]
        start = unit * sum(place.sizes[: place.index])
        rows = torch.cat(up.chunk(2)[::-1]) if place.swapped else up
        block = up.new_zeros(unit * sum(place.sizes), *up.shape[1:])
        block[start : start + len(up)] = rows
        if place.name in found:
            more, other = found[place.name]
            block, down = torch.cat([more, block], dim=1), torch.cat([other, down])
        found[place.name] = block, down
    return found


def _shaped_factors(layer: LayerPatch, strength: float) -> Factors:
    """``up`` and ``down`` in the shapes of the layers they are the weights of: 1 x 1 and k x k for a convolution."""
    up, down = lora_factors(layer, strength)
    if len(layer.shape) == 4:
        up, down = up[:, :, None, None], down.reshape(len(down), *layer.shape[1:])
    return up.contiguous(), down.contiguous()


@own_defaults()
def save_peft_folder(patch: ErasurePatch, folder: str | Path) -> Path:
    """Write ``adapter_config.json`` and ``adapter_model.safetensors``, as ``peft.PeftModel.from_pretrained`` reads them.

    For networks without a LoRA loader of their own (UNet2DModel). Each layer keeps its rank through rank_pattern, with
    alpha equal to it, so that the adapter's scale is 1. Raises InputError for convolutions per channel or with groups.
    """
    _require_lora(patch)
    folder = Path(folder).expanduser()
    tensors: dict[str, torch.Tensor] = {}
    ranks: dict[str, int] = {}
    for name, layer in patch.layers.items():
        up, down = _shaped_factors(layer, patch.strength)
        tensors[f"base_model.model.{name}.lora_A.weight"], tensors[f"base_model.model.{name}.lora_B.weight"] = down, up
        ranks[f"^{re.escape(name)}"] = len(down)
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "base_model_name_or_path": str(patch.metadata.get("base_model", "")),
        "r": 1,
        "lora_alpha": 1,
        "rank_pattern": ranks,
        "alpha_pattern": ranks,
        "target_modules": "|".join(re.escape(name) for name in sorted(patch.layers)),  # a list would match endings of names
        "inference_mode": True,
        "bias": "none",
    }
    save_tensors(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    write_text(folder / "adapter_config.json", json.dumps(config, indent=2) + "\n")
    return folder
