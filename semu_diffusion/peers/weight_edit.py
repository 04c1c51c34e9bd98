"""An edit of whole weight tensors that can be put on a model and taken off, as a patch can."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

__all__ = ["WeightEdit"]


@dataclass(frozen=True, eq=False)
class WeightEdit:
    """New values of some parameters, by name. ``trained_parameters`` counts the numbers that training could change."""

    values: Mapping[str, torch.Tensor]
    trained_parameters: int
    _originals: dict[str, torch.Tensor] = field(default_factory=dict, repr=False)

    def apply(self, model: nn.Module) -> None:
        """Write the new values into ``model``; the old ones are kept for `remove`. Raises RuntimeError if already applied."""
        if self._originals:
            raise RuntimeError("this edit is already applied")
        self._swap(model, self.values, keep=True)

    def remove(self, model: nn.Module) -> None:
        """Bring the old values back, byte for byte. Raises RuntimeError if it is not applied."""
        if not self._originals:
            raise RuntimeError("this edit is not applied")
        self._swap(model, dict(self._originals), keep=False)
        self._originals.clear()

    @contextmanager
    def applied(self, model: Any) -> Iterator[Any]:
        """Inside, ``model.denoiser`` has the new values; afterwards the old ones."""
        self.apply(model.denoiser)
        try:
            yield model
        finally:
            self.remove(model.denoiser)

    @property
    def nbytes(self) -> int:
        return sum(value.numel() * value.element_size() for value in self.values.values())

    def _swap(self, model: nn.Module, values: Mapping[str, torch.Tensor], keep: bool) -> None:
        parameters = dict(model.named_parameters())
        with torch.no_grad():
            for name, value in values.items():
                if keep:
                    self._originals[name] = parameters[name].detach().clone()
                parameters[name].copy_(value)
