"""LPIPS (Zhang et al. 2018, arXiv 1801.03924): the distance of two images in the features of AlexNet, by torchmetrics.

Measured where torchvision's AlexNet weights are in its cache already; nothing is downloaded for it. Images below 64 pixels are
enlarged to that (bicubic), since AlexNet cannot see smaller ones: values are comparable between images of one size only.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn import functional as F

from semu_diffusion.errors import InputError, reason
from semu_diffusion.eval.images import in_chunks, with_channels
from semu_diffusion.files import tensors_only

__all__ = ["Lpips", "load_lpips"]

Lpips = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
MIN_SIDE, CHUNK = 64, 32


def load_lpips(device: str | torch.device = "cpu") -> Lpips | None:
    """A function of two batches (N, C, H, W) in [0, 1] that gives the distance of each pair (N,); None without the weights.

    Raises InputError for a file of weights that holds anything but tensors.
    """
    from torchvision.models import AlexNet_Weights

    file = Path(torch.hub.get_dir()) / "checkpoints" / AlexNet_Weights.DEFAULT.url.rsplit("/", 1)[-1]
    if not file.is_file():
        return None
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    try:
        with tensors_only(), torch.random.fork_rng(devices=[]):  # initial weights come from the global generator
            network = LearnedPerceptualImagePatchSimilarity(net_type="alex").net.to(device).eval()
    except Exception as error:  # a pickle with code in it, half a file, other weights
        raise InputError(f"{file} does not hold AlexNet's weights ({reason(error, 160)})") from error

    def distances(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
        if before.shape != after.shape or before.ndim != 4 or len(before) == 0:
            raise InputError(f"LPIPS needs pairs of images, not {tuple(before.shape)} and {tuple(after.shape)}")

        def step(pairs: torch.Tensor) -> torch.Tensor:
            x, y = (_large(2 * with_channels(images.to(device).float(), 3) - 1) for images in pairs.chunk(2, dim=-1))
            return network(x, y).flatten(1)

        return in_chunks(step, torch.cat([before, after], dim=-1), CHUNK)[:, 0].double()

    return distances


def _large(images: torch.Tensor) -> torch.Tensor:
    side = min(images.shape[-2:])
    if side >= MIN_SIDE:
        return images
    return F.interpolate(images, scale_factor=MIN_SIDE / side, mode="bicubic", align_corners=False).clamp(-1, 1)
