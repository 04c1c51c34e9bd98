"""What the closed-form peers share: new weights of the layers that see nothing but the condition, from what they are fed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from semu_diffusion.erase.anchors import named_anchors
from semu_diffusion.erase.closed_form import name_layers
from semu_diffusion.erase.config import ErasureConfig
from semu_diffusion.erase.meter import Meter
from semu_diffusion.erase.task import EditResult, Progress, Task
from semu_diffusion.errors import InputError
from semu_diffusion.gradients import only_trainable
from semu_diffusion.peers.edit import WeightEdit

__all__ = ["NameInputs", "closed_form"]


@dataclass(frozen=True)
class NameInputs:
    """What the layers are fed, (N, n) float64: by ``erased`` rows and their ``anchors``, by ``kept`` rows, by the null row."""

    erased: torch.Tensor
    anchors: torch.Tensor
    kept: torch.Tensor
    null: torch.Tensor


Weights = Mapping[str, torch.Tensor]


def closed_form(
    task: Task[Any], config: ErasureConfig, solve: Callable[[Weights, NameInputs], Weights], progress: Progress | None
) -> EditResult:
    """The edit of ``solve``, which gives new weights (m, n) for those of all such layers, float64, by their names.

    Raises InputError for a network without such layers, and for a task that has no anchors.
    """
    model = task.model
    layers = name_layers(model)
    if not layers or task.target != "fixed":
        raise InputError(
            "this method needs --target fixed and layers that see nothing but the condition, which this model has not"
        )
    with Meter(model.denoiser) as meter:
        with meter.phase("collect"), only_trainable(model.denoiser, ()), torch.no_grad():
            anchors = named_anchors(task, config, progress)
            null = [] if model.null is None else [model.null]
            rows: list[Sequence[int]] = [list(anchors), list(anchors.values()), task.kept, null]
            inputs = NameInputs(*(_inputs(task, each) for each in rows))
        with meter.phase("solve"), torch.no_grad():
            solved = solve({name: layer.weight.detach().double() for name, layer in layers.items()}, inputs)
    values = {f"{name}.weight": solved[name].to(layer.weight) for name, layer in layers.items()}
    return EditResult(WeightEdit(values, 0), anchors, None, meter.seconds, meter.passes)  # nothing was trained


def _inputs(task: Task[Any], rows: Sequence[int]) -> torch.Tensor:
    """Inputs (N, n) of the rows; of none, none of the same width."""
    some = task.model.name_inputs(torch.tensor(list(rows) or task.forget, device=task.model.device)).double()
    return some if rows else some[:0]
