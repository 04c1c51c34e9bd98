r"""How deep an erasure goes: what a learned vector brings back, one protocol for classes and words.

With the erased model frozen, vectors v_r in place of a condition, one for each restart r, are learned on images of what was
erased that the erasure did not see, by Adam with cosine decay, without guidance:

    min_{v_r}  E  w(t) || eps - eps(x_t, t, v_r) ||^2        (v-prediction and x_0-prediction models: their own target)

with w(t) of `Process.image_weight`, so that the noisy timesteps, where content is decided, count too. All restarts are one
batch: R B images a step. Then a few samples are made with each, guided against no condition, and with the restart in which
the judge sees most of what was erased ``samples`` more from fresh seeds: *revival* is the share of those, so that the choice
does not flatter it. A model that only forgot the word or the label revives fully. What the vector stands for is a probe of
its own: `ClassVectorProbe`, `PseudoWordProbe`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from semu_diffusion.errors import InputError
from semu_diffusion.eval.images import to_uint8
from semu_diffusion.eval.probes.probe import Progress, Sampled, Shown, guided_passes, seen
from semu_diffusion.eval.results import Revival
from semu_diffusion.models.base import DiffusionModel
from semu_diffusion.models.precision import autocast

__all__ = ["Attached", "Learning", "RevivalProbe", "WithVectors", "learn_vectors"]

ENDS = 10  # steps that loss_start and loss_end are means of: one step's loss says more about its timesteps
BACKWARD = 2  # passes that a backward pass counts as


@dataclass(frozen=True)
class Learning(Sampled):
    """How a probe learns: ``batch_size`` images a step for each of ``restarts`` vectors, ``lr`` at the first step in units of
    the embedding's root mean square; and what it then samples, ``screened`` images of each vector to choose by."""

    steps: int = 120
    lr: float = 0.3
    batch_size: int = 16
    restarts: int = 3
    screened: int = 16

    @property
    def seeds(self) -> range:
        """Fresh ones: after those of the samples to choose by."""
        first = self.seed + self.screened
        return range(first, first + self.samples)

    def __post_init__(self) -> None:
        if min(self.steps, self.batch_size, self.samples, self.restarts, self.screened) < 1:
            raise InputError("revival needs at least one step, one restart, one image in a batch and one sample")


@dataclass(frozen=True)
class Attached:
    """Vectors on a model: ``condition(restarts, images)`` gives what `DiffusionModel.predict` takes for those vectors and the
    samples with those indices, ``sample(restarts, seeds)`` batches of images in [0, 1], one of each pair."""

    condition: Callable[[list[int], list[int]], torch.Tensor]
    sample: Callable[[Sequence[int], Sequence[int]], Iterator[torch.Tensor]]


@dataclass(frozen=True)
class RevivalProbe(ABC):
    """Learns vectors for each of ``shown`` against a model and counts what comes back."""

    shown: tuple[Shown, ...]
    how: Learning
    name: ClassVar[str]
    default: ClassVar[Learning]
    learns: ClassVar[bool] = True
    seeded: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"images"})

    @staticmethod
    @abstractmethod
    def applies(model: Any) -> bool:
        """True for a model that has such a vector."""

    @abstractmethod
    def start(self, model: Any, shown: Shown, generator: torch.Generator) -> tuple[torch.Tensor, float]:
        """The vectors (R, D) that learning starts from, and the unit of the learning rate."""

    @abstractmethod
    def attached(self, model: Any, shown: Shown, vectors: torch.Tensor) -> AbstractContextManager[Attached]:
        """Inside, ``vectors`` are on the model; afterwards, also after an exception, the model is as it was."""

    def run(
        self, model: Any, progress: Progress | None = None, samples: dict[str, torch.Tensor] | None = None
    ) -> dict[str, Revival]:
        if not self.applies(model):
            return {}
        if model.dtype == torch.float16 and model.device.type == "cpu":
            raise InputError("no vector is learned for float16 weights on a CPU: load the model in float32 or bfloat16")
        # float16 has no room for the gradients of a learned vector
        precision = "bf16" if model.dtype == torch.float16 else self.how.precision
        with autocast(precision, model.device)():
            return {one.name: self._revived(model, one, progress, {} if samples is None else samples) for one in self.shown}

    def _revived(self, model: Any, shown: Shown, progress: Progress | None, samples: dict[str, torch.Tensor]) -> Revival:
        how, clean = self.how, shown.images(model)
        generator = torch.Generator().manual_seed(how.seed)
        vectors, unit = self.start(model, shown, generator)
        vectors = vectors.detach().float().to(model.device, copy=True).requires_grad_(True)
        restarts = len(vectors)
        with self.attached(model, shown, vectors) as on:
            losses = learn_vectors(model, clean, vectors, on.condition, how, generator, unit, progress)

            def share(images: torch.Tensor) -> float:
                return seen(shown.judge, images, [shown.name] * len(images))

            first = range(how.seed, how.seed + how.screened)
            tried = on.sample([r for r in range(restarts) for _ in first], [seed for _ in range(restarts) for seed in first])
            each = [share(images) for images in torch.cat(list(tried)).split(how.screened)]
            best = max(range(restarts), key=lambda r: (each[r], -r))
            if progress is not None:
                progress("reviving", 1, 2)
            samples[shown.name] = to_uint8(torch.cat(list(on.sample([best] * how.samples, how.seeds)))).cpu()
            if progress is not None:
                progress("reviving", 2, 2)
        sampled = (restarts * how.screened + how.samples) * how.sampling_steps * guided_passes(model, how.guidance_scale)
        return Revival(
            share=share(samples[shown.name]),
            samples=how.samples,
            steps=how.steps,
            lr=how.lr,
            batch_size=how.batch_size,
            sampling_steps=how.sampling_steps,
            guidance_scale=1.0 if model.null is None else how.guidance_scale,
            seed=how.seed,
            training_images=len(clean),
            learned_from=shown.source,
            loss_start=sum(losses[:ENDS]) / len(losses[:ENDS]),
            loss_end=sum(losses[-ENDS:]) / len(losses[-ENDS:]),
            restarts=tuple(each),
            image_passes=how.steps * restarts * how.batch_size * (1 + BACKWARD) + sampled,
        )


