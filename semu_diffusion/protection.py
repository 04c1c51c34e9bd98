r"""Protection of everything else without data: the null space of what the layers see on kept inputs.

While the model runs on samples that it made itself of the kept classes, the second moment C = E[x x^T] of each layer's
input is accumulated (for a convolution, of the unfolded patches). An update whose rows avoid the leading eigenvectors of
C is barely felt by kept inputs: E||dW x||^2 = ||dW C^{1/2}||_F^2. Relatives: Adam-NSCL (Wang et al. 2021), GPM (Saha et al.
2021), SPEED (text keys and values only).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

import torch
from torch import nn

from semu_diffusion.matrices import Matricisation, input_rows
from semu_diffusion.patches.weights import modules_sharing
from semu_diffusion.patches.wrappers import eagerly

__all__ = ["InputMoments", "collect_moments", "squared_output"]

Batch = TypeVar("Batch")

_DOUBLE_SIDE = 1024  # up to this side float64 costs next to nothing
HELD_OUT = 4  # one image in so many is kept out of the moment, for measuring
_HELD_ROWS = 512  # of a layer by default, whatever the number of batches


class InputMoments:
    """Running second moment of a layer's input rows, exact up to ``max_side`` columns and a Nystroem sketch beyond.

    `add` takes the rows that make the basis, `hold` the rows on which it is measured: a basis always looks better on the rows
    that made it. ``energy_covered`` is the share of the held-out rows' energy that the last `protected_basis` holds, of the
    matrix where it is least (None if nothing was held out). ``groups`` are those of a grouped convolution, see `input_rows`.

    The sketch keeps Y = C Omega with a fixed Gaussian Omega (n, l), so that memory is n*l instead of n^2 and
    C ~ Y (Omega^T Y)^+ Y^T (Tropp et al. 2017); the trace, and with it the energy share, stays exact.
    """

    def __init__(
        self,
        max_side: int = 4096,
        sketch: int = 512,
        generator: torch.Generator | None = None,
        groups: int = 1,
        held_rows: int = _HELD_ROWS,
    ) -> None:
        self.max_side, self.sketch, self.groups, self.held_rows = max_side, sketch, groups, held_rows
        self.generator = generator or torch.Generator().manual_seed(0)
        self.count = 0
        self.energy_covered: float | None = None
        self.trace: torch.Tensor | None = None  # (C,)
        self.held: torch.Tensor | None = None  # (C, P, groups, n) on the CPU, a uniform sample of what was held out
        self._order = torch.empty(0)  # (P,) the random numbers that chose them
        self._moment: torch.Tensor | None = None  # (C, n, n), or (C, n, l) for the sketch
        self._omega: torch.Tensor | None = None
        self._basis: torch.Tensor | None = None  # once it is settled

    def add(self, rows: torch.Tensor) -> None:
        """Add rows (C, N, n), float."""
        rows = rows.float()
        if self._moment is None:
            n = rows.shape[-1]
            if n > self.max_side:
                omega = torch.randn(n, self.sketch, generator=self.generator).to(rows)
                self._omega = torch.linalg.qr(omega).Q
            columns = n if self._omega is None else self._omega.shape[1]
            self._moment = rows.new_zeros(len(rows), n, columns)
            self.trace = rows.new_zeros(len(rows))
        assert self.trace is not None
        right = rows if self._omega is None else rows @ self._omega
        self._moment.baddbmm_(rows.transpose(1, 2), right)
        self.trace += rows.square().sum((1, 2))
        self.count += rows.shape[1]

    def hold(self, rows: torch.Tensor) -> None:
        """Hold out rows (C, N, n), whole positions of a grouped convolution; beyond ``held_rows`` a uniform sample is kept."""
        rows = rows.float().cpu().unflatten(1, (-1, self.groups))
        order = torch.cat([self._order, torch.rand(rows.shape[1], generator=self.generator)])
        rows = rows if self.held is None else torch.cat([self.held, rows], 1)
        kept = order.argsort()[: max(self.held_rows // self.groups, 1)]
        self.held, self._order = rows[:, kept], order[kept]

    def eigen(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Eigenvalues (C, k), descending, and eigenvectors (C, n, k) of C (of its Nystroem approximation)."""
        if self._moment is None or self.trace is None:
            raise ValueError("no input was ever added")
        moment = self._moment / self.count
        if self._omega is None:
            values, vectors = _eigh(moment)
            return values.flip(-1).clamp_min(0), vectors.flip(-1)
        shift = (1e-6 * torch.linalg.matrix_norm(moment, keepdim=True)).clamp_min(1e-30)
        shifted = moment + shift * self._omega
        core = torch.linalg.cholesky(_symmetric(self._omega.T @ shifted))
        half = torch.linalg.solve_triangular(core, shifted.transpose(1, 2), upper=False).transpose(1, 2)
        left, singular, _ = torch.linalg.svd(half, full_matrices=False)
        values = (singular.square() - shift[..., 0]).clamp_min(0)
        return values * (self.trace > 0)[:, None], left  # what is left of the shift under dead inputs is rounding

    def protected_basis(self, share: float) -> torch.Tensor:
        """Orthonormal (C, n, k): the fewest leading eigenvectors that hold ``share`` of the added energy; zero columns pad.

        All of a sketch's, if together they hold less. ``energy_covered`` says what they hold of the rows held out.
        """
        if self._basis is not None:
            return self._basis
        values, vectors = self.eigen()
        assert self.trace is not None
        total = (self.trace / self.count).clamp_min(1e-30)[:, None]
        before = torch.cumsum(values, -1) - values  # energy held before this vector is taken
        taken = (before < share * total - 1e-7 * total) & (values > 0)  # rounding is no energy
        width = int(taken.sum(-1).max())
        basis = vectors[..., :width] * taken[:, None, :width].to(vectors)
        self.energy_covered = None if self.held is None else self._covered(basis)
        return basis

    def settle(self, share: float) -> torch.Tensor:
        """The `protected_basis`, for which ``share`` it is from now on; the moment it was made of is given back."""
        self._basis = self.protected_basis(share)
        self._moment = self._omega = None
        return self._basis

    def _covered(self, basis: torch.Tensor) -> float:
        assert self.held is not None
        rows = self.held.flatten(1, 2).to(basis)
        total = rows.square().sum((1, 2))
        shares = (rows @ basis).square().sum((1, 2)) / total.clamp_min(1e-30)
        return float(shares[total > 0].min()) if (total > 0).any() else 1.0

    def response_on_kept(self, matrices: torch.Tensor) -> float:
        """`squared_output` of the weights M (C, m, n) on the held-out rows. Raises ValueError if nothing was held."""
        return squared_output(self._held(), matrices)

    def held_through(self, right: torch.Tensor) -> torch.Tensor:
        """V^T x (C, P, groups, r) of the held-out rows, V (C, n, r): on it an M has the output that M V^T has on them."""
        rows = self._held()
        return torch.einsum("cpgn,cnr->cpgr", rows, right.to(rows))

    def _held(self) -> torch.Tensor:
        if self.held is None:
            raise ValueError("no input was held out")
        return self.held


