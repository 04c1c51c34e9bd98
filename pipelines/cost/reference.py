"""The reference procedure, as plain as it is published: what the phases of an erasure cost without any of our savings.

The gradients of all layers stand in ``.grad`` while their sums stand beside them; every layer gets a full SVD; the weight
W' = W + U R V^T of every layer is built anew in each forward pass, and its dense gradient with it. The ``loss`` of a training
step asks the network for its own target, through W' too (method of github.com/gmum/semu).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from semu_diffusion.gradients import only_trainable
from semu_diffusion.subspace import Subspace

__all__ = ["collect_dense", "full_svd", "train_rebuilt"]


def collect_dense(
    model: nn.Module, layers: Mapping[str, Any], steps: int, loss: Callable[[int], torch.Tensor]
) -> dict[str, torch.Tensor]:
    """The gradients of the layers, summed over ``steps`` batches, in the weights' dtype."""
    sums: dict[str, torch.Tensor] = {}
    with only_trainable(model, [layer.weight for layer in layers.values()]):
        for step in range(steps):
            for layer in layers.values():
                layer.weight.grad = None
            loss(step).backward()
            for name, layer in layers.items():
                if (made := layer.weight.grad) is not None:
                    sums[name] = sums[name].add_(made) if name in sums else made.clone()
    return sums


def full_svd(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """U (m, k), s (k,), V^T (k, n) with k = min(m, n)."""
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    return left, values, right


def train_rebuilt(
    model: nn.Module,
    layers: Mapping[str, Any],
    subspaces: Mapping[str, Subspace],
    steps: int,
    loss: Callable[[int], torch.Tensor],
) -> None:
    """``steps`` steps of Adam on R, by way of the dense weights."""
    cores = {name: torch.zeros_like(space.left[0].T @ space.left[0]).requires_grad_() for name, space in subspaces.items()}
    optimizer = torch.optim.Adam(cores.values(), lr=1e-3)
    with only_trainable(model, ()), _rebuilt(layers, subspaces, cores):
        for step in range(steps):
            optimizer.zero_grad(set_to_none=True)
            loss(step).backward()
            optimizer.step()


@contextmanager
def _rebuilt(layers: Mapping[str, Any], subspaces: Mapping[str, Subspace], cores: Mapping[str, torch.Tensor]) -> Iterator[None]:
    def forward(layer: Any, space: Subspace, core: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
        def run(x: torch.Tensor) -> torch.Tensor:
            delta = (space.left[0] @ core @ space.right[0].T).reshape(layer.weight.shape)
            weight = layer.weight + delta.to(layer.weight.dtype)
            if isinstance(layer, nn.Linear):
                return F.linear(x, weight, layer.bias)
            return layer._conv_forward(x, weight, layer.bias)

        return run

    try:
        for name, space in subspaces.items():
            layers[name].forward = forward(layers[name], space, cores[name])
        yield
    finally:
        for name in subspaces:
            layers[name].__dict__.pop("forward", None)
