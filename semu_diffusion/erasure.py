r"""The loop: train R inside the subspaces, W' = W + U R V^T, everything else frozen. A generator of records.

R starts at zero, so the patched model is the original before the first step. The caller draws the bars, writes the logs
and may stop at any step; the patch is what the generator returns.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from semu_diffusion.fingerprint import Fingerprint
from semu_diffusion.gradients import only_trainable
from semu_diffusion.matrices import from_matrices
from semu_diffusion.patch import ErasurePatch, LayerPatch
from semu_diffusion.subspace import Subspace

__all__ = ["Diverged", "PatchedLayers", "Step", "erase"]

LEVELS = 127  # the frozen factors are rounded to int8 before training, so that a saved patch is the trained one


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


class PatchedLayers:
    """Layers of a model that add U R V^T to their weight while `attached`, unless `original` switches that off.

    Each layer computes its update the cheaper way, by cost in multiply-adds for T output positions and an m x n weight:
    ``materialised``  m n r for the product and T m n for the dense weight gradient;
    ``factored``      T r (m + n) for the two thin layers, forward and twice backward, which also run at a quarter of the
                      speed of a wide layer (measured on CPU and GPU alike).
    """

    def __init__(self, model: nn.Module, subspaces: Mapping[str, Subspace]) -> None:
        self.model = model
        modules = dict(model.named_modules())
        self.subspaces = {name: space for name, space in subspaces.items() if space.ranks.any()}
        self.layers: dict[str, Any] = {name: modules[name] for name in self.subspaces}
        self.left: dict[str, torch.Tensor] = {}
        self.right: dict[str, torch.Tensor] = {}
        self.core: dict[str, torch.Tensor] = {}
        self._scales: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        for name, space in self.subspaces.items():
            device = self.layers[name].weight.device
            self.left[name], left_scale = _rounded(space.left.to(device).float())
            self.right[name], right_scale = _rounded(space.right.to(device).float())
            self._scales[name] = (left_scale, right_scale)
            width = space.left.shape[-1]
            self.core[name] = torch.zeros(len(space.left), width, width, device=device)
        self.enabled = True
        self._attached = False

    def parameters(self) -> list[torch.Tensor]:
        """The trained R of every layer."""
        return list(self.core.values())

    def scaled_core(self, name: str) -> torch.Tensor:
        """R (C, r, r) as it stands between the int8 factors: with their scales multiplied in."""
        left_scale, right_scale = self._scales[name]
        return left_scale[:, :, None] * self.core[name] * right_scale[:, None, :]

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Inside, the layers' forward includes the update; afterwards the model is untouched.

        A forward that a layer carries of its own (hooks of accelerate) is put back, and answers while `original` is on.
        """
        if self._attached:
            yield
            return
        own = {name: layer.__dict__.get("forward") for name, layer in self.layers.items()}
        self._attached = True
        try:
            for name, layer in self.layers.items():
                layer.forward = self._forward(name, layer, layer.forward)
            yield
        finally:
            self._attached = False
            for name, layer in self.layers.items():
                if own[name] is None:
                    layer.__dict__.pop("forward", None)
                else:
                    layer.forward = own[name]

    @contextmanager
    def original(self) -> Iterator[None]:
        """Inside, the update is off: the model answers as the original, without a second copy."""
        before, self.enabled = self.enabled, False
        try:
            yield
        finally:
            self.enabled = before

    def _forward(self, name: str, layer: Any, plain: Callable[..., Any]) -> Callable[[torch.Tensor], torch.Tensor]:
        left, right = self.left[name].float(), self.right[name].float()
        space = self.subspaces[name]

        def forward(x: torch.Tensor) -> torch.Tensor:
            if not self.enabled:
                return plain(x)
            if _factored_is_cheaper(layer, space, x):
                return plain(x) + _thin(layer, x, right[0], left[0] @ self.scaled_core(name)[0])
            with torch.autocast(x.device.type, enabled=False):
                delta = from_matrices(left @ self.scaled_core(name) @ right.transpose(1, 2), space.shape, space.matricisation)
                dtype = layer.weight.dtype  # summed wide and rounded once, as `ErasurePatch.apply` does
                weight = (layer.weight.to(torch.promote_types(dtype, torch.float32)) + delta).to(dtype)
            if isinstance(layer, nn.Linear):
                return F.linear(x, weight, layer.bias)
            return layer._conv_forward(x, weight, layer.bias)

        return forward

    def patch(self, metadata: Mapping[str, Any] | None = None) -> ErasurePatch:
        """The patch as trained so far, on the CPU."""
        layers = {
            name: LayerPatch(
                left=self.left[name].cpu(),
                core=self.scaled_core(name).detach().cpu(),
                right=self.right[name].cpu(),
                ranks=space.ranks,
                shape=space.shape,
                matricisation=space.matricisation,
            )
            for name, space in self.subspaces.items()
        }
        return ErasurePatch(layers, Fingerprint.of(self.model, layers), dict(metadata or {}))


