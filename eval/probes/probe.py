"""What every probe has in common: what it is shown of an erased thing, and how it samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import nn

from semu_diffusion.errors import InputError
from semu_diffusion.eval.judges.judge import Judge
from semu_diffusion.eval.results import Revival
from semu_diffusion.models.base import DiffusionModel

__all__ = ["Kept", "Probe", "Progress", "Sampled", "Shown", "frozen"]

Progress = Callable[[str, int, int], None]


class Probe(Protocol):
    """Something that is tried against an erased model; ``run`` leaves the model exactly as it was.

    ``learns``: it searches a vector for the concept, so that its share is a revival. ``needs``: what `Shown` must hold for
    it, of ``images``, ``kept`` and ``started``. ``seeded``: sample i starts from noise of seed i of ``how``.
    """

    name: ClassVar[str]
    default: ClassVar[Any]
    learns: ClassVar[bool]
    seeded: ClassVar[bool]
    needs: ClassVar[frozenset[str]]

    @property
    def how(self) -> Sampled: ...

    def run(
        self, model: Any, progress: Progress | None = None, samples: dict[str, torch.Tensor] | None = None
    ) -> dict[str, Revival]:
        """By the name of what was erased; {} for a model on which it cannot be tried.

        ``samples`` takes the images that were counted, uint8 (N, C, H, W), by the same names.
        """


@dataclass(frozen=True)
class Kept:
    """Clean samples (N, C, h, w) of what is kept, for the control: the condition of each, and what a judge must see in it."""

    clean: torch.Tensor
    conditions: tuple[str, ...]
    answers: tuple[str, ...]
    judge: Judge


@dataclass(frozen=True)
class Shown:
    """What the probes know of the erased ``name``: clean samples (N, C, h, w), and the judge that knows it by that name.

    ``conditions``: the class or prompts that ask for it, sample i being of condition i modulo their number. ``sentences[i]``
    is the prompt of sample i with ``{}`` for the concept, for a model of words. ``source`` says whence the samples come.
    ``started``: samples of the original under the conditions, part of the way, at the timestep of `completion.first_steps`.
    """

    name: str
    judge: Judge
    clean: torch.Tensor | None = None
    sentences: tuple[str, ...] = ()
    source: str = "made by the original model"
    conditions: tuple[str, ...] = ()
    started: torch.Tensor | None = None
    kept: Kept | None = None

    def __post_init__(self) -> None:
        if self.clean is not None and (self.clean.ndim != 4 or len(self.clean) == 0):
            raise InputError(f"revival needs images (N, C, H, W), N > 0, not {tuple(self.clean.shape)}")
        if self.name in self.judge.unjudged:
            raise InputError(f"the judge {self.judge.name} knows no class like {self.name!r}")

    def images(self, model: DiffusionModel) -> torch.Tensor:
        """The clean samples; InputError if they are not the model's."""
        if self.clean is None or tuple(self.clean.shape[1:]) != model.latent_shape:
            found = None if self.clean is None else tuple(self.clean.shape)
            raise InputError(f"revival needs images (N, {model.latent_shape}), not {found}")
        return self.clean

    def rows(self, model: DiffusionModel, count: int) -> list[int]:
        """Rows of the conditions in turn, for ``count`` samples."""
        own = [model.row(condition) for condition in self.conditions]
        return [own[index % len(own)] for index in range(count)]


@dataclass(frozen=True)
class Sampled:
    """How many samples a probe makes, and how: DDIM steps, guidance, the first of the seeds, arithmetic."""

    samples: int = 40
    sampling_steps: int = 20
    guidance_scale: float = 3.0
    seed: int = 0
    precision: str = "fp32"

    def __post_init__(self) -> None:
        if min(self.samples, self.sampling_steps) < 1:
            raise InputError("a probe needs at least one sample and one sampling step")

    @property
    def seeds(self) -> range:
        """Those of the samples that are counted."""
        return range(self.seed, self.seed + self.samples)


def guided_passes(model: DiffusionModel, guidance_scale: float) -> int:
    """Image passes of the denoiser for one step of one sample."""
    return 2 if model.guided_by_null and guidance_scale != 1 else 1


def seen(judge: Judge, images: torch.Tensor, answers: Sequence[str]) -> float:
    """Share of the images in which the judge sees their own answer."""
    wanted = torch.tensor([judge.class_names.index(answer) for answer in answers])
    return float((judge.predict(images).cpu() == wanted).double().mean())


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
