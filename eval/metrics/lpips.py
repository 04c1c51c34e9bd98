"""LPIPS (Zhang et al. 2018, arXiv 1801.03924): the distance of two images in the features of AlexNet, by torchmetrics.

Measured where torchvision's AlexNet weights are in its cache already; nothing is downloaded for it. Images below 64 pixels are
enlarged to that (bicubic), since AlexNet cannot see smaller ones: values are comparable between images of one size only.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn import functional as F

from semu_diffusion.errors import InputError

__all__ = ["Lpips", "load_lpips", "paired_lpips"]

Lpips = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
SMALLEST, CHUNK = 64, 32


def load_lpips(device: str | torch.device = "cpu") -> Lpips | None:
    """A function of two batches (N, 3, H, W) in [-1, 1] that gives their distances; None without AlexNet's weights."""
    from torchvision.models import AlexNet_Weights

    file = Path(torch.hub.get_dir()) / "checkpoints" / AlexNet_Weights.DEFAULT.url.rsplit("/", 1)[-1]
    if not file.is_file():
        return None
    from torchmetrics.functional.image.lpips import _LPIPS

    with torch.random.fork_rng(devices=[]):  # initial weights come from the global generator
        network = _LPIPS(net="alex").to(device).eval()
    return lambda x, y: network(x.to(device), y.to(device)).flatten().cpu()


def paired_lpips(before: torch.Tensor, after: torch.Tensor, distance: Lpips) -> float:
    """Mean distance of images (N, 3, H, W) in [0, 1], pair by pair; InputError if they do not pair up or are not RGB."""
    if before.shape != after.shape or before.ndim != 4 or before.shape[1] != 3 or len(before) == 0:
        raise InputError(f"LPIPS needs pairs of RGB images, not {tuple(before.shape)} and {tuple(after.shape)}")
    found = []
    with torch.no_grad():
        for x, y in zip(before.split(CHUNK), after.split(CHUNK), strict=True):
            found.append(distance(_large(2 * x.float() - 1), _large(2 * y.float() - 1)))
    return float(torch.cat(found).double().mean())


def _large(images: torch.Tensor) -> torch.Tensor:
    side = min(images.shape[-2:])
    if side >= SMALLEST:
        return images
    return F.interpolate(images, scale_factor=SMALLEST / side, mode="bicubic", align_corners=False).clamp(-1, 1)
