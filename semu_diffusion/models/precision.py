"""Which arithmetic a run uses: float32, or bfloat16 where the hardware computes in it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

__all__ = ["autocast", "has_bf16", "sampler_name"]


def has_bf16(device: torch.device) -> bool:
    """True if ``device`` has instructions for bfloat16 products, so that they are faster than float32's."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return False


def autocast(precision: str, device: torch.device) -> Callable[[], AbstractContextManager[Any]]:
    """A factory of context managers for ``precision``: ``fp32``, ``bf16``, or ``auto`` (bf16 where `has_bf16`)."""
    if precision == "bf16" or (precision == "auto" and has_bf16(device)):
        # no cache of cast weights: older torch hands one that was made without gradients to a pass that needs them
        return lambda: torch.autocast(device.type, torch.bfloat16, cache_enabled=False)
    return nullcontext


def sampler_name(model: Any, precision: str) -> str:
    """What a protocol says of a model's sampler, and in which arithmetic ``precision`` is on its device."""
    name = str(model.sampler_name)
    return name if autocast(precision, model.device) is nullcontext else f"{name} in bfloat16"
