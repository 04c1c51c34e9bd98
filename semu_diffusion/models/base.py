"""What every family of diffusion models offers the erasure: noise, predictions, guidance and samples, by condition.

A condition is a row number: a class, or a prompt of a fixed list. `ClassConditional` and `TextConditional` add what each kind
knows, the adapters what only their family does; nothing outside this room asks which of them it has.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from semu_diffusion.errors import InputError
from semu_diffusion.models.process import Ddpm, Process

__all__ = ["DiffusionModel", "Rows"]

Rows = Sequence[int] | None  # of conditions, one a sample; None for a network without any


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
    def scheduler(self) -> Any:
        """The noise schedule of a DDPM, with ``add_noise``, ``get_velocity`` and ``alphas_cumprod``."""
        raise NotImplementedError

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
    def takes_vectors(self) -> bool:
        """Whether a vector of `condition_vectors` is all that the network needs to know of a condition."""
        return self.conditional

    @property
    def name_layers(self) -> list[str]:
        """The linear layers that see nothing but the condition (and the time); [] where a network has none."""
        return []

    def name_inputs(self, labels: torch.Tensor) -> torch.Tensor:
        """Every input (N, n) that the `name_layers` get for these rows, row by row in the same order."""
        raise NotImplementedError("a model without name layers")

    @property
    def device(self) -> torch.device:
        return next(self.denoiser.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.denoiser.parameters()).dtype

    @property
    def process(self) -> Process:
        """How clean samples are noised, and what the network predicts."""
        return Ddpm(self.scheduler)

    @property
    def sampler_name(self) -> str:
        """What samples are made by, as a protocol says it."""
        return "DDIM"

    @property
    def guided_by_null(self) -> bool:
        """Whether guidance is a second prediction, of the null row; else the network has no guidance, or is told of it."""
        return self.conditional and self.null is not None

    @property
    def usual(self) -> Mapping[str, Any]:
        """Settings of an evaluation that this model is usually sampled with, where they differ from others of its kind."""
        return {}

    @property
    def num_timesteps(self) -> int:
        return self.process.num_timesteps

    def row(self, condition: str) -> int:
        """Row of a condition, by its exact name; the empty one is the null row. Raises KeyError for any other."""
        if condition == "" and self.null is not None:
            return self.null
        try:
            return self.names.index(condition)
        except ValueError as error:
            raise KeyError(condition) from error

    def guide(self, conditional: torch.Tensor, unconditional: torch.Tensor, guidance_scale: float) -> torch.Tensor:
        """eps(x_t, null) + w (eps(x_t, c) - eps(x_t, null)) of the two predictions (Ho and Salimans 2022, eq. 6)."""
        return unconditional + guidance_scale * (conditional - unconditional)

    def predict_guided(
        self, x_t: torch.Tensor, t: torch.Tensor, labels: torch.Tensor | None, guidance_scale: float
    ) -> torch.Tensor:
        """As `guide` of the predictions for the labels and the null row; plain prediction for w = 1 or without a null row."""
        if guidance_scale == 1.0 or not self.guided_by_null or labels is None:
            return self.predict(x_t, t, labels)
        assert self.null is not None
        null = torch.full((len(x_t),), self.null, device=x_t.device)
        both = torch.cat([labels, self.condition_vectors(null) if labels.is_floating_point() else null])
        conditional, unconditional = self.predict(torch.cat([x_t, x_t]), torch.cat([t, t]), both).chunk(2)
        return self.guide(conditional, unconditional, guidance_scale)

    @abstractmethod
    def sample_latents(
        self, labels: Rows, seeds: Sequence[int], steps: int = 50, guidance_scale: float = 3.0, batch_size: int = 64
    ) -> Iterator[torch.Tensor]:
        """Batches of clean samples (n, C, H, W) float32 on the CPU; sample i depends on ``seeds[i]`` alone."""

    def sample(
        self, labels: Rows, seeds: Sequence[int], steps: int = 50, guidance_scale: float = 3.0, batch_size: int = 64
    ) -> Iterator[torch.Tensor]:
        """Batches of images in [0, 1], (n, C, H, W) float32 on the CPU; image i depends on ``seeds[i]`` alone.

        ``labels[i]`` is the row of image i (the null row is allowed). ``batch_size`` is how many images are handed out at a
        time.
        """
        for clean in self.sample_latents(labels, seeds, steps, guidance_scale, batch_size):
            yield self.decode(clean)

    def check_steps(self, steps: int) -> None:
        if steps > self.num_timesteps:
            raise InputError(f"{steps} sampling steps, but the model has {self.num_timesteps} timesteps: take fewer")
