r"""Concept ablation: on pictures of the anchor, the concept's prompt is answered as the anchor's.

    min E || eps'(x_t, c*, t) - sg[eps'(x_t, c, t)] ||^2,    x_t noised pictures of the anchor c, c* the concept in its place

(Kumari et al. 2023, "Ablating Concepts in Text-to-Image Diffusion Models", arXiv 2303.13516, eq. 3, the model-based variant).
It trains the keys and values of cross-attention. There: Adam at 2e-6 times the batch of 8, 100 to 200 iterations, 200 to
1,000 pictures, and for some concepts the training loss on the same pictures as a regulariser; without that here.
"""

from __future__ import annotations

from typing import Any

import torch

from semu_diffusion.erase.anchors import named_anchors
from semu_diffusion.erase.config import ErasureConfig
from semu_diffusion.erase.pool import Noised
from semu_diffusion.erase.run import Samples, kept_source
from semu_diffusion.erase.samples import in_turn, self_made
from semu_diffusion.erase.task import EditResult, Images, Progress, Task
from semu_diffusion.errors import InputError
from semu_diffusion.peers.edit import WholeWeights
from semu_diffusion.peers.esd import cross_attention
from semu_diffusion.peers.fine_tuning import fine_tuned

__all__ = ["anchor_samples", "concept_ablation"]


def concept_ablation(task: Task[Any], config: ErasureConfig, progress: Progress | None = None) -> EditResult:
    """Keys and values of cross-attention. Raises InputError for a network that has none."""
    crosses = cross_attention(task.model)
    trainable = WholeWeights(
        task.model.denoiser,
        lambda name: crosses(name) and name.split(".")[-2] in ("to_k", "to_v"),
        "the keys and values of cross-attention",
    )
    return fine_tuned(task, config, progress, trainable=trainable, samples_of=anchor_samples)


def anchor_samples(task: Task[Any], config: ErasureConfig, progress: Progress | None = None) -> Samples:
    """Pictures that the model makes of each erased row's anchor, shown as the erased row. Raises InputError without anchors."""
    model, anchors = task.model, named_anchors(task, config, progress)
    if not anchors:
        raise InputError("concept ablation answers the concept as its anchor: take --target fixed")
    count = (task.forget_samples or config.forget_samples) * len(anchors)
    rows, seeds = in_turn(model, list(anchors), count, config.seed, "anchor pictures")
    how = (config.guidance_scale, config.precision, progress, "anchor pictures")
    made = self_made(model, [anchors[row] for row in rows], seeds, *how)
    shown = Images(made.images, torch.tensor(rows, device=model.device))
    return Samples(shown, Noised(model, shown), kept_source(task, config, progress), anchors)
