r"""Forget and retain losses, each a pure function of tensors and of two predictors: the patched model and the original.

Notation: x_t a noised forget image, c its condition, p the condition it is relabelled to, eps the noise in it. ``sg`` is
no gradient. All losses are means over every element, so their scale does not depend on the image size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from semu_diffusion import distributed

__all__ = ["NoisyBatch", "denoising", "other_class", "relabelled", "squared_errors"]

Predict = Callable[[torch.Tensor, torch.Tensor, Any], torch.Tensor]


@dataclass(frozen=True)
class NoisyBatch:
    """Noised images ``x_t`` (N, C, H, W) at ``t`` (N,), their ``condition``, and what a prediction should be.

    ``condition`` and ``anchor`` are whatever the model's adapter takes (class indices, prompt embeddings). ``target`` is
    the network's training target (the noise, for epsilon-prediction). The rest is for `relabelled`: ``weight`` (N,) weighs the
    images; ``overshoot`` (a number, or (N,)) and ``away`` carry its target on; it starts at ``base``, if that is given.
    """

    x_t: torch.Tensor
    t: torch.Tensor
    condition: Any
    target: torch.Tensor
    anchor: Any = None
    weight: torch.Tensor | None = None
    away: Any = None
    overshoot: float | torch.Tensor = 0.0
    base: Any = None

    def mine(self) -> NoisyBatch:
        """This process's rows of it, with what `squared_errors` needs."""
        rows = distributed.share(len(self.x_t))
        if rows is None:
            return self
        weight = None if self.weight is None else self.weight[rows]
        return NoisyBatch(self.x_t[rows], self.t[rows], self.condition[rows], self.target[rows], weight=weight)


@torch.no_grad()
def relabelled(original: Predict, batch: NoisyBatch) -> torch.Tensor:
    r"""The target of forget images, float32: eps(x_t, t, b) + eta (eps(x_t, t, p) - eps(x_t, t, a)), for the loss

        E w_t ||eps'(x_t, t, c) - sg[eps(x_t, t, b) + eta (eps(x_t, t, p) - eps(x_t, t, a))]||^2

    They are answered as the original would for the base b, and on by eta in the direction from the erased condition a to the
    anchor p. For the erased condition itself b = p: an anchor that looks a little like the erased class is not enough; so too
    for a learned vector that means it. Where c is no condition at all b = c: it loses that part alone.
    """
    anchor = original(batch.x_t, batch.t, batch.anchor).float()
    target = anchor if batch.base is None else original(batch.x_t, batch.t, batch.base).float()
    if batch.away is None:
        return target
    direction = anchor - original(batch.x_t, batch.t, batch.away).float()
    eta = batch.overshoot
    scale = eta if isinstance(eta, float | int) else eta.to(direction).view(-1, *[1] * (direction.ndim - 1))
    return target + scale * direction


def squared_errors(predicted: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | None = None) -> torch.Tensor:
    """Mean over images of w (mean over pixels of (predicted - target)^2), in float32."""
    errors = (predicted.float() - target.float()).square().flatten(1).mean(1)
    return (errors if weight is None else errors * weight).mean()


def denoising(predict: Predict, batch: NoisyBatch) -> torch.Tensor:
    r"""E||eps - eps'(x_t, t, c)||^2: the training loss."""
    return F.mse_loss(predict(batch.x_t, batch.t, batch.condition).float(), batch.target.float())


def other_class(labels: torch.Tensor, allowed: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """For each label one of ``allowed`` (K,), drawn uniformly and independently per sample: "relabel, random"."""
    draw = torch.randint(0, len(allowed), labels.shape, generator=generator)
    return allowed[draw.to(allowed.device)].to(labels)
