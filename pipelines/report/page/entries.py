"""The erasures that a page compares: of run folders, and of a benchmark's rows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from semu_diffusion.errors import InputError
from semu_diffusion.eval.pictures import Pictures
from semu_diffusion.eval.results import Evaluation
from semu_diffusion.pipelines.benchmark.rows import FILES, Row, read_rows
from semu_diffusion.pipelines.report.page.run import Run, read_run
from semu_diffusion.pipelines.report.page.verdicts import Verdict, verdicts

__all__ = ["Entry", "read_entries"]


@dataclass(frozen=True)
class Entry:
    """One erasure to be compared: ``method`` is what it shares with others, empty of a run folder, ``row`` its numbers as a
    benchmark has them."""

    name: str
    method: str
    evaluation: Evaluation
    row: Row
    model: str
    pictures: Pictures | None = None
    folder: Path | None = None

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        return verdicts(self.evaluation, self.pictures)


def read_entries(path: Path) -> list[Entry]:
    """The erasures of a run folder, of a benchmark's file of rows, or of the folder that holds such files."""
    if path.suffix == ".jsonl":
        return _of_benchmark(path)
    if not (path / "metrics.json").is_file():
        found = [entry for name in FILES.values() if (path / name).is_file() for entry in _of_benchmark(path / name)]
        if found:
            return found
    run = read_run(path)
    return [Entry(run.folder.resolve().name, "", run.evaluation, _as_row(run), run.base, run.pictures, run.folder)]


def _of_benchmark(path: Path) -> list[Entry]:
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    about, *rows = read_rows(path)
    model = str(about.get("protocol", {}).get("model", ""))
    if not all("evaluation" in row and "method" in row for row in rows):
        raise InputError(f"{path} was written by an earlier version: measure again")
    several = len({row.get("seed", 0) for row in rows}) > 1
    names = [f"{row['erased']}, seed {row.get('seed', 0)}" if several else row["erased"] for row in rows]
    return [
        Entry(name, row["title"], Evaluation.from_json(row["evaluation"]), row, model)
        for name, row in zip(names, rows, strict=True)
    ]


def _as_row(run: Run) -> Row:
    patch = run.evaluation.patch
    size = {} if patch is None else {"trained_fraction": patch.fraction, "bytes": patch.bytes}
    spent = run.evaluation.cost.erasure
    seconds = {} if spent is None else {"erase": spent}
    about = {"method": "", "title": "", "kind": run.evaluation.kind, "erased": "+".join(run.evaluation.erased)}
    return {**about, "evaluation": run.evaluation.to_json(), "seconds": seconds, **size}
