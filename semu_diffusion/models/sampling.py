"""Noise schedules, and samples from one seed each, in pieces of a fixed size, so that none depends on the batch around it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from diffusers import DDIMScheduler, DDPMScheduler
from torch import nn

from semu_diffusion import distributed
from semu_diffusion.errors import InputError
from semu_diffusion.models.guards import refusing, require_finite
from semu_diffusion.patches.modes import evaluating

__all__ = ["count_timesteps", "ddim", "in_pieces", "noise_schedule", "piece_size", "set_steps", "start_noise"]

DDIM_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
PREDICTIONS = ("epsilon", "v_prediction", "sample")
MOST_TIMESTEPS = 100_000


def noise_schedule(config: Mapping[str, Any], source: str, **sampler: Any) -> DDPMScheduler:
    """The noise schedule that a scheduler's config describes, tried by a step of its DDIM sampler (with changes ``sampler``).

    Raises InputError for what is no DDPM's, or cannot be sampled.
    """
    name = config.get("_class_name", "scheduler")
    if "beta_schedule" not in config:
        raise InputError(f"{source}: {name} has no beta_schedule, so the model is no DDPM")
    prediction = config.get("prediction_type", "epsilon")
    if config.get("use_flow_sigmas") or "flow" in str(prediction):
        raise InputError(f"{source}: the scheduler ({name}) is one of flow matching, and the network is a DDPM's")
    if prediction not in PREDICTIONS:
        raise InputError(f"{source}: prediction_type {prediction!r} is not known; it is one of {', '.join(PREDICTIONS)}")
    if config.get("timestep_type") == "continuous":
        raise InputError(f"{source}: timestep_type 'continuous' is EDM's, and only DDPMs are erased from")
    count = count_timesteps(config, source)
    if config.get("rescale_betas_zero_snr") and prediction == "epsilon":
        raise InputError(f"{source}: rescale_betas_zero_snr leaves no signal at the end, where predicted noise tells nothing")
    with refusing(f"{source}: the scheduler's is not the config of a noise schedule"):
        schedule = DDPMScheduler.from_config(dict(config))
        if not bool((schedule.alphas_cumprod >= 0).all() and (schedule.alphas_cumprod <= 1).all()):
            raise ValueError("its betas are none")
        if len(schedule.alphas_cumprod) != count:
            raise ValueError(f"{len(schedule.alphas_cumprod)} betas for {count} timesteps")
        sampled, x = ddim(schedule.config, **sampler), torch.zeros(1, 1, 2, 2)
        for steps in (count, min(count, 20), 1):
            sampled.set_timesteps(steps)
            t = sampled.timesteps - max(int(sampled.timesteps.max()) - count + 1, 0)  # see ClassConditionalPipeline
            if int(t.min()) < 0:
                raise ValueError(f"steps_offset {config.get('steps_offset')!r}")
            for one in t[:20]:
                require_finite(sampled.step(x, int(one), x).prev_sample)
    return schedule


def count_timesteps(config: Mapping[str, Any], source: str) -> int:
    """The timesteps of a scheduler's config. Raises InputError for what is no number of them, or one that no memory holds."""
    count = config.get("num_train_timesteps", 1000)
    if type(count) is not int or not 0 < count <= MOST_TIMESTEPS:
        raise InputError(f"{source}: num_train_timesteps is {count!r}, which is no number of timesteps")
    return count


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
        with evaluating(network):
            return make(asked, noise)[: piece - filling].cpu()

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
