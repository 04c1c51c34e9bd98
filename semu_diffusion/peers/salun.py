r"""SalUn: relabelling that may only change the weights to which the forget loss is most sensitive.

    m = 1(|grad l_f(W)| >= gamma),  gamma the median over all numbers;     W' = m (W + dW) + (1 - m) W
    min E || eps'(x_t, c, t) - sg[eps'(x_t, c', t)] ||^2 + beta E_kept || eps'(x_t, k, t) - target ||^2,   c' != c

(Fan et al. 2024, "SalUn: Empowering Machine Unlearning via Gradient-based Weight Saliency", arXiv 2310.12508, eqs. 3, 4 and 6).
l_f is the training loss on the forget set, the target of the relabelling the model in training, c' the anchor, beta the
setting ``retain_weight``. There: Adam at 1e-4 (DDPM, 500 to 1,000 steps of 128) or 1e-5 (Stable Diffusion), kept pictures from
the data; here the model's own pictures and predictions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from semu_diffusion.erase.config import ErasureConfig
from semu_diffusion.erase.phases import phase_generator
from semu_diffusion.erase.samples import forget_batches
from semu_diffusion.erase.task import EditResult, Progress, Task
from semu_diffusion.models.precision import autocast
from semu_diffusion.objectives import denoising
from semu_diffusion.peers.edit import WholeWeights, trained
from semu_diffusion.peers.fine_tuning import Loss, Setting, fine_tuned, own_objective

__all__ = ["forget_gradient", "salient", "salun"]

SHARE = 0.5  # of all numbers that are trained


def salun(task: Task[Any], config: ErasureConfig, progress: Progress | None = None) -> EditResult:
    """All weights, masked by their saliency."""
    return fine_tuned(task, config, progress, trainable=WholeWeights(task.model.denoiser), objective=masked_objective)


def masked_objective(setting: Setting) -> Loss:
    """This package's loss, with the settings' moving target, and the mask on the weights."""
    setting.trainable.mask(salient(forget_gradient(setting)))
    return own_objective(setting)


def forget_gradient(setting: Setting) -> dict[str, torch.Tensor]:
    """The gradient by each parameter of the training loss on the forget set: sum over its batches."""
    model, config, copies = setting.task.model, setting.config, setting.trainable.copies
    sums = {name: torch.zeros_like(copy) for name, copy in copies.items()}
    for batch in forget_batches(model, setting.samples.own, phase_generator(config.seed, "saliency")):
        with trained(setting.trainable), autocast(config.precision, model.device)():
            loss = denoising(model.predict, batch) * len(batch.x_t)
            found = torch.autograd.grad(loss, list(copies.values()), allow_unused=True, materialize_grads=True)
        for total, one in zip(sums.values(), found, strict=True):
            total += one
    return sums


def salient(gradient: Mapping[str, torch.Tensor], share: float = SHARE) -> dict[str, torch.Tensor]:
    """The mask m of the ``share`` of all numbers, over all parameters together, with the largest gradients."""
    sizes = torch.cat([one.abs().flatten() for one in gradient.values()])
    threshold = sizes.kthvalue(min(round(len(sizes) * (1 - share)) + 1, len(sizes))).values
    return {name: one.abs() >= threshold for name, one in gradient.items()}
