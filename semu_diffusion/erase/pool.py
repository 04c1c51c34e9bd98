"""Noised samples that a training draws from, and what the original model predicts on them: made once, remembered.

The samples of a `Pool` lie on the model's own sampling paths, where its predictions decide what a picture becomes, and the
passes that made the path are the first of those predictions. `Noised` noises clean samples anew at every draw: for given
pictures, whose noise is the target, and for targets that move while the training goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from semu_diffusion import distributed
from semu_diffusion.erase.samples import noisy
from semu_diffusion.erase.task import Images
from semu_diffusion.models.base import DiffusionModel
from semu_diffusion.models.precision import autocast
from semu_diffusion.models.sampling import piece_size, start_noise
from semu_diffusion.objectives import NoisyBatch, Predict

__all__ = ["Drawn", "Noised", "Pool", "Source", "paths"]


@dataclass(frozen=True)
class Drawn:
    """A noised batch with its labels as condition, and ``recall``: the original's predictions on it, from whatever is known."""

    batch: NoisyBatch
    recall: Callable[[Predict], Predict]


class Source(Protocol):
    """Where noised batches come from."""

    def draw(self, count: int, generator: torch.Generator) -> Drawn:
        """``count`` of them, with replacement."""
        ...

    def spread(self, count: int, generator: torch.Generator) -> Drawn:
        """``count`` different ones, or all there are, in random order."""
        ...


@dataclass(frozen=True)
class Noised:
    """Clean samples, noised anew at every draw; their noise is the batch's target."""

    model: DiffusionModel
    images: Images

    def draw(self, count: int, generator: torch.Generator) -> Drawn:
        images, labels = self.images.draw(count, generator)
        return Drawn(noisy(self.model, images, labels, generator), lambda original: original)

    def spread(self, count: int, generator: torch.Generator) -> Drawn:
        order = torch.randperm(len(self.images.labels), generator=generator)[:count].to(self.images.labels.device)
        images, labels = self.images.images[order], self.images.labels[order]
        return Drawn(noisy(self.model, images, labels, generator), lambda original: original)