def learn_vectors(
    model: DiffusionModel,
    clean: torch.Tensor,
    vectors: torch.Tensor,
    condition: Callable[[list[int], list[int]], torch.Tensor],
    how: Learning,
    generator: torch.Generator,
    unit: float = 1.0,
    progress: Progress | None = None,
) -> list[float]:
    """Change ``vectors`` (R, D) in place so that the model denoises ``clean`` best under ``condition(restarts, indices)``.

    Gives each step's loss, the mean over restarts. Batches, timesteps and noise come from ``generator``; gradients flow to
    the vectors alone.
    """
    count, each = len(vectors), how.batch_size
    optimizer = torch.optim.Adam([vectors], lr=how.lr * unit, betas=(0.9, 0.99))
    owner = [restart for restart in range(count) for _ in range(each)]
    losses: list[torch.Tensor] = []
    for step in range(how.steps):
        optimizer.param_groups[0]["lr"] = how.lr * unit * (1 + math.cos(math.pi * step / how.steps)) / 2
        chosen = torch.randint(len(clean), (count * each,), generator=generator)
        t = torch.cat([model.process.timesteps(each, generator) for _ in range(count)]).to(model.device)
        noise = torch.randn(len(chosen), *clean.shape[1:], generator=generator).to(model.device)
        x = clean[chosen.to(clean.device)].to(model.device)
        with torch.enable_grad():
            predicted = model.predict(model.process.add_noise(x, noise, t), t, condition(owner, chosen.tolist())).float()
            error = (predicted - model.process.target(x, noise, t).float()).square().flatten(1).mean(1)
            loss = (model.process.image_weight(t) * error).view(count, each).mean(1).sum()  # a restart's step is its own
            (vectors.grad,) = torch.autograd.grad(loss, vectors)
        optimizer.step()
        losses.append(loss.detach() / count)  # a number only at the end: an accelerator need not wait
        if progress is not None:
            progress("learning vectors", step + 1, how.steps)
    return torch.stack(losses).tolist()


class WithVectors(nn.Module):
    """An embedding in which the R indices from ``first`` on, by default the next after its own, stand for vectors of their
    own: the ``part`` of each of ``vectors`` (R, D), times ``unit``."""

    def __init__(
        self,
        embedding: nn.Embedding,
        vectors: torch.Tensor,
        first: int | None = None,
        part: slice = slice(None),
        unit: float = 1.0,
    ) -> None:
        super().__init__()
        self.embedding = embedding
        self.part, self.unit = part, unit
        self.first = embedding.num_embeddings if first is None else first
        self.vectors = vectors  # no Parameter: they must not join the model's own

    @property
    def weight(self) -> torch.Tensor:
        """The rows of the embedding proper, which the model's adapter reads."""
        return self.embedding.weight

    def forward(self, labels: torch.Tensor) -> torch.Tensor:
        index = labels - self.first
        extra = (index >= 0) & (index < len(self.vectors))
        rows = self.embedding(labels.masked_fill(extra, 0))
        vectors = self.vectors[:, self.part] * self.unit  # here, not before: they change at every step of learning
        return torch.where(extra[..., None], vectors.to(rows.dtype)[index.clamp(0, len(vectors) - 1)], rows)
