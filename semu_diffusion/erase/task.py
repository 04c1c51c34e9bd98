"""What is to be erased, and what an erasure leaves: the frozen values between its stages."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch

from semu_diffusion.models.base import DiffusionModel

__all__ = ["EditResult", "Images", "Progress", "Protection", "Task"]

Progress = Callable[[str, int, int], None]  # (stage, done, total)
Model = TypeVar("Model", bound=DiffusionModel, covariant=True)


@dataclass(frozen=True)
class Images:
    """Clean samples (N, C, H, W), images in [-1, 1] or latents, with the rows (N,) they belong to."""

    images: torch.Tensor
    labels: torch.Tensor

    def draw(self, count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """``count`` of them with replacement."""
        chosen = torch.randint(0, len(self.images), (count,), generator=generator)
        return self.images[chosen], self.labels[chosen]


@dataclass(frozen=True)
class Task(Generic[Model]):
    """Rows ``forget`` to be erased from ``model``, and rows ``kept`` whose predictions must stay as they are.

    ``target``: fixed, random, unconditional or ascent. ``anchors``: the row that replaces each erased one under ``fixed``;
    None leaves the choice to `second_nearest`. ``forget_set`` and ``retain_set`` are clean samples that were given; the
    model makes those that were not, ``forget_samples`` of each erased row (0: as many as the settings say).
    ``metadata`` goes into the patch; ``anchor_words`` says what replaces each concept, for people; ``reworded`` is any
    sentence that names a concept with its anchor instead, None for one that does not.
    """

    model: Model
    forget: list[int]
    kept: list[int]
    target: str
    anchors: Mapping[int, int] | None = None
    forget_set: Images | None = None
    retain_set: Images | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    anchor_words: Mapping[str, str] = field(default_factory=dict)
    forget_samples: int = 0
    reworded: Callable[[str], str | None] = lambda _: None


@dataclass(frozen=True)
class Protection:
    """What the protection took from the update, and what kept inputs still get of it.

    ``gradient_energy_kept``: share of the forget gradient's energy ||G||_F^2 that is left to train in.
    ``response_on_kept``: root mean square of the update's output on kept inputs, relative to the layers' own output there.
    ``energy_covered``: share of the kept inputs' energy inside the protected directions, in the layer where it is least.
    Both are measured on kept images that were held out of those that made the directions.
    ``by_layer``: the three for every layer. The last two are None without protection.
    """

    gradient_energy_kept: float
    response_on_kept: float | None
    energy_covered: float | None
    by_layer: Mapping[str, Mapping[str, float | None]]


@dataclass(frozen=True)
class EditResult:
    """An edit (a patch, for our own method), the row that replaces each erased one, the protection's figures if there is
    one, and what each stage cost: seconds, and image passes of the denoiser (see `Meter`)."""

    edit: Any
    anchors: Mapping[int, int]
    protection: Protection | None
    seconds: Mapping[str, float]
    passes: Mapping[str, int] = field(default_factory=dict)
