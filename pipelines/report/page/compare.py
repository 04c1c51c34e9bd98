"""The page of several runs or of a benchmark: the front, numbers, verdicts, and what each erasure did to its neighbours."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from semu_diffusion.errors import InputError
from semu_diffusion.files import write_text
from semu_diffusion.pipelines.benchmark.rows import Row
from semu_diffusion.pipelines.report.columns import COLUMNS, PROBES, WORDS, measured, with_before
from semu_diffusion.pipelines.report.front import Axes, free_axes, legend, note, panels, plot
from semu_diffusion.pipelines.report.mark import replaceable
from semu_diffusion.pipelines.report.page.entries import Entry, read_entries
from semu_diffusion.pipelines.report.page.neighbours import matrices
from semu_diffusion.pipelines.report.page.page import render, write_run_page
from semu_diffusion.pipelines.report.page.run import read_run
from semu_diffusion.pipelines.report.results import COMPARED, Table, points, tables, things

__all__ = ["write_page"]

DIFFERENT = ("seed", "sampler", "steps", "guidance_scale", "images_per_condition", "unconditional_samples", "judges")


def write_page(paths: Sequence[Path], output: Path | None, axes: Axes | None = None) -> Path:
    """Of one run folder its own page, of several folders or of a benchmark's rows one that compares them; where it is.

    ``axes`` are those of its fronts. Raises InputError for what is neither, for an ``output`` that would replace something
    else, and for axes where nothing has a front.
    """
    if len(paths) == 1 and (paths[0] / "metrics.json").is_file():
        target = replaceable(output or paths[0] / "report.html")
        _refuse_axes(axes)
        write_run_page(read_run(paths[0]), target)
        return target
    entries = [entry for path in paths for entry in read_entries(path)]
    target = replaceable(output or Path("report.html"))
    models = dict.fromkeys(entry.model for entry in entries)
    sections = {model: _section([one for one in entries if one.model == model], target.parent, axes) for model in models}
    if not any(section["front"] for section in sections.values()):
        _refuse_axes(axes)
    title = f"{len(entries)} erasures compared"
    write_text(target, render("several.html", {"title": title, "sections": sections, "words": WORDS, "probes": PROBES}))
    return target


def _refuse_axes(axes: Axes | None) -> None:
    if axes is not None:
        raise InputError("--axes: there is no front here, which compares the methods of a benchmark: leave it out")


def _section(entries: Sequence[Entry], home: Path, axes: Axes | None) -> dict[str, Any]:
    """What the page says of one model: runs by themselves, a benchmark's rows by method."""
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        groups.setdefault(entry.method, []).append(entry)
    found = matrices(groups)
    rows = [entry.row for entry in entries if entry.method]
    compared = [*_of_runs(groups.get("", ())), *tables(rows)]
    return {
        "front": _front(rows, axes) if len(groups.keys() - {""}) > 1 else None,
        "tables": {part: [one for one in compared if one.part == part] for part in dict.fromkeys(t.part for t in compared)},
        "groups": {
            method: {"entries": own, "matrix": found[method], "links": [_link(entry, home) for entry in own]}
            for method, own in groups.items()
        },
        "differences": _differences(entries),
    }


def _of_runs(entries: Sequence[Entry]) -> list[Table]:
    """The numbers of run folders, each by itself: they may be of anything."""
    columns = measured(with_before(COLUMNS), [entry.row for entry in entries])
    lines = tuple((entry.name, *(column.text([entry.row]) for column in columns)) for entry in entries)
    return [Table(COMPARED, "Measured", ("run", *(column.heading for column in columns)), lines)] if entries else []


def _front(rows: Sequence[Row], axes: Axes | None) -> dict[str, Any] | None:
    """The front of methods that share something; None of those that erased several things at once alone."""
    found = points(rows)
    if not found:
        return None
    shown = panels(found, axes)
    return {
        "things": things(rows),
        "plots": [Markup(plot(found, x, y)) for x, y in shown],
        "chosen": shown[0],
        "free": free_axes(found, shown[0]),
        "legend": legend(found),
        "note": note(found),
    }


def _link(entry: Entry, home: Path) -> str | None:
    """Address of the run's own report from where this page lies."""
    if entry.folder is None or not (entry.folder / "report.html").is_file():
        return None
    return Path(os.path.relpath(entry.folder / "report.html", home.resolve())).as_posix()


def _differences(entries: Sequence[Entry]) -> list[tuple[str, str]]:
    """What the protocols of the entries do not share: numbers beside each other then do not compare."""
    found = []
    for name in DIFFERENT:
        values: list[Any] = [getattr(entry.evaluation.protocol, name) for entry in entries]
        if name == "judges":
            values = [", ".join(f"{judge.name} ({judge.sha256[:8]})" for judge in value.values()) for value in values]
        if len(different := dict.fromkeys(map(str, values))) > 1:
            found.append((name.replace("_", " "), "; ".join(one or "none" for one in different)))
    return found
