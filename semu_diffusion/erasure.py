r"""The loop: train R inside the subspaces, W' = W + U R V^T, everything else frozen. A generator of records.

R starts at zero, so the patched model is the original before the first step. The caller draws the bars, writes the logs
and may stop at any step; the patch is what the generator returns.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from semu_diffusion import distributed
from semu_diffusion.gradients import only_trainable
from semu_diffusion.patch import ErasurePatch
from semu_diffusion.patches.patched import PatchedLayers

__all__ = ["Diverged", "Step", "minimise", "train_patch"]


class Diverged(RuntimeError):
    """The loss or the gradient stopped being a finite number; no patch was made."""


@dataclass(frozen=True)
class Step:
    """One record of the loop: index from 1, loss and its named parts, gradient norm by R before clipping, seconds so far."""

    index: int
    loss: float
    parts: Mapping[str, float]
    gradient_norm: float
    seconds: float


def rate(done: int, steps: int, warmup: float, decay: bool) -> float:
    """Factor on the learning rate after ``done`` of ``steps``: linear for the share ``warmup``, then 1 or a cosine to zero.

    Adam's first steps are as long as its learning rate, whatever the gradient: a warm-up begins with short ones.
    """
    warm = max(1, round(warmup * steps)) if warmup else 0
    if done < warm:
        return (done + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (done - warm) / max(steps - warm, 1))) if decay else 1.0


def train_patch(
    patched: PatchedLayers,
    loss: Callable[[int], Mapping[str, torch.Tensor]],
    steps: int,
    learning_rate: float = 1e-3,
    *,
    betas: tuple[float, float] = (0.9, 0.999),
    warmup: float = 0.0,
    decay: bool = False,
    clip: float | None = 1.0,
    metadata: Mapping[str, Any] | None = None,
) -> Generator[Step, None, ErasurePatch]:
    """Train R with Adam for ``steps`` steps and return the patch (the generator's return value).

    ``loss(step)`` draws its own batch and gives the named parts of the loss, whose sum is minimised; it sees the patched
    model, and the original one inside ``patched.original()``. ``warmup`` and ``decay`` shape the learning rate as in `rate`;
    ``clip`` bounds the norm of the gradient by all R. The model itself is never changed: apply the patch for that.

    Raises Diverged on a loss or gradient that is not finite.
    """
    core = patched.parameters()
    for parameter in core:
        parameter.requires_grad_(True)

    @contextmanager
    def training() -> Iterator[None]:
        with only_trainable(patched.model, ()), patched.attached():
            yield

    yield from minimise(core, loss, steps, learning_rate, training, betas=betas, warmup=warmup, decay=decay, clip=clip)
    return patched.patch(metadata)


def minimise(
    parameters: Sequence[torch.Tensor],
    loss: Callable[[int], Mapping[str, torch.Tensor]],
    steps: int,
    learning_rate: float,
    training: Callable[[], AbstractContextManager[Any]],
    *,
    betas: tuple[float, float] = (0.9, 0.999),
    warmup: float = 0.0,
    decay: bool = False,
    clip: float | None = 1.0,
) -> Iterator[Step]:
    """Adam on the sum of the parts of ``loss(step)``, as `train_patch`; the model is in ``training()`` during a step alone."""
    optimizer = torch.optim.Adam(parameters, lr=learning_rate, betas=betas)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: rate(done, steps, warmup, decay))
    start = time.perf_counter()
    for index in range(1, steps + 1):
        with training():
            parts = loss(index)
            total = torch.stack([part.float() for part in parts.values()]).sum()
            optimizer.zero_grad(set_to_none=True)
            total.backward()
            means = [part.detach() for part in parts.values()]
            distributed.average([*(one.grad for one in parameters if one.grad is not None), *means])
            loss_now = torch.stack([mean.float() for mean in means]).sum()
            if not torch.isfinite(loss_now):
                raise Diverged(f"the loss is {loss_now.item()} at step {index}: lower --lr or the rank")
            norm = float(torch.nn.utils.clip_grad_norm_(parameters, clip if clip is not None else float("inf")))
            if not norm < float("inf"):
                raise Diverged(f"the gradient is not finite at step {index}: lower --lr or the rank")
            optimizer.step()
            schedule.step()
        values = {name: float(mean) for name, mean in zip(parts, means, strict=True)}
        yield Step(index, float(loss_now), values, norm, time.perf_counter() - start)
