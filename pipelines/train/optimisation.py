"""Learning rate, loss weights, attention kernels and averaged weights that the trainings of generative models share."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import torch
    from diffusers.training_utils import EMAModel

__all__ = ["averaged", "cosine_rate", "min_snr_weights", "plain_attention"]

Module = TypeVar("Module", bound="torch.nn.Module")


def cosine_rate(progress: float, config: Any) -> float:
    """Linear from 0 to ``lr`` during the ``warmup``, then half a cosine down to ``final_lr``; ``progress`` in [0, 1]."""
    if progress < config.warmup:
        return config.lr * (progress + 1e-4) / (config.warmup + 1e-4)
    fall = (progress - config.warmup) / (1 - config.warmup)
    return config.final_lr + (config.lr - config.final_lr) * 0.5 * (1 + math.cos(math.pi * fall))


def min_snr_weights(scheduler: Any, t: torch.Tensor, gamma: float) -> torch.Tensor:
    """Loss weights (N,) of Hang et al. 2023: min(SNR, gamma) / SNR for noise, / (SNR + 1) for velocity; 1 if gamma is 0."""
    import torch
    from diffusers.training_utils import compute_snr

    if not gamma:
        return torch.ones(len(t), device=t.device)
    snr = compute_snr(scheduler, t)
    capped = snr.clamp(max=gamma)
    kind = scheduler.config.prediction_type
    return capped if kind == "sample" else capped / (snr + 1 if kind == "v_prediction" else snr)


def plain_attention(network: torch.nn.Module) -> None:
    """Attention as two matrix products: on a CPU the fused kernel's backward pass takes a fifth of a step at a few tokens."""
    from diffusers.models.attention_processor import Attention, AttnProcessor

    for module in network.modules():
        if isinstance(module, Attention):
            module.set_processor(AttnProcessor())


def averaged(model: Module, ema: EMAModel) -> Module:
    """A copy of the network with the averaged weights, on the CPU in half precision."""
    import copy

    found = copy.deepcopy(model)
    ema.copy_to(found.parameters())
    for parameter in found.parameters():
        parameter.data = parameter.data.cpu().half().contiguous()
    return found
