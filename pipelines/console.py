"""From a frozen dataclass to a command line, and from an exception to one clear line.

Each field of a config dataclass becomes one flag: ``guidance_scale: float = 3.0`` is ``--guidance-scale 3.0``.
Field metadata: ``help``; ``group`` (heading in ``--help``); ``comma=True`` lets a tuple be written ``a,b,c`` (otherwise the
flag repeats); ``positional=True`` makes it the words without a flag; ``replayed=False`` keeps ``--config`` from taking it
over (where a run was written is not part of it).
Precedence: dataclass defaults < ``--preset`` < ``--config run.json`` < flags on the command line.
"""

from __future__ import annotations

import argparse
import dataclasses
import errno
import json
import re
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar

from semu_diffusion.errors import InputError

__all__ = ["Bars", "Parser", "add_config_flags", "build_config", "epilog", "option", "run_guarded"]

Config = TypeVar("Config")


def option(default: Any, help: str, **metadata: Any) -> Any:
    """A dataclass field with a default and its help text."""
    return dataclasses.field(default=default, metadata={"help": help, **metadata})


def _help_format(prog: str) -> argparse.HelpFormatter:
    return argparse.RawDescriptionHelpFormatter(prog, max_help_position=32, width=110)


class Parser(argparse.ArgumentParser):
    """argparse whose errors are one line and exit code 2."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("formatter_class", _help_format)
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(*args, **kwargs)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def _element_type(annotation: Any) -> tuple[Any, bool]:
    """(type of one value, whether the flag takes several) of a field's annotation; ``X | None`` is ``X``."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        annotation = next(a for a in typing.get_args(annotation) if a is not type(None))
    if typing.get_origin(annotation) is tuple:
        return typing.get_args(annotation)[0], True
    return annotation, False


