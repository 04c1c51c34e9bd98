"""From a frozen dataclass to flags: ``guidance_scale: float = 3.0`` is ``--guidance-scale 3.0``."""

from __future__ import annotations

import argparse
import dataclasses
import typing
from collections.abc import Sequence
from typing import Any, Literal, NoReturn

from semu_diffusion.options import element_type

__all__ = ["Parser", "add_config_flags", "epilog"]


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
        kind, several = element_type(hints[field.name])
        default = None if field.default is dataclasses.MISSING else field.default
        shown = "" if default in (None, (), False) else f" (default: {_shown(default)})"
        common: dict[str, Any] = {
            "dest": field.name,
            "default": argparse.SUPPRESS,
            "help": (field.metadata.get("help", "") + shown).replace("%", "%%"),
        }
        flag = "--" + field.name.replace("_", "-")
        aliases = field.metadata.get("aliases", ())
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
            group.add_argument(flag, *aliases, action=_Append, comma=field.metadata.get("comma", False), **common)
        else:
            group.add_argument(flag, *aliases, type=kind, **common)


def _ordered(config_class: type) -> list[dataclasses.Field[Any]]:
    """Fields with those that a subclass adds first: they are what its command is about."""
    inherited = {
        f.name for base in config_class.__mro__[1:] if dataclasses.is_dataclass(base) for f in dataclasses.fields(base)
    }
    return sorted(dataclasses.fields(config_class), key=lambda field: field.name in inherited)


def _shown(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def epilog(examples: Sequence[str]) -> str:
    """Copyable examples for the end of ``--help``."""
    return "examples:\n" + "\n".join(f"  {line}" for line in examples)
