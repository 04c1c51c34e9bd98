"""An edit of whole weight tensors that can be put on a model and taken off, as a patch can."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["WeightEdit"]


@dataclass(frozen=True, eq=False)
class WeightEdit:
    """New values of some parameters or buffers, by name. ``trained_parameters`` counts the numbers that could change."""

    values: Mapping[str, torch.Tensor]
    trained_parameters: int

    @property
    def nbytes(self) -> int:
        return sum(value.numel() * value.element_size() for value in self.values.values())

    @contextmanager
    def applied(self, model: Any) -> Iterator[Any]:
        """Inside, ``model.denoiser`` has the new values; afterwards the old ones, byte for byte."""
        weights = {name: value for name, value in model.denoiser.state_dict().items() if name in self.values}
        originals = {name: value.to("cpu", copy=True) for name, value in weights.items()}
        try:
            _write(weights, self.values)
            yield model
        finally:
            _write(weights, originals)


@torch.no_grad()
def _write(weights: Mapping[str, torch.Tensor], values: Mapping[str, torch.Tensor]) -> None:
    for name, value in values.items():
        weights[name].copy_(value)
