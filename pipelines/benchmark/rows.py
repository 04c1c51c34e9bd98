"""The rows that a benchmark has measured so far, on disk line by line, so that a stopped one goes on."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from semu_diffusion.errors import InputError
from semu_diffusion.files import write_text

__all__ = ["FILES", "Row", "Rows", "merged_rows", "read_rows"]

FILES = {"class": "classes.jsonl", "concept": "concepts.jsonl"}  # of a folder, by what its rows erased

Row = dict[str, Any]


class Rows:
    """First line: the protocol; then a line for every row. Refuses rows of another protocol."""

    def __init__(self, path: Path, protocol: Mapping[str, Any]) -> None:
        self.path = path
        self.found: list[Row] = []
        protocol = json.loads(json.dumps({"protocol": protocol}))
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            self.found = [dict(protocol)]
            write_text(path, json.dumps(protocol) + "\n")
            return
        self.found = read_rows(path)
        if self.found[0] != protocol:
            raise InputError(f"{path} was measured by another protocol: choose another --work, or delete it")
        text = path.read_text(encoding="utf-8")
        if not text.endswith("\n"):
            if len(text.splitlines()) > len(self.found):
                print(f"{path}: its last row was written in part only; it is measured again", file=sys.stderr)
            write_text(path, "".join(json.dumps(row) + "\n" for row in self.found))

    def __len__(self) -> int:
        return len(self.found) - 1

    def has(self, method: str, erased: str, seed: int, settings: Mapping[str, Any]) -> bool:
        """Whether the row is there. Raises InputError if it was measured with other ``settings`` of the method."""
        row = next((row for row in self.found[1:] if _key(row) == (method, erased, seed)), None)
        if row is not None and row.get("settings") != json.loads(json.dumps(settings)):
            raise InputError(f"{self.path}: {method} was measured with other settings: choose another --work, or another name")
        return row is not None

    def add(self, row: Row) -> None:
        self.found.append(json.loads(json.dumps(row)))
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def read_rows(path: Path) -> list[Row]:
    """Protocol and rows of a file; InputError for a file that is none.

    A last row that was written in part only, by a benchmark that was killed or a disk that was full, is left out.
    """
    try:
        *whole, last = path.read_text(encoding="utf-8").splitlines() or [""]
        found = [json.loads(line) for line in whole]
        with suppress(*((ValueError,) if found else ())):
            found.append(json.loads(last))
        if not found or not all(isinstance(row, dict) for row in found) or not all("erased" in row for row in found[1:]):
            raise ValueError("no rows")
        return found
    except ValueError as error:
        raise InputError(f"{path} is not a benchmark's rows ({error}): choose another --work") from error


def merged_rows(paths: Sequence[Path]) -> list[Row]:
    """Protocol and rows of several files of one benchmark, each row once, the first one found.

    Raises InputError for files that were not measured by one protocol; some may be of methods that were tuned first, all by one
    search.
    """
    files = [read_rows(path) for path in paths]
    whole = files[0][0]["protocol"]
    for path, (first, *_) in zip(paths, files, strict=True):
        own = first["protocol"]
        named = [key for key in {**whole, **own} if whole.get(key) != own.get(key) and not _untuned(key, whole, own)]
        if named:
            raise InputError(f"{path} and {paths[0]} were measured by different protocols ({', '.join(named)})")
        whole = {**own, **whole}
    rows = {_key(row): row for _, *found in reversed(files) for row in reversed(found)}
    return [{**files[0][0], "protocol": whole}, *reversed(rows.values())]


def _untuned(key: str, *protocols: Mapping[str, Any]) -> bool:
    return key == "tuning" and any(key not in protocol for protocol in protocols)


def _key(row: Row) -> tuple[str, str, int]:
    """What is measured once: a method, what it erased, and the seed, which rows of earlier versions have not."""
    return row["method"], row["erased"], row.get("seed", 0)
