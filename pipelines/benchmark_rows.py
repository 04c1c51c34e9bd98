"""The rows that a benchmark has measured so far, on disk line by line, so that a stopped one goes on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from semu_diffusion.errors import InputError

__all__ = ["Rows", "cell", "read_rows"]


class Rows:
    """First line: the protocol; then a line for every row. Refuses rows of another protocol."""

    def __init__(self, path: Path, protocol: dict[str, Any]) -> None:
        self.path = path
        self.found: list[dict[str, Any]] = []
        if path.is_file():
            self.found = read_rows(path)
            if self.found[0] != json.loads(json.dumps(protocol)):
                raise InputError(f"{path} was measured by another protocol: choose another --work, or delete it")
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.found = [json.loads(json.dumps(protocol))]
            path.write_text(json.dumps(protocol) + "\n")

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
    """Protocol and rows of a file; InputError for a file that is none."""
    try:
        found = [json.loads(line) for line in path.read_text().splitlines()]
        if not found or not all(isinstance(row, dict) for row in found):
            raise ValueError("no rows")
        return found
    except ValueError as error:
        raise InputError(f"{path} is not a benchmark's rows.jsonl ({error}): choose another --work") from error


def cell(rows: Sequence[dict[str, Any]], form: str, *path: str, scale: float = 1.0) -> str:
    """The mean over ``rows`` of the number at ``path``, formatted; a dash if one of them was not measured."""
    values = []
    for row in rows:
        value: Any = row
        for key in path:
            value = value[key]
        if value is None:
            return "–"
        values.append(value * scale)
    return format(sum(values) / len(values), form)
