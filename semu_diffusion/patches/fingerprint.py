"""Recognising a model by the names, shapes and weights of its layers, whatever dtype it is loaded in."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from semu_diffusion.errors import InputError
from semu_diffusion.patches.weights import adapter_names, fused_copies, weight_of
from semu_diffusion.patches.wrappers import modules_of

__all__ = ["Fingerprint"]

_FREQUENCIES = (0.7548776662, 1.5698402910, 2.3247179572, 2.8983845960)  # irrational, so no cosine repeats
_NORM_TOLERANCE = 5e-3  # of ||W||: a cast to bfloat16 moves a weight by 0.0039 of itself at most
# Of ||W||/sqrt(n), n the number of weights: a cast is noise, whose inner product with a unit vector is that much smaller than
# its norm. A cast to bfloat16 has a standard deviation of 0.0017 here; a merged patch of 1 % of ||W|| one of 0.01.
_PRODUCT_TOLERANCE = 0.012
_DEVIATIONS = 6  # of what quantisation took from a weight
_UNDERFLOW = 2.0**-25  # what a cast to float16 may take from a weight, however small it is


@dataclass(frozen=True)
class Fingerprint:
    """``structure``: hash of all Linear and Conv2d names and shapes. ``probes`` (L, 5) float32, per edited layer: ||W||_F
    and its inner products with four fixed unit vectors cos(w_k i), which a cast leaves alone and training does not.
    ``rounding``: standard deviation, relative to a weight, of what quantisation took from those it was made of.
    """

    structure: str
    names: tuple[str, ...]
    probes: torch.Tensor
    rounding: float = 0.0

    @classmethod
    def of(cls, model: nn.Module, names: Iterable[str]) -> Fingerprint:
        """Fingerprint of ``model`` over the layers ``names``."""
        modules = modules_of(model)
        names = tuple(names)
        weights = [weight_of(modules, name) for name in names]
        rows = torch.stack([_probe(weight) for weight in weights]) if names else torch.zeros(0, len(_FREQUENCIES) + 1)
        rounding = max((getattr(weight, "rounding", 0.0) for weight in weights), default=0.0)  # of a FrozenWeight
        return cls(_structure(modules), names, rows, rounding)

    def check(self, model: nn.Module, originals: Mapping[str, torch.Tensor] | None = None) -> None:
        """Raise InputError unless ``model`` is the one; ``originals`` stand in for weights that carry another patch."""
        modules = modules_of(model)
        if _structure(modules) != self.structure:
            adapters = adapter_names(modules)
            if adapters:
                raise InputError(
                    f"the model carries an adapter (LoRA {', '.join(adapters)}): unload it, apply the patch, load it again"
                )
            missing = [name for name in self.names if not hasattr(modules.get(name), "weight")]
            what = f"it has no layer {missing[0]}" if missing else "its layers have other names or shapes"
            raise InputError(f"this patch was made for another model: {what}")
        for name, expected in zip(self.names, self.probes, strict=True):
            weight = originals[name] if originals and name in originals else weight_of(modules, name)
            difference, root = (_probe(weight) - expected).abs(), weight.numel() ** 0.5
            typical = float(expected[0]) / root
            rounded = _DEVIATIONS * self.rounding * typical  # of an inner product with a unit vector, W / ||W|| among them
            longest = root * ((_NORM_TOLERANCE + self.rounding**2) * typical + _UNDERFLOW) + rounded
            products = _PRODUCT_TOLERANCE * typical + 8 * _UNDERFLOW + rounded
            if not (difference[0] <= longest and difference[1:].max() <= products):
                raise InputError(
                    f"this patch was made for another model: the weights of {name} differ (already merged, or trained further, "
                    "or a LoRA fused in?)"
                )


def _structure(modules: Mapping[str, nn.Module]) -> str:
    copies = fused_copies(modules)
    lines = [
        f"{name} {tuple(module.weight.shape)}"
        for name, module in sorted(modules.items())
        if isinstance(module, nn.Linear | nn.Conv2d) and name not in copies
    ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def _probe(weight: torch.Tensor) -> torch.Tensor:
    """||W||_F and sum_i w_i cos(f i) / sqrt(n/2), with cos(f i) split over rows and columns so that it costs eight of them."""
    matrix = weight.detach().cpu().double().flatten(1)
    (m, n), frequencies = matrix.shape, torch.tensor(_FREQUENCIES, dtype=torch.float64)
    rows = torch.outer(frequencies, torch.arange(m, dtype=torch.float64) * n)
    columns = torch.outer(frequencies, torch.arange(n, dtype=torch.float64))
    cosines, sines = (torch.cat([rows.cos(), rows.sin()]) @ matrix).chunk(2)  # reads the matrix once
    products = (cosines * columns.cos() - sines * columns.sin()).sum(1)
    return torch.cat([matrix.norm()[None], products / max(m * n / 2, 1) ** 0.5]).float()
