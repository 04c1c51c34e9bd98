r"""Weight tensor <-> matrices, and layer input <-> rows, in the two matricisations of SEMU.

``full``         Linear (out, in) and Conv2d (out, in, kh, kw) become one matrix (1, out, in*kh*kw): an update of rank r is
                 then exactly a LoRA of rank r.
``per_channel``  a Conv2d becomes one matrix per input channel (in, out, kh*kw), the reference code's form; a Linear stays
                 as in ``full``. Not a LoRA of the same rank.

Every function works on a leading axis C of matrices, 1 for ``full``, so that both forms share one code path.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F

__all__ = ["Matricisation", "from_matrices", "input_rows", "to_matrices"]

Matricisation = Literal["full", "per_channel"]


def to_matrices(weight: torch.Tensor, matricisation: Matricisation = "full") -> torch.Tensor:
    """Weight (out, in) or (out, in, kh, kw) -> matrices (C, m, n)."""
    if weight.ndim == 4 and matricisation == "per_channel":
        return weight.permute(1, 0, 2, 3).flatten(2)
    return weight.reshape(weight.shape[0], -1)[None]


def from_matrices(
    matrices: torch.Tensor, shape: tuple[int, ...] | torch.Size, matricisation: Matricisation = "full"
) -> torch.Tensor:
    """Inverse of `to_matrices`: matrices (C, m, n) -> weight of ``shape``."""
    if len(shape) == 4 and matricisation == "per_channel":
        out, channels, height, width = shape
        return matrices.reshape(channels, out, height, width).permute(1, 0, 2, 3)
    return matrices.reshape(shape)


def input_rows(
    layer: nn.Linear | nn.Conv2d,
    x: torch.Tensor,
    matricisation: Matricisation = "full",
    max_rows: int | None = None,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """The vectors (C, rows, n) that the matrices of ``layer`` multiply when it is fed ``x``.

    For a convolution these are its unfolded patches; the groups of a grouped one are as many rows, one after the other. At most
    ``max_rows`` of them (whole positions of a grouped one, at least one), drawn without replacement; only these are ever
    copied, so memory stays bounded.
    """
    if isinstance(layer, nn.Linear):
        rows = x.reshape(-1, x.shape[-1])
        return rows[_some(len(rows), max_rows, generator).to(x.device)][None]
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    x = F.pad(x if x.ndim == 4 else x[None], layer._reversed_padding_repeated_twice, mode=mode)
    for axis, (size, stride, dilation) in enumerate(zip(layer.kernel_size, layer.stride, layer.dilation, strict=True), 2):
        x = x.unfold(axis, (size - 1) * dilation + 1, stride)[..., ::dilation]  # a view: nothing is copied here
    patches = x.unflatten(1, (layer.groups, -1)).permute(0, 3, 4, 1, 2, 5, 6)  # (N, rows, columns, groups, in, kh, kw)
    positions = patches.shape[:3]
    limit = None if max_rows is None else max(max_rows // layer.groups, 1)
    index = _some(positions.numel(), limit, generator).to(x.device)
    rows = patches[torch.unravel_index(index, positions)].flatten(0, 1).flatten(2)  # (rows, in, kh*kw)
    return rows.transpose(0, 1) if matricisation == "per_channel" else rows.flatten(1)[None]


def _some(count: int, limit: int | None, generator: torch.Generator | None) -> torch.Tensor:
    if limit is None or count <= limit:
        return torch.arange(count)
    return torch.randperm(count, generator=generator)[:limit]
