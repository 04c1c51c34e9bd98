"""The rows of the comparison: every method behind one call, `make_edit`."""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from semu_diffusion.domains.classes import plan
from semu_diffusion.domains.classes import task as class_task
from semu_diffusion.domains.config import PRESETS
from semu_diffusion.erase.loss import training_loss
from semu_diffusion.erase.run import chosen_anchors, run_erasure, run_to_end
from semu_diffusion.erase.samples import kept_images, training_images, with_anchor_images
from semu_diffusion.erase.task import Progress, Task
from semu_diffusion.erasure import Step
from semu_diffusion.models.ddpm import ClassConditional
from semu_diffusion.peers.embedding_copy import copy_class_embedding
from semu_diffusion.peers.fine_tuning import fine_tune
from semu_diffusion.pipelines.runs.config import EraseClassConfig
from semu_diffusion.pipelines.runs.inputs import retain_images

__all__ = ["METHODS", "Edit", "Made", "make_edit"]


class Edit(Protocol):
    """What an erasure leaves: something that goes on a model and comes off again."""

    @property
    def trained_parameters(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    def apply(self, model: nn.Module) -> None: ...
    def remove(self, model: nn.Module) -> None: ...


@dataclass(frozen=True)
class Made:
    """An edit and the seconds of its stages."""

    edit: Edit
    seconds: Mapping[str, float]


# name -> (what it is, settings that differ from the default's)
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "default": ("SEMU, the default", {}),
    "rank-8": ("SEMU, rank at most 8", {"max_rank": 8, "explained_variance": 0.95}),
    "null-space": ("SEMU, null space only", {"retain": "none"}),
    "retain": ("SEMU, retain term only", {"protect": "none"}),
    "unprotected": ("SEMU, nothing protected", {"protect": "none", "retain": "none"}),
    "official": ("SEMU, the reference code's choices", PRESETS["official"]),
    "copy": ("class-embedding copy (trivial)", {}),
    "fine-tune": ("all weights, same objective", {"lr": 1e-4, "retain": "none"}),
    "fine-tune-retain": ("all weights, self-made retain term", {"lr": 1e-4}),
}


def make_edit(method: str, model: ClassConditional, config: EraseClassConfig, progress: Progress | None = None) -> Made:
    """Run one method on ``model``; ``config`` already holds the settings of its row in `METHODS`."""
    planned = plan(model, config)
    task = class_task(planned, None, retain_images(config.retain, model, planned.erased))
    if method == "copy":
        start = time.perf_counter()
        images = training_images(model, config, task.forget, progress=progress)
        anchors = chosen_anchors(task, images, torch.Generator().manual_seed(config.seed))
        return Made(copy_class_embedding(model.denoiser, dict(anchors)), {"train": time.perf_counter() - start})
    if method.startswith("fine-tune"):
        return _fine_tuned(model, task, config, progress)
    outcome = run_to_end(run_erasure(task, config, progress), _watch(config, progress))
    return Made(outcome.patch, outcome.seconds)


def _fine_tuned(
    model: ClassConditional, task: Task[ClassConditional], config: EraseClassConfig, progress: Progress | None
) -> Made:
    start = time.perf_counter()
    generator = torch.Generator().manual_seed(config.seed)
    forget_set = training_images(model, config, task.forget, progress=progress)
    retain_set = kept_images(model, config, task.kept, progress) if config.retain == "self" else None
    collected = time.perf_counter()
    frozen = dataclasses.replace(model, pipeline=copy.deepcopy(model.pipeline))
    anchors = chosen_anchors(task, forget_set, generator)
    forget_set = with_anchor_images(model, config, forget_set, anchors, progress)
    loss = training_loss(model, config, task.target, frozen.predict, forget_set, retain_set, anchors, task.kept, generator)
    edit = run_to_end(fine_tune(model.denoiser, loss, config.steps, config.lr), _watch(config, progress))
    return Made(edit, {"collect": collected - start, "train": time.perf_counter() - collected})


def _watch(config: EraseClassConfig, progress: Progress | None) -> Callable[[Step], None] | None:
    return None if progress is None else lambda step: progress("training", step.index, config.steps)
