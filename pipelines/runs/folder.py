"""The run folder, the contract with users: one process holds it, run.json says how far it came, no file is ever half there."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from semu_diffusion.distributed import is_first
from semu_diffusion.errors import InputError
from semu_diffusion.files import final_name, undisturbed, write_json
from semu_diffusion.patches.lora import DIFFUSERS_LORA, KOHYA_LORA
from semu_diffusion.pipelines.report.reports import REPORTS
from semu_diffusion.pipelines.runs.ownership import LOCK, WRITTEN_BY, Busy, content_of, held, is_held, is_ours
from semu_diffusion.pipelines.runs.places import place

__all__ = ["RunFolder", "folder_names", "status_of"]

ENDS = ("complete", "collapsed", "failed", "interrupted")  # every other status is that of a process at work
FOLDERS = ("lora", "lora.collapsed", "images")
LORA = (DIFFUSERS_LORA, KOHYA_LORA, "kohya_lora.safetensors", "adapter_model.safetensors", "adapter_config.json")
WRITES = {
    "run.json", "patch.safetensors", "patch.collapsed.safetensors", "metrics.jsonl", "samples.png", "nearest.png", *REPORTS,
    *(f"{folder}/{name}" for folder in FOLDERS[:2] for name in LORA),
}  # fmt: skip
SAMPLE = re.compile(r"images/(before|after)/[^/]+/\d{5}\.png")


class RunFolder:
    """A folder that holds one run, made and held by this process alone inside ``with``.

    What an earlier run left stays until `recorded` begins; a folder that was made and in which nothing was begun goes again.
    """

    def __init__(
        self, path: str | Path | None, name: str, overwrite: bool = False, inputs: Iterable[str | Path | None] = ()
    ) -> None:
        """``path`` as the user gave it, or None for a new folder ``runs/<name>``, ``runs/<name>-2``, …; with ``overwrite``
        for ``runs/<name>``, new or not.

        ``inputs`` are what the run reads: files and folders, or other words, which are passed over.
        """
        self._name, self._overwrite, self._new = folder_names([name])[name], overwrite, path is None and not overwrite
        self._inputs = [str(given) for given in inputs if given]
        self._held, self._given = ExitStack(), path
        self.path = Path("runs", self._name) if path is None else Path(path).expanduser()

    def __enter__(self) -> RunFolder:
        """Hold the folder. Raises InputError if it holds a run (or anything else) and shall not be overwritten, if it is not
        this program's, if what the run reads or another run lies in it, if another process has it, if it cannot be written.

        Of several processes at one run the first has the folder; the others write into one that goes with them.
        """
        if not is_first():
            self.path = Path(self._held.enter_context(TemporaryDirectory()))
            return self
        if not self._new:
            self._hold()
            return self
        for number in count(1):
            self.path = Path("runs", self._name if number == 1 else f"{self._name}-{number}")
            if self.path.exists() and not self.path.is_dir():
                continue
            with suppress(Busy, _Taken):
                self._hold()
                break
        return self

    def __exit__(self, *error: object) -> None:
        self._held.close()

    def _hold(self) -> None:
        self._check_place()
        self._check_content()  # before anything is written there
        with ExitStack() as stack:
            stack.enter_context(held(self.path))
            self._check_content()  # as it is now that nobody else is in it
            self._held = stack.pop_all()

    def _check_place(self) -> None:
        if self._given == "":
            raise InputError("--output is empty: name a folder")
        if self.path.is_symlink() and not self.path.exists():
            raise InputError(f"--output {self.path} is a link to {os.readlink(self.path)}, which is not there")
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"--output {self.path} is a file, not a folder")
        parent = self.path
        while not parent.exists():
            parent = parent.parent
        if not parent.is_dir():
            raise InputError(f"--output {self.path}: {parent} is a file, not a folder")
        if not os.access(parent, os.W_OK):
            raise InputError(f"no permission to write in {parent}: choose another --output")

    def _check_content(self) -> None:
        """InputError if what is in the folder must stay."""
        names = os.listdir(self.path) if self.path.is_dir() else []
        if all(name == LOCK or (final_name(name) != name and final_name(name) in WRITES) for name in names):
            return  # nothing, or what a run left that was killed at its very beginning
        path, whole = self.path, self.path.resolve()
        if not is_ours(path / "run.json"):
            kept = ", so it is not overwritten" if self._overwrite else ""
            raise _Taken(f"{path} is not empty and holds no run of this program{kept}: choose another --output")
        if not self._overwrite:
            raise _Taken(f"{path} already holds a run: choose another --output, or replace it with --overwrite")
        if Path.cwd().is_relative_to(whole):
            raise InputError(f"--output {path} with --overwrite would empty the folder you are in: choose another --output")
        for given in self._inputs:
            read = place(given)
            if read is not None and read.resolve().is_relative_to(whole):
                raise InputError(f"--output {path} with --overwrite would delete {given}, which this run reads")
        other = next((found for found in path.rglob("run.json") if found.parent != path), None)
        if other is not None:
            raise InputError(
                f"--output {path} with --overwrite: another run lies in it, {other.parent}; choose another --output"
            )

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def log(self, name: str, record: Mapping[str, Any]) -> None:
        """Append one line to a .jsonl file."""
        with (self.path / name).open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    @contextmanager
    def recorded(self, record: dict[str, Any]) -> Iterator[None]:
        """Inside, run.json holds ``record`` and says ``running``, and what an earlier run left is gone, in this order.

        At the end it says what the block wrote into ``record["status"]``; if that ends early, ``interrupted`` or ``failed``.
        Ctrl-C and SIGTERM come out as a KeyboardInterrupt that says what is kept.
        """
        record |= WRITTEN_BY | {"status": "running"}
        try:
            self._say(record)
            self._remove_what_a_run_writes()
            yield
            self._say(record)
        except BaseException as error:
            stopped = isinstance(error, KeyboardInterrupt)
            if not self._ended():  # this run's end, or that of an earlier one of which nothing was taken yet
                with suppress(OSError):  # a full disk is what may have ended the run
                    self._say({**record, "status": "interrupted" if stopped else "failed"})
            if stopped:
                error.args = (self.kept(),)
            raise

    def _say(self, record: Mapping[str, Any]) -> None:
        with undisturbed():
            write_json(self / "run.json", record)

    def _ended(self) -> bool:
        return str(content_of(self / "run.json").get("status")).startswith(ENDS)

    def _remove_what_a_run_writes(self) -> None:
        """But run.json, which is the new run's. Files of others stay, wherever they lie."""
        for folder, folders, files in os.walk(self.path, topdown=False):
            for name in files:
                path = Path(folder, name)
                meant = "/".join(map(final_name, path.relative_to(self.path).parts))
                if path != self / "run.json" and (meant in WRITES or SAMPLE.fullmatch(meant)):
                    path.unlink()
            for path in (Path(folder, name) for name in folders):
                if final_name(path.relative_to(self.path).parts[0]) in FOLDERS:
                    with suppress(OSError):  # there is something in it, or it is a link
                        path.rmdir()

    def shown(self, name: str) -> str:
        """A JSON file of the folder in ASCII, which any terminal and any pipe takes."""
        return json.dumps(json.loads((self / name).read_text(encoding="utf-8")), indent=2)

    def save_samples(self, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
        """A PNG of every sample (n, C, H, W) by condition, under images/before and images/after."""
        from semu_diffusion.eval.images import save_images

        for when, samples in (("before", before), ("after", after)):
            for condition, name in folder_names(samples).items():
                save_images(samples[condition], self / "images" / when / name)

    def kept(self) -> str:
        """One sentence on what is in the folder, for a run that ends early."""
        files = sorted(name for name in os.listdir(self.path) if name != LOCK) if self.path.is_dir() else []
        return f"{self.path} keeps {', '.join(files)}." if files else "Nothing was written."


class _Taken(InputError):
    """Something is in the folder."""


def status_of(folder: Path) -> str | None:
    """How far the run in a folder came, for people; None where there is none."""
    if not is_ours(folder / "run.json"):
        return None
    status = str(content_of(folder / "run.json").get("status"))
    if status.startswith(ENDS) or is_held(folder):
        return status
    return (
        f"{status} when its process went without a word (killed, or out of memory); the same command with --overwrite redoes it"
    )


def folder_names(titles: Iterable[str]) -> dict[str, str]:
    """For each title a folder's name, what any file system takes: at most 80 letters, numbered where two would be the same."""
    found: dict[str, str] = {}
    for title in titles:
        name = base = re.sub(r"[^\w ()+-]", "_", title).strip()[:80] or "(no condition)"
        number, taken = 1, {other.lower() for other in found.values()}
        while name.lower() in taken:
            number += 1
            name = f"{base} ({number})"
        found[title] = name
    return found
