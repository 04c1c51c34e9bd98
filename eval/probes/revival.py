r"""How deep an erasure goes: what one learned vector brings back.

With the erased model frozen, a vector v in place of a condition is learned on images of what was erased, by Adam, without
guidance:

    min_v  E || eps - eps(x_t, t, v) ||^2        (v-prediction and x_0-prediction models: their own target)

Then samples are made with it, guided against no condition. *Revival* is the share of them in which the judge sees what was
erased. A model that only forgot the word or the label revives fully. What the vector stands for is a probe of its own:
`ClassVectorProbe`, `PseudoWordProbe`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import nn

from semu_diffusion.errors import InputError
from semu_diffusion.eval.judges.judge import Judge
from semu_diffusion.eval.results import Revival
from semu_diffusion.models.base import DiffusionModel
from semu_diffusion.models.precision import autocast

__all__ = ["Attached", "Learning", "Probe", "RevivalProbe", "Shown", "WithVector", "frozen", "learn_vector"]

Progress = Callable[[str, int, int], None]
ENDS = 10  # steps that loss_start and loss_end are means of: one step's loss says more about its timesteps


class Probe(Protocol):
    """Something that is tried against an erased model; ``run`` leaves the model exactly as it was."""

    @property
    def name(self) -> str: ...

    def run(self, model: Any, progress: Progress | None = None) -> dict[str, Revival]:
        """By the name of what was erased; {} for a model on which it cannot be tried."""


@dataclass(frozen=True)
class Shown:
    """What a probe learns from: clean samples (N, C, h, w) of the erased ``name``, and the judge that knows it by that name.

    ``sentences[i]`` is the prompt of sample i with ``{}`` for the concept, for a model of words. ``source`` says whence.
    """

    name: str
    judge: Judge
    clean: torch.Tensor
    sentences: tuple[str, ...] = ()
    source: str = "made by the original model"

    def __post_init__(self) -> None:
        if self.clean.ndim != 4 or len(self.clean) == 0:
            raise InputError(f"revival needs images (N, C, H, W), N > 0, not {tuple(self.clean.shape)}")
        if self.name in self.judge.unjudged:
            raise InputError(f"the judge {self.judge.name} knows no class like {self.name!r}")


@dataclass(frozen=True)
class Learning:
    """How a probe learns, and how many samples with which settings it then makes."""

    steps: int
    lr: float
    batch_size: int
    samples: int = 60
    sampling_steps: int = 50
    guidance_scale: float = 3.0
    seed: int = 0
    precision: str = "fp32"
    sample_batch_size: int = 16

    def __post_init__(self) -> None:
        if min(self.steps, self.batch_size, self.samples) < 1:
            raise InputError("revival needs at least one step, one image in a batch and one sample")


@dataclass(frozen=True)
class Attached:
    """A vector on a model: ``condition`` gives what `DiffusionModel.predict` takes for the samples with these indices,
    ``sample`` batches of images in [0, 1] from these seeds."""

    condition: Callable[[list[int]], torch.Tensor]
    sample: Callable[[Sequence[int]], Iterator[torch.Tensor]]


@dataclass(frozen=True)
class RevivalProbe(ABC):
    """Learns a vector for each of ``shown`` against a model and counts what comes back."""

    shown: tuple[Shown, ...]
    learning: Learning
    name: ClassVar[str]
    default: ClassVar[Learning]

    @staticmethod
    @abstractmethod
    def applies(model: Any) -> bool:
        """True for a model that has such a vector."""

    @abstractmethod
    def start(self, model: Any, shown: Shown) -> tuple[torch.Tensor, float]:
        """The vector (D,) that learning starts from, and the unit of the learning rate."""

    @abstractmethod
    def attached(self, model: Any, shown: Shown, vector: torch.Tensor) -> AbstractContextManager[Attached]:
        """Inside, ``vector`` is on the model; afterwards, also after an exception, the model is as it was."""

    def run(self, model: Any, progress: Progress | None = None) -> dict[str, Revival]:
        if not self.applies(model):
            return {}
        # float16 has no room for the gradients of a learned vector
        precision = "bf16" if model.dtype == torch.float16 else self.learning.precision
        with autocast(precision, model.device)():
            return {one.name: self._revived(model, one, progress) for one in self.shown}

    def _revived(self, model: Any, shown: Shown, progress: Progress | None) -> Revival:
        how = self.learning
        if tuple(shown.clean.shape[1:]) != model.latent_shape:
            raise InputError(f"revival needs images (N, {model.latent_shape}), not {tuple(shown.clean.shape)}")
        vector, unit = self.start(model, shown)
        vector = vector.detach().float().to(model.device, copy=True).requires_grad_(True)
        with self.attached(model, shown, vector) as on:
            losses = learn_vector(model, shown.clean, vector, on.condition, how, unit, progress)
            seen = []
            for batch in on.sample(range(how.seed, how.seed + how.samples)):
                seen.append(shown.judge.sees(batch, shown.name))
                if progress is not None:
                    progress("reviving", sum(map(len, seen)), how.samples)
        return Revival(
            share=float(torch.cat(seen).double().mean()),
            samples=how.samples,
            steps=how.steps,
            lr=how.lr,
            batch_size=how.batch_size,
            sampling_steps=how.sampling_steps,
            guidance_scale=1.0 if model.null is None else how.guidance_scale,
            seed=how.seed,
            training_images=len(shown.clean),
            learned_from=shown.source,
            loss_start=sum(losses[:ENDS]) / len(losses[:ENDS]),
            loss_end=sum(losses[-ENDS:]) / len(losses[-ENDS:]),
        )


def learn_vector(
    model: DiffusionModel,
    clean: torch.Tensor,
    vector: torch.Tensor,
    condition: Callable[[list[int]], torch.Tensor],
    how: Learning,
    unit: float = 1.0,
    progress: Progress | None = None,
) -> list[float]:
    """Change ``vector`` in place so that the model denoises ``clean`` best under ``condition(indices)``; each step's loss.

    Batches, timesteps and noise are drawn with the seed. Gradients flow to the vector alone.
    """
    generator = torch.Generator().manual_seed(how.seed)
    optimizer = torch.optim.Adam([vector], lr=how.lr * unit)
    losses: list[float] = []
    for step in range(how.steps):
        chosen = torch.randint(len(clean), (how.batch_size,), generator=generator)
        t = model.process.timesteps(how.batch_size, generator).to(model.device)
        noise = torch.randn(how.batch_size, *clean.shape[1:], generator=generator).to(model.device)
        x = clean[chosen.to(clean.device)].to(model.device)
        with torch.enable_grad():
            predicted = model.predict(model.process.add_noise(x, noise, t), t, condition(chosen.tolist())).float()
            loss = (predicted - model.process.target(x, noise, t).float()).square().mean()
            (vector.grad,) = torch.autograd.grad(loss, vector)
        optimizer.step()
        losses.append(float(loss.detach()))
        if progress is not None:
            progress("learning a vector", step + 1, how.steps)
    return losses


@contextmanager
def frozen(*networks: nn.Module) -> Iterator[None]:
    """Inside, the networks are in eval mode and no weight asks for a gradient; afterwards all is as it was."""
    modes = [(module, module.training) for network in networks for module in network.modules()]
    flags = [(parameter, parameter.requires_grad) for network in networks for parameter in network.parameters()]
    try:
        for network in networks:
            network.eval().requires_grad_(False)
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        for module, mode in modes:
            module.training = mode


class WithVector(nn.Module):
    """An embedding in which the index ``place``, by default the next after its own, stands for a vector of its own: the
    ``part`` of ``vector`` times ``unit``."""

    def __init__(
        self,
        embedding: nn.Embedding,
        vector: torch.Tensor,
        place: int | None = None,
        part: slice = slice(None),
        unit: float = 1.0,
    ) -> None:
        super().__init__()
        self.embedding = embedding
        self.part, self.unit = part, unit
        self.place = embedding.num_embeddings if place is None else place
        self.vector = vector  # no Parameter: it must not join the model's own

    @property
    def weight(self) -> torch.Tensor:
        """The rows of the embedding proper, which the model's adapter reads."""
        return self.embedding.weight

    def forward(self, labels: torch.Tensor) -> torch.Tensor:
        extra = labels == self.place
        rows = self.embedding(labels.masked_fill(extra, 0))
        vector = self.vector[self.part] * self.unit  # here, not before: the vector changes at every step of learning
        return torch.where(extra[..., None], vector.to(rows.dtype), rows)
