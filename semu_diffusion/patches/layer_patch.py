r"""One layer's update U R V^T as factors, and what can be said of it without making it dense."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from semu_diffusion.matrices import Matricisation, from_matrices, to_matrices

__all__ = ["LayerPatch", "Overlap", "overlap"]

_CAST_NOISE = 0.0017  # standard deviation of what a cast to bfloat16 does to a weight, relative to it
_CAST_BIAS = 0.004  # at most this much where all weights are alike, so that their roundings are too
_UNDERFLOW = 2.0**-25  # what a cast to float16 may take from a weight, however small it is


@dataclass(frozen=True)
class LayerPatch:
    """Factors of one layer's update: ``left`` (C, m, r), ``core`` (C, r, r), ``right`` (C, n, r), ``ranks`` (C,)."""

    left: torch.Tensor
    core: torch.Tensor
    right: torch.Tensor
    ranks: torch.Tensor
    shape: tuple[int, ...]
    matricisation: Matricisation = "full"

    def delta(self) -> torch.Tensor:
        """The weight update U R V^T in the layer's shape, float32."""
        product = self.left.float() @ self.core.float() @ self.right.float().transpose(1, 2)
        return from_matrices(product, self.shape, self.matricisation)

    def to(self, device: torch.device) -> LayerPatch:
        """The same update with its factors on ``device``."""
        moved = {name: getattr(self, name).to(device) for name in ("left", "core", "right")}
        return dataclasses.replace(self, **moved)

    def same_as(self, other: LayerPatch) -> bool:
        """True if all factors are equal."""
        pairs = ((self.left, other.left), (self.core, other.core), (self.right, other.right))
        return all(torch.equal(mine.cpu().float(), theirs.cpu().float()) for mine, theirs in pairs)

    def norm_squared(self) -> float:
        """||U R V^T||_F^2 = <(U^T U) R (V^T V), R>, in float64."""
        left, core, right = self.left.double(), self.core.double(), self.right.double()
        return float((left.transpose(1, 2) @ left @ core @ (right.transpose(1, 2) @ right) * core).sum())

    def inner(self, weight: torch.Tensor) -> float:
        """<W, U R V^T>_F = <U^T W V, R> for a weight W of the layer's shape."""
        matrices = to_matrices(weight.detach().cpu().float(), self.matricisation)
        small = self.left.float().transpose(1, 2) @ matrices @ self.right.float()
        return float((small.double() * self.core.double()).sum())


@dataclass(frozen=True)
class Overlap:
    """``value`` = sum_l <W_l, dW_l> / sum_l ||dW_l||^2, and the ``noise`` that a cast of the weights may add to it."""

    value: float
    noise: float


def overlap(
    layers: Mapping[str, LayerPatch], weight_of: Callable[[str], torch.Tensor], rounding: float = 0.0
) -> Overlap | None:
    """The overlap of a model's weights with an update; merging the update at strength s adds s to it. None of a zero update.

    ``rounding`` is that of the weights it is compared with (`Fingerprint.rounding`).
    """
    inner = size = bias = variance = 0.0
    for name, layer in layers.items():
        weight, own = weight_of(name), layer.norm_squared()
        along = layer.inner(weight)
        mean_square = float(weight.detach().float().square().mean()) + _UNDERFLOW**2
        inner, size, bias = inner + along, size + own, bias + abs(along)
        variance += mean_square * own
    if not size > 0:
        return None
    return Overlap(inner / size, (_CAST_BIAS * bias + 6 * (_CAST_NOISE + rounding) * math.sqrt(variance)) / size)
