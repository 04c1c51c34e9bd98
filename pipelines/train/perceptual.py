r"""The distance of two pictures in the features of a classifier, so that an autoencoder keeps what makes a thing recognisable.

With f_l the unit-length feature vectors of stage l at each position (H_l W_l of them), averaged over the L stages:

    d(x, y) = 1/L sum_l 1/(H_l W_l) sum_hw || f_l(x)_hw - f_l(y)_hw ||^2

LPIPS (Zhang et al. 2018, eq. 1) with all channel weights one. Squared error alone keeps brightness and blurs the texture that
tells a cat from a dog. Use a network of its own here, not the one that judges the pictures afterwards.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from semu_diffusion.errors import InputError

if TYPE_CHECKING:
    import torch

    from semu_diffusion.eval.judges.image_classifier import ImageClassifier
    from semu_diffusion.pipelines.data.images import ImageSet

__all__ = ["load_critic", "perceptual_distance"]


def load_critic(folder: str, data: ImageSet, device: torch.device) -> ImageClassifier:
    """The frozen classifier of a folder; InputError if it sees other images than those of ``data``."""
    from semu_diffusion.eval.judges.image_classifier import ImageClassifier

    critic = ImageClassifier.load(folder, device).requires_grad_(False)
    if (critic.config.in_channels, *critic.config.image_size) != data.image_shape:
        seen = (critic.config.in_channels, *critic.config.image_size)
        raise InputError(f"--perceptual {folder} sees images of {seen}, the data are {data.image_shape}")
    return critic


def perceptual_distance(critic: ImageClassifier, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Mean d(x, y) over images (N, C, H, W) in [0, 1]; gradients flow into ``x``, not into ``y``."""
    import torch
    from torch.nn import functional as F

    with torch.no_grad():
        wanted = [F.normalize(one.float(), dim=1) for one in critic.stage_maps(y)]
    found = [F.normalize(one.float(), dim=1) for one in critic.stage_maps(x)]
    distances = [(a - b).square().sum(1).mean() for a, b in zip(found, wanted, strict=True)]
    return torch.stack(distances).mean()
