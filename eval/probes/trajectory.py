"""The probes that learn nothing: they only enter or leave the sampler's path, which is `Ddpm.step`'s, at another place."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch

from semu_diffusion.eval.images import to_uint8
from semu_diffusion.eval.probes.probe import Progress, Sampled, Shown, frozen, guided_passes, seen
from semu_diffusion.eval.results import Revival
from semu_diffusion.models.base import DiffusionModel
from semu_diffusion.models.precision import autocast
from semu_diffusion.models.process import Ddpm
from semu_diffusion.models.sampling import piece_size

__all__ = ["TrajectoryProbe", "levels", "travel"]


def levels(model: DiffusionModel, steps: int) -> list[int]:
    """The timesteps of a sampler of ``steps`` steps, noise first, -1 (a clean sample) last: steps + 1 numbers."""
    return [round(model.num_timesteps * (steps - step) / steps) - 1 for step in range(steps + 1)]


@torch.no_grad()
def travel(
    model: DiffusionModel,
    x: torch.Tensor,
    rows: Sequence[int] | None,
    path: Sequence[int],
    guidance_scale: float = 1.0,
    noise: torch.Tensor | None = None,
    scale: float = 1.0,
) -> torch.Tensor:
    """Samples (N, C, h, w) taken from timestep ``path[0]`` to ``path[-1]``, on the CPU, under ``rows`` (None: no condition).

    ``noise`` (steps, N, C, h, w) makes each step stochastic (DDIM with eta 1), times ``scale``.
    """
    given = rows if rows is not None or model.null is None else [model.null] * len(x)
    size, done = piece_size(model.latent_shape, model.device), []
    with frozen(model.denoiser):
        for start in range(0, len(x), size):
            part = slice(start, start + size)
            labels = None if given is None else torch.tensor(list(given[part]), device=model.device)
            drawn = None if noise is None else noise[:, part].to(model.device)
            now = x[part].float().to(model.device)
            for index, (t, s) in enumerate(itertools.pairwise(path)):
                fresh = None if drawn is None else scale * drawn[index]
                now = _step(model, now, labels, t, s, guidance_scale, fresh)
            done.append(now.cpu())
    return torch.cat(done)


def _step(
    model: DiffusionModel, x: torch.Tensor, labels: torch.Tensor | None, t: int, s: int, w: float, noise: torch.Tensor | None
) -> torch.Tensor:
    process = cast(Ddpm, model.process)
    now, then = (torch.full((len(x),), one, device=x.device) for one in (t, s))
    predicted = model.predict_guided(x, now.clamp(min=0), labels, w).float()
    return process.step(x, now, then, predicted, model.latent_shape == model.image_shape, noise)


@dataclass(frozen=True)
class TrajectoryProbe(ABC):
    """Makes samples of each of ``shown`` in a way of its own and counts in how many the judge sees it."""

    shown: tuple[Shown, ...]
    how: Sampled
    name: ClassVar[str]
    default: ClassVar[Sampled] = Sampled()
    learns: ClassVar[bool] = False
    seeded: ClassVar[bool] = True
    labelled: ClassVar[bool] = True  # asked for by its condition, and guided
    needs: ClassVar[frozenset[str]] = frozenset()

    @classmethod
    def applies(cls, model: Any) -> bool:
        """True for a model whose path is DDIM's, and that can be asked for what was erased."""
        return isinstance(model.process, Ddpm) and model.conditional

    @abstractmethod
    def made(self, model: Any, shown: Shown) -> tuple[torch.Tensor, int]:
        """Clean samples (N, C, h, w), at most ``how.samples``, and the image passes that each took."""

    def control(self, model: Any, shown: Shown) -> tuple[float, int] | None:
        """The share of kept images that come back in the same way, and the passes of all; None if there is no such way."""
        return None

    def run(
        self, model: Any, progress: Progress | None = None, samples: dict[str, torch.Tensor] | None = None
    ) -> dict[str, Revival]:
        if not self.applies(model):
            return {}
        found = {}
        with autocast(self.how.precision, model.device)():
            for number, one in enumerate(self.shown, 1):
                clean, each = self.made(model, one)
                images, kept = to_uint8(model.decode(clean)).cpu(), self.control(model, one)
                if samples is not None:
                    samples[one.name] = images
                found[one.name] = Revival(
                    share=seen(one.judge, images, [one.name] * len(images)),
                    samples=len(images),
                    sampling_steps=self.how.sampling_steps,
                    guidance_scale=self.how.guidance_scale if self.labelled and model.null is not None else 1.0,
                    seed=self.how.seed,
                    control=None if kept is None else kept[0],
                    image_passes=each * len(images) + (0 if kept is None else kept[1]),
                )
                if progress is not None:
                    progress(f"probe {self.name}", number, len(self.shown))
        return found

    def passes(self, model: DiffusionModel, steps: int, guidance_scale: float | None = None) -> int:
        """Image passes of ``steps`` steps of one sample."""
        return steps * guided_passes(model, self.how.guidance_scale if guidance_scale is None else guidance_scale)
