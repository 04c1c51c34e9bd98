"""Files and folders that appear complete or not at all, and that whoever may read their folder may read."""

from __future__ import annotations

import json
import math
import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from semu_diffusion.errors import InputError

if TYPE_CHECKING:
    import torch

__all__ = [
    "atomic_file",
    "atomic_folder",
    "depth",
    "read_json",
    "save_tensors",
    "strip_local_paths",
    "write_json",
    "write_text",
]

MAX_DEPTH = 32
LOCAL_KEYS = ("_name_or_path", "local_files_only", "is_local")


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """A path beside ``path`` to write a file at; when the block ends, that file becomes ``path``.

    Makes the folder if need be. If the block fails, what it wrote is removed and ``path`` stays as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = _beside(path)
    try:
        yield beside
        _as_new_files(beside)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """An empty folder beside ``path`` to fill; when the block ends, it becomes ``path``.

    With ``overwrite`` it takes the place of the folder that is there, which comes back if that fails; without, a folder that
    holds something is an OSError. If the block fails, what it wrote is removed and ``path`` stays as it was.
    """
    path = Path(path)
    beside, last = _beside(path), _beside(path, "last")
    for left in (beside, last):  # by a process of this number that was killed
        shutil.rmtree(left, ignore_errors=True)
    beside.mkdir(parents=True)
    try:
        yield beside
        _as_new_files(beside)
        if overwrite and path.is_dir():
            os.replace(path, last)
        try:
            os.replace(beside, path)
        except OSError:
            if last.is_dir():
                os.replace(last, path)
            raise
        shutil.rmtree(last, ignore_errors=True)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _beside(path: Path, ending: str = "part") -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.{ending}")


def save_tensors(tensors: Mapping[str, torch.Tensor], path: Path, header: Mapping[str, str]) -> Path:
    """Write a safetensors file with ``header`` as its metadata."""
    from safetensors.torch import save_file  # brings torch, which who only renames folders does not need

    with atomic_file(path) as beside:
        save_file(dict(tensors), beside, metadata=dict(header))
    return path


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8."""
    with atomic_file(path) as beside:
        beside.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write ``content`` as indented JSON."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def read_json(path: str | Path, what: str = "", largest: float = 1e300) -> Any:
    """The content of a JSON file. Raises InputError, one line that names ``what`` (else the path), for a file that cannot be
    read, is nested without end, or holds a number that is none or is beyond ``largest`` (1e300: nothing infinite)."""

    def number(text: str) -> int | float:
        value = int(text) if text.lstrip("-").isdigit() and len(text) < 300 else float(text)
        if not abs(value) <= largest:
            raise ValueError(f"it holds the number {text[:30]}")
        return value

    try:
        text = Path(path).expanduser().read_text(encoding="utf-8-sig")
        content = json.loads(text, parse_int=number, parse_float=number, parse_constant=number)
        if depth(content) > MAX_DEPTH:
            raise RecursionError
        return content
    except (OSError, ValueError, RecursionError) as error:
        reason = "nested too deep" if isinstance(error, RecursionError) else " ".join(str(error).split())[:200]
        raise InputError(f"{what or path} is not readable JSON ({reason})") from error


def depth(content: object) -> int:
    """Levels of lists and dicts within each other."""
    found, level = 0, [content]
    while level := [value for value in level if isinstance(value, dict | list)]:
        found += 1
        level = [inner for value in level for inner in (value.values() if isinstance(value, dict) else value)]
    return found


def _as_new_files(path: Path) -> None:
    """Give the file, or every file of the folder, the permissions that a new file has here: safetensors writes private ones."""
    probe = path.with_name(f".{os.getpid()}.new")
    probe.touch()
    mode = stat.S_IMODE(probe.stat().st_mode)
    probe.unlink()
    for file in (path, *path.rglob("*")):
        if file.is_file():
            file.chmod(mode)


def strip_local_paths(folder: Path) -> None:
    """Take out of a saved model's configs where its parts were loaded from: that tells of a machine, not of the model."""
    for config in (*folder.rglob("*config.json"), *folder.glob("model_index.json")):
        content = read_json(config, largest=math.inf)
        write_json(config, {key: value for key, value in content.items() if key not in LOCAL_KEYS})
