"""Files and folders that appear complete or not at all, and that whoever may read their folder may read."""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

__all__ = [
    "atomic_file",
    "atomic_folder",
    "public_name",
    "save_tensors",
    "strip_local_paths",
    "write_json",
    "write_text",
]

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


def _as_new_files(path: Path) -> None:
    """Give the file, or every file of the folder, the permissions that a new file has here: safetensors writes private ones."""
    probe = path.with_name(f".{os.getpid()}.new")
    probe.touch()
    mode = stat.S_IMODE(probe.stat().st_mode)
    probe.unlink()
    for file in (path, *path.rglob("*")):
        if file.is_file():
            file.chmod(mode)


def public_name(text: str, places: Iterable[Path] = (Path(),)) -> str:
    """The text without the folders of a path in it, which tell of a machine; also behind colons, as in ``clip:MODEL:FILE``.

    A relative path is known by its file or folder in one of the ``places``; ``owner/name`` without one is an id of the Hub.
    """
    if "://" in text:
        return text
    return ":".join(Path(os.path.abspath(part)).name if _is_path(part, places) else part for part in text.split(":"))


def _is_path(part: str, places: Iterable[Path]) -> bool:
    if part in (".", ".."):
        return True
    if "/" not in part or part == "/":
        return False
    deep = part.count("/") > 1 and not any(letter.isspace() for letter in part)  # neither an id of the Hub nor a prompt
    return deep or part.startswith(("/", "~", "./", "../")) or any(os.path.exists(place / part) for place in places)


def strip_local_paths(folder: Path) -> None:
    """Take out of a saved model's configs where its parts were loaded from: that tells of a machine, not of the model."""
    for config in (*folder.rglob("*config.json"), *folder.glob("model_index.json")):
        content = json.loads(config.read_text(encoding="utf-8"))
        write_json(config, {key: value for key, value in content.items() if key not in LOCAL_KEYS})
