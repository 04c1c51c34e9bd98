"""Labels that stand in a table beside the pictures: ``metadata.jsonl`` or ``metadata.csv`` with a column ``file_name``."""

from __future__ import annotations

import csv
import json
import os
import re
from pathlib import Path
from typing import Any

from semu_diffusion.errors import InputError, reason
from semu_diffusion.pipelines.data.folders import TABLES
from semu_diffusion.pipelines.data.tables import column_of, label_of

__all__ = ["listed_above", "listed_classes"]


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
    column = column_of([str(name) for name in rows[0]]) if rows and "file_name" in rows[0] else None
    found: dict[str, list[Path]] = {}
    for number, row in enumerate(rows if column else (), 1):
        name, label = _path(folder, str(row.get("file_name"))), label_of(row.get(str(column)))
        file = folder / name
        if name.is_absolute() or ".." in name.parts or not os.path.isfile(file):  # a picture may be a link
            raise InputError(f"{table}, row {number}: no file {' '.join(str(name).split())[:100]} in its folder")
        if label is None:
            raise InputError(f"{table}, row {number}: its {column} must be a whole number or a word")
        found.setdefault(str(label), []).append(file)
    if found and all(re.fullmatch(r"\d+\.0", label) for label in found):  # whole numbers, as pandas writes them beside gaps
        found = {label.removesuffix(".0"): files for label, files in found.items()}
    return dict(sorted(found.items(), key=lambda one: (not one[0].isdecimal(), len(one[0]) * one[0].isdecimal(), one[0])))


def listed_above(root: Path) -> dict[str, list[Path]]:
    """Pictures in ``root``, the folder of a split, by class as the table beside that folder has them."""
    found = {
        label: [file for file in files if file.is_relative_to(root)] for label, files in listed_classes(root.parent).items()
    }
    return {label: files for label, files in found.items() if files}


def _path(folder: Path, given: str) -> Path:
    """A picture's path in the table's folder, also as Windows writes it."""
    return Path(given) if os.path.isfile(folder / given) else Path(given.replace("\\", "/"))


def _rows(table: Path) -> list[dict[str, Any]]:
    try:
        with table.open(encoding="utf-8-sig", newline="") as lines:
            if table.suffix == ".csv":
                header = lines.readline()
                between = next((one for one in ",;\t" if "file_name" in header.strip().replace('"', "").split(one)), ",")
                return list(csv.DictReader([header, *lines], delimiter=between))  # Excel writes ; in half of Europe
            rows = [json.loads(line) for line in lines if line.strip()]
        if all(isinstance(row, dict) for row in rows):
            return rows
        raise ValueError("a line is no object")
    except (OSError, ValueError, csv.Error, RecursionError) as error:
        raise InputError(f"{table} is no readable table ({reason(error, 150)})") from error
