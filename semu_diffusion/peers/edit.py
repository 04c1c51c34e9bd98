"""What every method ends in, an edit that goes on a model and comes off again; and the weights in training that make most.

What a peer trains are tensors that stand in for weights of a network, which itself is never written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from semu_diffusion.errors import InputError
from semu_diffusion.gradients import only_trainable

__all__ = ["Edit", "Substitution", "Trainable", "WeightEdit", "WholeWeights", "trained", "with_gradient"]


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


class Substitution:
    """A place for other tensors under the ``names`` of a network's parameters; every module that shares one gets them too.

    The network's own parameters are never written: outside `put` it is the original, to the last bit, whatever happens.
    """

    def __init__(self, model: nn.Module, names: Iterable[str]) -> None:
        self.model = model
        parameters = dict(model.named_parameters())
        self.own = {name: parameters[name] for name in names}
        known = {id(parameter): name for name, parameter in self.own.items()}
        self._places = [
            (known[id(parameter)], module, leaf)
            for module in model.modules()
            for leaf, parameter in module._parameters.items()
            if id(parameter) in known
        ]
        self._now: Mapping[str, torch.Tensor] = self.own

    def cast(self, values: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The values in the dtypes of the network's own."""
        return {name: value.to(self.own[name].dtype) for name, value in values.items()}

    @contextmanager
    def put(self, values: Mapping[str, torch.Tensor]) -> Iterator[None]:
        """Inside, the network computes with ``values``, rounded to its dtypes; gradients flow to them."""
        before = self._now
        try:
            self._write(self.cast(values))
            yield
        finally:
            self._write(before)

    @contextmanager
    def original(self) -> Iterator[None]:
        """Inside, also within `put`, the network computes with its own parameters."""
        with self.put(self.own):
            yield

    def _write(self, values: Mapping[str, torch.Tensor]) -> None:
        self._now = values
        for name, module, leaf in self._places:
            module._parameters[leaf] = values[name]  # type: ignore[assignment]


class Trainable(Protocol):
    """Tensors in training, and the weights that they make."""

    weights: Substitution

    def parameters(self) -> list[torch.Tensor]:
        """What the optimizer moves."""
        ...

    def values(self) -> Mapping[str, torch.Tensor]:
        """The weights of the network as trained so far, by name, with a graph to `parameters`."""
        ...

    def edit(self) -> Any:
        """The `Edit` as trained so far."""
        ...


class WholeWeights:
    """Copies, in float32, of the parameters whose names are ``chosen``. Raises InputError where there are none."""

    def __init__(self, model: nn.Module, chosen: Callable[[str], bool] = lambda _: True, kind: str = "weights") -> None:
        names = [name for name, _ in model.named_parameters() if chosen(name)]
        if not names:
            raise InputError(f"this method trains {kind}, and the network has none: take another method")
        self.weights = Substitution(model, names)
        copies = {name: parameter.detach().clone().float() for name, parameter in self.weights.own.items()}
        self.copies = {name: copy.requires_grad_(True) for name, copy in copies.items()}
        self.masks: dict[str, torch.Tensor] = {}

    def mask(self, masks: Mapping[str, torch.Tensor]) -> None:
        """From now on only the numbers where the mask m is 1 are trained: W' = m (W + dW) + (1 - m) W."""
        self.masks = dict(masks)
        for name, mask in masks.items():
            self.copies[name].register_hook(mask.to(self.copies[name]).mul)

    def parameters(self) -> list[torch.Tensor]:
        return list(self.copies.values())

    def values(self) -> Mapping[str, torch.Tensor]:
        return self.copies

    def edit(self) -> WeightEdit:
        trained = {name: value.detach() for name, value in self.weights.cast(self.copies).items()}
        numbers = (self.masks[name].sum() if name in self.masks else value.numel() for name, value in trained.items())
        return WeightEdit(trained, sum(map(int, numbers)))


@contextmanager
def trained(trainable: Trainable) -> Iterator[None]:
    """Inside, the network is in eval mode with the trainable's weights, and gradients flow to its parameters alone."""
    with only_trainable(trainable.weights.model, ()), trainable.weights.put(trainable.values()):
        yield


def with_gradient(value: torch.Tensor, gradient: Sequence[torch.Tensor], parameters: Sequence[torch.Tensor]) -> torch.Tensor:
    """A number equal to ``value`` whose gradient by the parameters is ``gradient``: for losses that know theirs already."""
    parts = [(one * (own - own.detach())).sum() for one, own in zip(gradient, parameters, strict=True)]
    return value.detach() + torch.stack(parts).sum()
