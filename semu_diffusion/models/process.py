r"""The noising process of a model: how a clean sample is noised, what the network predicts, how far its errors move the image.

`Ddpm` (Ho et al. 2020)      x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps,   t in 0..T-1; the network predicts eps, v or x_0.
`RectifiedFlow` (Liu et al. 2022, Esser et al. 2024)
                             x_t = (1 - sigma) x_0 + sigma eps,   t = T sigma in (0, T]; the network predicts eps - x_0.

Clean samples and noise are (N, C, H, W), timesteps (N,).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch

from semu_diffusion.gradients import antithetic_timesteps

__all__ = ["CLEAN", "Ddpm", "Process", "RectifiedFlow"]

CLEAN = -1  # the timestep of a DDPM's sample without noise


class Process(Protocol):
    """What an erasure needs to know of a noising process."""

    @property
    def num_timesteps(self) -> int: ...

    def timesteps(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """Timesteps (count,) on the CPU, as the training of the model draws them, in antithetic pairs."""
        ...

    def add_noise(self, x0: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """x_t of clean samples and noise."""
        ...

    def target(self, x0: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """What the network is trained to predict."""
        ...

    def image_weight(self, t: torch.Tensor) -> torch.Tensor:
        """How far an error of the prediction at t moves the predicted x_0, (N,), scaled to mean 1 over all t."""
        ...

    def path(self, steps: int, offset: torch.Tensor) -> torch.Tensor:
        """Timesteps (steps, N) of a sampler, noise first; ``offset`` (N,) in [0, 1) moves a sample's within one step."""
        ...

    def step(
        self, x_t: torch.Tensor, t: torch.Tensor, then: torch.Tensor | None, prediction: torch.Tensor, pixels: bool
    ) -> torch.Tensor:
        """The sample at the timesteps ``then`` (None: clean) that the prediction at t leads to, without fresh noise."""
        ...


