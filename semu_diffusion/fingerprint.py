"""Recognising a model by the names, shapes and weights of its layers, whatever dtype it is loaded in."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from semu_diffusion.errors import InputError

__all__ = ["Fingerprint"]

_PROBES = 4
_TOLERANCE = 5e-3  # of ||W||: five standard deviations of a cast to bfloat16, far below any training


@dataclass(frozen=True)
class Fingerprint:
    """``structure``: hash of all Linear and Conv2d names and shapes. ``probes`` (L, 5) float32, per edited layer: ||W||_F
    and its inner products with four fixed unit vectors cos(w_k i), which a cast leaves alone and training does not.
    """

    structure: str
    names: tuple[str, ...]
    probes: torch.Tensor

    @classmethod
    def of(cls, model: nn.Module, names: Iterable[str]) -> Fingerprint:
        """Fingerprint of ``model`` over the layers ``names``."""
        modules = dict(model.named_modules())
        names = tuple(names)
        rows = [_probe(modules[name].weight) for name in names]  # type: ignore[arg-type]
        return cls(_structure(modules), names, torch.stack(rows) if rows else torch.zeros(0, _PROBES + 1))

    def check(self, model: nn.Module, originals: Mapping[str, torch.Tensor] | None = None) -> None:
        """Raise InputError unless ``model`` is the one; ``originals`` stand in for weights that carry another patch."""
        modules = dict(model.named_modules())
        if _structure(modules) != self.structure:
            missing = [name for name in self.names if not hasattr(modules.get(name), "weight")]
            what = f"it has no layer {missing[0]}" if missing else "its layers have other names or shapes"
            raise InputError(f"this patch was made for another model: {what}")
        for name, expected in zip(self.names, self.probes, strict=True):
            found = _probe((originals or {}).get(name, modules[name].weight))  # type: ignore[arg-type]
            if (found - expected).abs().max() > _TOLERANCE * max(float(expected[0]), 1e-6):
                raise InputError(
                    f"this patch was made for another model: the weights of {name} differ (already merged, or trained further?)"
                )


def _structure(modules: Mapping[str, nn.Module]) -> str:
    lines = [
        f"{name} {tuple(module.weight.shape)}"
        for name, module in sorted(modules.items())
        if isinstance(module, nn.Linear | nn.Conv2d)
    ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def _probe(weight: torch.Tensor) -> torch.Tensor:
    values = weight.detach().cpu().double().reshape(-1)
    index = torch.arange(len(values), dtype=torch.float64)
    frequencies = [0.7548776662, 1.5698402910, 2.3247179572, 2.8983845960]  # irrational, so no cosine repeats
    products = [values @ torch.cos(f * index) / max(len(values) / 2, 1) ** 0.5 for f in frequencies]
    return torch.stack([values.norm(), *products]).float()
