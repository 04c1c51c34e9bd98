r"""SPM, the semi-permeable membrane: a LoRA of rank 1 on every layer, held still on conditions that are drawn near the concept.

    W' = W + B A,    A (1, n) drawn, B (m, 1) from zero
    min  E || eps'(x_t, c, t) - [eps(x_t, t) - eta (eps(x_t, c, t) - eps(x_t, t))] ||^2
         + lambda E || eps'(x_t, c~, t) - eps(x_t, c~, t) ||^2,    p(c~) ~ min(1, 1 - cos(c~, c))

(Lyu et al. 2024, "One-dimensional Adapter to Rule Them All", arXiv 2312.16145, with the latent anchoring of the authors' code).
c~ are vectors as `condition_vectors` gives them: a direction drawn at random, drawn again with probability cos where that is
above zero, with the norm of c times 0.8 to 1.2. eta is the setting ``overshoot`` (there 1), lambda ``retain_weight`` (1,000),
the layers ``layers``. There: 3,000 iterations of one sample at 1e-4, on paths of the model in training.

Without its facilitated transport, which weighs the update at inference by how near the prompt is to the concept: a strength
that depends on the prompt is a hook, and no patch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from semu_diffusion.erase.config import ErasureConfig
from semu_diffusion.erase.phases import phase_generator
from semu_diffusion.erase.task import EditResult, Progress, Task
from semu_diffusion.errors import InputError
from semu_diffusion.layers import select_layers
from semu_diffusion.models.precision import autocast
from semu_diffusion.objectives import squared_errors
from semu_diffusion.peers.esd import require_null
from semu_diffusion.peers.fine_tuning import Loss, Setting, fine_tuned, own_objective
from semu_diffusion.peers.leco import LowRank

__all__ = ["anchoring", "nearby", "spm"]


def spm(task: Task[Any], config: ErasureConfig, progress: Progress | None = None) -> EditResult:
    """The adapter of the settings' layers. Raises InputError without a null row, or where a condition is no one vector."""
    require_null(task)
    if not task.model.takes_vectors:
        raise InputError("SPM draws conditions as vectors, and this model is told more than one vector can say: take LECO")
    layers = select_layers(task.model.denoiser, config.layers)
    generator = phase_generator(config.seed, "LoRA")
    lora = LowRank(task.model.denoiser, layers, config.max_rank or 1, generator, task.metadata)
    return fine_tuned(task, config, progress, trainable=lora, objective=anchored)


def anchored(setting: Setting) -> Loss:
    """ESD's objective and the anchoring, each on a batch of its own."""
    erase, generator = own_objective(setting), phase_generator(setting.config.seed, "latent anchoring")
    return lambda step: {**erase(step), "anchoring": anchoring(setting, generator)}


def anchoring(setting: Setting, generator: torch.Generator) -> torch.Tensor:
    """lambda || eps'(x_t, c~, t) - eps(x_t, c~, t) ||^2 on the concept's own noised samples: mean over pixels and batch."""
    model, config = setting.task.model, setting.config
    batch = setting.samples.forget.draw(config.batch_size, generator).batch
    drawn = nearby(model.condition_vectors(batch.condition), generator)
    with autocast(config.precision, model.device)():
        with torch.no_grad():
            target = setting.original(batch.x_t, batch.t, drawn)
        return config.retain_weight * squared_errors(model.predict(batch.x_t, batch.t, drawn), target)


def nearby(vectors: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """For each vector (N, D) one of 0.8 to 1.2 times its norm, in a direction of probability min(1, 1 - cos) to it."""
    made = torch.empty(vectors.shape)
    given, open_rows = vectors.detach().float().cpu(), torch.arange(len(vectors))
    while len(open_rows):
        drawn = torch.randn(len(open_rows), vectors.shape[1], generator=generator)
        cosine = F.cosine_similarity(drawn, given[open_rows])
        taken = torch.rand(len(open_rows), generator=generator) < 1 - cosine
        scale = (0.8 + 0.4 * torch.rand(len(open_rows), generator=generator)) * given[open_rows].norm(dim=1)
        made[open_rows[taken]] = (F.normalize(drawn, dim=1) * scale[:, None])[taken]
        open_rows = open_rows[~taken]
    return made.to(vectors)