@dataclass(frozen=True)
class Ddpm:
    """A DDPM by the schedule of its diffusers scheduler. ``limit`` caps sigma/alpha in `image_weight`."""

    scheduler: Any
    limit: float = 10.0

    @property
    def num_timesteps(self) -> int:
        return int(self.scheduler.config.num_train_timesteps)

    @property
    def predicts(self) -> str:
        """``epsilon``, ``v_prediction`` or ``sample``."""
        return str(self.scheduler.config.prediction_type)

    def timesteps(self, count: int, generator: torch.Generator) -> torch.Tensor:
        return antithetic_timesteps(count, self.num_timesteps, generator)

    def add_noise(self, x0: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.scheduler.add_noise(x0, noise, t)

    def target(self, x0: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """The noise, or v = sqrt(abar) eps - sqrt(1 - abar) x_0 (Salimans and Ho 2022), or x_0."""
        if self.predicts == "epsilon":
            return noise
        return self.scheduler.get_velocity(x0, noise, t) if self.predicts == "v_prediction" else x0

    def image_weight(self, t: torch.Tensor) -> torch.Tensor:
        """An error e moves the predicted x_0 by (sigma_t / alpha_t) e for eps, by sigma_t e for v, by e for x_0 itself.

        The effect of a condition on the noise falls with t about as fast as sigma/alpha grows.
        """
        abar = self.scheduler.alphas_cumprod.to(t.device)
        if self.predicts == "sample":
            weights = torch.ones_like(abar)
        elif self.predicts == "epsilon":
            weights = ((1 - abar) / abar).sqrt().clamp(max=self.limit)
        else:
            weights = (1 - abar).sqrt()
        return (weights / weights.mean())[t]

    def path(self, steps: int, offset: torch.Tensor) -> torch.Tensor:
        width = self.num_timesteps / steps
        moved = (torch.arange(steps)[:, None] + offset[None]) * width
        return (self.num_timesteps - 1 - moved.long()).clamp(min=0)

    def step(
        self,
        x_t: torch.Tensor,
        t: torch.Tensor,
        then: torch.Tensor | None,
        prediction: torch.Tensor,
        pixels: bool,
        fresh: torch.Tensor | None = None,
    ) -> torch.Tensor:
        r"""DDIM (Song et al. 2021, eq. 12 and 16) from t to s = ``then``, down to denoise or up to invert; `CLEAN` has abar 1:

            x_s = sqrt(abar_s) x_0(x_t) + sqrt(1 - abar_s - sigma^2) eps(x_t) + sigma z,

        with sigma = 0, or by fresh noise z with the sigma of eta = 1. On the way down the clean sample is clipped where the
        model's own sampler does so, and eps is that of the unclipped one, as diffusers has it.
        """
        abar = self.scheduler.alphas_cumprod.to(x_t.device)
        abar = torch.cat([abar, abar.new_ones(1)])  # at -1 the last: of a clean sample
        now, later = (_per_sample(abar[one], x_t) for one in (t, torch.full_like(t, CLEAN) if then is None else then))
        clean, noise = self._parts(x_t, prediction, now.sqrt(), (1 - now).sqrt())
        if pixels:
            clean = torch.where(later > now, self._limited(clean), clean)
        if fresh is None:
            return later.sqrt() * clean + (1 - later).sqrt() * noise
        variance = (1 - later) / (1 - now) * (1 - now / later)
        return later.sqrt() * clean + (1 - later - variance).clamp(min=0).sqrt() * noise + variance.sqrt() * fresh

    def _limited(self, clean: torch.Tensor) -> torch.Tensor:
        """The predicted clean sample as the model's sampler clips it, by its own quantile (Imagen) or a fixed range."""
        config = self.scheduler.config
        if config.get("thresholding", False):
            sizes = torch.quantile(clean.float().abs().flatten(1), config.dynamic_thresholding_ratio, dim=1)
            bound = _per_sample(sizes.clamp(1, config.sample_max_value), clean)
            return clean.clamp(-bound, bound) / bound
        if config.get("clip_sample", False):
            return clean.clamp(-config.clip_sample_range, config.clip_sample_range)
        return clean

    def _parts(
        self, x_t: torch.Tensor, prediction: torch.Tensor, alpha: torch.Tensor, sigma: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The clean sample and the noise in x_t by a prediction."""
        if self.predicts == "epsilon":
            return (x_t - sigma * prediction) / alpha, prediction
        if self.predicts == "v_prediction":
            return alpha * x_t - sigma * prediction, alpha * prediction + sigma * x_t
        return prediction, torch.where(sigma > 0, x_t - alpha * prediction, 0) / sigma.clamp(min=1e-12)


@dataclass(frozen=True)
class RectifiedFlow:
    """A flow as diffusers' FlowMatchEulerDiscreteScheduler has it: ``shift`` s moves sigma to s sigma / (1 + (s - 1) sigma)."""

    num_timesteps: int = 1000
    shift: float = 1.0

    def sigmas(self, t: torch.Tensor) -> torch.Tensor:
        """sigma = t / T, (N,) float32; the shift is in t already."""
        return t.float() / self.num_timesteps

    def timesteps(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """T times the shifted sigma of uniform numbers u and 1 - u."""
        half = torch.rand((count + 1) // 2, generator=generator)
        uniform = torch.cat([half, 1 - half])[:count]
        return self.num_timesteps * self.shift * uniform / (1 + (self.shift - 1) * uniform)

    def add_noise(self, x0: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        sigma = _per_sample(self.sigmas(t), x0)
        return (1 - sigma) * x0 + sigma * noise

    def target(self, x0: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """The velocity dx/dsigma = eps - x_0, the same at every t."""
        return noise - x0

    def image_weight(self, t: torch.Tensor) -> torch.Tensor:
        """x_0 = x_t - sigma v: an error e moves it by sigma e. The mean of sigma over uniform u is 1/2 without shift."""
        u = (torch.arange(1000, device=t.device) + 0.5) / 1000
        mean = (self.shift * u / (1 + (self.shift - 1) * u)).mean()
        return self.sigmas(t) / mean

    def path(self, steps: int, offset: torch.Tensor) -> torch.Tensor:
        uniform = 1 - (torch.arange(steps)[:, None] + offset[None]) / steps
        return self.num_timesteps * self.shift * uniform / (1 + (self.shift - 1) * uniform)

    def step(
        self, x_t: torch.Tensor, t: torch.Tensor, then: torch.Tensor | None, prediction: torch.Tensor, pixels: bool
    ) -> torch.Tensor:
        """Euler: x + (sigma' - sigma) v."""
        later = torch.zeros_like(t, dtype=torch.float32) if then is None else self.sigmas(then)
        return x_t + _per_sample(later - self.sigmas(t), x_t) * prediction


def _per_sample(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return values.to(like).view(-1, *[1] * (like.ndim - 1))
