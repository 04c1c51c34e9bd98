"""Side effects on what should have stayed: images from the same seeds, before and after, pair by pair.

Paired MSE is the mean of (after - before)^2 of images in [-1, 1], four times that on [0, 1]: the "drift".
Paired SSIM is the structural similarity (Wang et al. 2004, by torchmetrics) of images in [0, 1]; 1 is same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torchmetrics.functional.image import structural_similarity_index_measure

from semu_diffusion.errors import InputError
from semu_diffusion.eval.images import to_float
from semu_diffusion.eval.results import SideEffects

__all__ = ["PairMetric", "paired_mse", "paired_ssim", "side_effects"]

PairMetric = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

# float64 has no fast convolution on CPUs: torch unfolds the window's 121 taps, five gigabytes for one image of 1024 x 1024.
_EXACT = 2**15  # pixels of the largest image, and of a chunk of smaller ones, in float64: 160 MB
_LARGE = 2**20  # pixels of a chunk of larger ones, in float32: 100 MB
_SIGMA = 1.5  # SSIM's usual Gaussian window, 11 pixels wide
_TRUNCATE = 3.5  # torchmetrics cuts the Gaussian window at 3.5 sigma


def side_effects(
    before: Mapping[str, torch.Tensor], after: Mapping[str, torch.Tensor], metrics: Mapping[str, PairMetric]
) -> SideEffects:
    """Compare {condition: (n, C, H, W), uint8 or in [0, 1]} before and after; image i of both comes from the same seed.

    Give the kept conditions alone: what happens to the erased one is no side effect. Every condition counts alike, however
    many images it has. Raises InputError if the conditions differ, if there is none, or if the images do not pair up.
    """
    if set(before) != set(after) or not before:
        raise InputError("side effects need images of the same conditions, at least one, before and after")
    each = {name: _means(_floats(before[name]), _floats(after[name]), metrics) for name in before}  # little memory
    return SideEffects({metric: sum(found[metric] for found in each.values()) / len(each) for metric in metrics}, each)


def _means(before: torch.Tensor, after: torch.Tensor, metrics: Mapping[str, PairMetric]) -> dict[str, float]:
    return {name: float(measure(before, after).mean()) for name, measure in metrics.items()}


def _floats(images: torch.Tensor) -> torch.Tensor:
    return to_float(images) if images.dtype == torch.uint8 else images


def paired_mse(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """Mean squared difference on [-1, 1] of each pair, (N,) float64; images (N, C, H, W) in [0, 1]."""
    _check_pairs(before, after)
    difference = 2 * (after.detach().cpu().double() - before.detach().cpu().double())
    return difference.square().flatten(1).mean(1)


def paired_ssim(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """SSIM of each pair, (N,) float64; images (N, C, H, W) in [0, 1].

    Those of more than 2^15 pixels are computed in float32: good to 5e-6, flat ones to 3e-4.
    The window is Gaussian with sigma 1.5 (11 pixels). In images smaller than 11 pixels it shrinks to the
    largest odd window that fits, sigma with it: SSIM values are comparable between images of one size only.
    """
    _check_pairs(before, after)
    sigma = _window_sigma(min(before.shape[-2:]))
    pixels = before[0, 0].numel()
    dtype, room = (torch.float64, _EXACT) if pixels <= _EXACT else (torch.float32, _LARGE)
    count, parts = max(room // pixels, 1), []
    for x, y in zip(before.split(count), after.split(count), strict=True):
        pair = y.detach().cpu().to(dtype), x.detach().cpu().to(dtype)
        value = structural_similarity_index_measure(*pair, sigma=sigma, data_range=1.0, reduction="none")
        parts.append(torch.as_tensor(value).double().reshape(-1))
    return torch.cat(parts)


def _window_sigma(side: int) -> float:
    if side < 3:
        raise InputError(f"SSIM needs images of at least 3×3 pixels, not {side}")
    return min(_SIGMA, (side - 1) // 2 / _TRUNCATE)


def _check_pairs(before: torch.Tensor, after: torch.Tensor) -> None:
    if before.shape != after.shape or before.ndim != 4 or len(before) == 0:
        shapes = f"{tuple(before.shape)} and {tuple(after.shape)}"
        raise InputError(f"paired images need the same shape (N, C, H, W) with N > 0, not {shapes}")
