"""Pictures for people: before and after side by side, rows of samples, and the PNG files they become.

Tiny images are enlarged by whole factors without smoothing, so that a pixel of the model stays a pixel.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from semu_diffusion.errors import InputError
from semu_diffusion.files import atomic_file
from semu_diffusion.pipelines.data.images import spread
from semu_diffusion.pipelines.report.mark import MARK

if TYPE_CHECKING:
    import torch

    from semu_diffusion.eval.results import Evaluation

__all__ = ["before_after", "contact_sheet", "make_grid", "save_png"]

BACKGROUND, INK, FAINT, ERASED = "#ffffff", "#1f2328", "#6e7781", "#cf222e"
_TINT = "#fff1f0"  # behind an erased row
_CELL = 96  # pixels an image is shown at, at least
_LARGEST = 192  # and at most
_GAP, _MARGIN, _BETWEEN = 4, 24, 36  # between images, around everything, between before and after
_ROW_GAP, _FRAME = 12, 3
_NAME, _TAG, _HEADING, _CAPTION = 20, 15, 22, 16  # font sizes
_LINE = _CAPTION + 6
_LONGEST = 32  # letters of a class name that are shown
_GRID_ROWS, _FORGOTTEN_ROWS = 12, 4  # of a picture of before and after
_SMALL = 64  # pixels of a side up to which eight images fit beside each other, else six

Rows = Mapping[str, "torch.Tensor"]


@dataclass(frozen=True)
class _Layout:
    """Where things stand, in pixels: ``left`` of the pictures, ``blocks`` the x of each block of columns."""

    columns: int
    width: int
    height: int
    left: int
    top: int
    blocks: tuple[int, ...]

    @property
    def block_width(self) -> int:
        return self.columns * (self.width + _GAP) - _GAP

    @property
    def pitch(self) -> int:
        return self.height + _ROW_GAP

    @property
    def right(self) -> int:
        return self.blocks[-1] + self.block_width


def before_after(
    evaluation: Evaluation, before: Mapping[str, torch.Tensor], after: Mapping[str, torch.Tensor], images: int | None = None
) -> Image.Image:
    """The picture of an evaluation: conditions that were erased, then kept ones of both domains, captioned with the numbers.

    ``images`` are shown of each; by default as many as fit. Of a model without conditions its samples in one row.
    """
    asked = evaluation.protocol.conditions
    forget, own = list(asked.get("forget", ())), asked.get("in_domain", ())
    other = [condition for condition in asked.get("cross_domain", ()) if condition not in own]
    images = images or (8 if next(iter(before.values())).shape[-1] <= _SMALL else 6)
    if not forget:
        shown, images = list(before), 4 * images
    else:
        forget = _spread(forget, max(_FORGOTTEN_ROWS, len(evaluation.erased)))
        room = max(_GRID_ROWS - len(forget), 1)
        half = min(len(other), max(room // 2, room - len(own)))
        shown = [*forget, *_spread(own, room - half), *_spread(other, half)]
    rows = [{condition: samples[condition][:images] for condition in shown} for samples in (before, after)]
    left_out = len(own) + len(other) + len(forget) - len(shown)
    caption = _caption(evaluation) + (f" · {left_out} more kept conditions not shown" if forget and left_out else "")
    return make_grid(rows[0], rows[1], forget, caption)


def _caption(evaluation: Evaluation) -> str:
    protocol, first, last = evaluation.protocol, evaluation.before, evaluation.after
    parts = ["same seeds", f"{protocol.sampler} {protocol.steps} steps", f"w = {protocol.guidance_scale:g}"]
    pairs = {
        "erased": (first.forget_accuracy, last.forget_accuracy),
        "others of its kind": (first.in_domain_accuracy, last.in_domain_accuracy),
        "the other kind": (first.cross_domain_accuracy, last.cross_domain_accuracy),
    }
    parts += [f"{name}, judged right: {a:.0%} to {b:.0%}" for name, (a, b) in pairs.items() if a is not None and b is not None]
    if evaluation.side_effects is not None and evaluation.side_effects.paired_ssim is not None:
        parts.append(f"SSIM of what is kept {evaluation.side_effects.paired_ssim:.2f}")
    return " · ".join(parts)


def _spread(conditions: Sequence[str], count: int) -> list[str]:
    return [conditions[index] for index in spread(len(conditions), count)]


def make_grid(before: Rows, after: Rows, forgotten: Collection[str], caption: str = "") -> Image.Image:
    """Rows are classes; on the left the original model, on the right the erased one, from the same seeds.

    ``before`` and ``after``: {class: (n, C, H, W) in [0, 1] or uint8}, the same classes and n. Rows of
    the classes ``forgotten`` are framed and tagged "erased".

    Raises InputError for classes or counts that differ, or a forgotten class without images.
    """
    if not before or set(before) != set(after) or any(before[n].shape != after[n].shape for n in before):
        raise InputError("a grid needs the same classes with as many images before and after")
    missing = sorted(set(forgotten) - set(before))
    if missing:
        raise InputError(f"a grid of {', '.join(missing)} needs images of that class")
    return _draw(list(before), [("before", before), ("after", after)], forgotten, caption)


def contact_sheet(rows: Rows, caption: str = "", max_rows: int = 100) -> Image.Image:
    """Labelled rows of images, {name: (n, C, H, W) in [0, 1] or uint8}; the caption counts rows left out."""
    if not rows:
        raise InputError("a contact sheet needs at least one row of images")
    names = list(rows)[:max_rows]
    if len(names) < len(rows):
        caption = " · ".join(filter(None, (caption, f"{len(rows) - len(names)} more rows not shown")))
    return _draw(names, [("", rows)], (), caption)


def save_png(image: Image.Image, path: str | Path) -> Path:
    """Write a picture as PNG; the file appears complete or not at all. Makes the folder if need be."""
    path, mark = Path(path), PngInfo()
    mark.add_text("Software", MARK)
    with atomic_file(path) as beside:
        image.save(beside, format="PNG", optimize=True, pnginfo=mark)
    return path


def _draw(names: Sequence[str], blocks: Sequence[tuple[str, Rows]], forgotten: Collection[str], caption: str) -> Image.Image:
    layout = _layout(names, blocks, forgotten)
    width = layout.right + _MARGIN
    lines = _wrapped(caption, width - 2 * _MARGIN)
    bottom = layout.top + len(names) * layout.pitch - _ROW_GAP
    height = bottom + _MARGIN + (_LINE * len(lines) + 8 if lines else 0)
    canvas = Image.new("RGB", (width, height), BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    for x, (heading, _) in zip(layout.blocks, blocks, strict=True):
        draw.text((x + layout.block_width / 2, _MARGIN - 6), heading, INK, _font(_HEADING), anchor="mt")
    for row, name in enumerate(names):
        y = layout.top + row * layout.pitch
        if name in forgotten:
            _mark(draw, layout, y)
        _label(draw, layout, y, name, name in forgotten)
        for x, (_, rows) in zip(layout.blocks, blocks, strict=True):
            for column, image in enumerate(rows[name]):
                place = (x + column * (layout.width + _GAP), y)
                canvas.paste(_shown(image, layout.width, layout.height), place)
    for number, line in enumerate(lines):
        place = (_MARGIN, bottom + _MARGIN - 4 + number * _LINE)
        draw.text(place, line, FAINT, _font(_CAPTION), anchor="lt")
    return canvas


def _layout(names: Sequence[str], blocks: Sequence[tuple[str, Rows]], forgotten: Collection[str]) -> _Layout:
    images = [rows[name] for _, rows in blocks for name in names]
    if len({tuple(image.shape[1:]) for image in images}) > 1:
        raise InputError("a picture grid needs images of one size and channel count")
    columns = max(len(image) for image in images)
    if columns == 0:
        raise InputError("a picture grid needs at least one image in a row")
    height, width = images[0].shape[-2:]
    scale = _scale(max(height, width))
    size = round(width * scale), round(height * scale)
    labels = [_font(_NAME).getlength(_short(name)) for name in names]
    if forgotten:
        labels.append(_font(_TAG).getlength("erased"))
    left = _MARGIN + round(max(labels)) + 20
    block = columns * (size[0] + _GAP) - _GAP
    xs = tuple(left + index * (block + _BETWEEN) for index in range(len(blocks)))
    top = _MARGIN + (_HEADING + 14 if any(heading for heading, _ in blocks) else 0)
    return _Layout(columns, size[0], size[1], left, top, xs)


def _scale(side: int) -> float:
    """Whole enlargement of small images up to about `_CELL`, reduction of large ones to `_LARGEST`."""
    return -(-_CELL // side) if side < _CELL else min(1.0, _LARGEST / side)


def _shown(image: torch.Tensor, width: int, height: int) -> Image.Image:
    from semu_diffusion.eval.images import to_pil

    picture = to_pil(image)
    larger = width >= picture.width
    return picture.resize((width, height), Image.Resampling.NEAREST if larger else Image.Resampling.LANCZOS)


def _mark(draw: ImageDraw.ImageDraw, layout: _Layout, y: int) -> None:
    """A tinted band behind an erased row, and a frame around each of its blocks."""
    reach = _ROW_GAP // 2
    right, bottom = layout.right + _MARGIN // 2, y + layout.height + reach - 1
    draw.rectangle((_MARGIN // 2, y - reach, right, bottom), _TINT)
    for x in layout.blocks:
        frame = (x - _FRAME - 1, y - _FRAME - 1, x + layout.block_width + _FRAME, y + layout.height + _FRAME)
        draw.rectangle(frame, outline=ERASED, width=_FRAME)


def _label(draw: ImageDraw.ImageDraw, layout: _Layout, y: int, name: str, erased: bool) -> None:
    x, middle = layout.left - 16, y + layout.height / 2
    if not erased:
        draw.text((x, middle), _short(name), INK, _font(_NAME), anchor="rm")
        return
    draw.text((x, middle - 11), _short(name), ERASED, _font(_NAME), anchor="rm")
    draw.text((x, middle + 13), "erased", ERASED, _font(_TAG), anchor="rm")


def _short(name: str) -> str:
    name = name or "(no condition)"
    return name if len(name) <= _LONGEST else name[: _LONGEST - 1] + "…"


def _wrapped(text: str, width: int) -> list[str]:
    """Lines of at most ``width`` pixels in the caption's font; a longer word gets a line of its own."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and _font(_CAPTION).getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size)
