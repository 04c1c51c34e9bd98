"""The page of several runs or of a benchmark: their verdicts, their numbers, and what each erasure did to its neighbours."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from semu_diffusion.errors import InputError
from semu_diffusion.eval.pictures import Pictures
from semu_diffusion.eval.results import Evaluation
from semu_diffusion.files import write_text
from semu_diffusion.pipelines.benchmark.rows import Row, read_rows
from semu_diffusion.pipelines.report.columns import COLUMNS, WORDS, measured, with_before
from semu_diffusion.pipelines.report.front import front
from semu_diffusion.pipelines.report.mark import replaceable
from semu_diffusion.pipelines.report.page.page import render, write_run_page
from semu_diffusion.pipelines.report.page.run import Run, read_run
from semu_diffusion.pipelines.report.page.verdicts import Verdict, verdicts
from semu_diffusion.pipelines.report.results import points

__all__ = ["Entry", "matrix", "read_entries", "write_page"]

BENCHMARKS = ("classes.jsonl", "concepts.jsonl")
NEIGHBOURS = ("forget", "in_domain", "cross_domain")  # the other groups ask for the same answers in other ways
DIFFERENT = ("seed", "sampler", "steps", "guidance_scale", "images_per_condition", "unconditional_samples", "judges")


@dataclass(frozen=True)
class Entry:
    """One erasure to be compared: ``method`` is what it shares with others, ``row`` its numbers as a benchmark has them."""

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


def write_page(paths: Sequence[Path], output: Path | None) -> Path:
    """Of one run folder its own page, of several folders or of a benchmark's rows one that compares them; where it is.

    Raises InputError for what is neither, and for an ``output`` that would replace something else.
    """
    if len(paths) == 1 and (paths[0] / "metrics.json").is_file():
        target = replaceable(output or paths[0] / "report.html")
        write_run_page(read_run(paths[0]), target)
        return target
    entries = [entry for path in paths for entry in read_entries(path)]
    target = replaceable(output or Path("report.html"))
    write_text(target, render("several.html", _context(entries, target.parent)))
    return target


def read_entries(path: Path) -> list[Entry]:
    """The erasures of a run folder, of a benchmark's file of rows, or of the folder that holds such files."""
    if path.suffix == ".jsonl":
        return _of_benchmark(path)
    if not (path / "metrics.json").is_file():
        found = [entry for name in BENCHMARKS if (path / name).is_file() for entry in _of_benchmark(path / name)]
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
    return [Entry(row["erased"], row["title"], Evaluation.from_json(row["evaluation"]), row, model) for row in rows]


def _as_row(run: Run) -> Row:
    patch = run.evaluation.patch
    size = {} if patch is None else {"trained_fraction": patch.fraction, "bytes": patch.bytes}
    spent = run.evaluation.cost.erasure
    seconds = {} if spent is None else {"erase": spent}
    about = {"method": "", "title": "", "kind": run.evaluation.kind, "erased": "+".join(run.evaluation.erased)}
    return {**about, "evaluation": run.evaluation.to_json(), "seconds": seconds, **size}


def matrix(entries: Sequence[Entry]) -> tuple[list[str], list[tuple[str, list[dict[str, Any] | None]]]]:
    """(measured, rows): of each erasure, by what was measured, judged right before and after, and whether it was erased."""
    found = [(entry, _measured(entry)) for entry in entries]
    own = [name for entry, cells in found for name in cells if _erased(name, entry)]
    names = list(dict.fromkeys([*own, *(name for _, cells in found for name in cells)]))
    rows: list[tuple[str, list[dict[str, Any] | None]]] = []
    for entry, cells in found:
        line: list[dict[str, Any] | None] = []
        for name in names:
            old, new = cells.get(name, (None, None))
            known = old is not None and new is not None
            fall = max(old - new, 0.0) if old is not None and new is not None else 0.0
            line.append({"before": old, "after": new, "fall": fall, "own": _erased(name, entry)} if known else None)
        rows.append((entry.name, line))
    return names, rows


def _measured(entry: Entry) -> dict[str, tuple[float, float]]:
    """Judged right before and after: by answer where the pictures tell it, else by condition."""
    if entry.pictures is None or not entry.pictures.became:
        old, new = entry.evaluation.before.per_condition, entry.evaluation.after.per_condition
        return {name: (old[name], new[name]) for name in new if name in old}
    found = {}
    for group, by_answer in entry.pictures.became.items():
        for answer, rows in by_answer.items() if group in NEIGHBOURS else ():
            total = sum(sum(row.values()) for row in rows.values())
            before = sum(rows.get(answer, {}).values()) / total
            found[answer] = (before, sum(row.get(answer, 0) for row in rows.values()) / total)
    return found


def _erased(name: str, entry: Entry) -> bool:
    evaluation = entry.evaluation
    return name in (*evaluation.erased, *evaluation.after.judged_as, *evaluation.protocol.conditions.get("forget", ()))


def _context(entries: Sequence[Entry], home: Path) -> dict[str, Any]:
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        groups.setdefault(entry.method, []).append(entry)
    rows = [entry.row for entry in entries]
    columns = measured(with_before(COLUMNS), rows)
    lines = groups.items() if len(groups) > 1 else [(entry.name, [entry]) for entry in entries]
    return {
        "title": f"{len(entries)} erasures compared",
        "several": len(groups) > 1,
        "groups": {
            method: {"entries": found, "matrix": matrix(found), "links": [_link(entry, home) for entry in found]}
            for method, found in groups.items()
        },
        "columns": ["method" if len(groups) > 1 else "run", *(column.heading for column in columns)],
        "numbers": [(name, *(column.text([entry.row for entry in found]) for column in columns)) for name, found in lines],
        "words": WORDS,
        "front": Markup(front(points(rows), "The front")) if len(groups) > 1 else "",
        "differences": _differences(entries),
    }


def _link(entry: Entry, home: Path) -> str | None:
    """Address of the run's own report from where this page lies."""
    if entry.folder is None or not (entry.folder / "report.html").is_file():
        return None
    return Path(os.path.relpath(entry.folder / "report.html", home.resolve())).as_posix()


def _differences(entries: Sequence[Entry]) -> list[tuple[str, str]]:
    """What the protocols of the entries do not share: numbers beside each other then do not compare."""
    found = []
    for name in ("model", *DIFFERENT):
        values: list[Any] = [getattr(entry.evaluation.protocol, name, entry.model) for entry in entries]
        if name == "judges":
            values = [", ".join(f"{judge.name} ({judge.sha256[:8]})" for judge in value.values()) for value in values]
        if len(different := dict.fromkeys(map(str, values))) > 1:
            found.append((name.replace("_", " "), "; ".join(one or "none" for one in different)))
    return found
