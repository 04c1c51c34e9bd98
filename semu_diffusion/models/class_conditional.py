"""The class-conditional family: DDPMs whose denoiser is a UNet2DModel, conditioned on a class index or on nothing.

This adapter is all that the rest of the package knows of the family: how an image is noised, what the network
predicts, how it is guided and sampled. `semu_diffusion.models.loading` finds the files of such a model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

import torch
from diffusers import UNet2DModel

from semu_diffusion.errors import InputError
from semu_diffusion.models.pipeline import ClassConditionalPipeline

__all__ = ["ClassConditional"]


@dataclass(frozen=True)
class ClassConditional:
    """A class-conditional (or unconditional) DDPM and what its classes are called.

    ``class_names`` is empty for an unconditional model; ``null_class`` is None if the model has no "no class" index.
    ``source`` and ``revision`` say where it came from (folder or Hub id, commit).
    """

    pipeline: ClassConditionalPipeline
    class_names: tuple[str, ...]
    null_class: int | None
    source: str = ""
    revision: str | None = None

    @property
    def denoiser(self) -> UNet2DModel:
        return self.pipeline.unet

    @property
    def device(self) -> torch.device:
        return self.denoiser.device

    @property
    def conditional(self) -> bool:
        return self.denoiser.config.num_class_embeds is not None

    @property
    def num_timesteps(self) -> int:
        return int(self.pipeline.scheduler.config.num_train_timesteps)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one image."""
        size = self.denoiser.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        return int(self.denoiser.config.in_channels), int(height), int(width)

    def class_index(self, name: str) -> int:
        """Index of a class given by name or by number; InputError with the nearest names if there is none."""
        if name in self.class_names:
            return self.class_names.index(name)
        lowered = {known.lower(): index for index, known in enumerate(self.class_names)}
        if name.lower() in lowered:
            return lowered[name.lower()]
        if name.isdecimal() and int(name) < len(self.class_names):
            return int(name)
        near = [self.class_names[lowered[match]] for match in get_close_matches(name.lower(), lowered, n=3, cutoff=0.5)]
        known = ", ".join(self.class_names[:20]) + (", …" if len(self.class_names) > 20 else "")
        hint = f"did you mean {' or '.join(near)}?" if near else f"its classes are {known}"
        raise InputError(f"the model has no class {name!r}: {hint}")

    def noised(self, images: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps (Ho et al. 2020, eq. 4); images in [-1, 1], (N, C, H, W)."""
        return self.pipeline.scheduler.add_noise(images, noise, t)

    def training_target(self, images: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """What the network is trained to predict: the noise, or v = sqrt(abar) eps - sqrt(1 - abar) x_0, or x_0."""
        kind = self.pipeline.scheduler.config.prediction_type
        if kind == "epsilon":
            return noise
        return self.pipeline.scheduler.get_velocity(images, noise, t) if kind == "v_prediction" else images

    def image_weight(self, t: torch.Tensor, limit: float = 10.0) -> torch.Tensor:
        """min(sigma_t / alpha_t, limit), scaled to mean 1 over all t: how far an error of the noise moves the image.

        An error e of the noise prediction moves the predicted x_0 by (sigma_t / alpha_t) e. The effect of a class label
        on the noise falls with t about as fast as this grows, so all timesteps that decide the class count alike.
        """
        abar = self.pipeline.scheduler.alphas_cumprod.to(t.device)
        weights = ((1 - abar) / abar).sqrt().clamp(max=limit)
        return (weights / weights.mean())[t]

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

    def class_vectors(self, labels: torch.Tensor) -> torch.Tensor:
        """Rows (N, D) of the class embedding for labels (N,), without gradient."""
        return self.denoiser.class_embedding.weight.detach()[labels]

    def predict_guided(
        self, x_t: torch.Tensor, t: torch.Tensor, labels: torch.Tensor | None, guidance_scale: float
    ) -> torch.Tensor:
        """eps(x_t, null) + w (eps(x_t, c) - eps(x_t, null)); plain prediction for w = 1 or without a null class."""
        if guidance_scale == 1.0 or self.null_class is None or not self.conditional or labels is None:
            return self.predict(x_t, t, labels)
        null = torch.full((len(x_t),), self.null_class, device=x_t.device)
        both = torch.cat([labels, self.class_vectors(null) if labels.is_floating_point() else null])
        conditional, unconditional = self.predict(torch.cat([x_t, x_t]), torch.cat([t, t]), both).chunk(2)
        return unconditional + guidance_scale * (conditional - unconditional)

    def sample(
        self,
        labels: Sequence[int] | None,
        seeds: Sequence[int],
        steps: int = 50,
        guidance_scale: float = 3.0,
        batch_size: int = 64,
    ) -> Iterator[torch.Tensor]:
        """Batches of images in [0, 1], (n, C, H, W) float32 on the CPU; image i depends on ``seeds[i]`` alone.

        ``labels[i]`` is the class of image i (the null class is allowed); None for an unconditional model. ``batch_size``
        is how many images are handed out at a time. The network works on pieces of one fixed size, the last one filled
        up, because libraries choose their kernels by the batch, and with them the last bits of a result.
        """
        labels = None if labels is None or not self.conditional else list(labels)
        if steps > self.num_timesteps:
            raise InputError(f"{steps} sampling steps, but the model has {self.num_timesteps} timesteps: take fewer")
        piece = self._piece
        waiting = torch.empty(0, *self.image_shape)
        for start in range(0, len(seeds), piece):
            part = slice(start, start + piece)
            images = self._sample_piece(labels and labels[part], seeds[part], piece, steps, guidance_scale)
            waiting = torch.cat([waiting, images])
            while len(waiting) >= batch_size:
                yield waiting[:batch_size]
                waiting = waiting[batch_size:]
        if len(waiting):
            yield waiting

    @property
    def _piece(self) -> int:
        """Images sampled together: 64 on an accelerator, 8 on a CPU, fewer of pictures above 64x64."""
        _, height, width = self.image_shape
        most = 8 if self.device.type == "cpu" else 64
        return max(1, min(most, most * 64 * 64 // (height * width)))

    def _sample_piece(
        self, labels: list[int] | None, seeds: Sequence[int], size: int, steps: int, guidance_scale: float
    ) -> torch.Tensor:
        """The images of ``seeds`` (at most ``size`` of them), sampled in a batch of exactly ``size``."""
        filling = size - len(seeds)
        noise = [torch.randn(self.image_shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        training = self.denoiser.training
        self.denoiser.eval()
        try:
            (images,) = self.pipeline(
                None if labels is None else labels + labels[-1:] * filling,
                guidance_scale=1.0 if self.null_class is None or not self.conditional else guidance_scale,
                num_inference_steps=steps,
                latents=torch.stack(noise + noise[-1:] * filling),
                output_type="pt",
                batch_size=size,
                return_dict=False,
            )
        finally:
            self.denoiser.train(training)
        return images[: len(seeds)].cpu()
