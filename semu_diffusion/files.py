"""Files and folders that appear complete or not at all, and that whoever may read their folder may read."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from semu_diffusion.errors import InputError

if TYPE_CHECKING:
    import torch

__all__ = [
    "ENDING",
    "atomic_file",
    "atomic_folder",
    "clear_temporaries",
    "depth",
    "final_name",
    "handled",
    "is_text",
    "public_name",
    "read_json",
    "save_tensors",
    "strip_local_paths",
    "tensors_only",
    "undisturbed",
    "write_json",
    "write_text",
]

FORCED, FORBIDDEN = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"  # which torch.load obeys
MAX_DEPTH = 32
ENDING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
LOCAL_KEYS = ("_name_or_path", "local_files_only", "is_local")
# .NAME.PROCESS-MACHINE.part of what is written, .last of what it replaces
TEMPORARY = re.compile(r"\.(.+)\.(\d{1,9})(?:-([0-9a-f]{8}))?\.(part|last)")
ABANDONED = 24 * 3600.0  # seconds after which nobody on another machine still writes a file


@contextmanager
def handled(handler: Callable[[int, Any], None], *numbers: int) -> Iterator[None]:
    """Inside, ``handler`` gets those of these signals that are not ignored (``nohup``); only the main thread gets any."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard = [number for number in numbers if signal.getsignal(number) not in (signal.SIG_IGN, None)]
    before = {number: signal.signal(number, handler) for number in heard}
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Inside, signals that end the command wait until the end of the block; for the few lines that must not be half done."""
    waiting: list[int] = []
    try:
        with handled(lambda number, frame: waiting.append(number), *ENDING):
            yield
    finally:
        for number in waiting[:1]:
            signal.raise_signal(number)


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """A path beside ``path`` to write a file at; when the block ends, that file becomes ``path``.

    Makes the folder if need be. If the block fails, what it wrote is removed and ``path`` stays as it was; what a process
    that was killed had written goes with the next one.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    clear_temporaries(path)
    beside = _beside(path)
    try:
        yield beside
        _as_new_files(beside)
        os.replace(beside, path)
    finally:
        with undisturbed():
            beside.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """An empty folder beside ``path`` to fill; when the block ends, it becomes ``path``.

    With ``overwrite`` it takes the place of the folder that is there, which comes back if that fails; without, a folder that
    holds something is an OSError. If the block fails, what it wrote is removed and ``path`` stays as it was.
    """
    path = Path(path)
    beside = _beside(path)
    clear_temporaries(path)
    try:
        beside.mkdir(parents=True)
        yield beside
        _as_new_files(beside)
        with undisturbed():
            if overwrite and path.is_dir():
                os.replace(path, _beside(path, "last"))
            os.replace(beside, path)
    finally:
        with undisturbed():
            clear_temporaries(path)


def clear_temporaries(path: Path) -> None:
    """Remove what this process or one that was killed left beside ``path`` on the way to it.

    Of a folder that was being replaced, the former one comes back if neither has its name.
    """
    if not path.parent.is_dir():
        return
    for name in os.listdir(path.parent):
        found, left = TEMPORARY.fullmatch(name), path.with_name(name)
        if found is None or found[1] != path.name or _is_written(left, int(found[2]), found[3]):
            continue
        if found[4] == "last" and not path.exists():
            os.replace(left, path)
        elif left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def final_name(name: str) -> str:
    """What a temporary file or folder of this name was to become; any other name is as it is."""
    found = TEMPORARY.fullmatch(name)
    return name if found is None else found[1]


def is_text(name: str) -> bool:
    """Whether a name from a file system or a command line, which take any bytes, is text that a file in UTF-8 can hold."""
    return not any("\ud800" <= letter <= "\udfff" for letter in name)


def _is_written(path: Path, process: int, machine: str | None) -> bool:
    """Whether another process is writing there; of one on another machine, where numbers mean nothing, by the file's age."""
    import psutil  # only where something was left

    if machine in (None, _machine()):
        return process != os.getpid() and psutil.pid_exists(process)
    try:
        return time.time() - path.stat().st_mtime < ABANDONED
    except OSError:  # it has just become what it was to be
        return True


@cache
def _machine() -> str:
    """8 digits of this machine's name and of the space in which its processes are numbered: containers count from 1 each."""
    try:
        space = os.readlink("/proc/self/ns/pid")
    except OSError:
        space = ""
    return hashlib.sha256(f"{platform.node()} {space}".encode()).hexdigest()[:8]


def _beside(path: Path, ending: str = "part") -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}-{_machine()}.{ending}")


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


def read_json(path: str | Path, what: str = "", largest: float | None = 1e300) -> Any:
    """The content of a JSON file. Raises InputError, one line that names ``what`` (else the path), for a file that cannot be
    read, is nested without end, or holds a number that is none or is beyond ``largest`` (1e300: nothing infinite; None: any
    number, as a run of ours may have measured it)."""

    def number(text: str) -> int | float:
        value = int(text) if text.lstrip("-").isdigit() and len(text) < 300 else float(text)
        if largest is not None and not abs(value) <= largest:
            raise ValueError(f"it holds the number {text[:30]}")
        return value

    try:
        text = Path(path).expanduser().read_text(encoding="utf-8-sig")
        content = json.loads(text, parse_int=number, parse_float=number, parse_constant=number)
        if depth(content) > MAX_DEPTH:
            raise RecursionError
        return content
    except (OSError, ValueError, RecursionError) as error:
        said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        reason = "nested too deep" if isinstance(error, RecursionError) else " ".join(said.split())[:200]
        raise InputError(f"{what or path} is not readable JSON ({reason})") from error


def depth(content: object) -> int:
    """Levels of lists and dicts within each other."""
    found, level = 0, [content]
    while level := [value for value in level if isinstance(value, dict | list)]:
        found += 1
        level = [inner for value in level for inner in (value.values() if isinstance(value, dict) else value)]
    return found


def _as_new_files(path: Path) -> None:
    """Give the file, or every file of the folder, the permissions that a new file has here: safetensors writes private ones."""
    mask = os.umask(0)  # there is no other way to ask for it
    os.umask(mask)
    mode = 0o666 & ~mask
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


@contextmanager
def tensors_only() -> Iterator[None]:
    """Inside, ``torch.load`` reads plain tensors alone, whoever calls it and whatever they ask for: no file runs code.

    Around the loaders of other libraries, which unpickle freely or may one day.
    """
    before = {name: os.environ.pop(name, None) for name in (FORCED, FORBIDDEN)}
    os.environ[FORCED] = "1"
    try:
        yield
    finally:
        del os.environ[FORCED]
        os.environ.update({name: value for name, value in before.items() if value is not None})


def strip_local_paths(folder: Path) -> None:
    """Take out of a saved model's configs where its parts were loaded from: that tells of a machine, not of the model."""
    for config in (*folder.rglob("*config.json"), *folder.glob("model_index.json")):
        content = read_json(config, largest=math.inf)
        write_json(config, {key: value for key, value in content.items() if key not in LOCAL_KEYS})
