"""The files that an erasure reads: images of what is forgotten, a data set of what is kept."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from semu_diffusion.erase.samples import Images
from semu_diffusion.errors import InputError
from semu_diffusion.models.base import DiffusionModel
from semu_diffusion.models.class_conditional import ClassConditional
from semu_diffusion.names.words import match_names
from semu_diffusion.pipelines.data.findings import Note
from semu_diffusion.pipelines.data.images import load_images, load_plain_images

__all__ = ["forget_images", "retain_images"]


def forget_images(
    source: str | None, model: DiffusionModel, names: Sequence[str], note: Note | None = None
) -> torch.Tensor | None:
    """The pictures of ``--forget-images`` (N, C, H, W) in [-1, 1], None if there are none.

    Of a folder or data set of several classes, those of what is called one of ``names``. ``note`` gets one line of what was
    found. Raises InputError if they do not fit the model.
    """
    return None if source is None else load_plain_images(source, model.image_shape, names, note)


def retain_images(source: str, model: ClassConditional, forget: Sequence[str], note: Note | None = None) -> Images | None:
    """The kept classes' images of ``--retain DATASET``, None for ``none`` and ``self``.

    The data set's classes are the model's in any writing; others, and the erased ones, are left out, and ``note`` is told.
    Raises InputError if the images do not fit, or none is of a kept class.
    """
    if source in ("none", "self"):
        return None
    data = load_images(source, "train")
    if data.image_shape != model.image_shape:
        raise InputError(f"--retain {source}: images {data.image_shape}, but the model makes {model.image_shape}")
    names = model.names or tuple(dict.fromkeys(forget))
    erased = {row for row in match_names(forget, names) if row is not None}
    rows = [-1 if row is None else row for row in match_names(data.class_names, names)]
    labels = torch.tensor(rows)[data.labels]
    wanted = ~torch.isin(labels, torch.tensor(sorted(erased)))
    if model.conditional:
        wanted &= labels >= 0
    if not wanted.any():
        raise InputError(f"--retain {source}: none of its classes is a kept class of the model")
    if note is not None:
        note("; ".join([data.found, *_left_out(names, erased, data.class_names, rows, model.conditional)]))
    images = data.images[wanted].float().div(127.5).sub(1)
    return Images(model.encode(images).to(model.device), labels[wanted].to(model.device))


def _left_out(
    names: Sequence[str], erased: set[int], of_data: Sequence[str], rows: Sequence[int], conditional: bool
) -> list[str]:
    strange = [name for name, row in zip(of_data, rows, strict=True) if row < 0 and conditional]
    missing = [name for row, name in enumerate(names) if row not in rows and row not in erased and conditional]
    found = [f"left out, as the model has no such class: {', '.join(strange)}"] if strange else []
    return [*found, f"no images of the kept {', '.join(missing)}"] if missing else found
