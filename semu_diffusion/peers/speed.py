r"""SPEED: the closed form inside the null space of what kept inputs are, so that they are answered nearly as before.

    min_D || D c - W (a - c) ||^2 + || D ||^2   subject to  D = D P  and  D z = 0
    D = W (a - c) c^T N (N^T c c^T N + I)^{-1} N^T

with inputs c of the erased, a of its anchor and z of the empty prompt. P projects on the eigenvectors of the kept inputs'
second moment with the smallest eigenvalues; N is an orthonormal basis of what of its range is orthogonal to z: the paper's
Lagrangian solution, in the basis in which the constraints are gone (Li et al. 2025, "SPEED: Scalable, Precise, and
Efficient Concept Erasure for Diffusion Models", arXiv 2503.07392, eqs. 5 to 12). The filter of the kept inputs is there: only
those count which the unconstrained edit would move more than the mean. Their augmentation along the weakest directions of W
is not. The threshold is relative to the mean eigenvalue, which the paper's (0.1) is not, and it is that of z too: where the
prompts have many tokens, no direction is exactly orthogonal to all of z, and D z is small instead of 0.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from semu_diffusion.erase.config import ErasureConfig
from semu_diffusion.erase.task import EditResult, Progress, Task
from semu_diffusion.errors import InputError
from semu_diffusion.peers.closed_forms import NameInputs, Weights, closed_form

__all__ = ["free_basis", "influential", "solved", "speed"]


THRESHOLD = 1e-2  # of the mean eigenvalue: directions with less of the kept inputs' energy are free


def speed(task: Task[Any], config: ErasureConfig, progress: Progress | None = None, threshold: float = THRESHOLD) -> EditResult:
    """Every layer that sees nothing but the condition. Raises InputError as `closed_form`."""
    return closed_form(task, config, partial(constrained, threshold=threshold), progress)


def constrained(weights: Weights, inputs: NameInputs, threshold: float) -> Weights:
    """The new weights. Raises InputError where the kept inputs leave no direction free in any layer."""
    whole, found, free = torch.eye(inputs.erased.shape[1]).to(inputs.erased), {}, 0
    for name, weight in weights.items():
        basis = free_basis(influential(solved(weight, inputs, whole), inputs.kept), inputs.null, threshold)
        found[name] = weight + solved(weight, inputs, basis)
        free += basis.shape[1]
    if not free:
        raise InputError("the kept inputs leave no direction free: name fewer retain prompts, or take closed-form")
    return found


def solved(weight: torch.Tensor, inputs: NameInputs, basis: torch.Tensor) -> torch.Tensor:
    """D (m, n) of the equation above for the orthonormal ``basis`` N (n, k) of input directions in which it may live."""
    inside = inputs.erased @ basis
    wanted = (inputs.anchors - inputs.erased) @ weight.T
    ridge = torch.eye(basis.shape[1]).to(basis)
    return torch.linalg.solve(inside.T @ inside + ridge, inside.T @ wanted).T @ basis.T


def influential(delta: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """The kept inputs (M, n) whose answer the update moves more than it does on average."""
    moved = (kept @ delta.T).square().sum(1)
    return kept[moved > moved.mean()]


def free_basis(kept: torch.Tensor, null: torch.Tensor, threshold: float) -> torch.Tensor:
    """N (n, k): the weak directions of the kept inputs, and among these the weak ones of the null row's inputs."""
    basis = _weak(kept, threshold)
    return basis @ _weak(null @ basis, threshold)


def _weak(rows: torch.Tensor, threshold: float) -> torch.Tensor:
    """The eigenvectors (n, k) of the second moment of rows (N, n) whose eigenvalue is at most ``threshold`` of the mean."""
    values, vectors = torch.linalg.eigh(rows.T @ rows)
    return vectors[:, values <= threshold * values.mean().clamp_min(0)]
