"""Networks whose linear layers are stored in few bits (torchao, optimum-quanto, bitsandbytes), read as floats layer by layer.

An erasure needs the gradient by each weight and the weight itself, which no quantised layer gives. A twin of the network has
in the place of each a plain nn.Linear whose weight is made of the stored one whenever an operation asks for it, and never
kept: not for the backward pass either. The stored weights stay as they are; R is trained beside them in float32.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from itertools import chain
from types import MappingProxyType
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree

from semu_diffusion.errors import InputError

__all__ = ["FrozenWeight", "quantised_layers", "readable"]

QUANTISERS = ("torchao", "optimum", "bitsandbytes")
aten = torch.ops.aten
LAZY = (aten.detach.default, aten.t.default, aten._to_copy.default)  # what is only to be read later


class FrozenWeight(torch.Tensor):
    """A float tensor that exists while it is read: every operation on it sees ``read()``, the ``stored`` weight and, of the
    patches on it, the ``update``.

    ``rounding`` is the standard deviation of what the storage took from the weights, relative to their root mean square.
    Raises InputError where something would be written into it.
    """

    stored: Callable[[], torch.Tensor]
    update: Callable[[], torch.Tensor] | None
    rounding: float

    @staticmethod
    def __new__(
        cls, stored: Callable[[], torch.Tensor], like: torch.Tensor, device: torch.device, rounding: float = 0.0
    ) -> FrozenWeight:
        made: FrozenWeight = torch.Tensor._make_wrapper_subclass(cls, like.shape, dtype=like.dtype, device=device)
        made.stored, made.update, made.rounding = stored, None, rounding
        return made

    def read(self) -> torch.Tensor:
        """The weight as it is multiplied with, in its dtype; an update is added in float32."""
        weight = self.stored()
        return weight if self.update is None else (weight + self.update().to(weight.device)).to(weight.dtype)

    def without_update(self) -> FrozenWeight:
        """The same weight as it is stored, whatever patch it carries or will carry."""
        return FrozenWeight(self.stored, self, self.device, self.rounding)

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] = MappingProxyType({})
    ) -> Any:
        if func in LAZY and set(kwargs) <= {"dtype"}:
            weight, *rest = args
            like = func(torch.empty(weight.shape, dtype=weight.dtype, device="meta"), *rest, **kwargs)
            return cls(lambda: func(weight.read(), *rest, **kwargs), like, weight.device, weight.rounding)
        if func._schema.is_mutable and isinstance(args[0], cls):
            raise InputError("the weights are quantised and cannot be changed: load the network in float32 or bfloat16")
        dense = _pytree.tree_map_only(cls, lambda one: one.read(), (args, dict(kwargs)))
        return func(*dense[0], **dense[1])


def quantised_layers(network: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers whose weight is stored in few bits and can be read, by name; but for those that do more than multiply:
    of a class of their own that is no quantiser's, or with hooks."""
    return {
        name: one
        for name, one in network.named_modules()
        if isinstance(one, nn.Linear) and _multiplies(one) and _reader(one) is not None
    }


def _multiplies(layer: nn.Linear) -> bool:
    hooked = bool(layer._forward_hooks or layer._forward_pre_hooks)
    plain = type(layer).forward is nn.Linear.forward and not hooked
    return plain or type(layer).__module__.split(".")[0] in QUANTISERS


def readable(network: nn.Module) -> nn.Module:
    """A twin of the network (the same tensors) whose quantised layers are plain ones of a `FrozenWeight`; itself if it has
    none."""
    layers = quantised_layers(network)
    if not layers:
        return network
    stored = {id(layer.weight) for layer in layers.values()}
    dtype = next(
        (one.dtype for one in network.parameters() if id(one) not in stored and one.is_floating_point()), torch.float32
    )
    shared: dict[int, Any] = {id(tensor): tensor for tensor in chain(network.parameters(), network.buffers())}
    weights: dict[int, Any] = {}  # one for layers that share theirs, so that it is seen that they do
    for layer in layers.values():
        twin = shared[id(layer)] = _plain(layer, dtype)
        twin.weight = weights.setdefault(id(layer.weight), twin.weight)
    return copy.deepcopy(network, shared)


def _plain(layer: nn.Linear, dtype: torch.dtype) -> nn.Linear:
    reader = _reader(layer)
    assert reader is not None
    twin = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta", dtype=dtype)
    twin.train(layer.training)
    twin.bias = layer.bias
    with torch.no_grad():
        rounding = _rounding(layer.weight, reader().float())
    weight = FrozenWeight(lambda: reader().detach().to(dtype), twin.weight.detach(), layer.weight.device, rounding)
    twin.weight = nn.Parameter(weight, requires_grad=False)
    return twin


def _reader(layer: nn.Linear) -> Callable[[], torch.Tensor] | None:
    """What makes floats (out, in) of the layer's stored weight; None for a weight of floats, or one that cannot be read."""
    weight: Any = layer._parameters.get("weight")
    kind = type(weight).__name__
    if kind in ("Params4bit", "Int8Params") and type(weight).__module__.startswith("bitsandbytes"):
        if weight.data.is_floating_point():  # not on the device yet where they are quantised
            return None
        from bitsandbytes import functional

        if kind == "Params4bit":
            return lambda: functional.dequantize_4bit(weight.data, weight.quant_state)
        state: Any = getattr(layer, "state", None)  # a first forward moves the scales there
        return lambda: functional.int8_vectorwise_dequant(weight.data, state.SCB if weight.SCB is None else weight.SCB)
    if isinstance(weight, torch.Tensor) and type(weight).dequantize is not torch.Tensor.dequantize:
        return weight.dequantize  # torchao's and optimum-quanto's tensors
    return None


def _rounding(stored: Any, weight: torch.Tensor) -> float:
    """At most so much: steps of absmax / (2^(bits - 1) - 1) in each row, uniform in them; floats by the eps of their dtype.

    Blocks within a row have smaller steps.
    """
    while hasattr(stored, "__tensor_flatten__"):
        stored = max((getattr(stored, name) for name in stored.__tensor_flatten__()[0]), key=lambda one: one.numel())
    if stored.is_floating_point():
        return float(torch.finfo(stored.dtype).eps) / 12**0.5
    bits = round(8 * stored.numel() * stored.element_size() / weight.numel())
    steps = weight.abs().amax(1) / max(2 ** (bits - 1) - 1, 1)
    return float(steps.square().mean().sqrt() / 12**0.5 / weight.square().mean().sqrt().clamp(min=1e-30))
