"""The phases of an erasure, each measured on a network beside the reference procedure."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice, pairwise
from typing import Any

import torch

from semu_diffusion.erase.closed_form import name_edit
from semu_diffusion.erase.collect import MOMENT_SAMPLES, OBJECTIVE_BATCHES, gradient_rounds, gradient_sketches, kept_moments
from semu_diffusion.erase.meter import Meter
from semu_diffusion.erase.pool import Pool
from semu_diffusion.erase.samples import SELF_MADE_STEPS
from semu_diffusion.erasure import train_patch
from semu_diffusion.gradients import collect_gradients
from semu_diffusion.layers import select_layers
from semu_diffusion.matrices import to_matrices
from semu_diffusion.models.base import DiffusionModel
from semu_diffusion.objectives import NoisyBatch, squared_errors
from semu_diffusion.patches.patched import PatchedLayers
from semu_diffusion.pipelines.cost.config import CostConfig
from semu_diffusion.pipelines.cost.gauge import Gauge, Reading
from semu_diffusion.pipelines.cost.reference import collect_dense, train_rebuilt
from semu_diffusion.pipelines.cost.spectra import Matrices, svd_costs, synthetic
from semu_diffusion.subspace import Subspace

__all__ = ["BATCHES", "CONDITIONS", "Bench", "Row"]

RANK = 8  # of every layer, as the default's maximum
BATCHES = 4  # different ones
CONDITIONS = 4


@dataclass(frozen=True)
class Row:
    """A phase: what one ``unit`` of it costs, ours and the reference's; ``passes`` of the denoiser that ours took for it."""

    phase: str
    unit: str
    ours: Reading
    reference: Reading | None = None
    passes: float = 0
    units: int = 0  # of a default erasure
    details: Mapping[str, Any] = field(default_factory=dict)