def squared_output(rows: torch.Tensor, matrices: torch.Tensor) -> float:
    """Mean over the positions of ||sum_c M_c x_c||^2: the squared output of M (C, m, n) on rows (C, P, groups, n).

    The m rows of a grouped convolution's M see the inputs of their own group alone.
    """
    grouped = matrices.unflatten(1, (rows.shape[2], -1))
    output = torch.einsum("cpgn,cgmn->pgm", rows.to(matrices), grouped)
    return float(output.double().square().sum()) / len(output)


def _eigh(moment: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Eigenvalues, ascending, and eigenvectors; in float64 where that is cheap or float32 fails, as it does with zero rows."""
    if moment.shape[-1] > _DOUBLE_SIDE:
        try:
            values, vectors = torch.linalg.eigh(moment)
            if torch.isfinite(values).all() and torch.isfinite(vectors).all():
                return values, vectors
        except torch.linalg.LinAlgError:
            pass
    values, vectors = torch.linalg.eigh(moment.double())
    return values.to(moment), vectors.to(moment)


def _symmetric(matrix: torch.Tensor) -> torch.Tensor:
    return (matrix + matrix.transpose(-1, -2)) / 2


def collect_moments(
    layers: Mapping[str, nn.Linear | nn.Conv2d],
    batches: Iterable[Batch],
    forward: Callable[[Batch], object],
    matricisation: Matricisation = "full",
    rows_per_batch: int = 2048,
    generator: torch.Generator | None = None,
    max_side: int = 4096,
    sketch: int = 512,
    model: nn.Module | None = None,
    held_rows: int = _HELD_ROWS,
) -> dict[str, InputMoments]:
    """Second moments of the inputs of ``layers`` while ``forward(batch)`` runs, without gradient.

    Of each batch a quarter of the images (the leading axis), the same for every layer, is held out for measuring; a single
    image is not, unless nothing else is. At most ``rows_per_batch`` input vectors per layer and batch are used, drawn by
    ``generator``, so that the cost does not grow with the picture. Modules of ``model`` that share a layer's weight are
    observed with it. A layer that no batch reaches has no entry.
    """
    generator = generator or torch.Generator().manual_seed(0)
    moments: dict[str, InputMoments] = {}
    chosen: dict[int, torch.Tensor] = {}  # of a batch: which of so many images are held out

    def observe(name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, inputs: tuple[torch.Tensor, ...], named: Mapping[str, torch.Tensor]) -> None:
            x = (inputs[0] if inputs else named["input"]).float()
            x = x[None] if x.ndim == (3 if isinstance(layer, nn.Conv2d) else 1) else x
            if name not in moments:
                moments[name] = InputMoments(max_side, sketch, generator, getattr(layer, "groups", 1), held_rows)
            out = chosen.setdefault(len(x), _held_out(len(x), generator)).to(x.device)
            share = max(rows_per_batch // HELD_OUT, 1)
            moments[name].add(input_rows(layer, x[~out], matricisation, max(rows_per_batch - share, 1), generator))  # type: ignore[arg-type]
            if out.any() or moments[name].held is None:
                moments[name].hold(input_rows(layer, x[out] if out.any() else x, matricisation, share, generator))  # type: ignore[arg-type]

        return hook

    observed = modules_sharing(model, layers) if model is not None else {name: [layer] for name, layer in layers.items()}
    handles = [
        module.register_forward_pre_hook(observe(name), with_kwargs=True)
        for name, all_of in observed.items()
        for module in all_of
    ]
    try:
        with torch.no_grad(), eagerly():
            for batch in batches:
                chosen.clear()
                forward(batch)
    finally:
        for handle in handles:
            handle.remove()
    return moments


def _held_out(count: int, generator: torch.Generator) -> torch.Tensor:
    """Which of ``count`` images are held out, (count,) bool: a quarter, at least one of several."""
    out = torch.zeros(count, dtype=torch.bool)
    out[torch.randperm(count, generator=generator)[: max(count // HELD_OUT, min(count - 1, 1))]] = True
    return out
