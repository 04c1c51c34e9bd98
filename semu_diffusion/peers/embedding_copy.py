"""The trivial edit: copy the anchor's class-embedding row over the erased one. Nothing is unlearned.

It scores perfectly on unlearning accuracy and on every kept-class figure, and one learned class vector brings the class
back. It belongs in every comparison as the floor of depth.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from semu_diffusion.erase.anchors import named_anchors
from semu_diffusion.erase.config import ErasureConfig
from semu_diffusion.erase.task import EditResult, Progress, Task
from semu_diffusion.peers.edit import WeightEdit

__all__ = ["copy_class_embedding", "copy_embedding"]


def copy_embedding(task: Task[Any], config: ErasureConfig, progress: Progress | None = None) -> EditResult:
    """The copy of each erased class's anchor, named or chosen. Raises ValueError without a class embedding."""
    start = time.perf_counter()
    anchors = named_anchors(task, config, progress)
    places = {row: int(task.model.embedding_index(torch.tensor(row))) for row in (*anchors, *anchors.values())}
    edit = copy_class_embedding(task.model.denoiser, {places[row]: places[anchor] for row, anchor in anchors.items()})
    return EditResult(edit, anchors, None, {"train": time.perf_counter() - start})


def copy_class_embedding(denoiser: nn.Module, anchors: Mapping[int, int]) -> WeightEdit:
    """``anchors`` maps an erased embedding's index to the one it becomes. Raises ValueError without a class embedding."""
    embedding = getattr(denoiser, "class_embedding", None)
    if not isinstance(embedding, nn.Embedding):
        raise ValueError("the model has no class embedding")
    weight = embedding.weight.detach().clone()
    for erased, anchor in anchors.items():
        weight[erased] = embedding.weight.detach()[anchor]
    return WeightEdit({"class_embedding.weight": weight}, len(anchors) * weight.shape[1])
