"""What the training of R minimises: the loss of one step of an erasure, drawing its own batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from semu_diffusion.erase.config import ErasureConfig
from semu_diffusion.erase.samples import Images, moves_unlabelled, noisy, protected_conditions
from semu_diffusion.models.base import DiffusionModel
from semu_diffusion.models.precision import autocast
from semu_diffusion.objectives import NoisyBatch, Predict, denoising, gradient_ascent, other_class, relabel

__all__ = ["second_nearest", "training_loss"]

CANDIDATES = 16  # classes compared by their predictions when an anchor is looked for


def second_nearest(
    model: DiffusionModel, erased: int, kept: Sequence[int], forget_set: Images, generator: torch.Generator
) -> int:
    """The kept class k with the second smallest E w_t ||eps(x_t, t, c) - eps(x_t, t, k)||^2 on noised forget images.

    A far class needs a large update, which is felt elsewhere and is not learned to the end; the nearest needs the smallest
    but may be mistaken for the erased one (a dog for a cat). Of many classes only those with the nearest embeddings are
    compared; of a single one there is no choice.
    """
    rows = model.condition_vectors(torch.tensor([erased, *kept], device=model.device))
    near = (rows[1:] - rows[0]).norm(dim=1).argsort()[:CANDIDATES].tolist()
    images = forget_set.images[forget_set.labels == erased][:32]
    batch = noisy(model, images, torch.full((len(images),), erased, device=model.device), generator)
    weight = model.image_weight(batch.t)
    with torch.no_grad():
        own = model.predict(batch.x_t, batch.t, batch.condition)
        distances = {}
        for k in sorted(kept[i] for i in near):
            other = model.predict(batch.x_t, batch.t, torch.full_like(batch.condition, k))
            distances[k] = float(((own - other).square().flatten(1).mean(1) * weight).mean())
    return sorted(distances, key=lambda k: distances[k])[:2][-1]


def training_loss(
    model: DiffusionModel,
    config: ErasureConfig,
    target: str,
    original: Predict,
    forget_set: Images,
    retain_set: Images | None,
    anchors: Mapping[int, int],
    kept: Sequence[int],
    generator: torch.Generator,
) -> Callable[[int], Mapping[str, torch.Tensor]]:
    """The loss of one training step by its number, in named parts; ``original`` is what the unedited model predicts."""
    precision = autocast(config.precision, model.device)
    allowed = torch.tensor(list(kept) or [0])
    table = torch.zeros(max(len(model.names), 1), dtype=torch.long)
    for erased, anchor in anchors.items():
        table[erased] = anchor
    table = table.to(model.device)
    attack = _Attack(model, config, generator) if config.adversarial else None

    def retain(batch: NoisyBatch) -> torch.Tensor:
        """Images that the model made say no more than the model does: keep its predictions, which have no noise in them."""
        if config.retain != "self":
            return denoising(model.predict, batch)
        weight = model.image_weight(batch.t) if config.weighting == "image" else None
        same = NoisyBatch(batch.x_t, batch.t, batch.condition, batch.target, batch.condition, weight)
        return relabel(model.predict, original, same)

    def loss(step: int) -> Mapping[str, torch.Tensor]:
        images, labels = forget_set.draw(config.batch_size, generator)
        batch = noisy(model, images, labels, generator)
        if target == "unconditional":
            anchor = torch.full_like(labels, model.null)  # type: ignore[arg-type]
        elif target == "random":
            anchor = other_class(labels, allowed, generator)
        else:
            anchor = table[labels]
        condition = labels.clone()
        if config.label_drop and model.null is not None:
            dropped = torch.rand(len(labels), generator=generator) < config.label_drop
            condition[dropped.to(labels.device)] = anchor[dropped.to(labels.device)] = model.null
        overshoot: float | torch.Tensor = config.overshoot
        base: torch.Tensor | None = None
        unlabelled = round(config.unlabelled * len(labels)) if moves_unlabelled(model, config) else 0
        if unlabelled and model.null is not None:
            condition[:unlabelled] = model.null
            base = anchor.clone()
            base[:unlabelled] = model.null
            overshoot = torch.full((len(labels),), config.overshoot)
            overshoot[:unlabelled] = config.unlabelled_shift
        away = labels if config.overshoot or base is not None else None
        parts: dict[str, torch.Tensor] = {}
        with precision():
            if attack is not None:
                condition = attack.mix(batch, condition)
            weight = model.image_weight(batch.t) if config.weighting == "image" else None
            batch = NoisyBatch(batch.x_t, batch.t, condition, batch.target, anchor, weight, away, overshoot, base)
            objective = gradient_ascent if target == "ascent" else relabel
            parts["forget"] = objective(model.predict, model.predict if config.moving_target else original, batch)
            if retain_set is not None and config.retain != "none":
                kept_images, kept_labels = retain_set.draw(config.batch_size, generator)
                if config.retain == "self":
                    kept_labels = protected_conditions(model, kept_labels)
                elif config.label_drop and model.null is not None:
                    dropped = torch.rand(len(kept_labels), generator=generator) < config.label_drop
                    kept_labels = torch.where(dropped.to(kept_labels.device), model.null, kept_labels)
                kept_batch = noisy(model, kept_images, kept_labels, generator)
                parts["retain"] = config.retain_weight * retain(kept_batch)
        return parts

    return loss


class _Attack:
    """Class vectors learned, while training goes on, to bring the erased class back; the erasure is trained on them too.

    Each step moves the vectors it uses by one Adam step down the denoising loss on forget images (the attack that
    `revival` measures), then hands them over as conditions.
    """

    count = 8

    def __init__(self, model: DiffusionModel, config: ErasureConfig, generator: torch.Generator) -> None:
        self.model, self.config, self.generator = model, config, generator
        every = len(model.names) + (model.null is not None)
        rows = model.condition_vectors(torch.arange(every, device=model.device))
        noise = torch.randn(self.count, rows.shape[1], generator=generator).to(rows)
        start = rows[model.null] if model.null is not None else rows.mean(0)
        self.vectors = (start + 0.5 * rows.std(0) * noise).requires_grad_(True)
        self.optimizer = torch.optim.Adam([self.vectors], lr=5e-2)

    def mix(self, batch: NoisyBatch, condition: torch.Tensor) -> torch.Tensor:
        """Conditions (N, D) as class vectors, the last share of them adversarial."""
        share = max(1, round(self.config.adversarial * len(condition)))
        chosen = torch.randint(0, self.count, (share,), generator=self.generator).to(condition.device)
        attacked = NoisyBatch(batch.x_t[-share:], batch.t[-share:], self.vectors[chosen], batch.target[-share:])
        gradient = torch.autograd.grad(denoising(self.model.predict, attacked), self.vectors)[0]
        self.vectors.grad = gradient
        self.optimizer.step()
        vectors = self.model.condition_vectors(condition)
        return torch.cat([vectors[:-share], self.vectors.detach()[chosen]])
