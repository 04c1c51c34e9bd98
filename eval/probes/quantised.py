"""Quantised merge: whether the erasure survives when the merged weights are rounded to 8 bits, as deployed models are.

Weight-only, symmetric, one scale an output channel: w becomes s round(w / s), s = max |w| / 127 for int8; for fp8 the nearest
float8_e4m3fn of w / s with s = max |w| / 448. A patch much smaller than s is rounded away, and what it erased comes back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from semu_diffusion.eval.probes.probe import Shown
from semu_diffusion.eval.probes.trajectory import TrajectoryProbe, levels, travel
from semu_diffusion.models.sampling import start_noise

__all__ = ["Fp8Probe", "Int8Probe", "fp8", "int8", "rounded"]

INT8, FP8 = 127, 448  # greatest magnitudes


def int8(weight: torch.Tensor) -> torch.Tensor:
    """The nearest int8 values of ``weight`` (out, ...), as numbers of its own dtype."""
    scale = _scale(weight, INT8)
    return ((weight.float() / scale).round() * scale).to(weight.dtype)


def fp8(weight: torch.Tensor) -> torch.Tensor:
    """The nearest float8_e4m3fn values of ``weight`` (out, ...), as numbers of its own dtype."""
    scale = _scale(weight, FP8)
    return ((weight.float() / scale).to(torch.float8_e4m3fn).float() * scale).to(weight.dtype)


def _scale(weight: torch.Tensor, greatest: int) -> torch.Tensor:
    """max |w| / greatest of each output channel, (out, 1, ...); 1 for a channel of zeros."""
    most = weight.float().flatten(1).abs().amax(1) / greatest
    return most.where(most > 0, torch.ones_like(most)).view(-1, *[1] * (weight.ndim - 1))


@contextmanager
def rounded(network: nn.Module, rounding: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """Inside, the weights of every Linear and Conv2d are rounded; afterwards they are the same tensors as before.

    Weights that are stored in few bits already stay as they are, with the patch beside them.
    """
    layers = [module for module in network.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    weights = {m.weight: m.weight.data for m in layers if type(m.weight.data) is torch.Tensor}
    try:
        for parameter, data in weights.items():
            parameter.data = rounding(data)  # not in place: a patch that is applied knows its tensors by their versions
        yield
    finally:
        for parameter, data in weights.items():
            parameter.data = data


class Int8Probe(TrajectoryProbe):
    """Samples under the erased conditions with the weights in int8."""

    name = "int8"
    rounding = staticmethod(int8)

    def made(self, model: Any, shown: Shown) -> tuple[torch.Tensor, int]:
        how = self.how
        noise, rows = start_noise(how.seeds, model.latent_shape), shown.rows(model, how.samples)
        with rounded(model.denoiser, self.rounding):
            made = travel(model, noise, rows, levels(model, how.sampling_steps), how.guidance_scale)
        return made, self.passes(model, how.sampling_steps)


class Fp8Probe(Int8Probe):
    """The same in fp8."""

    name = "fp8"
    rounding = staticmethod(fp8)
