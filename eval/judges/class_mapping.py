"""Which class of the model under test a class of the judge stands for: by name, or by a mapping file.

The file is JSON, ``{"model class": ["judge class", ...]}``; a judge's class is given by its name or its
number. Names are compared without case, spaces and punctuation; ImageNet's "tabby, tabby cat" is known by all
of its names.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch

from semu_diffusion.errors import InputError
from semu_diffusion.files import read_json

__all__ = ["ClassMapping", "map_classes", "near", "read_mapping", "shared_out"]


@dataclass(frozen=True)
class ClassMapping:
    """``targets`` (K,) int64: for each of the judge's K classes the index of the model's class, or -1.

    ``unjudged``: names of the model's classes that no class of the judge stands for.
    """

    targets: torch.Tensor
    unjudged: tuple[str, ...]


def read_mapping(path: str | Path) -> dict[str, list[str | int]]:
    """The mapping of a JSON file; a single judge class may stand without its list.

    Raises InputError if the file holds none.
    """
    content = read_json(path, f"--class-mapping {path}")
    lists = {key: value if isinstance(value, list) else [value] for key, value in _items(content)}
    values = [value for some in lists.values() for value in some]
    sound = all(isinstance(value, str | int) and not isinstance(value, bool) for value in values)
    if not lists or not sound:
        raise InputError(f'--class-mapping {path}: needs {{"model class": ["judge class", …]}}')
    return lists


def _items(content: Any) -> list[tuple[str, Any]]:
    return list(content.items()) if isinstance(content, dict) else []


def shared_out(
    mapping: Mapping[str, Sequence[str | int]], names: Mapping[str, Sequence[str]]
) -> dict[str, dict[str, Sequence[str | int]]]:
    """The part of ``mapping`` that speaks of each judge's ``names``; InputError for a name that is of none."""
    found: dict[str, dict[str, Sequence[str | int]]] = {kind: {} for kind in names}
    every = [name for own in names.values() for name in own]
    for name, values in mapping.items():
        meant = _model_class(name, every)
        for kind, own in names.items():
            if meant in own:
                found[kind][meant] = values
    return found


def map_classes(
    judge: str,
    judge_classes: Sequence[str],
    class_names: Sequence[str],
    mapping: Mapping[str, Sequence[str | int]] | None = None,
) -> ClassMapping:
    """Map the judge's classes to the model's: as ``mapping`` says, and by name where it says nothing.

    ``judge`` is the judge's name, for messages. Raises InputError if no class is in common, if the mapping
    names a class that does not exist, or if a judge's class would stand for two of the model's.
    """
    known = _by_name(judge_classes)
    listed = {_model_class(name, class_names): values for name, values in (mapping or {}).items()}
    targets = torch.full((len(judge_classes),), -1, dtype=torch.long)
    unjudged = []
    for index, name in enumerate(class_names):
        if name in listed:
            wanted = (_judge_classes(judge, value, known, len(judge_classes)) for value in listed[name])
            found = [position for positions in wanted for position in positions]
        else:
            found = _found(name, known)
        for position in found:
            if targets[position] not in (-1, index):
                both = f"{class_names[int(targets[position])]!r} and {name!r}"
                raise InputError(f"{judge_classes[position]!r} of {judge} would stand for both {both}")
            targets[position] = index
        if not found:
            unjudged.append(name)
    if len(unjudged) == len(class_names):
        shown = ", ".join(class_names[:4]) + (", …" if len(class_names) > 4 else "")
        theirs = ", ".join(judge_classes[:4]) + (", …" if len(judge_classes) > 4 else "")
        raise InputError(
            f"{judge} (classes {theirs}) knows none of the classes {shown}; "
            "name the classes with --class-names, give a --class-mapping, or do without a judge: --classifier none"
        )
    return ClassMapping(targets, tuple(unjudged))


def _written(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold().strip()


def _normalised(name: str) -> str:
    """Without blanks and punctuation, if more than these is left; signs and the vowels of Hindi are neither.

    Joiners and marks of direction (Cf) cannot be seen, and come along when a name is copied.
    """
    kinds = ((one, unicodedata.category(one)) for one in _written(name))
    return "".join(one for one, kind in kinds if kind != "Cf" and kind[0] not in "PZ") or _written(name)


def _found(name: str, known: Mapping[str, list[int]]) -> list[int]:
    """Judge's classes of this name: those written so, else those that differ in blanks and punctuation alone."""
    return known.get(_written(name)) or known.get(_normalised(name), [])


def _by_name(judge_classes: Sequence[str]) -> dict[str, list[int]]:
    """Indices by name as it is written and normalised; so C# is not C, and a whole name counts before one of several."""
    exact: dict[str, list[int]] = {}
    whole: dict[str, list[int]] = {}
    parts: dict[str, list[int]] = {}
    for index, name in enumerate(judge_classes):
        exact.setdefault(_written(name), []).append(index)
        whole.setdefault(_normalised(name), []).append(index)
        for part in name.split(","):
            parts.setdefault(_normalised(part), []).append(index)
    return parts | whole | exact


def _model_class(name: str, class_names: Sequence[str]) -> str:
    for form in (_written, _normalised):
        for known in class_names:
            if form(known) == form(name):
                return known
    meant = near(_normalised(name), class_names)
    raise InputError(f"the class mapping speaks of {name!r}, which is no class of the model{meant}")


def _judge_classes(judge: str, value: str | int, known: Mapping[str, list[int]], count: int) -> list[int]:
    if isinstance(value, int):
        if not 0 <= value < count:
            raise InputError(f"the class mapping names class {value}; {judge} has classes 0 to {count - 1}")
        return [value]
    found = _found(value, known)
    if not found:
        meant = near(_normalised(value), list(known))
        raise InputError(f"the class mapping names {value!r}, which is no class of {judge}{meant}")
    return found


def near(name: str, known: Sequence[str]) -> str:
    """The end of a message on a name that is none of the ``known``: those like it."""
    found = get_close_matches(name, known, n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(found)}?" if found else ""
