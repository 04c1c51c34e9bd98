"""The embedded models, found beside this file whether installed from a wheel or from a checkout."""

from pathlib import Path
from typing import Literal

__all__ = ["EMBEDDED", "MODELS", "Kind", "folder", "placed"]

EMBEDDED = "embedded"  # how settings name the model that comes with the package
Kind = Literal["class", "concept"]
MODELS: dict[Kind, str] = {"class": "ddpm-cifar10", "concept": "tiny-sd"}  # by what is erased from them


def folder(name: str) -> Path:
    """Folder of the embedded model ``name`` (``ddpm-cifar10``, ``cifar10-classifier``)."""
    return Path(__file__).resolve().parent / name


def placed(source: str, kind: Kind | None = None) -> str:
    """Where the model lies that is called ``source``: for ``embedded`` the one of its ``kind``; for the name of an embedded
    one, where nothing here is called so, that one; any other folder, file or Hub id as it stands."""
    if source == EMBEDDED and kind is not None:
        return str(folder(MODELS[kind]))
    return str(folder(source)) if source in MODELS.values() and not Path(source).exists() else source
