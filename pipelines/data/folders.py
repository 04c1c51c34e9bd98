"""Picture files in folders as people have them: hidden copies, archives' leftovers, splits under any name, links."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

from semu_diffusion.errors import InputError
from semu_diffusion.files import is_text
from semu_diffusion.names.letters import fold
from semu_diffusion.pipelines.data.findings import Findings
from semu_diffusion.pipelines.data.pictures import SUFFIXES

__all__ = ["TABLES", "NoSplit", "class_folders", "data_root", "has_table", "hidden", "picture_bytes", "picture_files"]

TABLES = ("metadata.jsonl", "metadata.csv")
SYSTEM = {"__macosx", "@eadir", "$recycle.bin", "system volume information", "__pycache__", "lost+found"}
SYSTEM |= {"thumbs.db", "ehthumbs.db", "desktop.ini"}
SPLITS = {
    "train": {"train", "training", "trainset", "train set", "training set", "train images", "seg train"},
    "test": {"test", "testing", "testset", "test set", "testing set", "test images", "seg test"},
    "validation": {"validation", "valid", "val", "validation set", "val set", "valid set"},
}


class NoSplit(InputError):
    """The data set has no such split."""


def picture_files(folder: Path, findings: Findings, above: frozenset[str] = frozenset()) -> list[Path]:
    """The pictures in a folder and below, through links, in the order of their paths.

    Hidden files and folders (``.ipynb_checkpoints``, macOS' ``._cat.png`` and ``__MACOSX``) are left out, and what is no
    picture. Raises InputError for a folder that cannot be read.
    """
    real = os.path.realpath(folder)
    if real in above:
        findings.skipped["links in a circle"] += 1
        return []
    found: list[Path] = []
    for entry in _entries(folder):
        path = folder / entry.name
        if hidden(entry.name):
            findings.skipped["hidden"] += 1
        elif entry.is_dir():
            found += picture_files(path, findings, above | {real})
        elif not entry.is_file():
            findings.skipped["broken links"] += 1
        elif path.suffix.lower() in SUFFIXES:
            found.append(path)
        else:
            findings.skipped[f"of {path.suffix.lower() or 'no suffix'}"] += 1
    return sorted(found)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise InputError(f"{folder} cannot be read ({error.strerror})") from error


def has_table(folder: Path) -> bool:
    """Whether the folder has labels in a table beside its pictures, in the Hub's layout."""
    return any((folder / name).is_file() for name in TABLES)


def hidden(name: str) -> bool:
    """True for names that a system or a program keeps for itself."""
    return name.startswith(".") or name.lower() in SYSTEM


def _folders(folder: Path) -> list[Path]:
    return [folder / entry.name for entry in _entries(folder) if entry.is_dir() and not hidden(entry.name)]


def _direct(folder: Path) -> bool:
    names = [entry.name for entry in _entries(folder) if entry.is_file() and not hidden(entry.name)]
    return any(Path(name).suffix.lower() in SUFFIXES for name in names)


def _name_of(folder: Path) -> str:
    """What a class is called by its folder; macOS writes accents apart from their letters, and a blank at an end is not seen.

    Raises InputError for a name of another alphabet than UTF-8, which no file of ours could hold.
    """
    if not is_text(folder.name):
        raise InputError(f"{folder}: the folder's name is not in UTF-8: rename it")
    return unicodedata.normalize("NFC", folder.name).strip()


def data_root(folder: Path, split: str, findings: Findings) -> tuple[Path, bool]:
    """The folder that holds the split's pictures or class folders, and whether it is that of a split.

    That is the one called so (``Training/`` and ``val/`` too), else the folder itself, or the only folder in it that holds
    more folders. Raises InputError if there are splits, but not this one, or if one could also be a class.
    """
    inside = _folders(folder)
    named = {path: next((one for one, names in SPLITS.items() if fold(path.name) in names), None) for path in inside}
    splits = [path for path, one in named.items() if one is not None]
    others = [path for path in inside if path not in splits]
    trains = len(splits) == 1 and named[splits[0]] == "train" and _direct(splits[0]) and not has_table(splits[0])
    if trains and others and all(map(_direct, others)):  # pictures of trains, beside those of buses?
        if len(others) == 1:
            raise InputError(
                f"{folder}: is {splits[0].name}/ a class beside {others[0].name}/, or the data to train on? Move one away"
            )
        splits = []
    if splits and ("train" in named.values() or len(splits) == len(inside)):
        chosen = [path for path in splits if named[path] == split]
        if len(chosen) != 1:
            has = ", ".join(f"{path.name}/" for path in splits)
            error = InputError if chosen else NoSplit
            raise error(f"{folder} has {'more than one' if chosen else 'no'} split {split!r}: it holds {has}")
        if len(inside) > 1:
            findings.remarks.append(f"read {chosen[0].name}/ alone")
        return chosen[0], True
    if splits:
        beside = ", ".join(path.name for path in inside if path not in splits)
        raise InputError(f"{folder}: {splits[0].name}/ stands beside {beside}: a class, or a part of the data? Move it away")
    if len(inside) == 1 and not _direct(folder) and not _direct(inside[0]) and _folders(inside[0]):
        return data_root(inside[0], split, findings)  # an archive's own folder
    return folder, False


def class_folders(root: Path, findings: Findings) -> dict[str, list[Path]]:
    """Pictures by class, the classes in the order of their folders. Raises InputError for two folders of one name."""
    found: dict[str, list[Path]] = {}
    written: dict[str, Path] = {}
    for folder in _folders(root):
        files = picture_files(folder, findings)
        if not files:
            continue
        first = written.setdefault(fold(folder.name), folder)
        if first is not folder:
            raise InputError(f"{first} and {folder} mean the same class: put their pictures in one folder")
        found[_name_of(folder)] = files
    loose = [entry.name for entry in _entries(root) if entry.is_file()] if found else []
    for name in loose:
        reason = "hidden" if hidden(name) else f"of {Path(name).suffix.lower() or 'no suffix'} outside of the classes' folders"
        findings.skipped[reason] += 1
    return found


def picture_bytes(path: Path) -> bytes:
    """The content of a file. Raises InputError, naming it, if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})") from error
