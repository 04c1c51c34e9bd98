r"""SFR-on: ascent on the erased where that moves little of the kept, and a descent on the kept after each of its steps.

    m = 1(F_f / F_r >= gamma),   F the mean squared gradients of the training loss on erased and on kept samples
    W <- W + lr a_s m . sum_i w_i grad l_i,  w_i ~ l_i^{-lambda}, a_s falling along a cosine;   then   W <- W - lr grad L_r

(Huang et al. 2024, "Unified Gradient-Based Machine Unlearning with Remain Geometry Enhancement", NeurIPS, arXiv 2409.19732,
eqs. 10 to 14). The descent is what lets the step feel the curvature of the kept loss, its slow weights move by the whole of
it, as in the authors' settings: gamma 1, lambda 1/2, a_0 10 and Adam at 1e-4 for a DDPM. Both halves count as a step here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from semu_diffusion.erase.config import ErasureConfig
from semu_diffusion.erase.phases import phase_generator
from semu_diffusion.erase.task import EditResult, Progress, Task
from semu_diffusion.models.precision import autocast
from semu_diffusion.objectives import NoisyBatch, squared_errors
from semu_diffusion.peers.edit import trained, with_gradient
from semu_diffusion.peers.fine_tuning import Loss, Setting, fine_tuned, retain_term

__all__ = ["adaptive", "alternating", "fisher", "sfr_on"]

RATIO, POWER, STRENGTH = 1.0, 0.5, 10.0  # gamma, lambda, a_0
FISHER_BATCHES = 8


def sfr_on(task: Task[Any], config: ErasureConfig, progress: Progress | None = None) -> EditResult:
    """All weights. Raises InputError without a retain term."""
    return fine_tuned(task, config, progress, objective=alternating)


def alternating(setting: Setting) -> Loss:
    """Odd steps: the masked ascent; even steps: the retain term."""
    model, config, parameters = setting.task.model, setting.config, setting.trainable.parameters()
    retain, generator = retain_term(setting), phase_generator(config.seed, "ascent")
    erased, kept = (fisher(setting, source) for source in (setting.samples.forget, setting.samples.retain))
    masks = [one >= RATIO * other for one, other in zip(erased, kept, strict=True)]

    def loss(step: int) -> Mapping[str, torch.Tensor]:
        with autocast(config.precision, model.device)():
            if step % 2 == 0:
                return {"retain": retain()}
            batch = setting.samples.forget.draw(config.batch_size, generator).batch
            falling = STRENGTH * (1 + math.cos(math.pi * (step - 1) / config.steps)) / 2
            term = -falling * adaptive(model.predict(batch.x_t, batch.t, batch.condition), batch)
        found = torch.autograd.grad(term, parameters, materialize_grads=True, allow_unused=True)
        masked = [one * mask for one, mask in zip(found, masks, strict=True)]
        return {"forget": with_gradient(term, masked, parameters)}

    return loss


def adaptive(predicted: torch.Tensor, batch: NoisyBatch, power: float = POWER) -> torch.Tensor:
    """The mean of the images' losses l_i with weights l_i^{-lambda} of mean 1: what is badly denoised already counts less."""
    errors = (predicted.float() - batch.target.float()).square().flatten(1).mean(1)
    weights = (errors.detach() + 1e-15) ** -power
    return (weights / weights.mean() * errors).mean()


def fisher(setting: Setting, source: Any) -> Sequence[torch.Tensor]:
    """The diagonal of the Fisher information of each parameter on samples of ``source``: the mean square of the gradient of the
    loss, with targets drawn from what the model itself predicts, so that paths without noise of their own serve too."""
    model, config, parameters = setting.task.model, setting.config, setting.trainable.parameters()
    generator = phase_generator(config.seed, "fisher")
    sums = [torch.zeros_like(one) for one in parameters]
    for _ in range(FISHER_BATCHES):
        batch = source.draw(config.batch_size, generator).batch
        with trained(setting.trainable), autocast(config.precision, model.device)():
            said = model.predict(batch.x_t, batch.t, batch.condition).float()
            drawn = said.detach() + torch.randn(said.shape, generator=generator).to(said)
            found = torch.autograd.grad(squared_errors(said, drawn), parameters, materialize_grads=True, allow_unused=True)
        sums = [total + one.square() for total, one in zip(sums, found, strict=True)]
    return sums
