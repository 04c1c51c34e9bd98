"""What the page may pick from, by name: the embedded models, those of the command line, and what lies in one folder.

The page sends names alone. A name that is not on the shelf is refused, so that nobody who reaches the page can name a file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TypeVar

from semu_diffusion import assets
from semu_diffusion.assets import EMBEDDED, Kind
from semu_diffusion.errors import InputError
from semu_diffusion.files import public_name
from semu_diffusion.models.checkpoints import INDEX, kind_of
from semu_diffusion.pipelines.report.page.page import FILES
from semu_diffusion.pipelines.runs.folder import folder_names, status_of

__all__ = ["REPORT", "Choice", "Run", "Shelf"]

REPORT = "report.html"
Named = TypeVar("Named")
PAGES = (REPORT, *FILES)


@dataclass(frozen=True)
class Choice:
    """A model: ``source`` as the settings of a run name it, ``location`` the folder, file or Hub id of its weights."""

    name: str
    kind: Kind
    source: str
    location: str


@dataclass(frozen=True)
class Run:
    """A run folder: how far it came, and whether it holds a patch and a report."""

    name: str
    path: Path
    status: str
    patch: bool
    report: bool


@dataclass(frozen=True)
class Shelf:
    """``folder``, in which every run lies and new ones are put, and the ``models`` that were named beside the embedded ones."""

    folder: Path
    named: tuple[str, ...] = ()

    def models(self) -> dict[str, Choice]:
        """Every model by its name on the page, the named ones first. Raises InputError for a named one that is none."""
        found = [Choice(public_name(one), kind_of(one), one, one) for one in self.named]
        found += [Choice(name, kind, EMBEDDED, str(assets.folder(name))) for kind, name in assets.MODELS.items()]
        for path in self._holding(INDEX):
            if all(self._is_inside(file) for file in path.rglob("*") if not file.is_dir()):
                with suppress(InputError):  # one that cannot be read is not offered
                    found.append(Choice(f"{self._name(path)}/", kind_of(str(path)), str(path), str(path)))
        named: dict[str, Choice] = {}
        for one in found:
            named[one.name if one.name not in named else f"{one.name} ({one.source})"] = one
        return named

    def runs(self) -> dict[str, Run]:
        """Every run in the folder by its name, the newest first."""
        files = sorted(self._holding("run.json"), key=lambda path: (path / "run.json").stat().st_mtime, reverse=True)
        states = {path: status for path in files if (status := status_of(path)) is not None}
        made = [
            Run(self._name(path), path, status, *(self._is_inside(path / file) for file in ("patch.safetensors", REPORT)))
            for path, status in states.items()
        ]
        return {run.name: run for run in made}

    def model(self, name: str) -> Choice:
        return _known(self.models(), name, "model")

    def run(self, name: str) -> Run:
        return _known(self.runs(), name, "run")

    def patch(self, name: str) -> Path:
        """The patch of the run ``name``."""
        run = self.run(name)
        if not run.patch:
            raise InputError(f"{name} holds no patch: {run.status}")
        return run.path / "patch.safetensors"

    def page(self, name: str, file: str) -> Path:
        """The report of the run ``name``, or a file that it links to."""
        path = self.run(name).path / file
        if file not in PAGES or not self._is_inside(path):
            raise InputError(f"{name} has no page called {file!r}")
        return path

    def new_run(self, title: str) -> Path:
        """A folder that is not there yet, for a run of this title."""
        name = folder_names([title])[title]
        names = (name if number == 1 else f"{name}-{number}" for number in count(1))
        return next(self.folder / one for one in names if not (self.folder / one).exists())

    def _holding(self, file: str) -> Iterator[Path]:
        """The folders, one or two levels down, that hold this file."""
        for pattern in (f"*/{file}", f"*/*/{file}"):
            for path in sorted(self.folder.glob(pattern)):
                if self._is_inside(path) and not path.parent.name.startswith("."):
                    yield path.parent

    def _is_inside(self, file: Path) -> bool:
        """Whether there is this file, and no link leads out of the folder to it."""
        return file.is_file() and file.resolve().is_relative_to(self.folder.resolve())

    def _name(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()


def _known(known: Mapping[str, Named], name: str, what: str) -> Named:
    if name not in known:
        raise InputError(f"there is no {what} called {name!r} here")
    return known[name]
