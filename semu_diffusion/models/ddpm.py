"""The class-conditional family: DDPMs whose denoiser is a UNet2DModel, conditioned on a class index or on nothing.

This adapter is all that the rest of the package knows of the family: how an image is noised, what the network
predicts, how it is guided and sampled. `semu_diffusion.models.checkpoints` finds the files of such a model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import torch
from diffusers import UNet2DModel

from semu_diffusion.errors import InputError
from semu_diffusion.models.base import DiffusionModel
from semu_diffusion.models.pipeline import ClassConditionalPipeline
from semu_diffusion.models.sampling import in_pieces

__all__ = ["ClassConditional"]


@dataclass(frozen=True)
class ClassConditional(DiffusionModel):
    """A class-conditional (or unconditional) DDPM and what its classes are called.

    ``names`` is empty for an unconditional model; ``null`` is None if the model has no "no class" index.
    ``source`` and ``revision`` say where it came from (folder or Hub id, commit).
    """

    pipeline: ClassConditionalPipeline
    names: tuple[str, ...]
    null: int | None
    source: str = ""
    revision: str | None = None

    @property
    def denoiser(self) -> UNet2DModel:
        return self.pipeline.unet

    @property
    def scheduler(self) -> Any:
        return self.pipeline.scheduler

    @property
    def conditional(self) -> bool:
        return self.denoiser.config.num_class_embeds is not None

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one image."""
        size = self.denoiser.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        return int(self.denoiser.config.in_channels), int(height), int(width)

    def class_index(self, name: str) -> int:
        """Index of a class given by name or by number; InputError with the nearest names if there is none."""
        if name in self.names:
            return self.names.index(name)
        lowered = {known.lower(): index for index, known in enumerate(self.names)}
        if name.lower() in lowered:
            return lowered[name.lower()]
        if name.isdecimal() and int(name) < len(self.names):
            return int(name)
        near = [self.names[lowered[match]] for match in get_close_matches(name.lower(), lowered, n=3, cutoff=0.5)]
        known = ", ".join(self.names[:20]) + (", …" if len(self.names) > 20 else "")
        hint = f"did you mean {' or '.join(near)}?" if near else f"its classes are {known}"
        raise InputError(f"the model has no class {name!r}: {hint}")

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        return self.image_shape

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        return images

    def decode(self, clean: torch.Tensor) -> torch.Tensor:
        return (clean / 2 + 0.5).clamp(0, 1)

    def predict(self, x_t: torch.Tensor, t: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        """The network's prediction (N, C, H, W) for labels (N,) int64, or for class vectors (N, D) float.

        Class vectors stand in for rows of the class embedding. Labels are ignored by an unconditional model. ``x_t`` is
        cast to the network's dtype, and the prediction has that dtype.
        """
        x_t = x_t.to(self.denoiser.dtype)
        if not self.conditional or labels is None:
            return self.denoiser(x_t, t).sample
        if not labels.is_floating_point():
            return self.denoiser(x_t, t, class_labels=labels).sample
        embedding = self.denoiser.class_embedding
        embedding.forward = lambda _: labels
        try:
            return self.denoiser(x_t, t, class_labels=torch.zeros(len(x_t), dtype=torch.long, device=x_t.device)).sample
        finally:
            del embedding.forward

    def condition_vectors(self, labels: torch.Tensor) -> torch.Tensor:
        """Rows (N, D) of the class embedding for labels (N,), without gradient."""
        return self.denoiser.class_embedding.weight.detach()[labels]

    def sample(
        self,
        labels: Sequence[int] | None,
        seeds: Sequence[int],
        steps: int = 50,
        guidance_scale: float = 3.0,
        batch_size: int = 64,
    ) -> Iterator[torch.Tensor]:
        """As `DiffusionModel.sample`, by the pipeline that users have."""
        self.check_steps(steps)
        scale = 1.0 if self.null is None or not self.conditional else guidance_scale

        def make(rows: list[int] | None, noise: torch.Tensor) -> torch.Tensor:
            shown = dict(getattr(self.pipeline, "_progress_bar_config", {}))
            self.pipeline.set_progress_bar_config(**{**shown, "disable": True})  # it would draw a bar for every few images
            try:
                (images,) = self.pipeline(
                    rows,
                    guidance_scale=scale,
                    num_inference_steps=steps,
                    latents=noise,
                    output_type="pt",
                    batch_size=len(noise),
                    return_dict=False,
                )
            finally:
                self.pipeline.set_progress_bar_config(**shown)
            return images

        rows = None if not self.conditional else labels
        yield from in_pieces(self.denoiser, self.latent_shape, rows, seeds, batch_size, make)

    def sample_latents(
        self,
        labels: Sequence[int] | None,
        seeds: Sequence[int],
        steps: int = 50,
        guidance_scale: float = 3.0,
        batch_size: int = 64,
    ) -> Iterator[torch.Tensor]:
        """The images of `sample` in [-1, 1]."""
        for images in self.sample(labels, seeds, steps, guidance_scale, batch_size):
            yield images * 2 - 1
