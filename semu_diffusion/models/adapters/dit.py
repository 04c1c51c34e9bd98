"""DiT (Peebles and Xie 2023): a class-conditional transformer on latents, noised as a DDPM, with ImageNet's classes."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import DiTTransformer2DModel
from torch import nn

from semu_diffusion.errors import InputError
from semu_diffusion.models.adapters.latents import LatentModel, check_components
from semu_diffusion.models.class_conditional import ClassConditional
from semu_diffusion.models.class_names import NO_NULL, class_names
from semu_diffusion.models.guards import check_network, check_parts, sides, with_plain_network
from semu_diffusion.models.sampling import ddim, noise_schedule, set_steps

__all__ = ["DiT"]


class DiT(LatentModel, ClassConditional):
    """A DiTPipeline. Every block has a class embedding of its own; the null class is the index after the last class.

    A network that also predicts the variance gives twice the channels: the first half is the noise, and the only half used.
    """

    part = "transformer"
    network = DiTTransformer2DModel

    @classmethod
    def family_of(cls, pipeline: Any) -> str:
        return "dit"

    @classmethod
    def adapt(
        cls,
        pipeline: Any,
        given: Sequence[str] = (),
        null_class: int | None = None,
        source: str = "the pipeline",
        revision: str | None = None,
    ) -> DiT:
        """The adapter of a pipeline in memory: its classes are called as ``given``, else as it calls them itself.

        Raises InputError for a pipeline that cannot be erased from, or names that do not fit it.
        """
        check_components(pipeline, source, "vae", "transformer")
        pipeline = with_plain_network(pipeline, source, cls.part)
        config = pipeline.transformer.config
        check_network(pipeline.transformer, source)
        noise_schedule(_unclipped(pipeline.scheduler.config), source)
        sides(config.sample_size, source)
        takes, gives, latent = config.in_channels, config.out_channels, pipeline.vae.config.latent_channels
        if takes != latent or gives not in (None, takes, 2 * takes):
            raise InputError(f"{source}: the transformer takes {takes} channels, gives {gives}, and a latent has {latent}")
        classes, rows = int(config.num_embeds_ada_norm), _embedders(pipeline.transformer)[0].embedding_table.num_embeddings
        if null_class not in (None, NO_NULL, classes):
            raise InputError(f"--null-class {null_class}: the null class of {source} is {classes}, after its classes")
        own = classes if rows > classes else NO_NULL
        index = {"id2label": pipeline.config.get("id2label") or _names(pipeline, classes), "null_class": own}
        found = class_names(source, rows, tuple(given), index, None)
        pipeline = copy.copy(pipeline)  # the user's own stays as it is
        pipeline.register_to_config(id2label={str(row): name for row, name in found.labels().items()})  # saved with it
        null = None if null_class == NO_NULL or found.null is None else len(found.names)
        model = cls(pipeline, found.names, null, source, revision)
        check_parts(model, source)
        return model

    @property
    def denoiser(self) -> Any:
        return self.pipeline.transformer

    @property
    def null_index(self) -> int | None:
        return self.null

    @property
    def usual(self) -> Mapping[str, Any]:
        return {"images_per_condition": 8, "sampling_precision": "auto"}

    @property
    def class_embeddings(self) -> list[tuple[nn.Module, str]]:
        return [(embedder, "embedding_table") for embedder in _embedders(self.denoiser)]

    def denoise(self, x_t: torch.Tensor, t: torch.Tensor, classes: torch.Tensor | None) -> torch.Tensor:
        return self.denoiser(x_t, t, class_labels=classes).sample[:, : x_t.shape[1]]

    @property
    def name_layers(self) -> list[str]:
        """The modulations by the activated sum of time and class embedding; [] if the blocks' embedders are not all alike."""
        first, *others = (block.norm1.emb.state_dict() for block in self.denoiser.transformer_blocks)
        if not all(torch.equal(value, other[name]) for other in others for name, value in first.items()):
            return []
        return [*(f"transformer_blocks.{place}.norm1.linear" for place in range(1 + len(others))), "proj_out_1"]

    def time_embeddings(self, t: torch.Tensor) -> torch.Tensor:
        embedder = self.denoiser.transformer_blocks[0].norm1.emb
        found: torch.Tensor = embedder.timestep_embedder(embedder.time_proj(t).to(self.dtype))
        return found

    def sampler(self, steps: int) -> Any:
        """DDIM at the pipeline's own timesteps."""
        return set_steps(ddim(_unclipped(self.pipeline.scheduler.config)), steps, self.device)


def _unclipped(config: Mapping[str, Any]) -> dict[str, Any]:
    """A scheduler's config that says of latents that they are not clipped, where it says nothing: DDIM's default clips."""
    return {"clip_sample": False, **config}


def _embedders(transformer: Any) -> list[Any]:
    return [block.norm1.emb.class_embedder for block in transformer.transformer_blocks]


def _names(pipeline: Any, classes: int) -> dict[int, str]:
    """Names by class of ``pipeline.labels``, which has them taken apart at commas; {} if it has none.

    A word that two classes share stands there for one of them, so that the other may have no name but its number.
    """
    words: dict[int, list[str]] = {}
    for word, index in getattr(pipeline, "labels", {}).items():
        words.setdefault(int(index), []).append(word)
    return {index: ", ".join(words.get(index, [str(index)])) for index in range(classes)} if words else {}
