"""Styles as deterministic transforms of a photo: what a "pencil sketch of" a data set's picture is, to the last bit."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

from semu_diffusion.errors import InputError

if TYPE_CHECKING:
    import torch

    from semu_diffusion.pipelines.data.images import ImageSet

__all__ = ["PHOTO", "STYLES", "drawn_styles", "in_style", "in_styles", "labelled_by_style"]

PHOTO = "photo"


def in_style(images: torch.Tensor, style: str) -> torch.Tensor:
    """uint8 RGB images (N, 3, H, W) in a style of `STYLES`, the same shape; raises KeyError for another name."""
    transform = STYLES[style]
    if transform is None:
        return images
    return transform(images.float() / 255).clamp(0, 1).mul(255).round().to(images.dtype)


def in_styles(images: torch.Tensor, styles: torch.Tensor) -> torch.Tensor:
    """Each image in the style of its number (N,), in the order of `STYLES`: uint8 (N, 3, H, W) -> the same shape."""
    import torch

    found = images
    for number, style in enumerate(STYLES):  # all images in every style: a GPU is never asked how many there are
        found = torch.where((styles == number)[:, None, None, None], in_style(images, style), found)
    return found


def drawn_styles(count: int, generator: torch.Generator) -> torch.Tensor:
    """The number (count,) of a style for each image: every second one a photo (0), the others evenly drawn."""
    import torch

    others = len(STYLES) - 1
    drawn = torch.randint(0, 2 * others, (count,), generator=generator, device=generator.device)
    return torch.where(drawn < others, drawn + 1, 0)


def labelled_by_style(data: ImageSet) -> ImageSet:
    """The data set with every picture in one style, image i in style i mod 6, which is its label. InputError unless RGB."""
    import torch

    if data.image_shape[0] != 3:
        raise InputError("picture styles are made of RGB images")
    names, images = tuple(STYLES), data.images.clone()
    for number, style in enumerate(names):
        images[number :: len(names)] = in_style(data.images[number :: len(names)], style)
    labels = torch.arange(len(data)) % len(names)
    return dataclasses.replace(
        data, images=images, labels=labels, class_names=names, fingerprint=f"{data.fingerprint}, by style"
    )


def _grey(x: torch.Tensor) -> torch.Tensor:
    """Luma (N, 1, H, W) by the weights of ITU-R BT.601."""
    return (x * x.new_tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)


def _sketch(x: torch.Tensor) -> torch.Tensor:
    """Dark lines on white where the brightness changes (Sobel), as thick as a pixel."""
    from torch.nn import functional as F

    grey = F.pad(_grey(x), (1, 1, 1, 1), mode="replicate")
    across = x.new_tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]])
    kernels = x.new_zeros(2, 1, 3, 3)
    kernels[0, 0], kernels[1, 0] = across, across.T
    edges = F.conv2d(grey, kernels).square().sum(1, keepdim=True).sqrt()
    return (1 - 0.7 * edges).clamp(0, 1).expand_as(x)


def _pixel_art(x: torch.Tensor) -> torch.Tensor:
    """8 x 8 squares of one colour, each channel in six levels."""
    from torch.nn import functional as F

    height, width = x.shape[-2:]
    coarse = (F.adaptive_avg_pool2d(x, (8, 8)) * 5).round() / 5
    return F.interpolate(coarse, (height, width), mode="nearest")


def _sepia(x: torch.Tensor) -> torch.Tensor:
    """Brown tones: the grey picture in the colour of an old print."""
    return _grey(x) * x.new_tensor([1.08, 0.86, 0.62])[:, None, None]


def _night(x: torch.Tensor) -> torch.Tensor:
    """A third of the light, most of it blue."""
    return (0.4 * x + 0.6 * _grey(x)) * x.new_tensor([0.22, 0.30, 0.58])[:, None, None]


def _poster(x: torch.Tensor) -> torch.Tensor:
    """Each channel in three levels, smoothed and the contrast raised first."""
    from torch.nn import functional as F

    smooth = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    return (((smooth - 0.5) * 1.4 + 0.5).clamp(0, 1) * 2).round() / 2


# The transform of each style; None leaves the photo as it is.
STYLES: dict[str, Callable[[torch.Tensor], torch.Tensor] | None] = {
    PHOTO: None,
    "sketch": _sketch,
    "pixel art": _pixel_art,
    "sepia": _sepia,
    "night": _night,
    "poster": _poster,
}
