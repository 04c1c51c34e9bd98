"""Settings as frozen dataclasses: a field with its help text, and one config out of defaults, a preset, a file and words.

Field metadata: ``help``; ``group`` (heading in ``--help``); ``comma=True`` lets a tuple be written ``a,b,c`` (otherwise the
flag repeats; "names": by `listed_names`); ``positional=True`` makes it the words without a flag, of which ``required=True``
needs one; ``aliases`` are more flags for it, which ``--help`` does not list; ``hidden=True`` gives it no flag;
``replayed=False`` keeps ``--config`` from taking it over (where a run was written is not part of it).
Precedence: dataclass defaults < ``--preset`` < ``--config run.json`` < flags on the command line.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar

from semu_diffusion.errors import InputError
from semu_diffusion.files import is_text, read_json

__all__ = ["at_least", "build_config", "byte_size", "checked_value", "element_type", "listed_names", "option", "require"]

Config = TypeVar("Config")


def option(default: Any, help: str, **metadata: Any) -> Any:
    """A dataclass field with a default and its help text."""
    return dataclasses.field(default=default, metadata={"help": help, **metadata})


def require(condition: bool, message: str) -> None:
    """Raise InputError with the message unless the condition holds."""
    if not condition:
        raise InputError(message)


def at_least(config: Any, name: str, least: int) -> None:
    """Raise InputError if a setting is below ``least``."""
    value = getattr(config, name)
    require(value >= least, f"--{name.replace('_', '-')} {value}: must be at least {least}")


def byte_size(text: str, flag: str) -> int:
    """Bytes of a size in words: 4GB, 500 MB, 1.5GiB. Raises InputError for anything else."""
    match = re.fullmatch(r"([0-9]*\.?[0-9]+)\s*([KMGT]?)(i?)B", text.strip(), re.IGNORECASE)
    require(match is not None, f"{flag} {text}: give a size such as 4GB or 500MB")
    assert match is not None
    unit = (1024 if match[3] else 1000) ** (" KMGT".index(match[2].upper() or " "))
    return int(float(match[1]) * unit)


def listed_names(values: Sequence[str]) -> tuple[str, ...]:
    """Names out of a flag's values: each is split at its commas, but where the flag repeats a value with ``, `` is one name.

    ``a,b`` and ``a, b`` are two names; ``tench, Tinca tinca`` and ``goldfish, Carassius auratus`` are one each.
    """
    whole = len(values) > 1
    parts = ([value] if whole and ", " in value else value.split(",") for value in values)
    return tuple(name.strip() for one in parts for name in one if name.strip())


def element_type(annotation: Any) -> tuple[Any, bool]:
    """(type of one value, whether the flag takes several) of a field's annotation; ``X | None`` is ``X``."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        annotation = next(a for a in typing.get_args(annotation) if a is not type(None))
    if typing.get_origin(annotation) is tuple:
        return typing.get_args(annotation)[0], True
    return annotation, False


