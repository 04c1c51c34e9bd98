r"""Does a model copy? The training image that is nearest to each sample in a network's features.

    s(x) = max_y  <f(x), f(y)> / (|f(x)| |f(y)|)      over the training images y

A number says little by itself: that of real images which were not trained on stands beside it.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from semu_diffusion.errors import InputError

__all__ = ["nearest"]

CHUNK = 256


def nearest(features: torch.Tensor, among: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine similarity (N,) to the nearest row of ``among`` (M, D), and its index (N,), for features (N, D).

    Raises InputError for widths that differ or a side without rows.
    """
    if features.ndim != 2 or among.ndim != 2 or features.shape[1] != among.shape[1] or not len(features) or not len(among):
        raise InputError(f"nearest needs feature matrices of one width, not {tuple(features.shape)} and {tuple(among.shape)}")
    among = F.normalize(among.float(), dim=1)
    best = [(F.normalize(part.float(), dim=1) @ among.T).max(1) for part in features.split(CHUNK)]
    return torch.cat([found.values for found in best]), torch.cat([found.indices for found in best])
