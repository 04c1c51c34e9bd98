"""A benchmark's rows for other programs: one CSV with a line for every row, one JSON with the protocol and everything else."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from semu_diffusion.errors import InputError
from semu_diffusion.files import write_text
from semu_diffusion.pipelines.benchmark.rows import Row
from semu_diffusion.pipelines.report.mark import MARK, replaceable

__all__ = ["page_files", "write_data"]

KEYS = ("kind", "method", "title", "erased", "seed")  # of a row, before its numbers


def page_files(page: str | Path) -> tuple[Path, ...]:
    """The page of ``--output`` and what is written beside it: CSV, JSON, the pictures of the fronts.

    Raises InputError for a page that would be one of the others, and if any of them is there and not this program's.
    """
    path = Path(page).expanduser()
    if path.suffix in (".csv", ".json", ".svg"):
        raise InputError(f"--output {page}: names the Markdown page; {path.suffix[1:].upper()} is written beside it")
    beside = (path.with_suffix(".csv"), path.with_suffix(".json"))
    pictures = (path.with_name(f"{path.stem}-{kind}.svg") for kind in ("classes", "concepts"))
    return tuple(replaceable(one) for one in (path, *beside, *pictures))


def write_data(
    page: Path,
    sections: Mapping[str, Sequence[Row]],
    columns: Mapping[str, Callable[[Row], float | None]],
    means: Mapping[str, Sequence[Mapping[str, Any]]],
) -> None:
    """Write the rows of each section (the protocol first), their numbers by the ``columns``, and the ``means`` by method.

    A number that was not measured is empty in the CSV and left out of the means. Both files bear the mark by which the next
    benchmark knows that it may replace them: in the CSV a column of its own, which every reader takes.
    """
    if not any(rows for _, *rows in sections.values()):
        return  # a table without a row would not bear the mark
    _, table, content, *_ = page_files(page)
    text = io.StringIO()
    out = csv.writer(text, lineterminator="\n")
    out.writerow(["written_by", *KEYS, *columns])
    for _, *rows in sections.values():
        for row in rows:
            values = (column(row) for column in columns.values())
            out.writerow([MARK, *(row.get(key, 0) for key in KEYS), *("" if value is None else value for value in values)])
    write_text(table, text.getvalue())
    found = {
        title: {"protocol": protocol["protocol"], "methods": means[title], "rows": rows}
        for title, (protocol, *rows) in sections.items()
    }
    write_text(content, json.dumps({"written_by": MARK, "sections": found}, indent=1, ensure_ascii=False) + "\n")
