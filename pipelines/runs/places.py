"""Which file or folder a setting names: the setting itself, or the end of a judge that is one (``timm:local-dir:FOLDER``)."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

__all__ = ["READ", "located", "place"]

# settings that may name what a run reads
READ = (
    "model", "classifier", "style_classifier", "class_mapping", "clip_score", "dino", "forget_images", "retain", "data",
    "fid_reference", "inception_weights", "patch", "lora", "edited",
)  # fmt: skip
JUDGE = re.compile(r"(timm:local-dir:|clip:[^:]*:(?=.*\.safetensors$))?(.*)", re.DOTALL)
WORDS = {"embedded", "auto", "none", "self", "clip", "cifar10", "styles", "download"}  # whatever lies there by that name


def place(given: Any) -> Path | None:
    """The file or folder that is there by this name, None for any other word."""
    found = JUDGE.fullmatch(given) if isinstance(given, str) and given not in WORDS else None
    path = Path(found[2]).expanduser() if found is not None and found[2] else None
    return path if path is not None and os.path.exists(path) else None


def located(given: Any) -> Any:
    """The setting with its file or folder named from the root, so that it means the same from anywhere."""
    path = place(given)
    return given if path is None else f"{JUDGE.fullmatch(given)[1] or ''}{os.path.abspath(path)}"  # type: ignore[index]
