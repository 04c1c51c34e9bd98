r"""Gradients of wide layers in little memory: each is added to a sketch inside the backward pass and never kept itself.

With Gaussian Omega (n, l) and Psi (m, s), s = 2 l + 1, the sums over all batches

    Y = G Omega  (m, l)      Z = G^T Psi  (n, s)      <G, W>

are linear in G. With an orthonormal Q of the range of Y, G ~ Q (Psi^T Q)^+ Z^T (Tropp, Yurtsever, Udell and Cevher 2017,
Algorithm 4), whose leading singular vectors are the subspace. What is projected away of G must be away before it is sketched,
since it is most of it: the part along W is known from <G, W>, and Omega stands outside the protected directions from the start.
E ||G omega||^2 = ||G||_F^2 gives the energies.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from semu_diffusion.errors import InputError
from semu_diffusion.matrices import to_matrices
from semu_diffusion.subspace import ROUNDING, Projection, RankRule, Subspace, choose_rank

__all__ = ["GradientSketch", "collecting_rounds", "moment_sizes", "sketch_width"]

FLOAT = 4  # bytes
CHUNK = 2**22  # numbers of a gradient that are worked on at a time
# (side up to which second moments are exact, columns of the sketch beyond, rows held out) of every layer, the best first
MOMENTS = ((4096, 512, 512), (1024, 512, 256), (1024, 256, 128), (512, 128, 64), (64, 64, 64))


class GradientSketch:
    """The sum of gradients of one layer. ``protected`` (1, n, k): directions of its inputs that are left out of it."""

    def __init__(
        self,
        weight: torch.Tensor,
        width: int,
        generator: torch.Generator,
        protected: torch.Tensor | None = None,
        projection: Projection = "exact",
    ) -> None:
        m, n = weight.shape[0], weight[0].numel()
        self.weight, self.projection = weight.detach(), projection
        self.basis = None if protected is None else protected[0].to(weight.device, torch.float32)
        width = min(width, m, n)
        self.omega = self._outside(torch.randn(n, width, generator=generator).to(weight.device))
        self.psi = torch.randn(m, 2 * width + 1, generator=generator).to(weight.device)
        self.range = self.omega.new_zeros(m, width)  # Y
        self.corange = self.omega.new_zeros(n, 2 * width + 1)  # Z
        self.inner = self.omega.new_zeros((), dtype=torch.float64)

    def add(self, gradient: torch.Tensor, share: float) -> None:
        """Add ``share`` times a gradient of the weight's shape."""
        matrix, weight = to_matrices(gradient)[0], to_matrices(self.weight)[0]
        rows = max(CHUNK // matrix.shape[1], 1)
        for start in range(0, len(matrix), rows):  # so that no copy of it in float32 is ever there
            part = slice(start, start + rows)
            some = matrix[part].float()
            self.range[part].addmm_(some, self.omega, alpha=share)
            self.corange.addmm_(some.T, self.psi[part], alpha=share)
            if self.projection != "none":
                self.inner += share * (some * weight[part]).sum()

    def div_(self, count: float) -> None:
        """From a sum to a mean."""
        for one in self.sums:
            one /= count

    @property
    def sums(self) -> tuple[torch.Tensor, ...]:
        """What `add` adds to."""
        return self.range, self.corange, self.inner

    def isfinite(self) -> bool:
        return bool(torch.isfinite(self.range).all() and torch.isfinite(self.corange).all())

    def any(self) -> bool:
        return bool(self.corange.any())

    @property
    def energy(self) -> float:
        """Estimate of ||G||_F^2 before anything is projected away."""
        return float(self.corange.double().square().sum()) / self.corange.shape[1]

    def subspace(
        self, explained_variance: float, rule: RankRule = "at_least", min_rank: int = 1, max_rank: int | None = None
    ) -> Subspace:
        """`Subspace` of the layer, as `layer_subspace` finds it of the gradient itself; its energies are estimates."""
        weight = to_matrices(self.weight.float())[0]
        y, z = self.range, self.corange
        norm = float(torch.linalg.vector_norm(weight))
        if self.projection != "none" and norm > 0:
            along = float(self.inner) / (norm**2 if self.projection == "exact" else norm)
            y, z = y - along * (weight @ self.omega), z - along * (weight.T @ self.psi)
        basis = torch.linalg.qr(y.double()).Q
        rows = torch.linalg.lstsq(self.psi.double().T @ basis, z.double().T).solution  # (l, n): the gradient is basis @ rows
        small, values, right = torch.linalg.svd(self._outside(rows.T).T, full_matrices=False)
        before, energies = self.energy, values.square()
        after = max(float(y.double().square().sum()) / y.shape[1], float(energies.sum()))
        if after <= ROUNDING * before:  # no directions worth training are left in it
            energies, after = energies[:0], 0.0
        rank = choose_rank(energies, after, explained_variance, rule, min_rank, max_rank, ROUNDING * before)
        return Subspace(
            left=(basis @ small[:, :rank]).float()[None],
            right=right[:rank].T.float()[None],
            ranks=torch.tensor([rank]),
            shape=tuple(self.weight.shape),
            matricisation="full",
            explained=float(energies[:rank].sum()) / after if after > 0 else 0.0,
            gradient_energy_kept=min(after / before, 1.0) if before > 0 else 0.0,
        )

    def _outside(self, columns: torch.Tensor) -> torch.Tensor:
        """Columns (n, k) without their part in the protected directions."""
        if self.basis is not None:
            basis = self.basis.to(columns)
            for _ in range(2):
                columns = columns - basis @ (basis.T @ columns)
        return columns


def sketch_width(max_rank: int) -> int:
    """l for a rank: three more directions for each that is kept, and eight."""
    return 4 * max_rank + 8


def collecting_rounds(layers: Mapping[str, Any], width: int, budget: int, moments: bool = False) -> list[dict[str, bool]]:
    """The layers, in their order, in as few rounds as fit into ``budget`` bytes each, and whether each is to be sketched.

    In a round those are that save most, until the rest fits. With ``moments`` those of its inputs must fit too, in the smallest
    of their ways. Raises InputError if the gradient, or the moments, of one layer alone do not fit.
    """
    dense = {name: FLOAT * layer.weight.numel() for name, layer in layers.items()}
    saved = {name: max(dense[name] - _sketch_bytes(layer.weight, width), 0) for name, layer in layers.items()}
    found: list[dict[str, bool]] = []
    taken = kept = 0
    for name, layer in layers.items():
        gradient, seen = dense[name] - saved[name], _moment_bytes(layer, *MOMENTS[-1]) if moments else 0
        if max(gradient, seen) > budget:
            raise InputError(
                f"--memory: what is collected of {name} alone takes {max(gradient, seen) / 1e6:.3g} MB at least, and "
                f"{budget / 1e6:.3g} MB were given: give more, or leave it out (--layers !{name})"
            )
        if not found or max(taken + gradient, kept + seen) > budget:
            found.append({})
            taken = kept = 0
        found[-1][name] = False
        taken, kept = taken + gradient, kept + seen
    for group in found:
        excess = sum(dense[name] for name in group) - budget
        for name in sorted(group, key=lambda name: -saved[name]):
            if excess > 0:
                group[name] = True
                excess -= saved[name]
    return found


def moment_sizes(layers: Mapping[str, Any], budget: int | None) -> dict[str, int]:
    """How second moments of the layers' inputs are kept to fit into ``budget`` bytes; the smallest way if none does."""
    for sizes in MOMENTS:
        if budget is None or sum(_moment_bytes(layer, *sizes) for layer in layers.values()) <= budget:
            break
    return dict(zip(("max_side", "sketch", "held_rows"), sizes, strict=True))


def _moment_bytes(layer: Any, exact: int, columns: int, held: int) -> int:
    n = layer.weight[0].numel()
    return FLOAT * n * ((n if n <= exact else columns) + held)


def _sketch_bytes(weight: torch.Tensor, width: int) -> int:
    """Y, Z, Omega and Psi."""
    m, n = weight.shape[0], weight[0].numel()
    width = min(width, m, n)
    return FLOAT * (m + n) * (3 * width + 1)
