"""Where a layer's weight is found: inside an adapter that was put around the layer, and in every module that shares it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from semu_diffusion.errors import InputError
from semu_diffusion.patches.quantised import FrozenWeight

__all__ = ["adapter_names", "fused_copies", "is_fused", "modules_sharing", "weight_of"]


def weight_of(modules: Mapping[str, Any], name: str) -> torch.Tensor:
    """The weight of layer ``name`` among a model's named modules, also where PEFT wrapped the layer since.

    Raises InputError if there is no such layer, or its weight cannot be edited: offloaded, quantised, spread over processes, or
    no weight of its own but one that is made of others (a parametrisation) or copied into others (fused projections).
    """
    module: Any = modules.get(name)
    while hasattr(module, "base_layer"):
        module = module.base_layer
    weight = getattr(module, "weight", None)
    if not isinstance(weight, torch.Tensor):
        raise InputError(f"the model has no layer {name} whose weight a patch could change")
    if "weight" not in module._parameters and "weight" not in module._buffers:
        raise InputError(f"the weight of {name} is made anew in every call (parametrised, pruned, FSDP): take that off first")
    if is_fused(modules.get(name.rpartition(".")[0])):
        raise InputError(f"{name} is fused into another layer, which computes in its place: unfuse_qkv_projections() first")
    if weight.is_meta:
        raise InputError(f"the weight of {name} is offloaded: switch the offloading of the model off for the patch")
    kind = type(weight.data)
    if kind not in (torch.Tensor, FrozenWeight) or not weight.is_floating_point() or weight.itemsize < 2:
        if kind.__name__ == "DTensor":
            raise InputError(f"the weight of {name} is spread over processes (FSDP, tensor parallelism): gather it first")
        how = weight.dtype if kind is torch.Tensor else kind.__name__
        raise InputError(f"the weight of {name} is quantised ({how}): load the model in float, or use the patch's LoRA")
    return weight


def is_fused(module: Any) -> bool:
    """Whether an attention of diffusers computes by copies of its projections in one layer (``fuse_qkv_projections``)."""
    if not getattr(module, "fused_projections", False):
        return False
    # diffusers' older class keeps the mark and the copies when it is undone, and has its plain processor again
    return hasattr(module, "unfuse_projections") or "Fused" in type(getattr(module, "processor", None)).__name__


def fused_copies(modules: Mapping[str, Any]) -> set[str]:
    """Names of the layers that hold copies of an attention's projections."""
    fused = [name for name, module in modules.items() if getattr(module, "fused_projections", False)]
    return {f"{name}.{copy}" for name in fused for copy in ("to_qkv", "to_kv", "to_added_qkv")}


def adapter_names(modules: Mapping[str, Any]) -> list[str]:
    """Names of the PEFT adapters around any of the modules; ``["?"]`` for wrappers that do not tell theirs."""
    found: set[str] = set()
    for module in modules.values():
        if hasattr(module, "base_layer"):
            names = getattr(module, "active_adapters", None)
            found.update(map(str, names) if isinstance(names, list | tuple) and names else ["?"])
    return sorted(found)


def modules_sharing(model: nn.Module, layers: Mapping[str, nn.Module]) -> dict[str, list[Any]]:
    """Every module of ``model`` that multiplies with the weight of each layer: the layer itself, and those tied to it.

    Raises InputError if a weight is shared with a module of another kind, where an update would not mean the same.
    """
    found: dict[str, list[Any]] = {name: [layer] for name, layer in layers.items()}
    owners = {id(layer.weight): name for name, layer in layers.items()}
    for path, module in model.named_modules():
        for parameter, value in module._parameters.items():
            name = owners.get(id(value))
            if name is None or module is layers[name]:
                continue
            alike = type(module).forward is type(layers[name]).forward and parameter == "weight"
            if not alike or isinstance(module, NonDynamicallyQuantizableLinear):
                raise InputError(f"the weight of {name} is shared with {path}, which uses it otherwise: leave it out (!{name})")
            found[name].append(module)
    return found
