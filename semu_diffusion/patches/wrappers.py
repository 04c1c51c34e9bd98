"""The network inside what people put around it: DataParallel, DistributedDataParallel, torch.compile."""

from __future__ import annotations

import copy
import sys
from contextlib import AbstractContextManager, nullcontext
from itertools import chain
from typing import Any

import torch
from torch import nn

from semu_diffusion.errors import InputError

__all__ = ["eager", "eagerly", "modules_of", "unwrapped"]


def unwrapped(network: nn.Module) -> nn.Module:
    """The network that ``torch.compile(network)``, DataParallel or DistributedDataParallel hold; itself without any.

    Raises InputError for what is no network, as the pipeline around one.
    """
    if not isinstance(network, nn.Module):
        hint = next((f", as pipe.{part}" for part in ("unet", "transformer") if hasattr(network, part)), "")
        raise InputError(f"a {type(network).__name__} is given where a network is wanted{hint}")
    while (inner := _inner(network)) is not None:
        network = inner
    return network


def _inner(network: nn.Module) -> nn.Module | None:
    if isinstance(network, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return network.module
    return network._modules.get("_orig_mod")  # of torch._dynamo's OptimizedModule


def modules_of(network: nn.Module) -> dict[str, nn.Module]:
    """The network's named modules, by the names that they have without any wrapper around it or around a part of it."""
    named = unwrapped(network).named_modules()
    return {".".join(part for part in name.split(".") if part != "_orig_mod"): module for name, module in named}


def eager(network: nn.Module) -> nn.Module:
    """A network of the same weights (the same tensors) that runs uncompiled; itself if nothing in it is compiled.

    Compiled code calls no hook and no forward that was put in after it was compiled, so that an erasure would collect no
    moments and train nothing. What changes a weight in place changes it in both.
    """
    if not any(module._compiled_call_impl is not None or _inner(module) is not None for module in network.modules()):
        return network
    shared: dict[int, Any] = {id(tensor): tensor for tensor in chain(network.parameters(), network.buffers())}
    for module in reversed(list(network.modules())):  # the innermost first
        if (inner := _inner(module)) is not None:
            shared[id(module)] = copy.deepcopy(unwrapped(inner), shared)
    twin = copy.deepcopy(network, shared)
    for module in twin.modules():
        module._compiled_call_impl = None
    return twin


def eagerly() -> AbstractContextManager[Any]:
    """Inside, what is compiled runs uncompiled, so that hooks and replaced forwards count."""
    compiler = "torch._dynamo" in sys.modules  # it takes seconds to import, and without it nothing is compiled
    return torch.compiler.set_stance("force_eager") if compiler else nullcontext()
