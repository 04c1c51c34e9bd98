"""Files that appear complete or not at all, and that whoever may read the folder may read."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["as_new_files", "forget_places", "save_tensors", "write_text"]


def save_tensors(tensors: Mapping[str, torch.Tensor], path: Path, header: Mapping[str, str]) -> Path:
    """Write a safetensors file beside ``path`` and rename it; makes the folder if need be."""
    from safetensors.torch import save_file  # brings torch, which who only renames folders does not need

    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        save_file(dict(tensors), beside, metadata=dict(header))
        as_new_files(beside)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
    return path


def write_text(path: Path, text: str) -> None:
    """Write ``text``, UTF-8, beside ``path`` and rename it; the folder is there."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        beside.write_text(text, encoding="utf-8")
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def as_new_files(path: Path) -> None:
    """Give the file, or every file of the folder, the permissions that a new file has here: safetensors writes private ones."""
    probe = path.with_name(f".{path.name}.{os.getpid()}.new")
    probe.touch()
    mode = stat.S_IMODE(probe.stat().st_mode)
    probe.unlink()
    for file in (path, *path.rglob("*")):
        if file.is_file():
            file.chmod(mode)


def forget_places(folder: Path) -> None:
    """Where the parts of a saved model were loaded from tells of a machine, not of the model: out of their configs with it."""
    for config in (*folder.rglob("*config.json"), *folder.glob("model_index.json")):
        content = json.loads(config.read_text(encoding="utf-8"))
        told = {key: value for key, value in content.items() if key not in ("_name_or_path", "local_files_only", "is_local")}
        config.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
