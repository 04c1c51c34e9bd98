"""Revival of a class by a vector in place of a row of the class embedding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from semu_diffusion.eval.probes.probe import Shown, frozen
from semu_diffusion.eval.probes.revival import Attached, Learning, RevivalProbe, WithVectors
from semu_diffusion.models.class_conditional import ClassConditional

__all__ = ["ClassVectorProbe", "injected_classes"]


class ClassVectorProbe(RevivalProbe):
    """Learns class vectors under which the model denoises images of an erased class best."""

    name = "class-vector"
    default = Learning()

    @staticmethod
    def applies(model: Any) -> bool:
        return isinstance(model, ClassConditional) and model.conditional and (len(model.names) > 1 or model.null is not None)

    def start(self, model: Any, shown: Shown, generator: torch.Generator) -> tuple[torch.Tensor, float]:
        """The null class's vector (the mean of the other classes' if there is no null class), then other classes' in turn.

        The order of those is the generator's. The unit is the root mean square of the other classes' vectors. Of a model
        without other classes the starts are around the null class's, one unit of its own apart.
        """
        kept = [row for row, name in enumerate(model.names) if name != shown.name]
        rows = model.condition_vectors(torch.tensor(kept or [model.null])).float()
        unit = float(rows.square().mean().sqrt()) or 1.0
        first = rows.mean(0) if model.null is None else model.condition_vectors(torch.tensor([model.null])).float()[0]
        if not kept:
            around = torch.randn(self.how.restarts - 1, rows.shape[1], generator=generator).to(first)
            return torch.cat([first[None], first + unit * around]), unit
        order = torch.randperm(len(kept), generator=generator)
        others = [rows[order[index % len(kept)]] for index in range(self.how.restarts - 1)]
        return torch.stack([first, *others]), unit

    @contextmanager
    def attached(self, model: Any, shown: Shown, vectors: torch.Tensor) -> Iterator[Attached]:
        how, scale = self.how, 1.0 if model.null is None else self.how.guidance_scale

        def sample(restarts: Sequence[int], seeds: Sequence[int]) -> Iterator[torch.Tensor]:
            yield from model.sample([first + restart for restart in restarts], seeds, how.sampling_steps, scale)

        with injected_classes(model, vectors) as first:
            yield Attached(lambda restarts, _: first + torch.tensor(restarts, device=model.device), sample)


@contextmanager
def injected_classes(model: ClassConditional, vectors: torch.Tensor) -> Iterator[int]:
    """Inside, the model is frozen and labels from the yielded one on stand for the class vectors (R, D); others are as before.

    On leaving, also by an exception, the model is as it was: embedding, ``requires_grad``, ``.grad`` and the mode of every
    module.
    """
    places = model.class_embeddings
    embeddings = [getattr(module, name) for module, name in places]
    with frozen(model.denoiser):
        try:
            for (module, name), embedding, part in zip(places, embeddings, model.vector_parts, strict=True):
                setattr(module, name, WithVectors(embedding, vectors, part=part).eval())
            yield embeddings[0].num_embeddings
        finally:
            for (module, name), embedding in zip(places, embeddings, strict=True):
                setattr(module, name, embedding)
