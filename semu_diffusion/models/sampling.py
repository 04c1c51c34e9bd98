"""Samples from one seed each, made in pieces of a fixed size, so that none depends on the batch around it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from diffusers import DDIMScheduler, DDPMScheduler
from torch import nn

from semu_diffusion import distributed

__all__ = ["ddim", "in_pieces", "piece_size", "set_steps", "start_noise"]

DDIM_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")


def ddim(config: Mapping[str, Any], **changes: Any) -> Any:
    """The DDIMScheduler over a scheduler config's noise schedule; betas that only DDPMScheduler can make are handed over."""
    own = config.get("trained_betas") is not None or config.get("beta_schedule") in DDIM_SCHEDULES
    betas = {} if own else {"trained_betas": DDPMScheduler.from_config(dict(config)).betas.tolist()}
    return DDIMScheduler.from_config(dict(config), **betas, **changes)


def set_steps(sampler: Any, steps: int, device: torch.device) -> Any:
    """The DDIMScheduler with its timesteps set, all of them within the schedule."""
    sampler.set_timesteps(steps, device=device)
    beyond = int(sampler.timesteps.max()) - (sampler.config.num_train_timesteps - 1)
    if beyond > 0:
        sampler.timesteps = sampler.timesteps - beyond  # steps_offset moves the first of as many steps as there are timesteps
    return sampler


def start_noise(seeds: Sequence[int], shape: Sequence[int]) -> torch.Tensor:
    """Gaussian noise (N, *shape) on the CPU, row i from ``seeds[i]`` alone."""
    return torch.stack([torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


def in_pieces(
    network: nn.Module,
    shape: Sequence[int],
    rows: Sequence[int] | None,
    seeds: Sequence[int],
    batch_size: int,
    make: Callable[[list[int] | None, torch.Tensor], torch.Tensor],
) -> Iterator[torch.Tensor]:
    """What ``make(rows, noise)`` samples for the seeds, on the CPU, handed out ``batch_size`` at a time.

    The network works, in eval mode, on pieces of one fixed size, the last one filled up, because libraries choose their
    kernels by the batch, and with them the last bits of a result. Several processes share the pieces out.
    """
    piece = piece_size(shape, next(network.parameters()).device)

    def sampled(start: int) -> torch.Tensor:
        part = slice(start, start + piece)
        filling = piece - len(seeds[part])
        noise = start_noise([*seeds[part], *[seeds[part][-1]] * filling], shape)
        asked = None if rows is None else [*rows[part], *[rows[part][-1]] * filling]
        training = network.training
        network.eval()
        try:
            return make(asked, noise)[: piece - filling].cpu()
        finally:
            network.train(training)

    waiting: torch.Tensor | None = None
    for made in distributed.each(range(0, len(seeds), piece), sampled):
        waiting = made if waiting is None else torch.cat([waiting, made])
        while len(waiting) >= batch_size:
            yield waiting[:batch_size]
            waiting = waiting[batch_size:]
    if waiting is not None and len(waiting):
        yield waiting


def piece_size(shape: Sequence[int], device: torch.device) -> int:
    """Samples made together: 64 of 32x32 on an accelerator, fewer of larger ones; on a CPU 8, up to 32 of smaller ones.

    Measured on two cores: a small latent network is nearly twice as fast in 32s as in 8s, one of 32x32 is not faster.
    """
    *_, height, width = shape
    most, room = (32, 8 * 32 * 32) if device.type == "cpu" else (64, 64 * 32 * 32)
    return max(1, min(most, room // (height * width)))
