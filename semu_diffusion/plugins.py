"""Registries that other packages add to: `METHODS`, `JUDGES`, `METRICS`, `PROBES`, by entry points of their names.

In the pyproject.toml of such a package, ``[project.entry-points."semu_diffusion.methods"]`` and below it a line for each,
``mine = "package:METHOD"``.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

from semu_diffusion.errors import Notice

__all__ = ["Registry"]

T = TypeVar("T")


class Registry(MutableMapping[str, T]):
    """Our ``own`` entries, and what other packages register in the ``group``, loaded when the registry is read first.

    An entry that cannot be loaded, for which ``fits(name, entry)`` is false, or that has a name which is taken is left out
    with a `Notice`: a broken package must not take ours with it, and ours cannot be replaced.
    """

    def __init__(self, group: str, own: Mapping[str, T], fits: Callable[[str, Any], bool]) -> None:
        self.group = group
        self._entries, self._fits, self._complete = dict(own), fits, False

    def _all(self) -> dict[str, T]:
        if not self._complete:
            self._complete = True  # before anything is loaded: what is loaded may read the registry
            for point in sorted(entry_points(group=self.group), key=lambda point: (_package(point), point.name)):
                wrong = self._added(point)
                if wrong:
                    said = f"{_package(point)} registers {point.name!r} in {self.group}: it is left out, as {wrong}"
                    warnings.warn(said, Notice, stacklevel=4)
        return self._entries

    def _added(self, point: EntryPoint) -> str | None:
        """Take the entry in; what is wrong with it if it cannot be."""
        if point.name in self._entries:
            return "the name is taken"
        try:
            found = point.load()
            fits = self._fits(point.name, found)
        except (Exception, SystemExit) as error:  # code of others: whatever it does, it is one entry that is missing
            return f"it cannot be loaded ({type(error).__name__}: {' '.join(str(error).split())[:150]})"
        if not fits:
            return f"{point.value} is none of its kind, or of another name"
        self._entries[point.name] = found
        return None

    def __getitem__(self, name: str) -> T:
        return self._all()[name]

    def __setitem__(self, name: str, value: T) -> None:
        self._all()[name] = value

    def __delitem__(self, name: str) -> None:
        del self._all()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())


def _package(point: EntryPoint) -> str:
    return "a package" if point.dist is None else str(point.dist.name)
