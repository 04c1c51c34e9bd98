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
from semu_diffusion.wrappers import eagerly

__all__ = ["InputMoments", "collect_moments"]

Batch = TypeVar("Batch")


class InputMoments:
    """Running second moment of a layer's input rows, exact up to ``max_side`` columns and a Nystroem sketch beyond.

    ``energy_covered`` is the share of the energy that the last `protected_basis` holds, of the matrix where it is least.

    The sketch keeps Y = C Omega with a fixed Gaussian Omega (n, l), so that memory is n*l instead of n^2 and
    C ~ Y (Omega^T Y)^+ Y^T (Tropp et al. 2017); the trace, and with it the energy share, stays exact.
    """

    def __init__(self, max_side: int = 4096, sketch: int = 512, generator: torch.Generator | None = None) -> None:
        self.max_side, self.sketch = max_side, sketch
        self.generator = generator or torch.Generator().manual_seed(0)
        self.count = 0
        self.energy_covered = 0.0
        self.trace: torch.Tensor | None = None  # (C,)
        self._moment: torch.Tensor | None = None  # (C, n, n), or (C, n, l) for the sketch
        self._omega: torch.Tensor | None = None

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

    def eigen(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Eigenvalues (C, k), descending, and eigenvectors (C, n, k) of C (of its Nystroem approximation)."""
        if self._moment is None or self.trace is None:
            raise ValueError("no input was ever added")
        moment = self._moment / self.count
        if self._omega is None:
            values, vectors = torch.linalg.eigh(moment)
            return values.flip(-1).clamp_min(0), vectors.flip(-1)
        shift = (1e-6 * torch.linalg.matrix_norm(moment, keepdim=True)).clamp_min(1e-30)
        shifted = moment + shift * self._omega
        core = torch.linalg.cholesky(_symmetric(self._omega.T @ shifted))
        half = torch.linalg.solve_triangular(core, shifted.transpose(1, 2), upper=False).transpose(1, 2)
        left, singular, _ = torch.linalg.svd(half, full_matrices=False)
        values = (singular.square() - shift[..., 0]).clamp_min(0)
        return values * (self.trace > 0)[:, None], left  # what is left of the shift under dead inputs is rounding

    def protected_basis(self, share: float) -> torch.Tensor:
        """Orthonormal (C, n, k): the fewest leading eigenvectors that hold ``share`` of the energy; zero columns pad.

        All of a sketch's, if together they hold less: ``energy_covered`` says what they do hold.
        """
        values, vectors = self.eigen()
        assert self.trace is not None
        total = (self.trace / self.count).clamp_min(1e-30)[:, None]
        before = torch.cumsum(values, -1) - values  # energy held before this vector is taken
        taken = (before < share * total - 1e-7 * total) & (values > 0)  # rounding is no energy
        width = int(taken.sum(-1).max())
        live = self.trace > 0
        self.energy_covered = float(((values * taken).sum(-1, keepdim=True) / total)[live].min()) if live.any() else 1.0
        return vectors[..., :width] * taken[:, None, :width].to(vectors)

    def response_on_kept(self, matrices: torch.Tensor) -> float:
        """||M C^{1/2}||_F^2 summed over the C matrices M (C, m, n): mean squared output that kept inputs make of M.

        With a sketch, the energy that it does not hold counts as if it were spread evenly over all n directions.
        """
        if self._moment is None:
            raise ValueError("no input was ever added")
        if self._omega is None:
            return float(((matrices @ (self._moment / self.count)) * matrices).sum().clamp_min(0))
        values, vectors = self.eigen()
        assert self.trace is not None
        beyond = (self.trace / self.count - values.sum(-1)).clamp_min(0) / vectors.shape[1]
        held = ((matrices @ vectors).square() * values[:, None]).sum()
        return float(held + (matrices.square().sum((1, 2)) * beyond).sum())


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
) -> dict[str, InputMoments]:
    """Second moments of the inputs of ``layers`` while ``forward(batch)`` runs, without gradient.

    At most ``rows_per_batch`` input vectors per layer and batch are used, drawn by ``generator``, so that the cost does
    not grow with the picture. A layer that no batch reaches has no entry.
    """
    generator = generator or torch.Generator().manual_seed(0)
    moments: dict[str, InputMoments] = {}

    def observe(name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            rows = input_rows(layer, inputs[0].float(), matricisation, rows_per_batch, generator)  # type: ignore[arg-type]
            if name not in moments:
                moments[name] = InputMoments(max_side, sketch, generator)
            moments[name].add(rows)

        return hook

    handles = [layer.register_forward_pre_hook(observe(name)) for name, layer in layers.items()]
    try:
        with torch.no_grad(), eagerly():
            for batch in batches:
                forward(batch)
    finally:
        for handle in handles:
            handle.remove()
    return moments
