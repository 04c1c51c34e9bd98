"""The subspace phase: our truncated SVD of every gradient beside ``torch.linalg.svd``, seconds and the angle between them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from semu_diffusion.pipelines.cost.gauge import Gauge, Reading
from semu_diffusion.pipelines.cost.reference import full_svd
from semu_diffusion.subspace import dominant_subspace

__all__ = ["Matrices", "SvdCosts", "svd_costs", "synthetic"]

SIGNAL = 40  # rank of a synthetic gradient, beside its noise


@dataclass(frozen=True)
class Matrices:
    """``count`` layers of one shape, and the gradient that stands for them."""

    shape: tuple[int, int]
    count: int
    gradient: Callable[[], torch.Tensor]

    @property
    def work(self) -> int:
        """What a full SVD costs, but for a factor: m n min(m, n)."""
        m, n = self.shape
        return m * n * min(m, n)


@dataclass(frozen=True)
class SvdCosts:
    """Of all layers together. ``angle``: the worst between the two spans, ``energy``: the least share of what the full SVD's
    leading directions capture, over the shapes that were measured; the seconds of the ``extrapolated`` layers are estimated."""

    ours: Reading
    reference: Reading | None
    angle: float | None
    energy: float | None
    extrapolated: int


def svd_costs(
    groups: Sequence[Matrices], explained_variance: float, max_rank: int | None, gauge: Gauge, seconds: float, reference: bool
) -> SvdCosts:
    """Smaller matrices first, until ``seconds`` are spent; the rest as the largest of those measured, by m n min(m, n)."""
    sides = {"ours": Side(), "reference": Side()}
    angles, energies, spent, extrapolated = [], [], 0.0, 0
    for group in sorted(groups, key=lambda group: group.work):
        if spent and spent + sum(side.rate for side in sides.values()) * group.work > seconds:
            extrapolated += group.count
            for side in sides.values():
                side.seconds += group.count * side.rate * group.work
            continue
        matrix = group.gradient().float()
        mine, (left, _, right) = gauge(partial(dominant_subspace, matrix, explained_variance, max_rank=max_rank), False)
        spent += sides["ours"].took(mine, group)
        if reference:
            full, (u, _, vt) = gauge(partial(full_svd, matrix), False)
            spent += sides["reference"].took(full, group)
            u, v = u[:, : left.shape[1]], vt[: left.shape[1]].T
            angles.append(max(_angle(u, left), _angle(v, right)))
            if u.shape[1]:
                energies.append(_captured(matrix, left, right) / max(_captured(matrix, u, v), 1e-30))
    ours, theirs = (side.reading() for side in sides.values())
    return SvdCosts(ours, theirs if reference else None, max(angles, default=None), min(energies, default=None), extrapolated)


@dataclass
class Side:
    """What one of the two takes: all ``seconds``, the highest ``peak``, and the ``rate`` in seconds by `Matrices.work`."""

    seconds: float = 0.0
    peak: int | None = None
    rate: float = 0.0

    def took(self, one: Reading, group: Matrices) -> float:
        self.seconds += group.count * one.seconds
        self.peak = max(self.peak or 0, one.peak) if one.peak is not None else None
        self.rate = one.seconds / group.work
        return one.seconds

    def reading(self) -> Reading:
        return Reading(self.seconds, self.peak)


def _captured(matrix: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> float:
    """||U^T G V||_F^2."""
    return float((left.T @ matrix @ right).double().square().sum())


def synthetic(m: int, n: int, device: torch.device, seed: int) -> torch.Tensor:
    """A gradient (m, n) of rank `SIGNAL` with falling singular values, and noise of a hundredth of its energy."""
    generator, rank = torch.Generator(device).manual_seed(seed), min(SIGNAL, m, n)

    def numbers(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, device=device)

    signal = numbers(m, rank) * torch.linspace(0, -2, rank, device=device).exp() @ numbers(rank, n)
    noise = numbers(m, n)
    return signal + 0.1 * signal.norm() / noise.norm() * noise


def _angle(a: torch.Tensor, b: torch.Tensor) -> float:
    """Sine of the largest principal angle between the spans of two orthonormal (n, r): ||(I - B B^T) A||_2."""
    a, b = a.double(), b.double()
    return float(torch.linalg.matrix_norm(a - b @ (b.T @ a), 2))
