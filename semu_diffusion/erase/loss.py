"""What the training of R minimises: the forget term and the retain term of one step, which draw their own batches."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import torch

from semu_diffusion import distributed
from semu_diffusion.erase.adversary import Adversary, adversarial_share
from semu_diffusion.erase.config import TrainingConfig
from semu_diffusion.erase.pool import Drawn, Source
from semu_diffusion.erase.samples import protected_conditions, trains_unlabelled
from semu_diffusion.models.base import DiffusionModel
from semu_diffusion.objectives import NoisyBatch, Predict, other_class, relabelled, squared_errors

__all__ = ["ErasureLoss"]


class ErasureLoss:
    """The loss of one training step by its number, in named parts: ``forget``, and ``retain`` if there is a retain set.

    ``original`` is what the unedited model predicts; ``anchors`` maps erased rows to those that replace them; ``precision``
    is a factory of autocast contexts; a share of the forget images is shown under the vectors of ``adversary``. Both parts
    go through the network as one batch, of which several processes take a share each. Every draw is the generator's.
    """

    def __init__(
        self,
        model: DiffusionModel,
        config: TrainingConfig,
        target: str,
        original: Predict,
        forget: Source,
        retain: Source | None,
        anchors: Mapping[int, int],
        kept: Sequence[int],
        precision: Callable,
        generator: torch.Generator,
        adversary: Adversary | None = None,
    ) -> None:
        self.model, self.config, self.target = model, config, target
        self.original = original
        self.answers = model.predict if config.moving_target else original  # whose word for the anchor is taken
        self.forget, self.retain = forget, retain if config.retain != "none" else None
        self.precision, self.generator = precision, generator
        self.allowed = torch.tensor(list(kept) or [0])
        table = torch.zeros(max(len(model.names), 1), dtype=torch.long)
        for erased, anchor in anchors.items():
            table[erased] = anchor
        self.anchor_of = table.to(model.device)
        self.adversary = adversary
        unlabelled = round(config.unlabelled * config.batch_size) if trains_unlabelled(model, config) else 0
        asked = round(config.batch_size * adversarial_share(model, config.adversarial)) if adversary else 0
        self.adversarial = min(asked, config.batch_size - unlabelled)  # those without a condition have a target of their own

    def __call__(self, step: int) -> Mapping[str, torch.Tensor]:
        return self.errors(self.draw())

    def draw(self) -> dict[str, NoisyBatch]:
        """The batches of a step, with their targets; the adversary moves on before."""
        with self.precision():
            if self.adversary is not None:
                self.adversary.attack(self.original)
            batches = {"forget": self._forget_batch()}
            if self.retain is not None:
                batches["retain"] = self._retain_batch(self.retain)
        return batches

    def errors(self, batches: Mapping[str, NoisyBatch]) -> dict[str, torch.Tensor]:
        """The terms of the loss on the batches of a step."""
        parts = {name: distributed.part(len(batch.x_t)) for name, batch in batches.items()}
        batches = {name: batch.mine() for name, batch in batches.items()}
        with self.precision():
            predicted = self._predict(list(batches.values())).split([len(batch.x_t) for batch in batches.values()])
            errors = {
                name: parts[name] * squared_errors(one, batch.target, batch.weight)
                for (name, batch), one in zip(batches.items(), predicted, strict=True)
            }
        if self.target == "ascent":
            errors["forget"] = -errors["forget"]
        if "retain" in errors:
            errors["retain"] = self.config.retain_weight * errors["retain"]
        return errors

    def retain_error(self) -> torch.Tensor:
        """The weighted retain term alone, on a batch of its own. Raises ValueError without a retain set."""
        if self.retain is None:
            raise ValueError("there is no retain set")
        batch = self._retain_batch(self.retain)
        return self.config.retain_weight * squared_errors(self._predict([batch]), batch.target, batch.weight)

    def _predict(self, batches: list[NoisyBatch]) -> torch.Tensor:
        conditions = [batch.condition for batch in batches]
        if any(one.is_floating_point() for one in conditions):
            conditions = [one if one.is_floating_point() else self.model.condition_vectors(one) for one in conditions]
        x_t, t = (torch.cat([getattr(batch, name) for batch in batches]) for name in ("x_t", "t"))
        return self.model.predict(x_t, t, torch.cat(conditions))

    def _forget_batch(self) -> NoisyBatch:
        """Forget images, what they are to be answered with, and the conditions under which.

        The first of them are shown without a condition, the last under the adversary's vectors, the rest as what they are.
        """
        config = self.config
        drawn = self.forget.draw(config.batch_size, self.generator)
        batch = dataclasses.replace(drawn.batch, weight=self._weight(drawn.batch))
        if self.target != "ascent":
            batch = self._relabelled(batch, drawn)
        if self.adversary is None or not self.adversarial:
            return batch
        vectors = self.model.condition_vectors(batch.condition)
        return dataclasses.replace(
            batch, condition=torch.cat([vectors[: -self.adversarial], self.adversary.draw(self.adversarial).to(vectors)])
        )

    def _relabelled(self, batch: NoisyBatch, drawn: Drawn) -> NoisyBatch:
        model, config, labels = self.model, self.config, drawn.batch.condition
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
        if away is not None and dropped is not None and model.null is not None:
            away = away.masked_fill(dropped, model.null)  # nothing to go away from where no label is shown
        asked = dataclasses.replace(batch, condition=condition, anchor=anchor, away=away, overshoot=overshoot, base=base)
        return dataclasses.replace(asked, target=relabelled(drawn.recall(self.answers), asked))

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

    def _retain_batch(self, source: Source) -> NoisyBatch:
        """Images that the model made say no more than the model does: keep its predictions, which have no noise in them."""
        drawn = source.draw(self.config.batch_size, self.generator)
        batch = drawn.batch
        if self.config.retain != "self":
            dropped = self._dropped(batch.condition)
            return (
                batch
                if dropped is None
                else dataclasses.replace(batch, condition=batch.condition.masked_fill(dropped, self.model.null))
            )  # type: ignore[arg-type]
        labels = protected_conditions(self.model, batch.condition)
        with torch.no_grad():
            target = drawn.recall(self.original)(batch.x_t, batch.t, labels)
        return dataclasses.replace(batch, condition=labels, target=target, weight=self._weight(batch))
