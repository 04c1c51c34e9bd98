"""What all class-conditional families have in common: classes by name, the null class, vectors in place of classes."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from semu_diffusion.models.base import DiffusionModel
from semu_diffusion.models.class_names import row_of

__all__ = ["ClassConditional"]

TIMES = 32  # timesteps at which a name is read


@dataclass(frozen=True)
class ClassConditional(DiffusionModel):
    """A class-conditional (or unconditional) model and what its classes are called.

    ``names`` is empty for an unconditional model; ``null`` is None if the model has no "no class" index.
    ``source`` and ``revision`` say where it came from (folder or Hub id, commit).
    """

    pipeline: Any
    names: tuple[str, ...]
    null: int | None
    source: str = ""
    revision: str | None = None

    @property
    @abstractmethod
    def null_index(self) -> int | None:
        """The null class's index among the embeddings, None without one."""

    @property
    @abstractmethod
    def class_embeddings(self) -> Sequence[tuple[nn.Module, str]]:
        """(module, attribute) of every embedding of the class in the network; none in an unconditional one."""

    @abstractmethod
    def denoise(self, x_t: torch.Tensor, t: torch.Tensor, classes: torch.Tensor | None) -> torch.Tensor:
        """The network's prediction (N, C, H, W) for the embeddings' indices (N,); None for an unconditional network."""

    @property
    def conditional(self) -> bool:
        return bool(self.class_embeddings)

    def class_index(self, name: str | int) -> int:
        """Row of a class given by name, in any writing, or by number; InputError with the nearest names if there is none."""
        return row_of(name, self.names)

    def embedding_index(self, labels: torch.Tensor) -> torch.Tensor:
        """Index (N,) among the class embeddings of rows (N,); they differ where the null class is not the last embedding.

        Numbers beyond the null row are as they are: a probe may have added embeddings.
        """
        index = self.null_index
        if index is None or self.null is None or index == self.null:
            return labels
        moved = labels + ((labels >= index) & (labels < self.null)).to(labels.dtype)
        return torch.where(labels == self.null, index, moved)

    def predict(self, x_t: torch.Tensor, t: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        """The network's prediction (N, C, H, W) for labels (N,) int64, or for class vectors (N, D) float.

        Class vectors stand in for rows of the class embedding. Labels are ignored by an unconditional model. ``x_t`` is
        cast to the network's dtype, and the prediction has that dtype.
        """
        x_t = x_t.to(self.dtype)
        if not self.conditional or labels is None:
            return self.denoise(x_t, t, None)
        if not labels.is_floating_point():
            return self.denoise(x_t, t, self.embedding_index(labels))
        with self._given(labels):
            return self.denoise(x_t, t, torch.zeros(len(x_t), dtype=torch.long, device=x_t.device))

    @cached_property
    def _alike(self) -> bool:
        """True if all class embeddings are copies of one, as those of DiT's blocks are: then one vector serves them all."""
        first, *others = (getattr(module, name).weight for module, name in self.class_embeddings)
        return all(torch.equal(first, other) for other in others)

    @property
    def vector_parts(self) -> list[slice]:
        """The part of a class vector (D,) that each of `class_embeddings` gets."""
        if self._alike:
            return [slice(None)] * len(self.class_embeddings)
        ends = list(accumulate(getattr(module, name).weight.shape[1] for module, name in self.class_embeddings))
        return [slice(start, end) for start, end in pairwise([0, *ends])]

    def condition_vectors(self, labels: torch.Tensor) -> torch.Tensor:
        """Class embeddings (N, D) of rows (N,), without gradient; those of several different tables side by side."""
        rows = self.embedding_index(labels)
        tables = self.class_embeddings[:1] if self._alike else self.class_embeddings
        return torch.cat([getattr(module, name).weight.detach()[rows] for module, name in tables], dim=-1)

    def time_embeddings(self, t: torch.Tensor) -> torch.Tensor:
        """Time embeddings (N, D) of timesteps (N,), to which the class embedding is added."""
        raise NotImplementedError("a model without name layers")

    def activation(self, embedding: torch.Tensor) -> torch.Tensor:
        """What a block does to the sum of time and class embedding before its name layer."""
        return functional.silu(embedding)

    @torch.no_grad()
    def name_inputs(self, labels: torch.Tensor) -> torch.Tensor:
        """The activated sum of time and class embedding at `TIMES` timesteps, spread evenly, of each row."""
        times = torch.linspace(0, self.num_timesteps - 1, TIMES, device=self.device).round().long()  # learned ones are a table
        return self.activation(self.time_embeddings(times)[None] + self.condition_vectors(labels)[:, None]).flatten(0, 1)

    @contextmanager
    def _given(self, vectors: torch.Tensor) -> Iterator[None]:
        """Inside, the embeddings answer with these vectors, whatever they are asked.

        Blocks with an embedding are not checkpointed meanwhile: the backward pass would compute them anew without the vectors.
        """
        embeddings = [getattr(module, name) for module, name in self.class_embeddings]
        within = any(module is not self.denoiser for module, _ in self.class_embeddings)
        modules: list[Any] = list(self.denoiser.modules()) if within else []
        checkpointed = [module for module in modules if getattr(module, "gradient_checkpointing", False)]
        try:
            for module in checkpointed:
                module.gradient_checkpointing = False
            for embedding, part in zip(embeddings, self.vector_parts, strict=True):
                embedding.forward = partial(_answer, vectors[:, part].to(embedding.weight.dtype))
            yield
        finally:
            for embedding in embeddings:
                embedding.__dict__.pop("forward", None)
            for module in checkpointed:
                module.gradient_checkpointing = True


def _answer(vectors: torch.Tensor, asked: torch.Tensor) -> torch.Tensor:
    return vectors
