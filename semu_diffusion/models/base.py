"""What every family of diffusion models offers the erasure: noise, predictions, guidance and samples, by condition.

A condition is a row number: a class, or a prompt of a fixed list. `ClassConditional` and `TextConditional` add what only
their family knows; nothing outside this room asks which of them it has.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from semu_diffusion.errors import InputError

__all__ = ["DiffusionModel"]


class DiffusionModel(ABC):
    """A diffusion model conditioned on one of ``len(names)`` rows, on the null row, or on nothing.

    Clean samples x_0 (N, C, H, W) are what the denoiser works on: images in [-1, 1], or latents of variance about 1.
    """

    names: tuple[str, ...]
    null: int | None
    source: str

    @property
    @abstractmethod
    def denoiser(self) -> nn.Module:
        """The network that is edited."""

    @property
    @abstractmethod
    def scheduler(self) -> Any:
        """The noise schedule, with ``add_noise``, ``get_velocity`` and ``alphas_cumprod``."""

    @property
    @abstractmethod
    def conditional(self) -> bool:
        """Whether the network takes a condition at all."""

    @property
    @abstractmethod
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one picture as people see it."""

    @property
    @abstractmethod
    def latent_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of what the denoiser works on."""

    @abstractmethod
    def row(self, condition: str) -> int:
        """Row of a class or prompt, the null row for ""; raises KeyError for a condition that the model does not have."""

    @abstractmethod
    def predict(self, x_t: torch.Tensor, t: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        """The network's prediction (N, C, H, W) for rows (N,) int64, or for condition vectors (N, D) float."""

    @abstractmethod
    def condition_vectors(self, labels: torch.Tensor) -> torch.Tensor:
        """Condition vectors (N, D) of rows (N,), without gradient."""

    @abstractmethod
    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Clean samples of images (N, C, H, W) in [-1, 1]."""

    @abstractmethod
    def decode(self, clean: torch.Tensor) -> torch.Tensor:
        """Images (N, C, H, W) in [0, 1] of clean samples."""

    @property
    def device(self) -> torch.device:
        return next(self.denoiser.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.denoiser.parameters()).dtype

    @property
    def num_timesteps(self) -> int:
        return int(self.scheduler.config.num_train_timesteps)

    def add_noise(self, clean: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps (Ho et al. 2020, eq. 4)."""
        return self.scheduler.add_noise(clean, noise, t)

    def training_target(self, clean: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """What the network is trained to predict: the noise, or v = sqrt(abar) eps - sqrt(1 - abar) x_0, or x_0."""
        kind = self.scheduler.config.prediction_type
        if kind == "epsilon":
            return noise
        return self.scheduler.get_velocity(clean, noise, t) if kind == "v_prediction" else clean

    def image_weight(self, t: torch.Tensor, limit: float = 10.0) -> torch.Tensor:
        """How far an error of the prediction moves the image, scaled to mean 1 over all t.

        An error e of a noise prediction moves the predicted x_0 by (sigma_t / alpha_t) e (at most ``limit`` here), of a
        velocity (x_0 = alpha_t x_t - sigma_t v) by sigma_t e, of x_0 itself by e. The effect of a class label
        on the noise falls with t about as fast as this grows, so all timesteps that decide the class count alike.
        """
        abar = self.scheduler.alphas_cumprod.to(t.device)
        kind = self.scheduler.config.prediction_type
        weights = ((1 - abar) / abar).sqrt().clamp(max=limit) if kind == "epsilon" else (1 - abar).sqrt()
        if kind == "sample":
            weights = torch.ones_like(abar)
        return (weights / weights.mean())[t]

    def predict_guided(
        self, x_t: torch.Tensor, t: torch.Tensor, labels: torch.Tensor | None, guidance_scale: float
    ) -> torch.Tensor:
        """eps(x_t, null) + w (eps(x_t, c) - eps(x_t, null)); plain prediction for w = 1 or without a null row."""
        if guidance_scale == 1.0 or self.null is None or not self.conditional or labels is None:
            return self.predict(x_t, t, labels)
        null = torch.full((len(x_t),), self.null, device=x_t.device)
        both = torch.cat([labels, self.condition_vectors(null) if labels.is_floating_point() else null])
        conditional, unconditional = self.predict(torch.cat([x_t, x_t]), torch.cat([t, t]), both).chunk(2)
        return unconditional + guidance_scale * (conditional - unconditional)

    @abstractmethod
    def sample_latents(
        self,
        labels: Sequence[int] | None,
        seeds: Sequence[int],
        steps: int = 50,
        guidance_scale: float = 3.0,
        batch_size: int = 64,
    ) -> Iterator[torch.Tensor]:
        """Batches of clean samples (n, C, H, W) float32 on the CPU; sample i depends on ``seeds[i]`` alone."""

    def sample(
        self,
        labels: Sequence[int] | None,
        seeds: Sequence[int],
        steps: int = 50,
        guidance_scale: float = 3.0,
        batch_size: int = 64,
    ) -> Iterator[torch.Tensor]:
        """Batches of images in [0, 1], (n, C, H, W) float32 on the CPU; image i depends on ``seeds[i]`` alone.

        ``labels[i]`` is the row of image i (the null row is allowed); None for an unconditional model. ``batch_size``
        is how many images are handed out at a time.
        """
        for clean in self.sample_latents(labels, seeds, steps, guidance_scale, batch_size):
            yield self.decode(clean)

    def _in_pieces(
        self,
        labels: Sequence[int] | None,
        seeds: Sequence[int],
        batch_size: int,
        make: Callable[[list[int] | None, torch.Tensor], torch.Tensor],
    ) -> Iterator[torch.Tensor]:
        """What ``make(labels, noise)`` samples for the seeds, handed out ``batch_size`` at a time.

        The network works on pieces of one fixed size, the last one filled up, because libraries choose their kernels by
        the batch, and with them the last bits of a result.
        """
        labels = None if labels is None or not self.conditional else list(labels)
        piece = self._piece
        waiting: torch.Tensor | None = None
        for start in range(0, len(seeds), piece):
            part = slice(start, start + piece)
            own = [torch.randn(self.latent_shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds[part]]
            filling = piece - len(own)
            rows = None if labels is None else labels[part] + labels[part][-1:] * filling
            training = self.denoiser.training
            self.denoiser.eval()
            try:
                made = make(rows, torch.stack(own + own[-1:] * filling))[: len(own)].cpu()
            finally:
                self.denoiser.train(training)
            waiting = made if waiting is None else torch.cat([waiting, made])
            while len(waiting) >= batch_size:
                yield waiting[:batch_size]
                waiting = waiting[batch_size:]
        if waiting is not None and len(waiting):
            yield waiting

    @property
    def _piece(self) -> int:
        """Samples made together: 64 of 32x32 on an accelerator, fewer of larger ones; on a CPU 8, up to 32 of smaller ones.

        Measured on two cores: a small latent network is nearly twice as fast in 32s as in 8s, one of 32x32 is not faster.
        """
        _, height, width = self.latent_shape
        most, room = (32, 8 * 32 * 32) if self.device.type == "cpu" else (64, 64 * 32 * 32)
        return max(1, min(most, room // (height * width)))

    def check_steps(self, steps: int) -> None:
        if steps > self.num_timesteps:
            raise InputError(f"{steps} sampling steps, but the model has {self.num_timesteps} timesteps: take fewer")
