"""What is trained, and what of it can be refused before any work."""

from __future__ import annotations

from collections.abc import Container
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

from semu_diffusion.erase.collect import gradient_rounds
from semu_diffusion.erase.config import ErasureConfig, SubspaceConfig
from semu_diffusion.errors import InputError
from semu_diffusion.layers import select_layers
from semu_diffusion.models.precision import autocast

__all__ = ["layers_to_train", "require_trainable"]


def layers_to_train(denoiser: nn.Module, config: SubspaceConfig, named: Container[str]) -> dict[str, Any]:
    """The layers in which R is trained: those of the settings, but for the ``named`` ones, which the closed form takes.

    Raises InputError if none is left.
    """
    found = {name: layer for name, layer in select_layers(denoiser, config.layers).items() if name not in named}
    if not found:
        raise InputError(
            "--layers names only layers that the name in closed form takes, so that none is left to train: name others, or "
            "take --method closed-form or trained"
        )
    return found


def require_trainable(denoiser: nn.Module, config: ErasureConfig, named: Container[str] = ()) -> None:
    """InputError where no layer is left, ``--memory`` is too little for one, or float16 weights would be trained in float16,
    in which small gradients vanish. The ``named`` layers are the closed form's."""
    select_layers(denoiser, config.layers)
    if config.method != "closed-form":
        gradient_rounds(config, layers_to_train(denoiser, config, named))
    weight = next(denoiser.parameters())
    if weight.dtype == torch.float16 and weight.device.type == "cpu":  # which has no kernels for it beside bfloat16
        raise InputError("float16 weights are not trained on a CPU: load the model in float32 or bfloat16")
    if weight.dtype == torch.float16 and autocast(config.precision, weight.device) is nullcontext:
        raise InputError(
            "float16 weights are trained in bfloat16, or small gradients vanish: give --precision bf16 (slow where the "
            "hardware has none), or load the model in float32"
        )
