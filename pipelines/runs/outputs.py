"""What a run leaves of its evaluation: metrics.json, the picture, every sample if asked for, the card."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from semu_diffusion.eval.images import save_images
from semu_diffusion.eval.results import Evaluation
from semu_diffusion.eval.scorer import Samples
from semu_diffusion.files import write_json, write_text
from semu_diffusion.pipelines.report.card import patch_card
from semu_diffusion.pipelines.report.grid import before_after, save_png
from semu_diffusion.pipelines.runs.folder import RunFolder, folder_names

__all__ = ["write_card", "write_measured"]


def write_measured(folder: RunFolder, evaluation: Evaluation, before: Samples, after: Samples, keep_images: bool) -> None:
    """metrics.json and before_after.png; with ``keep_images`` a PNG of every sample."""
    save_png(before_after(evaluation, before, after), folder / "before_after.png")
    write_json(folder / "metrics.json", evaluation.to_json())
    if keep_images:
        for when, samples in (("before", before), ("after", after)):
            for condition, name in folder_names(samples).items():
                save_images(samples[condition], folder / "images" / when / name)


def write_card(folder: RunFolder, record: Mapping[str, Any], evaluation: Evaluation) -> None:
    """README.md, the model card of the patch."""
    write_text(folder / "README.md", patch_card(record, evaluation.to_json()))
