"""The mark among the first bytes of every page and picture that a user names: what bears it may be replaced, nothing else."""

from __future__ import annotations

import os
from pathlib import Path

from semu_diffusion.errors import InputError

__all__ = ["MARK", "replaceable"]

MARK = "semu-diffusion report"
WITHIN = 2000  # bytes


def replaceable(path: str | Path) -> Path:
    """The path that ``--output`` names. Raises InputError if a folder is meant or there, or a file without the mark."""
    folder = str(path).endswith(("/", os.sep))
    path = Path(path).expanduser()
    if folder or path.is_dir():
        raise InputError(f"--output {path} is a folder: name a file")
    if path.exists() and not path.is_file():  # /dev/stdout, whose reading may never end
        raise InputError(f"--output {path} is no file, but a device or a pipe: choose another file")
    if path.exists():
        with path.open("rb") as file:
            if MARK.encode() not in file.read(WITHIN):
                raise InputError(f"--output {path} is there already and is no report of this program: choose another file")
    return path
