"""What the training of R minimises: the forget term and the retain term of one step, which draw their own batches."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import torch

from semu_diffusion.erase.adversary import Adversary
from semu_diffusion.erase.config import TrainingConfig
from semu_diffusion.erase.samples import noisy, protected_conditions, trains_unlabelled
from semu_diffusion.erase.task import Images
from semu_diffusion.models.base import DiffusionModel
from semu_diffusion.objectives import NoisyBatch, Predict, denoising, gradient_ascent, other_class, relabel

__all__ = ["ErasureLoss"]


class ErasureLoss:
    """The loss of one training step by its number, in named parts: ``forget``, and ``retain`` if there is a retain set.

    ``original`` is what the unedited model predicts; ``anchors`` maps erased rows to those that replace them; ``precision``
    is a factory of autocast contexts. Every draw is the generator's.
    """

    def __init__(
        self,
        model: DiffusionModel,
        config: TrainingConfig,
        target: str,
        original: Predict,
        forget_set: Images,
        retain_set: Images | None,
        anchors: Mapping[int, int],
        kept: Sequence[int],
        precision: Callable,
        generator: torch.Generator,
    ) -> None:
        self.model, self.config, self.target, self.original = model, config, target, original
        self.forget_set = forget_set
        self.retain_set = retain_set if config.retain != "none" else None
        self.precision, self.generator = precision, generator
        self.allowed = torch.tensor(list(kept) or [0])
        table = torch.zeros(max(len(model.names), 1), dtype=torch.long)
        for erased, anchor in anchors.items():
            table[erased] = anchor
        self.anchor_of = table.to(model.device)
        rows = sorted({*anchors, *kept, *forget_set.labels.unique().tolist()})
        self.adversary = Adversary(model, rows, config.adversarial, generator) if config.adversarial else None

    def __call__(self, step: int) -> Mapping[str, torch.Tensor]:
        batch = self._forget_batch()
        parts: dict[str, torch.Tensor] = {}
        with self.precision():
            if self.adversary is not None:
                batch = dataclasses.replace(batch, condition=self.adversary.mix(batch, batch.condition))
            objective = gradient_ascent if self.target == "ascent" else relabel
            original = self.model.predict if self.config.moving_target else self.original
            parts["forget"] = objective(self.model.predict, original, batch)
            if self.retain_set is not None:
                parts["retain"] = self.config.retain_weight * self._retain(self.retain_set)
        return parts

    def _forget_batch(self) -> NoisyBatch:
        """Forget images with what they are to be answered with; a share of them without a condition."""
        model, config = self.model, self.config
        images, labels = self.forget_set.draw(config.batch_size, self.generator)
        batch = noisy(model, images, labels, self.generator)
        condition, anchor = labels.clone(), self._anchors(labels)
        dropped = self._dropped(labels)
        if dropped is not None and model.null is not None:
            condition[dropped] = anchor[dropped] = model.null
        overshoot: float | torch.Tensor = config.overshoot
        base: torch.Tensor | None = None
        unlabelled = round(config.unlabelled * len(labels)) if trains_unlabelled(model, config) else 0
        if unlabelled and model.null is not None:
            condition[:unlabelled] = model.null
            base = anchor.clone()
            base[:unlabelled] = model.null
            overshoot = torch.full((len(labels),), config.overshoot)
            overshoot[:unlabelled] = config.unlabelled_shift
        away = labels if config.overshoot or base is not None else None
        return NoisyBatch(batch.x_t, batch.t, condition, batch.target, anchor, self._weight(batch), away, overshoot, base)

    def _anchors(self, labels: torch.Tensor) -> torch.Tensor:
        if self.target == "unconditional":
            return torch.full_like(labels, self.model.null)  # type: ignore[arg-type]
        if self.target == "random":
            return other_class(labels, self.allowed, self.generator)
        return self.anchor_of[labels]

    def _dropped(self, labels: torch.Tensor) -> torch.Tensor | None:
        """Which of the labels are dropped, as the reference code does on both sides; None without a null row."""
        if not self.config.label_drop or self.model.null is None:
            return None
        return (torch.rand(len(labels), generator=self.generator) < self.config.label_drop).to(labels.device)

    def _weight(self, batch: NoisyBatch) -> torch.Tensor | None:
        return self.model.process.image_weight(batch.t) if self.config.weighting == "image" else None

    def _retain(self, retain_set: Images) -> torch.Tensor:
        """Images that the model made say no more than the model does: keep its predictions, which have no noise in them."""
        model = self.model
        images, labels = retain_set.draw(self.config.batch_size, self.generator)
        own = self.config.retain == "self"
        if own:
            labels = protected_conditions(model, labels)
        elif (dropped := self._dropped(labels)) is not None:
            labels = labels.masked_fill(dropped, model.null)  # type: ignore[arg-type]
        batch = noisy(model, images, labels, self.generator)
        if not own:
            return denoising(model.predict, batch)
        same = dataclasses.replace(batch, anchor=batch.condition, weight=self._weight(batch))
        return relabel(model.predict, self.original, same)