def build_config(
    config_class: type[Config],
    flags: Mapping[str, Any],
    presets: Mapping[str, Mapping[str, Any]] | None = None,
    config_file: str | None = None,
) -> Config:
    """Merge defaults, preset, a run.json and flags into one config. Raises InputError for a bad file or value."""
    saved = _read_saved(config_class, config_file) if config_file else {}
    if saved and flags.get("preset", saved.get("preset")) != saved.get("preset"):
        raise InputError("--preset contradicts --config: the run.json already gives every setting that a preset would")
    merged: dict[str, Any] = {**saved, **flags}
    preset = merged.get("preset")
    if presets and preset is not None and preset in presets:
        merged = {**presets[preset], **merged}
    hints = typing.get_type_hints(config_class)
    for field in dataclasses.fields(config_class):  # type: ignore[arg-type]
        if isinstance(field.default, tuple) and isinstance(merged.get(field.name), str):
            word = merged[field.name]  # one word is no list of letters; as a flag's value it may be several
            merged[field.name] = listed_names([word]) if field.metadata.get("comma") else (word,)
        kind, several = element_type(hints[field.name])
        value = merged.get(field.name)
        if value is None and field.name in merged and type(None) not in typing.get_args(hints[field.name]):
            raise InputError(f"{field.name} cannot be None: leave it out for its default")
        for wanted, classes, said in ((bool, bool, "True or False"), (str, (str, os.PathLike), "text")):
            if kind is wanted and not several and value is not None and not isinstance(value, classes):  # type: ignore[arg-type]
                raise InputError(f"{field.name} cannot be {value!r}: it is {said}")
        if several and not isinstance(value, list | tuple | None):
            raise InputError(f"{field.name} cannot be {value!r}: it is a list")
        words = kind is str and several and not field.metadata.get("positional")  # a class may be named by its number
        strange = [one for one in value or () if not isinstance(one, (str, os.PathLike))] if words else []
        if strange:
            raise InputError(f"{field.name} cannot hold {strange[0]!r}: it is a list of text")
        if kind in (int, float) and not several and value is not None:
            merged[field.name] = _number(field.name, kind, value)
        if value is not None and typing.get_origin(kind) is Literal and value not in typing.get_args(kind):
            raise InputError(f"{field.name} cannot be {value!r}: choose from {', '.join(typing.get_args(kind))}")
    return config_class(**merged)


def _number(name: str, kind: type, value: Any) -> int | float:
    """A number of any library (NumPy) as Python's own. Raises InputError for what is none of its kind."""
    plain = value.item() if hasattr(value, "item") and getattr(value, "ndim", None) == 0 else value
    if kind is int and isinstance(plain, float) and plain.is_integer():
        plain = int(plain)  # 1e2
    if isinstance(plain, bool) or not isinstance(plain, int if kind is int else (int, float)):
        raise InputError(f"{name} cannot be {value!r}: it is a {'whole ' if kind is int else ''}number")
    return plain


def _read_saved(config_class: type, path: str) -> dict[str, Any]:
    content = read_json(path, f"--config {path}")
    saved = content.get("config", content) if isinstance(content, dict) else None
    if not isinstance(saved, dict):
        raise InputError(f"--config {path}: holds no config; pass the run.json of a run folder")
    older = {  # the name that a setting had in earlier runs is one of its flags still
        alias.lstrip("-").replace("-", "_"): field.name
        for field in dataclasses.fields(config_class)
        for alias in field.metadata.get("aliases", ())
    }
    saved = {older.get(name, name): value for name, value in saved.items()}
    known = {field.name for field in dataclasses.fields(config_class)}
    unknown = sorted(set(saved) - known)
    if unknown:
        raise InputError(f"--config {path}: unknown settings {', '.join(unknown)}; written by another command or version?")
    once = {field.name for field in dataclasses.fields(config_class) if not field.metadata.get("replayed", True)}
    hints = typing.get_type_hints(config_class)
    return {
        name: checked_value(f"--config {path}", name, hints[name], value) for name, value in saved.items() if name not in once
    }


def checked_value(where: str, name: str, annotation: Any, value: Any) -> Any:
    """A value from JSON as the field's type has it: lists become tuples. Raises InputError for a value of another type."""
    kind, several = element_type(annotation)
    if value is None and type(None) in typing.get_args(annotation):
        return None
    values = value if several and isinstance(value, list) else [value]
    if typing.get_origin(kind) is Literal:
        right = all(v in typing.get_args(kind) for v in values)
    else:
        wanted = (int, float) if kind is float else typing.get_origin(kind) or kind
        right = all(isinstance(v, wanted) and (kind is bool or not isinstance(v, bool)) for v in values)
        right = right and all(is_text(v) and "\0" not in v for v in values if isinstance(v, str))
    if not right or several != isinstance(value, list):
        raise InputError(f"{where}: {name} cannot be {json.dumps(value)[:100]}")
    return tuple(values) if several else value
