"""Labels that stand in a table beside the pictures: ``metadata.jsonl`` or ``metadata.csv`` with a column ``file_name``."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import Any

from semu_diffusion.errors import InputError
from semu_diffusion.pipelines.data.folders import TABLES
from semu_diffusion.pipelines.data.tables import LABEL_COLUMNS

__all__ = ["listed_classes"]


def listed_classes(folder: Path) -> dict[str, list[Path]]:
    """Pictures by class as the folder's table has them, in the Hub's layout; {} if it has none, or none of labels.

    Classes are in the order of their numbers or of the alphabet. Raises InputError for a table that cannot be read, or that
    names a file outside of its folder, or none.
    """
    table = next((folder / name for name in TABLES if (folder / name).is_file()), None)
    try:
        rows = [] if table is None else _rows(table)
    except InputError:
        if any(entry.is_dir() for entry in folder.iterdir()):
            return {}  # the classes are folders, and the table is of something else
        raise
    column = next((name for name in LABEL_COLUMNS if rows and {name, "file_name"} <= set(rows[0])), None)
    found: dict[str, list[Path]] = {}
    for number, row in enumerate(rows if column else (), 1):
        name, label = Path(str(row.get("file_name"))), row.get(str(column))
        file = folder / name
        if name.is_absolute() or ".." in name.parts or not os.path.isfile(file):  # a picture may be a link
            raise InputError(f"{table}, row {number}: no file {' '.join(str(name).split())[:100]} in its folder")
        if not isinstance(label, str | int) or not str(label).strip():
            raise InputError(f"{table}, row {number}: its {column} must be a whole number or a word")
        found.setdefault(str(label).strip(), []).append(file)
    return dict(sorted(found.items(), key=lambda one: (not one[0].isdecimal(), len(one[0]) * one[0].isdecimal(), one[0])))


def _rows(table: Path) -> list[dict[str, Any]]:
    try:
        with table.open(encoding="utf-8-sig", newline="") as lines:
            if table.suffix == ".csv":
                return list(csv.DictReader(lines))
            rows = [json.loads(line) for line in lines if line.strip()]
        if all(isinstance(row, dict) for row in rows):
            return rows
        raise ValueError("a line is no object")
    except (OSError, ValueError, csv.Error, RecursionError) as error:
        raise InputError(f"{table} is no readable table ({' '.join(str(error).split())[:150]})") from error
