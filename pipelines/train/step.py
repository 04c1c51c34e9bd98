"""What a step of any training is made of: its own random numbers, its batch, the learning rate, the loss of a denoiser."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

__all__ = [
    "batch_indices",
    "cosine_rate",
    "denoising_loss",
    "min_snr_weights",
    "mirrored",
    "plain_attention",
    "signed",
    "step_dropout",
    "step_generator",
]


def step_generator(seed: int, step: int, stream: int = 0, device: torch.device | str = "cpu") -> torch.Generator:
    """The generator of one step on ``device``; ``stream`` tells its users apart."""
    import numpy as np
    import torch

    (number,) = np.random.SeedSequence([seed, step, stream]).generate_state(1, np.uint64)
    return torch.Generator(device).manual_seed(int(number) % 2**63)


@contextmanager
def step_dropout(seed: int, step: int, device: torch.device) -> Iterator[None]:
    """Inside, torch's global generator, which dropout draws from, is that of this step; afterwards it is as it was."""
    import torch

    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(step_generator(seed, step, stream=2).initial_seed())
        yield


def batch_indices(count: int, batch_size: int, seed: int, step: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """Indices (batch_size,) of step ``step``: shuffled epochs in a row, without the incomplete batch at the end of each."""
    batch_size = min(batch_size, count)
    epoch, place = divmod(step, count // batch_size)
    return _order(count, seed, epoch, str(device))[place * batch_size : (place + 1) * batch_size]


@lru_cache(maxsize=1)
def _order(count: int, seed: int, epoch: int, device: str) -> torch.Tensor:
    """The permutation (count,) of an epoch; drawn on the CPU, so that every device shows the images in the same order."""
    import torch

    return torch.randperm(count, generator=step_generator(seed, epoch, stream=1)).to(device)


def mirrored(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Each image (N, C, H, W) mirrored left to right with probability one half."""
    import torch

    chosen = torch.rand(len(images), generator=generator, device=images.device) < 0.5
    return torch.where(chosen[:, None, None, None], images.flip(3), images)


def signed(images: torch.Tensor) -> torch.Tensor:
    """uint8 images as float32 in [-1, 1]."""
    return images.float().div(127.5).sub(1)


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


def denoising_loss(
    predict: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    scheduler: Any,
    x0: torch.Tensor,
    min_snr: float,
    generator: torch.Generator,
) -> torch.Tensor:
    """Mean over clean samples x0 (N, C, H, W) of w(t) |predict(x_t, t) - target|^2, averaged over C, H and W.

    t and the noise are the generator's, which lives on the device of ``x0``; w are the `min_snr_weights`.
    """
    import torch

    from semu_diffusion.models.process import Ddpm

    process = Ddpm(scheduler)
    t = torch.randint(0, process.num_timesteps, (len(x0),), generator=generator, device=x0.device)
    noise = torch.randn(x0.shape, generator=generator, device=x0.device)
    predicted = predict(process.add_noise(x0, noise, t), t).float()
    error = (predicted - process.target(x0, noise, t)).square().mean(dim=(1, 2, 3))
    return (min_snr_weights(scheduler, t, min_snr) * error).mean()


def plain_attention(network: torch.nn.Module) -> None:
    """Attention as two matrix products: on a CPU the fused kernel's backward pass takes a fifth of a step at a few tokens."""
    from diffusers.models.attention_processor import Attention, AttnProcessor

    for module in network.modules():
        if isinstance(module, Attention):
            module.set_processor(AttnProcessor())
