"""From a frozen dataclass to flags: ``guidance_scale: float = 3.0`` is ``--guidance-scale 3.0``.

A setting that is off is switched on by ``--x``, one that is on is switched off by ``--no-x``. ``~`` at the beginning of a word
is the home folder, also behind ``=``, where a shell leaves it.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import os
import re
import typing
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NoReturn

from semu_diffusion.files import is_text
from semu_diffusion.options import element_type, listed_names

__all__ = ["Parser", "add_config_flags", "epilog"]


def _help_format(prog: str) -> argparse.HelpFormatter:
    return argparse.RawDescriptionHelpFormatter(prog, max_help_position=32, width=110)


class Parser(argparse.ArgumentParser):
    """argparse whose errors are one line and exit code 2, with the flag or word that may have been meant."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("formatter_class", _help_format)
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(*args, **kwargs)

    def error(self, message: str) -> NoReturn:
        meant = self._meant(message)
        self.exit(2, f"{self.prog}: {message}{meant and f'; did you mean {meant}?'} (see {self.prog} --help)\n")

    def _meant(self, message: str) -> str:
        choice = re.search(r"invalid choice: '?([^']*?)'? \(choose from (.*)\)", message)
        if choice:
            return _nearest(choice[1], re.findall(r"[\w-]+", choice[2]))
        unknown = re.search(r"unrecognized arguments: .*?(--[\w-]+)", message)
        return _nearest(unknown[1], self._option_string_actions) if unknown else ""


def _nearest(word: str, known: Iterable[str]) -> str:
    return next(iter(difflib.get_close_matches(word, known, n=1)), "")


class _Append(argparse.Action):
    """Collect repeated values into a tuple; ``comma`` also splits each at commas, by `listed_names` if it is "names"."""

    def __init__(self, *args: Any, comma: bool | str = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.comma = comma
        self.given: list[str] = []

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        if self.comma == "names":
            self.given = [*(self.given if hasattr(namespace, self.dest) else ()), str(values)]
            setattr(namespace, self.dest, listed_names(self.given))
            return
        new = [v.strip() for v in str(values).split(",") if v.strip()] if self.comma else [values]
        setattr(namespace, self.dest, (*(getattr(namespace, self.dest, None) or ()), *new))


class _Words(argparse.Action):
    """Positional words as a tuple, before those of an alias; none of them is as if the argument were not there."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        if values and values is not argparse.SUPPRESS:
            setattr(namespace, self.dest, (*values, *getattr(namespace, self.dest, ())))


def add_config_flags(parser: argparse.ArgumentParser, config_class: type, replays: bool = False) -> None:
    """One flag for every field of ``config_class``; flags that are not given stay absent from the namespace.

    ``replays``: defaults are not the last word (a preset or an earlier run's settings may differ), so that a switch can also be
    put back to its default, by a flag that ``--help`` does not list.
    """
    hints = typing.get_type_hints(config_class)
    groups: dict[str, Any] = {}
    for field in _ordered(config_class):
        if field.metadata.get("hidden"):
            continue
        title = field.metadata.get("group", "settings")
        if field.metadata.get("positional"):
            group: Any = parser  # under its own heading, at the top
        elif title in groups:
            group = groups[title]
        else:
            group = groups[title] = parser.add_argument_group(title)
        kind, several = element_type(hints[field.name])
        if kind is bool:
            _add_switch(group, field, replays)
        else:
            _add_value(group, field, kind, several)


def _add_switch(group: Any, field: dataclasses.Field[Any], replays: bool) -> None:
    name, text = field.name.replace("_", "-"), field.metadata.get("help", "")
    flags = {f"--{name}": True, f"--no-{name}": False}
    for flag, value in flags.items():
        shown = value != field.default
        if shown or replays:
            text = text if value else f"do not {text}"
            group.add_argument(
                flag, dest=field.name, action="store_const", const=value, default=argparse.SUPPRESS,
                help=text.replace("%", "%%") if shown else argparse.SUPPRESS,
            )  # fmt: skip


def _add_value(group: Any, field: dataclasses.Field[Any], kind: Any, several: bool) -> None:
    default = None if field.default is dataclasses.MISSING else field.default
    shown = "" if default in (None, (), "") else f" (default: {_shown(default)})"
    words: dict[str, Any] = {
        "default": argparse.SUPPRESS,
        "help": (field.metadata.get("help", "") + shown).replace("%", "%%"),
        "type": kind if kind in (int, float) and not several else _text,  # numbers of a list are read by who has such a list
    }
    if typing.get_origin(kind) is Literal:
        words |= {"choices": typing.get_args(kind), "type": type(typing.get_args(kind)[0])}
    else:
        words["metavar"] = field.metadata.get("metavar", kind.__name__.upper())
    repeated = {"action": _Append, "comma": field.metadata.get("comma", False)} if several else {}
    if not field.metadata.get("positional"):
        group.add_argument("--" + field.name.replace("_", "-"), dest=field.name, **repeated, **words)
    elif several:
        group.add_argument(field.name, action=_Words, nargs="+" if field.metadata.get("required") else "*", **words)
    else:
        group.add_argument(field.name, nargs=None if field.metadata.get("required") else "?", **words)
    if "aliases" in field.metadata:
        words["help"] = argparse.SUPPRESS
        group.add_argument(*field.metadata["aliases"], dest=field.name, **repeated, **words)


def _text(value: str) -> str:
    if not is_text(value):
        raise argparse.ArgumentTypeError(f"{value!a} is not in UTF-8")
    return os.path.expanduser(value) if value == "~" or value.startswith(("~/", f"~{os.sep}")) else value


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
