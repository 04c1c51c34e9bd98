"""The rows that a benchmark has measured so far, on disk line by line, so that a stopped one goes on."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from semu_diffusion.errors import InputError
from semu_diffusion.files import write_text

__all__ = [
    "COST",
    "SIDE_EFFECTS",
    "Column",
    "Rows",
    "before_and_after",
    "read_rows",
    "report_diverged",
    "table_head",
    "table_line",
]


class Rows:
    """First line: the protocol; then a line for every row. Refuses rows of another protocol."""

    def __init__(self, path: Path, protocol: dict[str, Any]) -> None:
        self.path = path
        self.found: list[dict[str, Any]] = []
        if path.is_file():
            self.found = read_rows(path)
            if self.found[0] != json.loads(json.dumps(protocol)):
                raise InputError(f"{path} was measured by another protocol: choose another --work, or delete it")
            text = path.read_text()
            if not text.endswith("\n"):
                if len(text.splitlines()) > len(self.found):
                    print(f"{path}: its last row was written in part only; it is measured again", file=sys.stderr)
                write_text(path, "".join(json.dumps(row) + "\n" for row in self.found))
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.found = [json.loads(json.dumps(protocol))]
            write_text(path, json.dumps(protocol) + "\n")

    def has(self, method: str, name: str) -> bool:
        return any(row["method"] == method and row["class"] == name for row in self.found[1:])

    def revived(self, name: str) -> float | None:
        """The original model's revival of a class, from an earlier row."""
        return next((row["before"]["revival"] for row in self.found[1:] if row["class"] == name), None)

    def add(self, row: dict[str, Any]) -> None:
        self.found.append(json.loads(json.dumps(row)))
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Protocol and rows of a file; InputError for a file that is none.

    A last row that was written in part only, by a benchmark that was killed or a disk that was full, is left out.
    """
    try:
        *whole, last = path.read_text().splitlines() or [""]
        found = [json.loads(line) for line in whole]
        with suppress(*((ValueError,) if found else ())):
            found.append(json.loads(last))
        if not found or not all(isinstance(row, dict) for row in found):
            raise ValueError("no rows")
        return found
    except ValueError as error:
        raise InputError(f"{path} is not a benchmark's rows.jsonl ({error}): choose another --work") from error


def report_diverged(program: str, diverged: Sequence[str]) -> int:
    """The exit code: 1, and a line on standard error, if methods left the finite numbers and so have no row."""
    if not diverged:
        return 0
    print(f"{program}: {len(diverged)} without a row ({'; '.join(diverged)})", file=sys.stderr)
    return 1


@dataclass(frozen=True)
class Column:
    """A column of a results table: its heading, and where in a row its number stands and how it is written."""

    heading: str
    form: str
    path: tuple[str, ...]
    scale: float = 1.0

    def mean(self, rows: Sequence[dict[str, Any]]) -> str:
        """The mean over ``rows``, formatted; a dash if one of them was not measured."""
        values = []
        for row in rows:
            value: Any = row
            for key in self.path:
                value = value[key]
            if value is None:
                return "–"
            values.append(value * self.scale)
        return format(sum(values) / len(values), self.form)


# What every benchmark tells in the same way: the change of what was kept, the depth, the cost.
SIDE_EFFECTS = (
    Column("drift", ".4f", ("side_effects", "paired_mse")),
    Column("SSIM", ".3f", ("side_effects", "paired_ssim")),
    Column("revival before", ".2f", ("before", "revival")),
    Column("revival", ".2f", ("after", "revival")),
)
COST = (
    Column("trained", ".3%", ("trained_fraction",)),
    Column("patch kB", ".0f", ("bytes",), 1e-3),
    Column("erase s", ".0f", ("erase_seconds",)),
)


def before_and_after(heading: str, key: str) -> tuple[Column, Column]:
    """The two columns of a share that is measured before and after."""
    return Column(f"{heading} before", ".3f", ("before", key)), Column(heading, ".3f", ("after", key))


def table_head(first: str, columns: Sequence[Column]) -> str:
    """The two lines of Markdown that begin a table."""
    return f"| {first} | " + " | ".join(column.heading for column in columns) + " |\n|---|" + "---:|" * len(columns)


def table_line(first: str, rows: Sequence[dict[str, Any]], columns: Sequence[Column]) -> str:
    """A line of Markdown with the means over ``rows``."""
    return f"| {first} | " + " | ".join(column.mean(rows) for column in columns) + " |"
