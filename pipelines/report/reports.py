"""REPORTS: the files by which a run folder shows its evaluation. A new report is a function and a line."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from semu_diffusion.eval.results import Evaluation
from semu_diffusion.eval.scorer import Samples
from semu_diffusion.files import write_json, write_text
from semu_diffusion.pipelines.report.card import patch_card
from semu_diffusion.pipelines.report.grid import before_after, save_png

__all__ = ["REPORTS", "Measured", "write_reports"]


@dataclass(frozen=True)
class Measured:
    """A run as a report sees it: the content of its run.json, its evaluation, its samples of the same seeds."""

    record: Mapping[str, Any]
    evaluation: Evaluation
    before: Samples
    after: Samples


# file -> what writes it there
REPORTS: dict[str, Callable[[Measured, Path], object]] = {
    "metrics.json": lambda run, path: write_json(path, run.evaluation.to_json()),
    "before_after.png": lambda run, path: save_png(before_after(run.evaluation, run.before, run.after), path),
    "README.md": lambda run, path: write_text(path, patch_card(run.record, run.evaluation.to_json())),
}


def write_reports(run: Measured, folder: Path, *left_out: str) -> None:
    """Every report, or all but those ``left_out``, into the folder."""
    for name, write in REPORTS.items():
        if name not in left_out:
            write(run, folder / name)