def _rounded(factor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """int8 columns (C, m, r) and their scales (C, r). Training sees the rounded subspace, so saving it loses nothing."""
    scale = factor.abs().amax(dim=1) / LEVELS
    safe = torch.where(scale > 0, scale, torch.ones_like(scale))
    return (factor / safe[:, None, :]).round().to(torch.int8), scale


def _factored_is_cheaper(layer: Any, space: Subspace, x: torch.Tensor) -> bool:
    if len(space.left) != 1 or getattr(layer, "groups", 1) != 1 or getattr(layer, "padding_mode", "zeros") != "zeros":
        return False
    (m, r), n = space.left.shape[1:], space.right.shape[1]
    if isinstance(layer, nn.Conv2d):
        positions = x.numel() / layer.in_channels / (layer.stride[0] * layer.stride[1])
    else:
        positions = x.numel() / x.shape[-1]
    return 4 * 3 * positions * r * (m + n) < 3 * m * n * r + positions * m * n


def _thin(layer: Any, x: torch.Tensor, right: torch.Tensor, left: torch.Tensor) -> torch.Tensor:
    """(U R) (V^T x) without ever making the weight: right (n, r), left (m, r)."""
    if isinstance(layer, nn.Linear):
        return F.linear(F.linear(x, right.T.to(x.dtype)), left.to(x.dtype))
    kernel = right.T.reshape(-1, layer.in_channels, *layer.kernel_size).to(x.dtype)
    thin = F.conv2d(x, kernel, None, layer.stride, layer.padding, layer.dilation)
    return F.conv2d(thin, left[:, :, None, None].to(thin.dtype))


WARMUP = 0.15  # Adam's first steps are as long as its learning rate, whatever the gradient: begin with short ones


def _rate(done: int, steps: int) -> float:
    """Factor on the learning rate after ``done`` of ``steps``: a linear warm-up, then a cosine to zero."""
    warm = max(1, round(WARMUP * steps))
    if done < warm:
        return (done + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (done - warm) / max(steps - warm, 1)))


def erase(
    patched: PatchedLayers,
    loss: Callable[[int], Mapping[str, torch.Tensor]],
    steps: int,
    learning_rate: float = 1e-3,
    clip: float | None = 1.0,
    decay: bool = False,
    metadata: Mapping[str, Any] | None = None,
) -> Generator[Step, None, ErasurePatch]:
    """Train R with Adam for ``steps`` steps and return the patch (the generator's return value).

    ``loss(step)`` draws its own batch and gives the named parts of the loss, whose sum is minimised; it sees the patched
    model, and the original one inside ``patched.original()``. ``clip`` bounds the norm of the gradient by all R; ``decay``
    lowers the learning rate to zero along a cosine. The model itself is never changed: apply the patch for that.

    Raises Diverged on a loss or gradient that is not finite.
    """
    core = patched.parameters()
    optimizer = torch.optim.Adam(core, lr=learning_rate, betas=(0.9, 0.99) if decay else (0.9, 0.999))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: _rate(done, steps)) if decay else None
    start = time.perf_counter()
    for parameter in core:
        parameter.requires_grad_(True)
    for index in range(1, steps + 1):
        with only_trainable(patched.model, ()), patched.attached():
            parts = loss(index)
            total = torch.stack([part.float() for part in parts.values()]).sum()
            if not torch.isfinite(total):
                raise Diverged(f"the loss is {total.item()} at step {index}: lower --lr or the rank")
            optimizer.zero_grad(set_to_none=True)
            total.backward()
        norm = float(torch.nn.utils.clip_grad_norm_(core, clip if clip is not None else float("inf")))
        if not norm < float("inf"):
            raise Diverged(f"the gradient is not finite at step {index}: lower --lr or the rank")
        optimizer.step()
        if schedule is not None:
            schedule.step()
        values = {name: float(part.detach()) for name, part in parts.items()}
        yield Step(index, float(total.detach()), values, norm, time.perf_counter() - start)
    return patched.patch(metadata)
