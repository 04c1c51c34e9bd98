"""Whose a folder is: this program's, by a mark in a JSON file; one process's, by a lock that goes with it however it ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from semu_diffusion.errors import InputError
from semu_diffusion.files import read_json, undisturbed

__all__ = ["LOCK", "WRITTEN_BY", "Busy", "content_of", "held", "is_held", "is_ours"]

LOCK = ".lock"
WRITTEN_BY = {"written_by": "semu_diffusion"}  # in run.json and training.json: nothing is removed from a folder without it


class Busy(InputError):
    """Another process is at work in the folder."""


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Inside, the folder is there and no other process is in it. Folders made for it go again if nothing was put into them.

    Raises Busy if another process has it.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        _acquire(lock, folder)
        try:
            yield
        finally:
            with undisturbed():
                with suppress(OSError):  # a system that keeps open files; the lock is what counts, not its file
                    (folder / LOCK).unlink()
                lock.release()
    finally:
        with undisturbed():
            for path in made:
                with suppress(OSError):
                    path.rmdir()


def _acquire(lock: FileLock, folder: Path) -> None:
    for attempt in range(10):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire()
            return
        except Timeout:
            raise Busy(f"another process is at work in {folder}: wait for it, or choose another folder") from None
        except FileNotFoundError:  # another process took the folder away, in which it had begun nothing
            if attempt == 9:
                raise


def is_held(folder: Path) -> bool:
    """Whether a process is at work in the folder; True too where that cannot be found out."""
    if not (folder / LOCK).is_file():
        return False
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except (Timeout, OSError):
        return True
    lock.release()
    return False


def is_ours(path: Path) -> bool:
    """Whether this JSON file says that this program wrote it."""
    return content_of(path).items() >= WRITTEN_BY.items()


def content_of(path: Path) -> dict[str, Any]:
    """The object in a JSON file; {} if there is none."""
    try:
        found = read_json(path, largest=None)
    except InputError:
        return {}
    return found if isinstance(found, dict) else {}
