"""What every method ends in: an edit that goes on a model and comes off again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch

__all__ = ["Edit", "WeightEdit"]


class Edit(Protocol):
    """A patch, new weights, or another table of conditions."""

    @property
    def trained_parameters(self) -> int:
        """How many numbers the method could change."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes of what has to be kept to make the edit again."""
        ...

    def applied(self, model: Any) -> AbstractContextManager[Any]:
        """Inside, the edited model; afterwards ``model`` is as before, to the last bit."""
        ...


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
