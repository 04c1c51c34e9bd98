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
    """New values of some parameters, by name. ``trained_parameters`` counts the numbers that training could change."""

    values: Mapping[str, torch.Tensor]
    trained_parameters: int

    @property
    def nbytes(self) -> int:
        return sum(value.numel() * value.element_size() for value in self.values.values())

    @contextmanager
    def applied(self, model: Any) -> Iterator[Any]:
        """Inside, ``model.denoiser`` has the new values; afterwards the old ones, byte for byte."""
        parameters = {name: value for name, value in model.denoiser.named_parameters() if name in self.values}
        originals = {name: value.detach().clone() for name, value in parameters.items()}
        try:
            _write(parameters, self.values)
            yield model
        finally:
            _write(parameters, originals)


@torch.no_grad()
def _write(parameters: Mapping[str, torch.Tensor], values: Mapping[str, torch.Tensor]) -> None:
    for name, value in values.items():
        parameters[name].copy_(value)
