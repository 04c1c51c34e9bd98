"""Pictures as they are measured and kept: rounded to 8 bits, in chunks of one size, and PNG files at their native size.

A judge or a feature extractor that reads the floats of a sampler measures something nobody sees. They are
therefore given the rounded image, so that a saved picture gives the same verdict as the sample it was made
from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from semu_diffusion.errors import InputError
from semu_diffusion.files import atomic_folder

__all__ = ["in_chunks", "save_images", "to_float", "to_pil", "to_uint8", "with_channels"]

_LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601


def to_uint8(images: torch.Tensor) -> torch.Tensor:
    """Floats in [0, 1] to 0..255, rounded to the nearest level; uint8 passes through.

    A plain cast truncates, which is half a level too dark on average. Any shape; values outside are clamped.
    """
    if images.dtype == torch.uint8:
        return images
    return images.float().mul(255).round().clamp(0, 255).to(torch.uint8)


def to_float(images: torch.Tensor) -> torch.Tensor:
    """uint8 0..255 to float32 in [0, 1]."""
    return images.float() / 255


def to_pil(image: torch.Tensor) -> Image.Image:
    """One image (C, H, W), float in [0, 1] or uint8, grey or RGB, as a PIL image of its own size."""
    if image.ndim != 3 or image.shape[0] not in (1, 3):
        raise InputError(f"a picture needs 1 or 3 channels, (C, H, W); got {tuple(image.shape)}")
    pixels = to_uint8(image.detach().cpu()).permute(1, 2, 0).numpy()
    return Image.fromarray(np.ascontiguousarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels))


def save_images(images: torch.Tensor | Sequence[torch.Tensor], folder: str | Path) -> Path:
    """Write images (N, C, H, W), float in [0, 1] or uint8, as ``folder/00000.png``, ``00001.png``, ...

    The folder appears complete or not at all. Raises InputError if it already holds something.
    """
    folder = Path(folder)
    if folder.is_dir() and any(folder.iterdir()):
        raise InputError(f"{folder} already holds files; choose another folder")
    with atomic_folder(folder) as beside:
        for index, image in enumerate(images):
            to_pil(image).save(beside / f"{index:05d}.png")
    return folder


def in_chunks(network: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor, size: int) -> torch.Tensor:
    """``network`` over images (N, C, H, W) in chunks of exactly ``size``: (N, D) float32 on the CPU.

    Libraries choose their kernels by the batch, so the last bits of a result depend on its size. With one
    size for every call (the last chunk is filled up), an image's result is the same whatever the caller's
    batches are.
    """
    if images.ndim != 4 or len(images) == 0:
        raise InputError(f"images must be (N, C, H, W) with N > 0, not {tuple(images.shape)}")
    parts = []
    with torch.no_grad():
        for chunk in images.split(size):
            filling = chunk[-1:].expand(size - len(chunk), *chunk.shape[1:])
            parts.append(network(torch.cat([chunk, filling]))[: len(chunk)].float().cpu())
    return torch.cat(parts)


def with_channels(images: torch.Tensor, channels: int) -> torch.Tensor:
    """Images (N, C, H, W) as grey (``channels`` 1) or RGB (3); InputError for counts without a meaning."""
    own = images.shape[1]
    if own == channels:
        return images
    if (own, channels) == (1, 3):
        return images.expand(-1, 3, -1, -1)
    if (own, channels) == (3, 1):
        weights = torch.tensor(_LUMINANCE, device=images.device).view(1, 3, 1, 1)
        return (images * weights).sum(dim=1, keepdim=True)
    raise InputError(f"images of {own} channels cannot be shown to a network that takes {channels}")
