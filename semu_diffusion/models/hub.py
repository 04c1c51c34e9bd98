"""A folder, or a repository of the Hugging Face Hub: one rule for models and data sets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from semu_diffusion.errors import InputError

__all__ = ["folder_or_snapshot", "is_hub_id"]


def is_hub_id(source: str, ownerless: bool = False) -> bool:
    """Whether this may be ``owner/name``, or a mere ``name`` where ``ownerless`` (old data sets have one), and is no path."""
    path = source.startswith((".", "/", "~")) or source.endswith("/")
    return not path and (source.count("/") == 1 or (ownerless and source.count("/") == 0))


def folder_or_snapshot(
    source: str, takes: str, patterns: Sequence[str], repo_type: str = "model", ownerless: bool = False
) -> tuple[Path, str | None]:
    """The folder of a local path or of a Hub snapshot with the files of ``patterns``, and the commit of the latter.

    Raises InputError, one line, for a file (it then says what the user's option ``takes``), for what is neither a folder nor
    a Hub id, and for a repository that cannot be had.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        if path.name.startswith(("models--", "datasets--")) or (path.name == "snapshots" and "--" in path.parent.name):
            inside = sorted((path if path.name == "snapshots" else path / "snapshots").glob("*/"))
            hint = f"its snapshots/, as {inside[-1]}" if inside else "its snapshots/, of which there is none"
            raise InputError(f"{source} is a folder of the Hub's cache: give the Hub id itself, or one of {hint}")
        return path, None
    if path.exists():
        raise InputError(f"{source} is a file; {takes}")
    if not is_hub_id(source, ownerless):
        raise InputError(f"{source}: no such folder, and not a Hub id of the form owner/name")
    from huggingface_hub import snapshot_download

    try:
        snapshot = Path(snapshot_download(source, repo_type=repo_type, allow_patterns=list(patterns)))
    except Exception as error:  # the Hub client raises a dozen unrelated classes; each means "could not be had"
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"{source}: no such folder, and loading it from the Hub failed ({reason})") from error
    return snapshot, snapshot.name
