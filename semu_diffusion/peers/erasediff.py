r"""EraseDiff: keep what is kept, as long as the erased is getting worse.

    min L_r(W)  subject to  g(W) = f(W) - min f <= 0,   f = E || u - eps'(x_t, c, t) ||^2,  u uniform in [0, 1)
    W <- W - lr (grad L_r + lambda grad g),   lambda = max(0, nu - <grad L_r, grad g> / || grad g ||^2)

(Wu et al. 2025, "Erasing Undesirable Influence in Diffusion Models", CVPR, arXiv 2401.05779, after Liu et al. 2022, "BOME!").
The inner minimum moves the value of g alone and not its first-order gradient, which is f's, so it is not looked for. nu is
`RATE`. L_r is the retain term with its setting ``retain_weight`` 1. There: Adam at 1e-4, kept pictures from the data.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from semu_diffusion.erase.config import ErasureConfig
from semu_diffusion.erase.phases import phase_generator
from semu_diffusion.erase.task import EditResult, Progress, Task
from semu_diffusion.models.precision import autocast
from semu_diffusion.objectives import squared_errors
from semu_diffusion.peers.edit import with_gradient
from semu_diffusion.peers.fine_tuning import Loss, Setting, fine_tuned, retain_term

__all__ = ["erasediff", "multiplier"]

RATE = 0.1


def erasediff(task: Task[Any], config: ErasureConfig, progress: Progress | None = None) -> EditResult:
    """All weights. Raises InputError without a retain term."""
    return fine_tuned(task, config, progress, objective=constrained_objective)


def constrained_objective(setting: Setting) -> Loss:
    """L_r + lambda f, whose gradient is that of the equation above."""
    model, config, parameters = setting.task.model, setting.config, setting.trainable.parameters()
    generator, retain = phase_generator(config.seed, "ascent"), retain_term(setting)

    def loss(step: int) -> Mapping[str, torch.Tensor]:
        with autocast(config.precision, model.device)():
            batch = setting.samples.forget.draw(config.batch_size, generator).batch
            noise = torch.rand(batch.x_t.shape, generator=generator).to(batch.x_t)
            terms = {"retain": retain(), "forget": squared_errors(model.predict(batch.x_t, batch.t, batch.condition), noise)}
        kept, erased = (
            torch.autograd.grad(term, parameters, materialize_grads=True, allow_unused=True) for term in terms.values()
        )
        scale = multiplier(kept, erased)
        return {
            "retain": with_gradient(terms["retain"], kept, parameters),
            "forget": scale * with_gradient(terms["forget"], erased, parameters),
        }

    return loss


def multiplier(kept: tuple[torch.Tensor, ...], erased: tuple[torch.Tensor, ...], rate: float = RATE) -> float:
    """lambda of the equation above, by the gradients of L_r and of g."""
    inner = sum(float((one * other).sum()) for one, other in zip(kept, erased, strict=True))
    return max(0.0, rate - inner / max(sum(float(one.square().sum()) for one in erased), 1e-30))
