"""A class-conditional image `DiffusionPipeline`: the interface of diffusers' DiTPipeline over a UNet2DModel.

diffusers' own DDPMPipeline and DDIMPipeline never pass ``class_labels``, so a class-conditional UNet2DModel needs this one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import DDIMScheduler, DiffusionPipeline, ImagePipelineOutput, UNet2DModel
from diffusers.utils.torch_utils import randn_tensor

from semu_diffusion.models.sampling import ddim, set_steps

__all__ = ["ClassConditionalPipeline"]


class ClassConditionalPipeline(DiffusionPipeline):
    """Sample images of given classes with classifier-free guidance.

    Args:
        unet: noise predictor ``(x_t, t, class_labels) -> (N, C, H, W)``.
        scheduler: any diffusers scheduler; DDIM is made from its config for sampling.
        id2label: index of a class's embedding to its name; JSON turns the keys to strings, both are accepted.
        null_class: index of "no class" for guidance; None if the model has none.
    """

    model_cpu_offload_seq = "unet"

    def __init__(
        self,
        unet: UNet2DModel,
        scheduler: Any,
        id2label: dict[int, str] | dict[str, str] | None = None,
        null_class: int | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=ddim(scheduler.config))
        self.register_to_config(id2label={str(k): v for k, v in (id2label or {}).items()}, null_class=null_class)

    @property
    def labels(self) -> dict[str, int]:
        """Class name to class index."""
        return {name: int(index) for index, name in self.config.id2label.items()}

    def get_label_ids(self, label: str | Sequence[str]) -> list[int]:
        """Class indices of one name or several; raises ValueError with the known names for an unknown one."""
        names = [label] if isinstance(label, str) else list(label)
        for name in names:
            if name not in self.labels:
                raise ValueError(f"{name!r} is not a class of this model; it has {', '.join(self.labels)}")
        return [self.labels[name] for name in names]

    def _checked(self, class_labels: Any) -> torch.Tensor:
        """The labels as numbers of embeddings; ValueError for others, which a GPU answers by ending the process."""
        count = getattr(self.unet.class_embedding, "num_embeddings", None)  # None too under a probe: it has more
        hint = f"class_labels {class_labels!r}: give numbers, as pipe.get_label_ids({list(self.labels)[:2]}) makes them"
        if any(isinstance(one, str) for one in class_labels):
            raise ValueError(hint)
        labels = torch.as_tensor(class_labels)
        whole = labels.long()
        if not torch.equal(whole.to(labels.dtype), labels):
            raise ValueError(hint)
        if count is not None and not bool(((whole >= 0) & (whole < count)).all()):
            raise ValueError(f"class_labels {whole.tolist()}: this model has class embeddings 0 to {count - 1}")
        return whole

    @torch.no_grad()
    def __call__(
        self,
        class_labels: Sequence[int] | torch.Tensor | None = None,
        guidance_scale: float = 3.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        num_inference_steps: int = 50,
        output_type: str = "pil",
        return_dict: bool = True,
        batch_size: int = 1,
        latents: torch.Tensor | None = None,
    ) -> ImagePipelineOutput | tuple[Any]:
        r"""DDIM with guidance: ``eps = eps(x, null) + w (eps(x, c) - eps(x, null))`` (Ho and Salimans 2022).

        Args:
            class_labels: N class indices; None for an unconditional model (``batch_size`` images are made).
            guidance_scale: w; 1 is no guidance, and the only value a model without a null class takes.
            generator: one generator, or N of them: with one per image, an image does not depend on its batch.
            latents: ``(N, C, H, W)`` starting noise instead of the generator's.
            num_inference_steps: DDIM steps, at most the number of timesteps the model was trained on.
            output_type: ``"pil"``, ``"np"`` (N, H, W, C in [0, 1]) or ``"pt"`` (N, C, H, W in [0, 1]).
        """
        guided = guidance_scale != 1.0 and class_labels is not None
        if guided and self.config.null_class is None:
            raise ValueError("this model has no null class, so guidance_scale must be 1")
        count = batch_size if class_labels is None else len(class_labels)
        size = self.unet.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        device, dtype = self._execution_device, self.unet.dtype
        if latents is None:
            shape = (count, self.unet.config.in_channels, height, width)
            latents = randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)
        # The image stays in float32 whatever the network computes in: half precision would round it at every step.
        x = latents.to(device=device, dtype=torch.float32).contiguous(memory_format=torch.channels_last)
        labels = None
        if class_labels is not None:
            labels = self._checked(class_labels).to(device)
            if guided:
                labels = torch.cat([labels, torch.full_like(labels, self.config.null_class)])

        # another scheduler may have been put in its place since: some draw noise of their own, or scale the sample otherwise
        own = isinstance(self.scheduler, DDIMScheduler)
        sampler = set_steps(self.scheduler if own else ddim(self.scheduler.config), num_inference_steps, device)
        for t in self.progress_bar(sampler.timesteps):
            inputs = torch.cat([x, x]) if guided else x
            noise_pred = self.unet(inputs.to(dtype), t.expand(len(inputs)), class_labels=labels).sample.float()
            if guided:
                conditional, unconditional = noise_pred.chunk(2)
                noise_pred = unconditional + guidance_scale * (conditional - unconditional)
            x = sampler.step(noise_pred, t, x).prev_sample
        images: Any = (x / 2 + 0.5).clamp(0, 1)
        if output_type != "pt":
            images = images.cpu().permute(0, 2, 3, 1).numpy()
        if output_type == "pil":
            images = self.numpy_to_pil(images)
        return ImagePipelineOutput(images=images) if return_dict else (images,)
