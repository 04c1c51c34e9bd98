"""docs/commands.md, every command with its settings and examples: ``python -m semu_diffusion.pipelines.cli.reference``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import Any

from semu_diffusion.pipelines.cli.command import Command, CommandGroup
from semu_diffusion.pipelines.cli.main import COMMANDS

__all__ = ["reference"]


def reference() -> str:
    """Markdown of all commands, in the order of their registry."""
    head = "Written by `make commands`. `--help` of a command says the same.\n"
    return "\n".join(["# Commands\n", head, *_group(COMMANDS)])


def _group(group: CommandGroup) -> Iterator[str]:
    for name in group.commands:
        command = group.load(name)
        yield from _group(command) if isinstance(command, CommandGroup) else _command(command)


def _command(command: Command[Any]) -> Iterator[str]:
    yield f"## {command.name}\n\n{command.help}\n"
    yield "```bash\n" + "\n".join(command.examples) + "\n```\n"
    yield "| setting | |\n|---|---|"
    for action in command.parser()._actions:
        if action.help != argparse.SUPPRESS and not isinstance(action, argparse._HelpAction):
            yield f"| `{_flag(action)}` | {_escaped(str(action.help).replace('%%', '%'))} |"
    yield ""


def _flag(action: argparse.Action) -> str:
    value = "" if action.nargs == 0 else "|".join(map(str, action.choices)) if action.choices else str(action.metavar or "")
    return " ".join(filter(None, (*action.option_strings[:1], value))).replace("|", "\\|")


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")


if __name__ == "__main__":
    sys.stdout.write(reference())
