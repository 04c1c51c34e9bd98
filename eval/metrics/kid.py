r"""Kernel distance of two sets of features (Bińkowski et al. 2018, arXiv 1801.01401): honest from few images, as FID is not.

    KID = mean k(x_i, x_j), i != j  +  mean k(y_i, y_j), i != j  -  2 mean k(x_i, y_j),     k(x, y) = (x . y / d + 1)^3

The unbiased estimate of the squared maximum mean discrepancy, over all pairs instead of random subsets: its expectation does
not depend on the counts, so it may be negative.
"""

from __future__ import annotations

import torch

from semu_diffusion.eval.metrics.fid import check_features

__all__ = ["kernel_distance"]

ROWS = 1024  # rows of the kernel matrix at a time


def kernel_distance(features_a: torch.Tensor, features_b: torch.Tensor, paired: bool = False) -> float:
    """KID of feature matrices (N, D) and (M, D), in float64.

    ``paired``: row i of both comes from one seed, so their kernel value is left out of the cross mean and the estimate stays
    unbiased (Gretton et al. 2012, eq. 4); N must be M then, and equal sets are at distance 0.
    Raises InputError for widths that differ, fewer than two rows, or features that are not finite.
    """
    check_features("KID", features_a, features_b)
    x, y = features_a.cpu().double(), features_b.cpu().double()
    within = [(_total(s, s) - _diagonal(s, s)) / (len(s) * (len(s) - 1)) for s in (x, y)]
    cross = (_total(x, y) - _diagonal(x, y)) / (len(x) * (len(x) - 1)) if paired else _total(x, y) / (len(x) * len(y))
    return within[0] + within[1] - 2 * cross


def _total(x: torch.Tensor, y: torch.Tensor) -> float:
    return sum(float((part @ y.T / x.shape[1] + 1).pow(3).sum()) for part in x.split(ROWS))


def _diagonal(x: torch.Tensor, y: torch.Tensor) -> float:
    return float(((x * y).sum(1) / x.shape[1] + 1).pow(3).sum())
