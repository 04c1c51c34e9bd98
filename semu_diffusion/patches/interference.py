r"""How much two patches of one model get in each other's way when both are applied.

With the updates D_A = U_A R_A V_A^T of the shared layers, all inner products over all of them (Frobenius):

    cosine  <D_A, D_B> / (|D_A| |D_B|)           1: the same update twice, 0: independent, -1: they cancel
    share   |P_A D_B Q_A|^2 / |D_B|^2            how much of B's update moves within A's subspaces

P_A and Q_A project onto the spans of U_A and V_A; both numbers come from the factors, no update is made dense.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from semu_diffusion.matrices import to_matrices
from semu_diffusion.patch import ErasurePatch, LayerPatch

__all__ = ["Interference", "interference"]


@dataclass(frozen=True)
class Interference:
    """``cosine`` and ``share`` of the module's docstring; layers of B that A does not touch count in |D_B|."""

    shared_layers: int
    cosine: float
    share: float


def interference(a: ErasurePatch, b: ErasurePatch) -> Interference:
    """Of patch ``b`` with patch ``a``, strengths included. Layers in different matricisations are compared densely."""
    product = inside = 0.0
    sizes = [sum(_dot(layer, layer) for layer in p.layers.values()) * p.strength**2 for p in (a, b)]
    shared = [name for name in b.layers if name in a.layers]
    for name in shared:
        one, other = a.layers[name], b.layers[name]
        product += _dot(one, other) * a.strength * b.strength
        inside += _within(one, other) * b.strength**2
    scale = (sizes[0] * sizes[1]) ** 0.5
    return Interference(len(shared), product / scale if scale else 0.0, inside / sizes[1] if sizes[1] else 0.0)


def _dot(one: LayerPatch, other: LayerPatch) -> float:
    """<D_1, D_2> = sum over (U_1^T U_2) R_2 (V_2^T V_1) * R_1."""
    if one.matricisation != other.matricisation:
        return float((one.delta().double() * other.delta().double()).sum())
    left = one.left.double().transpose(1, 2) @ other.left.double()
    right = other.right.double().transpose(1, 2) @ one.right.double()
    return float((left @ other.core.double() @ right * one.core.double()).sum())


def _within(one: LayerPatch, other: LayerPatch) -> float:
    """|P_1 D_2 Q_1|^2."""
    left, right = (_basis(factor, one.ranks) for factor in (one.left, one.right))
    if one.matricisation != other.matricisation:
        matrices = to_matrices(other.delta().double(), one.matricisation)
        return float((left.transpose(1, 2) @ matrices @ right).square().sum())
    inside = left.transpose(1, 2) @ other.left.double() @ other.core.double() @ (other.right.double().transpose(1, 2) @ right)
    return float(inside.square().sum())


def _basis(factor: torch.Tensor, ranks: torch.Tensor) -> torch.Tensor:
    """Orthonormal columns that span those of ``factor`` (C, n, r); those beyond a matrix's own rank stay zero."""
    columns = torch.arange(factor.shape[-1], device=factor.device) < ranks[:, None].to(factor.device)
    return torch.linalg.qr(factor.double()).Q * columns[:, None, :]
