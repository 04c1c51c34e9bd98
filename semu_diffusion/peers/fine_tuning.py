"""The loop that most peers share: weights of the network, or a LoRA on them, trained by a loss.

As it stands it is plain fine-tuning with this package's own objective, samples, steps and batches: what the subspace is
compared with. A peer brings other weights, other samples, or a loss of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from semu_diffusion.erase.adversary import adversary_of
from semu_diffusion.erase.config import ErasureConfig
from semu_diffusion.erase.meter import Meter
from semu_diffusion.erase.run import Samples, gather, loss_of, run_to_end
from semu_diffusion.erase.task import EditResult, Progress, Task
from semu_diffusion.erasure import Step, minimise
from semu_diffusion.errors import InputError
from semu_diffusion.gradients import only_trainable
from semu_diffusion.peers.edit import Trainable, WholeWeights, trained

__all__ = ["Loss", "Setting", "fine_tune", "fine_tuned", "own_objective", "retain_term"]

Loss = Callable[[int], Mapping[str, torch.Tensor]]


@dataclass(frozen=True)
class Setting:
    """What a peer's loss is made from: the task, its settings, its samples, and what is trained."""

    task: Task[Any]
    config: ErasureConfig
    samples: Samples
    trainable: Any

    def original(self, x_t: torch.Tensor, t: torch.Tensor, labels: Any) -> torch.Tensor:
        """The prediction of the model as it was."""
        with self.trainable.weights.original():
            return self.task.model.predict(x_t, t, labels)


def own_objective(setting: Setting) -> Loss:
    """The loss by which this package trains R: its target is taken from the model as it was."""
    task, config, samples = setting.task, setting.config, setting.samples
    adversary = adversary_of(task, config, samples.forget, setting.original)
    return loss_of(task, config, samples, setting.original, "training", adversary)


def retain_term(setting: Setting) -> Callable[[], torch.Tensor]:
    """The weighted retain term of this package on a fresh batch, for a loss of another making. Raises InputError without."""
    task, config, samples = setting.task, setting.config, setting.samples
    if samples.retain is None or config.retain == "none":
        raise InputError("this method needs kept samples: take --retain self")
    return loss_of(task, config, samples, setting.original, "training").retain_error


def fine_tuned(
    task: Task[Any],
    config: ErasureConfig,
    progress: Progress | None = None,
    *,
    trainable: Trainable | None = None,
    samples_of: Callable[[Task[Any], ErasureConfig, Progress | None], Samples] = gather,
    objective: Callable[[Setting], Loss] = own_objective,
) -> EditResult:
    """Train ``trainable`` (default: all weights) by the loss that ``objective`` makes, on the samples of ``samples_of``.

    Steps, batches and the learning rate with its warm-up and decay are the settings'. The model is unchanged. Raises
    Diverged on a loss or gradient that is not finite.
    """
    denoiser = task.model.denoiser
    trainable = trainable or WholeWeights(denoiser)
    config = replace(config, protect="none")  # no peer reads kept inputs, so none are made for that alone
    with Meter(denoiser) as meter:
        with meter.phase("collect"), only_trainable(denoiser, ()):
            setting = Setting(task, config, samples_of(task, config, progress), trainable)
            loss = objective(setting)
        with meter.phase("train"):
            schedule: dict[str, Any] = {"betas": (0.9, config.adam_beta2), "warmup": config.warmup, "decay": config.lr_decay}
            edit = run_to_end(
                fine_tune(trainable, loss, config.steps, config.lr, **schedule), partial(show, progress, config.steps)
            )
    return EditResult(edit, setting.samples.anchors, None, meter.seconds, meter.passes)


def fine_tune(
    trainable: Trainable, loss: Loss, steps: int, learning_rate: float = 1e-4, clip: float | None = 1.0, **schedule: Any
) -> Generator[Step, None, Any]:
    """Train by `minimise`; yields steps, returns the edit.

    ``loss(step)`` sees the network with the weights in training, and the original within ``trainable.weights.original()``.
    The network's own weights are never written. Raises Diverged on a loss or gradient that is not finite.
    """
    parameters = trainable.parameters()
    yield from minimise(parameters, loss, steps, learning_rate, partial(trained, trainable), clip=clip, **schedule)
    return trainable.edit()


def show(progress: Progress | None, steps: int, step: Step) -> None:
    """A step of the training on the caller's bar."""
    if progress is not None:
        progress("fine-tuning", step.index, steps)
