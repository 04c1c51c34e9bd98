"""torch's modes and defaults of a caller: an erasure and a patch are the same in all of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

__all__ = ["evaluating", "own_defaults", "own_modes"]

KINDS = ("cpu", "cuda", "mps", "xpu")  # of devices, each of which has automatic casts of its own


@contextmanager
def own_defaults() -> Iterator[None]:
    """Inside, nothing is cast automatically, and new tensors are float32 on the CPU."""
    with ExitStack() as stack:
        for kind in KINDS:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        stack.callback(torch.set_default_dtype, torch.get_default_dtype())
        torch.set_default_dtype(torch.float32)
        yield


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Inside, ``network`` is in eval mode, without dropout; afterwards each of its modules is in the mode that it was in."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def own_modes() -> Iterator[None]:
    """As `own_defaults`, and gradients can be taken."""
    with own_defaults(), torch.inference_mode(False), torch.enable_grad():
        yield
