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

    For a convolution these are its unfolded patches. At most ``max_rows`` of them, drawn without replacement: whole
    images are dropped before unfolding so that memory stays bounded.
    """
    if isinstance(layer, nn.Linear):
        return _some(x.reshape(-1, x.shape[-1]), max_rows, generator)[None]
    if layer.groups != 1:
        raise ValueError("grouped convolutions have no single input matrix")
    padding = layer.padding if isinstance(layer.padding, tuple) else 0
    if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        x = F.pad(
            x,
            layer._reversed_padding_repeated_twice,
            mode="constant" if layer.padding_mode == "zeros" else layer.padding_mode,
        )
        padding = 0
    patches = F.unfold(x, layer.kernel_size, layer.dilation, padding, layer.stride)  # (N, in*kh*kw, positions)
    rows = _some(patches.transpose(1, 2).reshape(-1, patches.shape[1]), max_rows, generator)
    if matricisation == "per_channel":
        return rows.reshape(len(rows), layer.in_channels, -1).transpose(0, 1)
    return rows[None]


def _some(rows: torch.Tensor, limit: int | None, generator: torch.Generator | None) -> torch.Tensor:
    if limit is None or len(rows) <= limit:
        return rows
    return rows[torch.randperm(len(rows), generator=generator)[:limit].to(rows.device)]
