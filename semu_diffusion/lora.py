r"""A patch as LoRA: with the ``full`` matricisation the update U R V^T of rank r is exactly one.

With U and V made orthonormal (the stored ones are rounded), the tiny SVD R = P S Q^T gives balanced factors
up = U P sqrt(S) (m, r),  down = sqrt(S) Q^T V^T (r, n); for a convolution
down is reshaped to (r, in, kh, kw) and up to (m, r, 1, 1). The same SVD gives the exact spectrum of the update.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from semu_diffusion.errors import InputError
from semu_diffusion.patch import ErasurePatch, LayerPatch

__all__ = ["lora_factors", "save_peft_folder"]


def lora_factors(layer: LayerPatch, strength: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """``up`` (m, r) and ``down`` (r, n), float32, with up @ down = strength * U R V^T; r is the update's numerical rank.

    Raises InputError for a per-channel convolution, whose update is no LoRA of its rank.
    """
    if len(layer.core) != 1:
        raise InputError("a patch with per-channel convolutions is not a LoRA: erase with --matricisation full to export one")
    left, left_rest = torch.linalg.qr(layer.left[0].double())
    right, right_rest = torch.linalg.qr(layer.right[0].double())
    p, s, qt = torch.linalg.svd(left_rest @ layer.core[0].double() @ right_rest.T)
    rank = max(int((s > s.max() * 1e-7).sum()), 1)
    root = s[:rank].sqrt()
    up = left @ p[:, :rank] * root * strength
    down = root[:, None] * qt[:rank] @ right.T
    return up.float(), down.float()


def save_peft_folder(patch: ErasurePatch, folder: str | Path, base_model: str = "") -> Path:
    """Write ``adapter_config.json`` and ``adapter_model.safetensors``, as ``peft.PeftModel.from_pretrained`` reads them.

    For networks without a LoRA loader of their own (UNet2DModel). Each layer keeps its rank through rank_pattern, with
    alpha equal to it, so that the adapter's scale is 1. Raises InputError for a per-channel patch.
    """
    folder = Path(folder)
    tensors: dict[str, torch.Tensor] = {}
    ranks: dict[str, int] = {}
    for name, layer in patch.layers.items():
        up, down = lora_factors(layer, patch.strength)
        if len(layer.shape) == 4:
            up, down = up[:, :, None, None], down.reshape(len(down), *layer.shape[1:])
        tensors[f"base_model.model.{name}.lora_A.weight"] = down.contiguous()
        tensors[f"base_model.model.{name}.lora_B.weight"] = up.contiguous()
        ranks[f"^{re.escape(name)}"] = len(down)
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "base_model_name_or_path": base_model,
        "r": 1,
        "lora_alpha": 1,
        "rank_pattern": ranks,
        "alpha_pattern": ranks,
        "target_modules": "|".join(re.escape(name) for name in sorted(patch.layers)),  # a list would match endings of names
        "inference_mode": True,
        "bias": "none",
    }
    folder.mkdir(parents=True, exist_ok=True)
    weights, settings = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    beside = folder / f".part-{os.getpid()}"
    try:
        save_file(tensors, beside, metadata={"format": "pt"})
        os.replace(beside, weights)
        beside.write_text(json.dumps(config, indent=2) + "\n")
        os.replace(beside, settings)
    finally:
        beside.unlink(missing_ok=True)
    return folder
