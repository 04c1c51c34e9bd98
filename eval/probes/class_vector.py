"""Revival of a class by a vector in place of a row of the class embedding, from the null class's vector."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from semu_diffusion.eval.probes.revival import Attached, Learning, RevivalProbe, Shown, WithVector, frozen
from semu_diffusion.models.class_conditional import ClassConditional

__all__ = ["ClassVectorProbe", "injected_class"]


class ClassVectorProbe(RevivalProbe):
    """Learns the class vector under which the model denoises images of an erased class best."""

    name = "class-vector"
    default = Learning(steps=150, lr=3e-2, batch_size=32)

    @staticmethod
    def applies(model: Any) -> bool:
        return isinstance(model, ClassConditional) and model.conditional

    def start(self, model: Any, shown: Shown) -> tuple[torch.Tensor, float]:
        """The null class's vector, or the mean of the other classes' if there is no null class; the unit is 1."""
        kept = [row for row in range(len(model.names)) if row != model.row(shown.name)]
        rows = kept if model.null is None else [model.null]
        return model.condition_vectors(torch.tensor(rows)).float().mean(dim=0), 1.0

    @contextmanager
    def attached(self, model: Any, shown: Shown, vector: torch.Tensor) -> Iterator[Attached]:
        how, scale = self.learning, 1.0 if model.null is None else self.learning.guidance_scale

        def sample(seeds: Sequence[int]) -> Iterator[torch.Tensor]:
            yield from model.sample([label] * len(seeds), seeds, how.sampling_steps, scale, how.sample_batch_size)

        with injected_class(model, vector) as label:
            yield Attached(lambda chosen: torch.full((len(chosen),), label, device=model.device), sample)


@contextmanager
def injected_class(model: ClassConditional, vector: torch.Tensor) -> Iterator[int]:
    """Inside, the model is frozen and the yielded label stands for the class vector ``vector`` (D,); others are as before.

    On leaving, also by an exception, the model is as it was: embedding, ``requires_grad``, ``.grad`` and the mode of every
    module.
    """
    places = model.class_embeddings
    embeddings = [getattr(module, name) for module, name in places]
    with frozen(model.denoiser):
        try:
            for (module, name), embedding, part in zip(places, embeddings, model.vector_parts, strict=True):
                setattr(module, name, WithVector(embedding, vector, part=part).eval())
            yield embeddings[0].num_embeddings
        finally:
            for (module, name), embedding in zip(places, embeddings, strict=True):
                setattr(module, name, embedding)
