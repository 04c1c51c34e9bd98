"""DDPMs on pixels whose denoiser is a UNet2DModel, conditioned on a class index or on nothing.

This adapter is all that the rest of the package knows of the family: how an image is noised, what the network
predicts, how it is guided and sampled. `semu_diffusion.models.checkpoints` finds the files of such a model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from diffusers import DDIMScheduler, UNet2DModel
from diffusers.models.activations import get_activation
from torch import nn

from semu_diffusion.errors import InputError
from semu_diffusion.models.base import Rows
from semu_diffusion.models.class_conditional import ClassConditional
from semu_diffusion.models.class_names import class_names
from semu_diffusion.models.guards import check_network, check_runs, sides, small_sides, with_plain_network
from semu_diffusion.models.pipeline import ClassConditionalPipeline
from semu_diffusion.models.sampling import in_pieces, noise_schedule

__all__ = ["PixelDdpm", "check_unet"]


class PixelDdpm(ClassConditional):
    """A DDPM on pixels, class-conditional or unconditional; the pipeline is a `ClassConditionalPipeline`."""

    part = "unet"
    network = UNet2DModel

    @classmethod
    def family_of(cls, pipeline: Any) -> str:
        return "ddpm"

    @property
    def denoiser(self) -> UNet2DModel:
        return self.pipeline.unet

    @property
    def scheduler(self) -> Any:
        return self.pipeline.scheduler

    @property
    def class_embeddings(self) -> list[tuple[nn.Module, str]]:
        return [] if self.denoiser.config.num_class_embeds is None else [(self.denoiser, "class_embedding")]

    @property
    def null_index(self) -> int | None:
        if self.null is None:
            return None
        own = self.pipeline.config.null_class
        return self.null if own is None else int(own)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one image."""
        return int(self.denoiser.config.in_channels), *sides(self.denoiser.config.sample_size, self.source)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        return self.image_shape

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        return images

    def decode(self, clean: torch.Tensor) -> torch.Tensor:
        return (clean / 2 + 0.5).clamp(0, 1)

    def denoise(self, x_t: torch.Tensor, t: torch.Tensor, classes: torch.Tensor | None) -> torch.Tensor:
        return self.denoiser(x_t, t, class_labels=classes).sample

    @property
    def name_layers(self) -> list[str]:
        """The resnets' projections of the activated sum of time and class embedding."""
        modules = self.denoiser.named_modules() if self.conditional else ()
        return [name for name, module in modules if name.endswith(".time_emb_proj") and isinstance(module, nn.Linear)]

    def time_embeddings(self, t: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.denoiser.time_embedding(self.denoiser.time_proj(t).to(self.dtype))
        return found

    def activation(self, embedding: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = get_activation(self.denoiser.config.act_fn)(embedding)
        return found

    def sample(
        self, labels: Rows, seeds: Sequence[int], steps: int = 50, guidance_scale: float = 3.0, batch_size: int = 64
    ) -> Iterator[torch.Tensor]:
        """As `DiffusionModel.sample`, by the pipeline that users have."""
        self.check_steps(steps)
        scale = 1.0 if self.null is None or not self.conditional else guidance_scale

        def make(rows: list[int] | None, noise: torch.Tensor) -> torch.Tensor:
            shown = dict(getattr(self.pipeline, "_progress_bar_config", {}))
            self.pipeline.set_progress_bar_config(**{**shown, "disable": True})  # it would draw a bar for every few images
            try:
                (images,) = self.pipeline(
                    None if rows is None else self.embedding_index(torch.tensor(rows)),
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
        self, labels: Rows, seeds: Sequence[int], steps: int = 50, guidance_scale: float = 3.0, batch_size: int = 64
    ) -> Iterator[torch.Tensor]:
        """The images of `sample` in [-1, 1]."""
        for images in self.sample(labels, seeds, steps, guidance_scale, batch_size):
            yield images * 2 - 1

    @classmethod
    def adapt(cls, pipeline: Any) -> PixelDdpm:
        """The adapter of a pipeline that is already in memory, with the names of its ``id2label``.

        Raises InputError for a pipeline whose UNet is not supported, or whose names do not fit it.
        """
        if hasattr(pipeline, "vae"):
            raise InputError(
                f"the pipeline is a {type(pipeline).__name__}; erase-class takes a UNet2DModel that works on pixels"
            )
        if pipeline.scheduler is None:
            raise InputError("the pipeline has no scheduler, so its noise schedule is unknown")
        pipeline = with_plain_network(pipeline, "the pipeline", cls.part)
        check_network(pipeline.unet, "the pipeline")
        check_unet(pipeline.unet, "the pipeline")
        noise_schedule(pipeline.scheduler.config, "the pipeline")
        saved = {name: pipeline.config.get(name) for name in ("id2label", "null_class")}
        found = class_names("the pipeline", pipeline.unet.config.num_class_embeds, (), saved, None)
        ours = isinstance(pipeline, ClassConditionalPipeline) and isinstance(pipeline.scheduler, DDIMScheduler)
        if not ours or saved["null_class"] != found.null:
            pipeline = ClassConditionalPipeline(pipeline.unet, pipeline.scheduler, found.labels(), found.null)
        return cls(pipeline, found.names, None if found.null is None else len(found.names))


def check_unet(unet: Any, source: str) -> None:
    """InputError for a network that is no UNet2DModel from a noisy picture to a prediction of its size; it is tried on one."""
    if not isinstance(unet, UNet2DModel):
        raise InputError(f"{source} has a {type(unet).__name__}; erase-class takes a UNet2DModel")
    config, source = unet.config, str(source)
    if config.out_channels == 2 * config.in_channels:
        raise InputError(f"{source}: a UNet that also predicts the variance is not supported")
    if config.out_channels != config.in_channels:
        raise InputError(
            f"{source}: the UNet takes {config.in_channels} channels and gives {config.out_channels}; one is supported that "
            "takes the noisy picture alone, its condition beside it (num_class_embeds)"
        )
    if config.in_channels not in (1, 3):
        raise InputError(f"{source} makes images of {config.in_channels} channels; grey (1) and RGB (3) are supported")
    if config.class_embed_type is not None:
        raise InputError(f"{source}: class_embed_type {config.class_embed_type!r} is not supported, only class indices")
    if config.time_embedding_type == "fourier":
        raise InputError(f"{source}: the UNet is one of score matching (time_embedding_type fourier), no DDPM")
    height, width = sides(config.sample_size, source)
    halvings = 2 ** (len(config.block_out_channels) - 1)
    if height % halvings or width % halvings:
        raise InputError(
            f"{source}: sample_size {height}x{width} does not go through a UNet of {len(config.block_out_channels)} "
            f"resolutions: the sides must be multiples of {halvings}"
        )
    x = torch.zeros(1, config.in_channels, *small_sides((height, width), len(config.block_out_channels)), device=unet.device)
    labels = None if config.num_class_embeds is None else torch.zeros(1, dtype=torch.long, device=unet.device)
    t = torch.ones(1, dtype=torch.long, device=unet.device)
    check_runs(unet, f"{source}: the UNet", lambda: unet(x.to(unet.dtype), t, class_labels=labels).sample, x.shape)
