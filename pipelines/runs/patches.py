"""A patch as a user names it."""

from __future__ import annotations

from pathlib import Path

from semu_diffusion.patch import ErasurePatch

__all__ = ["is_of_concepts", "load_patch", "patch_file"]


def patch_file(given: str) -> Path:
    """The patch itself, where a run folder stands for the patch it holds."""
    path = Path(given)
    return path / "patch.safetensors" if path.is_dir() else path


def load_patch(given: str, strength: float = 1.0) -> ErasurePatch:
    """The patch, ``strength`` times as strong as it was saved. Raises InputError for a file that is no patch."""
    patch = ErasurePatch.load(patch_file(given))
    return patch.scale(patch.strength * strength)


def is_of_concepts(patch: ErasurePatch) -> bool:
    return "concept" in patch.metadata