class Bench:
    """A network, the layers that an erasure edits by default, noised samples, and a gauge.

    The samples are of random numbers, or those of a `Pool` that lie on the paths of a model that knows something.
    """

    def __init__(
        self, model: DiffusionModel, config: CostConfig, settings: Any, gauge: Gauge, pool: Pool | None = None
    ) -> None:
        self.model, self.config, self.gauge = model, config, gauge
        self._starts: list[float] = []  # of batches
        self.settings = replace(settings, memory=config.memory)
        self.layers = select_layers(model.denoiser, settings.layers)
        self.generator = torch.Generator().manual_seed(config.seed)
        self.pool, self.real = pool or self._noise(BATCHES * config.batch_size), pool is not None
        if config.gradient_checkpointing:
            model.denoiser.enable_gradient_checkpointing()  # type: ignore[operator]
        for step in range(min(config.steps, BATCHES)):
            self._drawn(step)  # the targets are known from now on, so that no phase is charged with them

    def _noise(self, count: int) -> Pool:
        x_t = torch.randn(count, *self.model.latent_shape, generator=self.generator)
        t = self.model.process.timesteps(count, self.generator)
        device = self.model.device
        return Pool(x_t.to(device), t.to(device), torch.arange(count, device=device) % CONDITIONS)

    def loss(self, step: int) -> torch.Tensor:
        """The error of a batch against what the model says of another condition, which is known."""
        self._starts.append(self.gauge.now())
        batch, target = self._drawn(step)
        return squared_errors(self.model.predict(batch.x_t, batch.t, batch.condition), target)

    def asking_loss(self, step: int) -> torch.Tensor:
        """The same of a target that is asked in every step, without gradient, of the model as it then is (SEMU's own code)."""
        self._starts.append(self.gauge.now())
        batch, _ = self._drawn(step)
        target = self._target(batch)
        return squared_errors(self.model.predict(batch.x_t, batch.t, batch.condition), target)

    @torch.no_grad()
    def _target(self, batch: NoisyBatch) -> torch.Tensor:
        return self.model.predict(batch.x_t, batch.t, (batch.condition + 1) % CONDITIONS)

    @torch.no_grad()
    def _drawn(self, step: int) -> tuple[NoisyBatch, torch.Tensor]:
        size = self.config.batch_size
        drawn = self.pool.take([(step % BATCHES * size + place) % len(self.pool.x_t) for place in range(size)])
        batch = drawn.batch
        return batch, drawn.recall(self.model.predict)(batch.x_t, batch.t, (batch.condition + 1) % CONDITIONS)

    def phase(self, name: str, whole: Mapping[str, Any]) -> list[Row]:
        """One phase; none where the network has nothing for it. ``whole``: the edited layers of the uncut network."""
        if name == "subspace":
            return [self.subspace(whole)]
        row = getattr(self, name.replace("-", "_"))()
        return [] if row is None else [row]

    def collect(self) -> Row:
        steps, denoiser = self.config.steps, self.model.denoiser
        rounds = gradient_rounds(self.settings, self.layers)

        def collected(sketched: Mapping[str, bool]) -> None:
            some = {name: self.layers[name] for name in sketched}
            sketches = gradient_sketches(self.settings, some, sketched, {}, self.generator)
            collect_gradients(denoiser, some, range(steps), self.loss, sketches=sketches)

        def ours() -> None:
            for sketched in rounds:
                collected(sketched)

        reading, passes, _ = self._measured(steps, ours, len(rounds))
        reference = self._reference(steps, lambda: collect_dense(denoiser, self.layers, steps, self.loss))
        details = {"rounds": len(rounds), "sketched_layers": sum(sum(one.values()) for one in rounds)}
        return Row("collect", "batch", reading, reference, passes, OBJECTIVE_BATCHES, details)

    def moments(self) -> Row:
        images, rounds = min(MOMENT_SAMPLES, len(self.pool.x_t)), gradient_rounds(self.settings, self.layers)

        def work() -> None:
            for some in rounds:
                layers = {name: self.layers[name] for name in some}
                kept_moments(self.model, self.settings, layers, self.pool, self.generator, None)

        ours, passes, _ = self._measured(images, work)
        return Row("moments", "image", ours, None, passes, MOMENT_SAMPLES, {"rounds": len(rounds)})

    def subspace(self, whole: Mapping[str, Any]) -> Row:
        """Of the layers of the ``whole`` network, which need not be there: synthetic gradients in their shapes.

        Where the model knows something the gradients are its own.
        """
        groups: list[Matrices]
        if self.real:
            made = collect_gradients(self.model.denoiser, self.layers, range(BATCHES), self.loss)
            groups = [Matrices(_sides(one), 1, partial(torch.flatten, one, 1)) for one in made.values()]
        else:
            counts = Counter(_sides(layer.weight) for layer in whole.values())
            device, seed = self.model.device, self.config.seed
            groups = [Matrices((m, n), count, partial(synthetic, m, n, device, seed)) for (m, n), count in counts.items()]
        gamma, rank = self.settings.explained_variance, self.settings.max_rank
        found = svd_costs(groups, gamma, rank, self.gauge, self.config.seconds, self.config.reference)
        details = {"angle": found.angle, "energy": found.energy, "extrapolated_layers": found.extrapolated}
        return Row("subspace", "network", found.ours, found.reference, 0, 1, details)

    def train(self) -> Row:
        steps, denoiser = self.config.steps, self.model.denoiser
        spaces = {name: _random_space(layer.weight, self.generator) for name, layer in self.layers.items()}

        def ours() -> None:
            training = train_patch(PatchedLayers(denoiser, spaces), lambda step: {"forget": self.loss(step - 1)}, steps)
            deque(islice(training, steps), maxlen=0)  # without its end, where the patch reads all weights once

        def asked() -> None:
            for step in range(steps):
                self._starts.append(self.gauge.now())
                self._target(self._drawn(step)[0])

        step, passes, _ = self._measured(steps, ours)
        target, each, _ = self._measured(steps, asked)
        share = targets_asked(self.settings)
        reading = replace(step, seconds=step.seconds + share * target.seconds)
        reference = self._reference(steps, lambda: train_rebuilt(denoiser, self.layers, spaces, steps, self.asking_loss))
        details = {"target_share": share, "target_seconds": target.seconds, "without_target_seconds": step.seconds}
        return Row("train", "step", reading, reference, passes + share * each, self.settings.steps, details)

    def closed_form(self) -> Row | None:
        """One name in closed form; None for a network without layers that see nothing but the condition."""
        if not self.model.name_layers:
            return None
        ours, passes, edit = self._measured(1, lambda: name_edit(self.model, {0: 1}, [2, 3]))
        return Row("closed-form", "name", ours, None, passes, 1, {"layers": len(edit.subspaces)})

    def _measured(self, units: int, work: Callable[[], Any], rounds: int = 1) -> tuple[Reading, int, Any]:
        """The cost of one unit, in all ``rounds``: of batches and steps the quickest, since the first also waits for what is
        made only once."""
        self._starts.clear()
        with Meter(self.model.denoiser) as meter:
            reading, result = self.gauge(work)
        times = [after - before for before, after in pairwise([*self._starts, self.gauge.now()])]
        seconds = sum(min(times[first : first + units]) for first in range(0, units * rounds, units)) if times else None
        passes = sum(meter.passes.values()) // units
        return replace(reading, seconds=reading.seconds / units if seconds is None else seconds), passes, result

    def _reference(self, units: int, work: Callable[[], Any]) -> Reading | None:
        return self._measured(units, work)[0] if self.config.reference else None


def targets_asked(settings: Any) -> float:
    """The share of a training's images for whose target the original is asked, by default settings; the pool knows the rest.

    Of P samples n draws with replacement find P (1 - (1 - 1/P)^n), of which those of collect have been found before. A sample's
    anchor alone is asked, its path knows the other rows; so does the path of the kept images, as many again in a batch.
    """
    pool = settings.forget_samples * SELF_MADE_STEPS
    before, drawn = OBJECTIVE_BATCHES * settings.batch_size, settings.steps * settings.batch_size
    new = pool * ((1 - 1 / pool) ** before - (1 - 1 / pool) ** (before + drawn))
    return new / (drawn * (2 if settings.retain == "self" else 1))


def _sides(weight: torch.Tensor) -> tuple[int, int]:
    return weight.shape[0], weight[0].numel()


def _random_space(weight: torch.Tensor, generator: torch.Generator) -> Subspace:
    """A subspace of rank `RANK` in no particular direction: what it costs to train in does not depend on which it is."""
    m, n = to_matrices(weight)[0].shape
    rank = min(RANK, m, n)
    sides = [torch.linalg.qr(torch.randn(side, rank, generator=generator)).Q.to(weight.device)[None] for side in (m, n)]
    return Subspace(sides[0], sides[1], torch.tensor([rank]), tuple(weight.shape), "full", 1.0, 1.0)
