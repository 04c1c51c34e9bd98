"""The run folder, the contract with users: every file is written beside and renamed, so that none is ever half there."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from semu_diffusion.errors import InputError
from semu_diffusion.files import write_json

__all__ = ["RunFolder", "folder_names"]


class RunFolder:
    """A folder that holds one run. Nothing exists on disk before `create`."""

    def __init__(
        self, path: str | Path | None, name: str, overwrite: bool = False, inputs: Iterable[str | Path | None] = ()
    ) -> None:
        """``path`` as the user gave it, or None for a new folder ``runs/<name>``, ``runs/<name>-2``, …

        ``inputs`` are what the run reads: files and folders, or other words, which are passed over.

        Raises InputError if the folder holds a run (or anything else) and ``overwrite`` is not set, if an input lies in the
        folder that would be replaced, or if it cannot be written.
        """
        if path is None:
            path, number = Path("runs") / name, 1
            while path.exists():
                number += 1
                path = Path("runs") / f"{name}-{number}"
        self.path = Path(path).expanduser()
        self.overwrite = overwrite
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"--output {self.path} is a file, not a folder")
        if self.path.is_dir() and any(self.path.iterdir()):
            if not overwrite:
                raise InputError(f"{self.path} already holds a run: choose another --output, or replace it with --overwrite")
            if not (self.path / "run.json").is_file():
                raise InputError(
                    f"{self.path} is not empty and holds no run, so it is not overwritten: choose another --output"
                )
            for given in inputs:
                place = os.path.expanduser(given or "")
                if place and os.path.exists(place) and Path(place).resolve().is_relative_to(self.path.resolve()):
                    raise InputError(f"--output {self.path} with --overwrite would delete {given}, which this run reads")
        parent = self.path
        while not parent.exists():
            parent = parent.parent
        if not parent.is_dir():
            raise InputError(f"--output {self.path}: {parent} is a file, not a folder")
        if not os.access(parent, os.W_OK):
            raise InputError(f"no permission to write in {parent}: choose another --output")

    def create(self) -> None:
        """Make the folder; with ``overwrite``, remove what an earlier run left there."""
        if self.overwrite and self.path.is_dir():
            shutil.rmtree(self.path)
        self.path.mkdir(parents=True, exist_ok=True)

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def log(self, name: str, record: Mapping[str, Any]) -> None:
        """Append one line to a .jsonl file."""
        with (self.path / name).open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    @contextmanager
    def recorded(self, record: dict[str, Any]) -> Iterator[None]:
        """Inside, run.json exists and says ``running``; if it ends early, ``interrupted`` or ``failed``.

        Otherwise whoever does the work changes ``record`` and writes the last run.json. Ctrl-C comes out as a
        KeyboardInterrupt that says what is kept.
        """
        record["status"] = "running"
        write_json(self / "run.json", record)
        try:
            yield
        except KeyboardInterrupt:
            write_json(self / "run.json", {**record, "status": "interrupted"})
            raise KeyboardInterrupt(self.kept()) from None
        except Exception:
            with suppress(OSError):  # a full disk is what may have ended the run
                write_json(self / "run.json", {**record, "status": "failed"})
            raise

    def shown(self, name: str) -> str:
        """A JSON file of the folder in ASCII, which any terminal and any pipe takes."""
        return json.dumps(json.loads((self / name).read_text(encoding="utf-8")), indent=2)

    def save_samples(self, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
        """A PNG of every sample (n, C, H, W) by condition, under images/before and images/after."""
        from semu_diffusion.eval.images import save_images

        for when, samples in (("before", before), ("after", after)):
            for condition, name in folder_names(samples).items():
                save_images(samples[condition], self / "images" / when / name)

    def kept(self) -> str:
        """One sentence on what is in the folder, for a run that ends early."""
        files = sorted(p.name for p in self.path.iterdir()) if self.path.is_dir() else []
        return f"{self.path} keeps {', '.join(files)}." if files else "Nothing was written."


def folder_names(titles: Iterable[str]) -> dict[str, str]:
    """For each title a folder's name, what any file system takes: at most 80 letters, numbered where two would be the same."""
    found: dict[str, str] = {}
    for title in titles:
        name = base = re.sub(r"[^\w ()+-]", "_", title).strip()[:80] or "(no condition)"
        number, taken = 1, {other.lower() for other in found.values()}
        while name.lower() in taken:
            number += 1
            name = f"{base} ({number})"
        found[title] = name
    return found
