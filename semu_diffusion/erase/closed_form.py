r"""The name in closed form: whatever the erased condition says to the layers that see nothing else, its anchor says.

For every linear layer W that sees nothing but the condition, with rows c of erased, a of anchor and k of kept inputs,

    min_W'  sum ||W' c - W a||^2 + p sum ||W' k - W k||^2 + l ||W' - W||^2
    W' - W = W (sum (a - c) c^T) (sum c c^T + p sum k k^T + l I)^{-1}

(UCE, Gandikota et al. 2024, arXiv 2308.14761, eq. 7). On a text-to-image UNet these layers are the keys and values of
cross-attention, and every token of a prompt is an input (the authors' code takes one). On a class-conditional UNet they are
the resnets' `time_emb_proj`, whose input is the activated sum of time and class embedding: one at every 1/32 of the timesteps.
A second's work that kept conditions hardly feel. p is the largest of `PRESERVE` that leaves at most `LEFT` of any erased
condition's difference to its anchor; the authors' is 0.1 (the peer ``uce``). A large p forces the update into directions that
kept inputs lack, which moves less of the rest and, along them, leaves less to a learned vector; where there are none, a smaller
p is taken. The update has the rank of what the erased inputs span, and becomes the factors of a patch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from semu_diffusion.erase.config import TrainingConfig
from semu_diffusion.erase.task import Task
from semu_diffusion.errors import InputError
from semu_diffusion.layers import select_layers
from semu_diffusion.models.base import DiffusionModel
from semu_diffusion.subspace import Subspace, dominant_subspace

__all__ = ["NameEdit", "name_edit", "name_layers", "name_of", "share_left", "update"]

PRESERVE, RIDGE = (10.0, 1.0, 0.1), 0.1  # p and l
LEFT = 0.25  # of the squared difference between what a name and its anchor say; by name, most leave 0.03 to 0.1
KEPT_ENERGY = 1 - 1e-6  # of the update, by its leading singular vectors


@dataclass(frozen=True)
class NameEdit:
    """The closed form of each layer as U, V and the R between them."""

    subspaces: Mapping[str, Subspace]
    cores: Mapping[str, torch.Tensor]


def name_layers(model: DiffusionModel) -> dict[str, Any]:
    """The layers that see nothing but the condition (and the time); {} for a network that has none."""
    layers = select_layers(model.denoiser)
    return {name: layers[name] for name in model.name_layers if name in layers}


def name_of(task: Task[DiffusionModel], config: TrainingConfig, anchors: Mapping[int, int]) -> NameEdit:
    """The name in closed form, where the method has it and the model the layers for it; else an edit of nothing."""
    possible = task.target == "fixed" and anchors and name_layers(task.model)
    if config.method == "closed-form" and not possible:
        raise InputError(
            "--method closed-form needs --target fixed and layers that see nothing but the condition, which this model "
            "has not: take --method trained"
        )
    if config.method == "trained" or not possible:
        return NameEdit({}, {})
    return name_edit(task.model, anchors, task.kept)


@torch.no_grad()
def name_edit(model: DiffusionModel, anchors: Mapping[int, int], kept: Sequence[int]) -> NameEdit:
    """The update of every such layer that answers each erased row as its anchor. ``kept`` rows and the null row stay."""
    null = [] if model.null is None else [model.null]
    erased, answers, stay = (
        model.name_inputs(torch.tensor(list(rows), device=model.device))
        for rows in (list(anchors), list(anchors.values()), [*kept, *null])
    )
    weights = {name: layer.weight.detach() for name, layer in name_layers(model).items()}
    for preserve in PRESERVE:
        deltas = {name: update(weight, erased, answers, stay, preserve) for name, weight in weights.items()}
        if share_left(weights, deltas, erased, answers, len(anchors)) <= LEFT:
            break
    spaces, cores = {}, {}
    for name, delta in deltas.items():
        left, energies, right = dominant_subspace(delta.float(), KEPT_ENERGY)
        rank = torch.tensor([energies.numel()])
        spaces[name] = Subspace(left[None], right[None], rank, tuple(delta.shape), "full", KEPT_ENERGY, 1.0)
        cores[name] = energies.sqrt().diag()[None]
    return NameEdit(spaces, cores)


def share_left(
    weights: Mapping[str, torch.Tensor],
    deltas: Mapping[str, torch.Tensor],
    erased: torch.Tensor,
    anchors: torch.Tensor,
    conditions: int,
) -> float:
    """sum ||W' c - W a||^2 / sum ||W c - W a||^2 over all layers and the inputs of a condition, as many of each of the
    ``conditions``, one after the other: the largest of them. 0 where every name says what its anchor says, 1 as before."""
    c, a = erased.double(), anchors.double()
    sums = torch.zeros(2, conditions, dtype=torch.float64, device=c.device)
    for name, weight in weights.items():
        wrong = (c - a) @ weight.double().T
        for total, one in zip(sums, (wrong + c @ deltas[name].double().T, wrong), strict=True):
            total += one.square().view(conditions, -1).sum(1)
    return float((sums[0] / sums[1].clamp_min(1e-30)).max())


def update(
    weight: torch.Tensor, erased: torch.Tensor, anchors: torch.Tensor, kept: torch.Tensor, preserve: float
) -> torch.Tensor:
    """W' - W (m, n) of the equation above, for inputs (N, n), (N, n) and (M, n); float64, in which it is computed."""
    c, a, k, w = (tensor.double() for tensor in (erased, anchors, kept, weight))
    stay = preserve * k.T @ k + RIDGE * torch.eye(c.shape[1], dtype=torch.float64, device=c.device)
    # D M = W (a - c)^T c with M symmetric positive definite: solve M D^T = c^T (a - c) W^T
    return torch.linalg.solve(c.T @ c + stay, c.T @ (a - c) @ w.T).T