class _Append(argparse.Action):
    """Collect repeated values into a tuple; ``comma`` also splits each at commas."""

    def __init__(self, *args: Any, comma: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.comma = comma

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        new = [v.strip() for v in str(values).split(",") if v.strip()] if self.comma else [values]
        setattr(namespace, self.dest, (*(getattr(namespace, self.dest, None) or ()), *new))


class _Words(argparse.Action):
    """Positional words as a tuple; none of them is as if the argument were not there."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        if values and values is not argparse.SUPPRESS:
            setattr(namespace, self.dest, tuple(values))


def add_config_flags(parser: argparse.ArgumentParser, config_class: type) -> None:
    """One flag for every field of ``config_class``; flags that are not given stay absent from the namespace."""
    hints = typing.get_type_hints(config_class)
    groups: dict[str, Any] = {}
    for field in _ordered(config_class):
        title = field.metadata.get("group", "options")
        group = groups.setdefault(title, parser.add_argument_group(title))
        kind, several = _element_type(hints[field.name])
        default = None if field.default is dataclasses.MISSING else field.default
        shown = "" if default in (None, (), False) else f" (default: {_shown(default)})"
        common: dict[str, Any] = {
            "dest": field.name,
            "default": argparse.SUPPRESS,
            "help": (field.metadata.get("help", "") + shown).replace("%", "%%"),
        }
        flag = "--" + field.name.replace("_", "-")
        if kind is bool:
            group.add_argument(flag, action=argparse.BooleanOptionalAction, **common)
            continue
        if typing.get_origin(kind) is Literal:
            common["choices"] = typing.get_args(kind)
            kind = type(typing.get_args(kind)[0])
        if "choices" not in common:
            common["metavar"] = field.metadata.get("metavar", kind.__name__.upper())
        if field.metadata.get("positional"):
            del common["dest"]
            how = {"nargs": "*", "action": _Words} if several else {"nargs": "?", "type": kind}
            group.add_argument(field.name, **how, **common)
        elif several:
            group.add_argument(flag, action=_Append, comma=field.metadata.get("comma", False), **common)
        else:
            group.add_argument(flag, type=kind, **common)


def _ordered(config_class: type) -> list[dataclasses.Field[Any]]:
    """Fields with those that a subclass adds first: they are what its command is about."""
    inherited = {
        f.name for base in config_class.__mro__[1:] if dataclasses.is_dataclass(base) for f in dataclasses.fields(base)
    }
    return sorted(dataclasses.fields(config_class), key=lambda field: field.name in inherited)


def _shown(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


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
            merged[field.name] = (merged[field.name],)  # one word is no list of letters
        kind, _ = _element_type(hints[field.name])
        value = merged.get(field.name)
        if value is not None and typing.get_origin(kind) is Literal and value not in typing.get_args(kind):
            raise InputError(f"{field.name} cannot be {value!r}: choose from {', '.join(typing.get_args(kind))}")
    return config_class(**merged)


def _read_saved(config_class: type, path: str) -> dict[str, Any]:
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"--config {path}: not a readable run.json ({error})") from error
    saved = content.get("config", content) if isinstance(content, dict) else None
    if not isinstance(saved, dict):
        raise InputError(f"--config {path}: holds no config; pass the run.json of a run folder")
    known = {field.name for field in dataclasses.fields(config_class)}
    unknown = sorted(set(saved) - known)
    if unknown:
        raise InputError(f"--config {path}: unknown settings {', '.join(unknown)}; written by another command or version?")
    once = {field.name for field in dataclasses.fields(config_class) if not field.metadata.get("replayed", True)}
    hints = typing.get_type_hints(config_class)
    return {name: _checked(path, name, hints[name], value) for name, value in saved.items() if name not in once}


def _checked(path: str, name: str, annotation: Any, value: Any) -> Any:
    """A value from JSON as the field's type has it: lists become tuples. Raises InputError for a value of another type."""
    kind, several = _element_type(annotation)
    if value is None and type(None) in typing.get_args(annotation):
        return None
    values = value if several and isinstance(value, list) else [value]
    if typing.get_origin(kind) is Literal:
        right = all(v in typing.get_args(kind) for v in values)
    else:
        wanted = (int, float) if kind is float else kind
        right = all(isinstance(v, wanted) and (kind is bool or not isinstance(v, bool)) for v in values)
    if not right or several != isinstance(value, list):
        raise InputError(f"--config {path}: {name} cannot be {json.dumps(value)}")
    return tuple(values) if several else value


def run_guarded(program: str, job: Callable[[], int | None]) -> int:
    """Run ``job``; turn bad input into one line on standard error and exit code 2, Ctrl-C into 130."""
    try:
        return job() or 0
    except InputError as error:
        message = str(error)
    except KeyboardInterrupt as stop:
        print(f"\n{program}: stopped by Ctrl-C. {stop}".rstrip(), file=sys.stderr)
        return 130
    except Exception as error:
        found = _memory_trouble(error) or _file_trouble(error)
        if found is None:
            raise
        message = found
    print(f"{program}: {' '.join(message.split())}", file=sys.stderr)
    return 2


def _memory_trouble(error: Exception) -> str | None:
    """One line if a GPU's or the machine's memory was not enough; torch is not imported to learn that."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "not enough memory" in str(error):
        return "out of memory; take a smaller --batch-size, another --device or fewer --layers"
    return None


def _file_trouble(error: Exception) -> str | None:
    """One line on an error of the file system; None for any other. safetensors hides the code in its message."""
    hidden = re.search(r"\(os error (\d+)\)", str(error))
    if not isinstance(error, OSError) and hidden is None:
        return None
    code = error.errno if isinstance(error, OSError) else int(hidden.group(1)) if hidden else None
    where = getattr(error, "filename", None) or "the output folder"
    if code == errno.ENOSPC:
        return f"no space left on the device ({where}); free some or choose another --output"
    if code in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"no permission to write or read {where}; choose another folder with --output"
    return f"{where}: {error.strerror}" if isinstance(error, OSError) and error.filename else None


class Bars:
    """One progress bar at a time on a terminal, a new one for each stage; silent elsewhere."""

    def __init__(self, stream: Any) -> None:
        self.stream, self.visible = stream, stream.isatty()
        self.stage: str | None = None
        self.bar: Any = None

    def show(self, stage: str, done: int, total: int, detail: str = "") -> None:
        """``done`` of ``total`` in ``stage``."""
        if not self.visible:
            return
        if stage != self.stage:
            from tqdm import tqdm

            self.close()
            self.stage, self.bar = stage, tqdm(total=total, desc=f"{stage:<16}", file=self.stream, leave=True)
        self.bar.update(done - self.bar.n)
        if detail:
            self.bar.set_postfix_str(detail, refresh=False)

    def note(self, text: str) -> None:
        """A line of its own, without tearing the bar."""
        self.close()
        print(text, file=self.stream)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
        self.stage = self.bar = None


def epilog(examples: Sequence[str]) -> str:
    """Copyable examples for the end of ``--help``."""
    return "examples:\n" + "\n".join(f"  {line}" for line in examples)