@dataclass(frozen=True)
class Pool:
    """Fixed noised samples ``x_t`` (P, C, h, w) at ``t`` (P,) that show the rows ``labels`` (P,).

    ``known`` holds the original's predictions by (sample, row). They are kept where the samples are, in the dtype in which
    they were made: of each sample its own row, its anchor's (with ``--target random`` those that were drawn), the null row.
    """

    x_t: torch.Tensor
    t: torch.Tensor
    labels: torch.Tensor
    known: dict[tuple[int, int], torch.Tensor] = field(default_factory=dict)

    def joined(self, other: Pool, labels: torch.Tensor) -> Pool:
        """This and another, whose samples are shown as the rows ``labels`` (P,), whatever they show."""
        first = len(self.x_t)
        known = {**self.known, **{(first + sample, row): one for (sample, row), one in other.known.items()}}
        x_t, t = torch.cat([self.x_t, other.x_t]), torch.cat([self.t, other.t])
        return Pool(x_t, t, torch.cat([self.labels, labels]), known)

    def draw(self, count: int, generator: torch.Generator) -> Drawn:
        return self.take(torch.randint(0, len(self.x_t), (count,), generator=generator).tolist())

    def spread(self, count: int, generator: torch.Generator) -> Drawn:
        return self.take(torch.randperm(len(self.x_t), generator=generator)[:count].tolist())

    def take(self, index: Sequence[int]) -> Drawn:
        """The samples with these numbers."""
        x_t, t, labels = (values[list(index)] for values in (self.x_t, self.t, self.labels))

        def recall(original: Predict) -> Predict:
            def predict(x: torch.Tensor, times: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
                pairs = list(zip(index, rows.tolist(), strict=True))
                missing = {pair: place for place, pair in enumerate(pairs) if pair not in self.known}
                if missing:
                    self.known.update(zip(missing, _asked(original, x, times, rows, list(missing.values())), strict=True))
                return torch.stack([self.known[pair] for pair in pairs])

            return predict

        return Drawn(NoisyBatch(x_t, t, labels, x_t), recall)


@torch.no_grad()
def paths(
    model: DiffusionModel,
    rows: Sequence[int],
    seeds: Sequence[int],
    steps: int,
    guidance_scale: float,
    precision: str = "auto",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Pool, Images]:
    """The guided sampling path of each of ``rows`` from its seed, as a pool of ``steps`` samples each, and where it ends.

    The pool knows the predictions for the row and for the null row, which guidance needs anyway: 2 passes a sample and step.
    A network that is told how far to guide is told what it is usually told, as in the training that follows.
    Every path's timesteps are moved within one step by a number of its seed, so that together they cover all.
    """
    size = piece_size(model.latent_shape, model.device)

    def walked(start: int) -> tuple[torch.Tensor, ...]:
        return _walk(model, rows[start : start + size], seeds[start : start + size], steps, guidance_scale, precision)

    walks = []
    for walk in distributed.each(range(0, len(rows), size), walked):
        walks.append(walk)
        progress(min(len(walks) * size, len(rows)), len(rows))
    x_t, t, labels, own, ends, *null = (torch.cat(part).to(model.device) for part in zip(*walks, strict=True))
    known = dict(zip(enumerate(labels.tolist()), own, strict=True))
    if null and model.null is not None:
        known |= {(sample, model.null): prediction for sample, prediction in enumerate(null[0])}
    return Pool(x_t, t, labels, known), Images(ends, torch.tensor(list(rows), device=model.device))


def _walk(
    model: DiffusionModel, rows: Sequence[int], seeds: Sequence[int], steps: int, guidance_scale: float, precision: str
) -> tuple[torch.Tensor, ...]:
    """The paths of n samples, step by step: x_t (steps n, C, h, w), t, row and the prediction for it; the n ends (n, C, h, w);
    the predictions for the null row, where guidance needs them."""
    pixels, labels = model.latent_shape == model.image_shape, torch.tensor(list(rows), device=model.device)
    offset = torch.stack([torch.rand((), generator=torch.Generator().manual_seed(seed + 1)) for seed in seeds])
    times = model.process.path(steps, offset).to(model.device)
    x = start_noise(seeds, model.latent_shape).to(model.device)
    found: list[tuple[torch.Tensor, ...]] = []
    for step, t in enumerate(times):
        with autocast(precision, model.device)():
            predictions = _predictions(model, x, t, labels, guidance_scale)
        found.append((x, t, labels, *predictions))
        own, *null = (prediction.float() for prediction in predictions)
        guided = model.guide(own, null[0], guidance_scale) if null else own
        x = model.process.step(x, t, times[step + 1] if step + 1 < steps else None, guided, pixels)
    x_t, t, shown, own, *null = map(torch.cat, zip(*found, strict=True))
    return x_t, t, shown, own, x, *null


def _predictions(
    model: DiffusionModel, x: torch.Tensor, t: torch.Tensor, labels: torch.Tensor, guidance_scale: float
) -> tuple[torch.Tensor, ...]:
    """The predictions for the labels and, where guidance needs it, for the null row."""
    if not model.guided_by_null or guidance_scale == 1.0:
        return (model.predict(x, t, labels),)
    assert model.null is not None
    null = torch.full_like(labels, model.null)
    return model.predict(torch.cat([x, x]), torch.cat([t, t]), torch.cat([labels, null])).chunk(2)


def _asked(
    original: Predict, x: torch.Tensor, t: torch.Tensor, rows: torch.Tensor, places: Sequence[int]
) -> Iterator[torch.Tensor]:
    """What the original says of the samples at these places, one after the other; several processes ask for a share each."""
    count = min(distributed.processes(), len(places))
    shares = [list(places[first::count]) for first in range(count)]
    made = list(distributed.each(shares, lambda some: original(x[some], t[some], rows[some]).detach()))
    for place in range(len(places)):
        yield made[place % count][place // count].to(x.device)


def pooled(source: Noised, count: int, generator: torch.Generator) -> Pool:
    """``count`` draws from given images as a pool: whatever the original says of them is asked once."""
    batch = source.draw(count, generator).batch
    return Pool(batch.x_t, batch.t, batch.condition)
