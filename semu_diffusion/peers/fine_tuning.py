"""Plain fine-tuning of all weights with the same objective, steps and batches: what the subspace is compared with."""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from semu_diffusion.erase.config import ErasureConfig
from semu_diffusion.erase.meter import Meter
from semu_diffusion.erase.run import adversary_of, gather, loss_of, run_to_end
from semu_diffusion.erase.task import EditResult, Progress, Task
from semu_diffusion.erasure import Step, minimise
from semu_diffusion.gradients import only_trainable
from semu_diffusion.peers.weight_edit import WeightEdit

__all__ = ["fine_tune", "fine_tuned"]


def fine_tuned(task: Task[Any], config: ErasureConfig, progress: Progress | None = None) -> EditResult:
    """Fine-tuning on the task's loss, its targets taken from a frozen copy of the model."""

    def watch(step: Step) -> None:
        if progress is not None:
            progress("fine-tuning", step.index, config.steps)

    with Meter(task.model.denoiser) as meter:
        with meter.phase("collect"):
            samples = gather(task, config, progress)
            frozen = replace(task.model, pipeline=copy.deepcopy(task.model.pipeline))
        with meter.phase("train"):
            adversary = adversary_of(task, config, samples, frozen.predict)
            loss = loss_of(task, config, samples, frozen.predict, "training", adversary)
            edit = run_to_end(fine_tune(task.model.denoiser, loss, config.steps, config.lr), watch)
    return EditResult(edit, samples.anchors, None, meter.seconds, meter.passes)


def fine_tune(
    model: nn.Module,
    loss: Callable[[int], Mapping[str, torch.Tensor]],
    steps: int,
    learning_rate: float = 1e-4,
    clip: float | None = 1.0,
) -> Generator[Step, None, WeightEdit]:
    """Train every parameter of ``model`` with Adam on ``loss(step)``; yields steps, returns the `WeightEdit`.

    The model has its old weights again when the generator ends, also by an exception. ``loss`` must take the original's
    predictions from a copy made before. Raises Diverged on a loss or gradient that is not finite.
    """
    parameters = dict(model.named_parameters())
    originals = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    every = list(parameters.values())
    try:
        yield from minimise(every, loss, steps, learning_rate, lambda: only_trainable(model, every), decay=True, clip=clip)
        trained = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    finally:
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(originals[name])
    return WeightEdit(trained, sum(value.numel() for value in trained.values()))
