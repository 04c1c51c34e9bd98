"""The embedded models, found beside this file whether installed from a wheel or from a checkout."""

from pathlib import Path

__all__ = ["folder"]


def folder(name: str) -> Path:
    """Folder of the embedded model ``name`` (``ddpm-cifar10``, ``cifar10-classifier``)."""
    return Path(__file__).resolve().parent / name
