"""The chosen pictures of a run as small WebP images inside pictures.json, so that a report can be made of the folder alone."""

from __future__ import annotations

import base64
import dataclasses
import io
from collections.abc import Mapping, Sequence

from PIL import Image

from semu_diffusion.eval.images import to_pil
from semu_diffusion.eval.pictures import Pictures, Tried, anchor_images, choose_pictures, with_tried
from semu_diffusion.eval.scorer import Progress, Samples, Scorer
from semu_diffusion.models.base import DiffusionModel

__all__ = ["data_address", "shown_pictures"]

LARGEST = 192  # pixels of a side
EXACT = 32  # up to this side every pixel is kept


def shown_pictures(
    scorer: Scorer, model: DiffusionModel, before: Samples, after: Samples, anchors: Mapping[str, str] | None = None,
    progress: Progress | None = None, tried: Sequence[Tried] = (),
) -> Pictures:  # fmt: skip
    """What `choose_pictures` chooses, with the images; ``anchors``: the condition that replaces each erased one."""
    chosen = choose_pictures(scorer, before, after, tried)
    before, after = with_tried(before, after, tried)
    replaced = anchor_images(scorer, model, anchors or {}, chosen.rows, progress)
    rows = []
    for place, row in enumerate(chosen.rows):
        images = {"before": before[row.condition][row.index], "after": after[row.condition][row.index]}
        images |= {"anchor": replaced[place]} if place in replaced else {}
        rows.append(dataclasses.replace(row, images={name: data_address(to_pil(image)) for name, image in images.items()}))
    return dataclasses.replace(chosen, rows=tuple(rows))


def data_address(image: Image.Image) -> str:
    """The picture as ``data:image/webp;base64,…``, at most `LARGEST` pixels wide and high."""
    image = image.copy()
    image.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", lossless=max(image.size) <= EXACT, quality=82, method=6)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
