"""Plain fine-tuning of all weights with the same objective, steps and batches: what the subspace is compared with."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from semu_diffusion.erase.config import ErasureConfig
from semu_diffusion.erase.meter import Meter
from semu_diffusion.erase.run import adversary_of, gather, loss_of, run_to_end
from semu_diffusion.erase.task import EditResult, Progress, Task
from semu_diffusion.erasure import Diverged, Step
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
    start = time.perf_counter()
    try:
        optimizer = torch.optim.Adam(parameters.values(), lr=learning_rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))
        for index in range(1, steps + 1):
            with only_trainable(model, parameters.values()):
                parts = loss(index)
                total = torch.stack([part.float() for part in parts.values()]).sum()
                total.backward()
                norm = float(nn.utils.clip_grad_norm_(parameters.values(), clip if clip is not None else float("inf")))
                if not (torch.isfinite(total) and norm < float("inf")):
                    raise Diverged(f"the loss or its gradient is not finite at step {index}: lower the learning rate")
                optimizer.step()
                schedule.step()
            values = {name: float(part.detach()) for name, part in parts.items()}
            yield Step(index, float(total.detach()), values, norm, time.perf_counter() - start)
        trained = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    finally:
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(originals[name])
    return WeightEdit(trained, sum(value.numel() for value in trained.values()))
