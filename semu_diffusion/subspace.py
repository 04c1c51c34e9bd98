r"""From a gradient to the subspace it lives in: projection, explained variance, rank, and a fast truncated SVD.

For the matrices G (C, m, n) of a layer's gradient:
  G    <- G - (<G, W>_F / ||W||_F^2) W       perpendicular projection (SEMU; ``exact``)
  G    <- G - (G B) B^T, twice               null space of protected inputs, B their orthonormal basis (optional)
  G     = U S V^T,   EV(j) = sum_{i<=j} s_i^2 / ||G||_F^2,   r = min{j : EV(j) >= gamma}

The total ||G||_F^2 is known without any SVD, so gamma needs no small singular value: a randomised range finder (Halko,
Martinsson, Tropp 2011) grows until its captured energy reaches gamma of it; where that would need most of the
directions, the eigenvectors of the smaller Gram matrix are cheaper. A full SVD is never made.

The null space often leaves a thousandth of G: what rounding leaves of the rest is then no longer small beside it. So no
direction counts whose energy is below 1e-12 of the gradient's own, and V is projected once more and made orthonormal again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from semu_diffusion.matrices import Matricisation, to_matrices

__all__ = [
    "ROUNDING",
    "Projection",
    "RankRule",
    "Subspace",
    "choose_rank",
    "dominant_subspace",
    "layer_subspace",
    "project_away",
]

Projection = Literal["exact", "official", "none"]
RankRule = Literal["at_least", "official"]

ROUNDING = 1e-12  # of the gradient's energy before any projection: below it a direction is noise of float32
_GRAM_SIDE = 192  # below this smaller side the Gram matrix is cheapest (measured by `semu benchmark-cost --phase subspace`)


@dataclass(frozen=True)
class Subspace:
    """Orthonormal factors of a layer's update: ``left`` (C, m, r), ``right`` (C, n, r), zero columns beyond ``ranks`` (C,).

    ``explained`` is the share of the (projected) gradient's energy inside; ``gradient_energy_kept`` the share of the original
    gradient's energy that the projections left to choose from.
    """

    left: torch.Tensor
    right: torch.Tensor
    ranks: torch.Tensor
    shape: tuple[int, ...]
    matricisation: Matricisation
    explained: float
    gradient_energy_kept: float

    @property
    def trained_parameters(self) -> int:
        """Numbers in R: the sum of r^2 over the C matrices."""
        return int(self.ranks.square().sum())


def project_away(gradient: torch.Tensor, weight: torch.Tensor, projection: Projection) -> torch.Tensor:
    """Remove the component of ``gradient`` along ``weight`` (both of the layer's shape), over the whole tensor.

    ``official`` divides by ||W|| instead of ||W||^2, as the reference code does: unless ||W|| = 1 that is no projection
    and turns the result towards W itself. Kept for reproduction only.
    """
    if projection == "none":
        return gradient
    weight = weight.to(gradient)
    norm = torch.linalg.vector_norm(weight)
    if norm == 0:
        return gradient
    inner = (gradient * weight).sum()
    return gradient - inner / (norm**2 if projection == "exact" else norm) * weight


def choose_rank(
    energies: torch.Tensor,
    total: float,
    explained_variance: float,
    rule: RankRule = "at_least",
    min_rank: int = 1,
    max_rank: int | None = None,
    floor: float = 0.0,
) -> int:
    """Rank from the squared singular values (descending) and their known total ||G||_F^2.

    ``at_least``: min{j : EV(j) >= gamma}; ``official``: max{j : EV(j) <= gamma}, usually one less and possibly 0.
    With gamma = 1 both take every direction. A zero gradient has rank 0 whatever ``min_rank`` says; a rank never exceeds
    the number of energies above ``floor`` and above rounding.
    """
    nonzero = int((energies > max(float(energies.max()) * 1e-12, floor)).sum()) if len(energies) and total > 0 else 0
    if nonzero == 0:
        return 0
    share = torch.cumsum(energies.double(), 0) / total
    if explained_variance >= 1.0:  # must not hang on the rounding of a sum
        rank = nonzero
    elif rule == "at_least":
        reached = share >= explained_variance - 1e-9
        rank = int(reached.nonzero()[0]) + 1 if reached.any() else nonzero
    else:
        rank = int((share <= explained_variance + 1e-9).sum())
    return max(min(rank, nonzero, max_rank or nonzero), min(min_rank, nonzero))


def dominant_subspace(
    matrix: torch.Tensor,
    explained_variance: float = 0.95,
    rule: RankRule = "at_least",
    min_rank: int = 1,
    max_rank: int | None = None,
    generator: torch.Generator | None = None,
    floor: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Leading U (m, r), s^2 (r,), V (n, r) of one matrix (m, n), r by `choose_rank`. float32 work, float64 small solves."""
    total = float(matrix.double().square().sum())
    m, n = matrix.shape
    if total == 0.0:
        return matrix.new_zeros(m, 0), matrix.new_zeros(0), matrix.new_zeros(n, 0)
    if min(m, n) > _GRAM_SIDE and explained_variance < 1.0:
        found = _randomised(matrix, total, explained_variance, min_rank, max_rank, generator)
        if found is not None:
            left, energies, right = found
            rank = choose_rank(energies, total, explained_variance, rule, min_rank, max_rank, floor)
            return left[:, :rank], energies[:rank], right[:, :rank]
    left, energies, right = _from_gram(matrix, all_needed=explained_variance >= 1.0)
    rank = choose_rank(energies, total, explained_variance, rule, min_rank, max_rank, floor)
    return left[:, :rank], energies[:rank], right[:, :rank]


def _from_gram(matrix: torch.Tensor, all_needed: bool = False) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """All singular triplets from the eigenvectors of the smaller Gram matrix.

    float64 up to a side of 1024, and beyond where the weakest are needed too: in float32 these are not orthonormal.
    """
    transposed = matrix.shape[0] > matrix.shape[1]
    work = matrix.T if transposed else matrix
    exact = work.double() if (all_needed or work.shape[0] <= 1024) else work.float()
    energies, small = torch.linalg.eigh(exact @ exact.T)
    energies, small = energies.flip(0).clamp_min(0), small.flip(1)
    keep = energies > energies[0] * 1e-12
    energies, small = energies[keep], small[:, keep]
    large = exact.T @ small / energies.sqrt()
    left, right = (large, small) if transposed else (small, large)
    return left.to(matrix), energies.to(matrix), right.to(matrix)


def _randomised(
    matrix: torch.Tensor,
    total: float,
    explained_variance: float,
    min_rank: int,
    max_rank: int | None,
    generator: torch.Generator | None,
    tolerance: float = 1e-7,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None:
    """Subspace iteration on a growing random range; None where the Gram matrix would be cheaper.

    A width that does not hold gamma of the energy after two iterations (nor ``max_rank`` directions and a margin) is doubled
    at once. Otherwise it is iterated until the energy of the directions that will be kept changes by less than ``tolerance``
    of the total; directions beyond them need not converge.
    """
    m, n = matrix.shape
    generator = generator or torch.Generator().manual_seed(0)
    width, limit = min(40, min(m, n) // 3), min(m, n) // 3
    basis = torch.empty(m, 0, dtype=matrix.dtype, device=matrix.device)
    while width <= limit:
        new = torch.randn(n, width - basis.shape[1], generator=generator).to(matrix)
        basis = torch.linalg.qr(torch.cat([basis, matrix @ new], 1)).Q
        before, still = 0.0, 0
        for iteration in range(16):
            image = matrix @ torch.linalg.qr(matrix.T @ basis).Q
            basis, rest = torch.linalg.qr(image)
            share = torch.linalg.eigvalsh(rest.double() @ rest.double().T).flip(0).cumsum(0) / total
            kept = int((share < explained_variance).sum()) + 1
            if max_rank is not None and width >= 2 * max_rank + 8:
                kept = min(kept, max_rank)
            kept = max(kept, min_rank)
            if kept > width:
                if iteration:
                    break
                continue
            now = float(share[kept - 1])
            still = still + 1 if now - before <= tolerance else 0
            if still == 2:  # an angle converges half as fast as its energy
                left, energies, small = _from_gram(basis.T @ matrix)
                return basis @ left, energies, small
            before = now
        width *= 2
    return None


def layer_subspace(
    gradient: torch.Tensor,
    weight: torch.Tensor,
    *,
    explained_variance: float = 0.95,
    projection: Projection = "exact",
    matricisation: Matricisation = "full",
    rule: RankRule = "at_least",
    min_rank: int = 1,
    max_rank: int | None = None,
    protected: torch.Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Subspace:
    """`Subspace` of one layer from its gradient and weight (same shape).

    ``protected`` (C, n, k): orthonormal basis of input directions that must not feel the update (zero columns allowed).
    Raises ValueError if gamma is outside (0, 1].
    """
    if not 0 < explained_variance <= 1:
        raise ValueError(f"explained_variance must lie in (0, 1], not {explained_variance}")
    before = float(gradient.double().square().sum())
    matrices = to_matrices(project_away(gradient.float(), weight.float(), projection), matricisation)
    basis = None if protected is None else protected.to(matrices)
    if basis is not None:
        matrices = _outside(_outside(matrices, basis), basis)
    floors = ROUNDING * to_matrices(gradient.double(), matricisation).square().sum((1, 2))
    rounding = matrices.double().square().sum((1, 2)) <= floors  # no directions worth training are left in those
    matrices = matrices.masked_fill(rounding[:, None, None], 0.0)
    after = float(matrices.double().square().sum())
    if len(matrices) == 1:
        rules = (explained_variance, rule, min_rank, max_rank, generator)
        factors = [dominant_subspace(matrices[0], *rules, floor=float(floors))]
    else:
        factors = _per_channel(matrices, explained_variance, rule, min_rank, max_rank, floors)
    if basis is not None:
        factors = [_clean(*factor, basis[channel]) for channel, factor in enumerate(factors)]
    ranks = torch.tensor([energies.numel() for _, energies, _ in factors])
    width = int(ranks.max())
    left = torch.stack([_padded(u, width) for u, _, _ in factors])
    right = torch.stack([_padded(v, width) for _, _, v in factors])
    kept = sum(float(energies.double().sum()) for _, energies, _ in factors)
    return Subspace(
        left=left,
        right=right,
        ranks=ranks,
        shape=tuple(weight.shape),
        matricisation=matricisation,
        explained=kept / after if after > 0 else 0.0,
        gradient_energy_kept=after / before if before > 0 else 0.0,
    )


def _per_channel(
    matrices: torch.Tensor,
    explained_variance: float,
    rule: RankRule,
    min_rank: int,
    max_rank: int | None,
    floors: torch.Tensor,
) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Singular triplets of many small matrices (C, m, n) at once, from their (n, n) Gram matrices."""
    work = matrices.double()
    energies, right = torch.linalg.eigh(work.transpose(1, 2) @ work)
    energies, right = energies.flip(-1).clamp_min(0), right.flip(-1)
    factors = []
    for channel, (energy, vectors) in enumerate(zip(energies, right, strict=True)):
        rank = choose_rank(energy, float(energy.sum()), explained_variance, rule, min_rank, max_rank, float(floors[channel]))
        left = work[channel] @ vectors[:, :rank] / energy[:rank].sqrt()
        factors.append((left.to(matrices), energy[:rank].to(matrices), vectors[:, :rank].to(matrices)))
    return factors


def _outside(rows: torch.Tensor, basis: torch.Tensor) -> torch.Tensor:
    """``rows`` (..., m, n) without their part in the span of ``basis`` (..., n, k)."""
    return rows - (rows @ basis) @ basis.transpose(-1, -2)


def _clean(
    left: torch.Tensor, energies: torch.Tensor, right: torch.Tensor, basis: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """V (n, r) projected once more and orthonormal again, without columns of which little more than rounding was there."""
    for _ in range(2):
        right, rest = torch.linalg.qr(_outside(_outside(right.T, basis), basis).T.double())
        kept = rest.diagonal().abs() > 0.5
        left, energies, right = left[:, kept], energies[kept], (right * rest.diagonal().sign())[:, kept].to(basis)
    return left, energies, right


def _padded(matrix: torch.Tensor, width: int) -> torch.Tensor:
    return torch.nn.functional.pad(matrix, (0, width - matrix.shape[1]))
