"""REPORTS: the files by which a run folder shows its evaluation. A new report is a function and a line."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from semu_diffusion.eval.pictures import Pictures
from semu_diffusion.eval.results import Evaluation
from semu_diffusion.eval.scorer import Samples
from semu_diffusion.files import write_json, write_text
from semu_diffusion.pipelines.report.card import patch_card
from semu_diffusion.pipelines.report.grid import before_after, save_png
from semu_diffusion.pipelines.report.page.page import write_run_page
from semu_diffusion.pipelines.report.page.run import read_run

__all__ = ["REPORTS", "Measured", "write_reports"]


@dataclass(frozen=True)
class Measured:
    """A run as a report sees it: the content of its run.json, its evaluation, its samples of the same seeds,
    and those pairs of them that are shown one by one."""

    record: Mapping[str, Any]
    evaluation: Evaluation
    before: Samples
    after: Samples
    pictures: Pictures


# file -> what writes it there; the last one reads the others
REPORTS: dict[str, Callable[[Measured, Path], object]] = {
    "metrics.json": lambda run, path: write_json(path, run.evaluation.to_json()),
    "before_after.png": lambda run, path: save_png(before_after(run.evaluation, run.before, run.after), path),
    "README.md": lambda run, path: write_text(path, patch_card(run.record, run.evaluation.to_json())),
    "pictures.json": lambda run, path: write_text(path, json.dumps(asdict(run.pictures), ensure_ascii=False) + "\n"),
    "report.html": lambda run, path: write_run_page(read_run(path.parent, run.record), path),
}


def write_reports(run: Measured, folder: Path, *left_out: str) -> None:
    """Every report, or all but those ``left_out``, into the folder."""
    for name, write in REPORTS.items():
        if name not in left_out:
            write(run, folder / name)
