"""The data set of what is kept that an erasure may read."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from semu_diffusion.erase.samples import Images
from semu_diffusion.errors import InputError
from semu_diffusion.models.ddpm import ClassConditional
from semu_diffusion.pipelines.data.images import load_images

__all__ = ["retain_images"]


def retain_images(source: str, model: ClassConditional, forget: Sequence[str]) -> Images | None:
    """The kept classes' images of ``--retain DATASET``, None for ``none`` and ``self``; InputError if they do not fit."""
    if source in ("none", "self"):
        return None
    data = load_images(source, "train")
    if data.image_shape != model.image_shape:
        raise InputError(f"--retain {source}: images {data.image_shape}, but the model makes {model.image_shape}")
    known = {name: index for index, name in enumerate(model.names or tuple(dict.fromkeys(forget)))}
    erased = [known[name] if name in known else model.class_index(name) for name in forget]
    labels = torch.tensor([known.get(name, -1) for name in data.class_names])[data.labels]
    wanted = ~torch.isin(labels, torch.tensor(erased))
    if model.conditional:
        wanted &= labels >= 0
    if not wanted.any():
        raise InputError(f"--retain {source}: none of its classes is a kept class of the model")
    images = data.images[wanted].float().div(127.5).sub(1)
    return Images(images.to(model.device), labels[wanted].to(model.device))
