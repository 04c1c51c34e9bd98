"""What a command is, once for all of them: its name, what it says of itself, its settings, its job, its examples."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Generic, TypeVar

from semu_diffusion.options import build_config
from semu_diffusion.pipelines.cli.errors import run_guarded
from semu_diffusion.pipelines.cli.flags import Parser, add_config_flags, epilog

__all__ = ["Command", "CommandGroup"]

Config = TypeVar("Config")
CONFIG_HELP = "settings of an earlier run; flags given here override them"


@dataclass(frozen=True)
class Command(Generic[Config]):
    """One command: its flags are the fields of ``config``, and ``run`` does the work and gives the exit code.

    ``replays`` adds ``--config RUN_JSON``. ``read`` changes the flags before they become a config, where a word stands for
    more (a file for its lines). Heavy imports are inside ``run``, so that ``--help`` answers at once.
    """

    name: str
    help: str
    config: type[Config]
    run: Callable[[Config], int]
    examples: tuple[str, ...]
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    replays: bool = False
    read: Callable[[dict[str, Any]], dict[str, Any]] = dict

    def parser(self) -> Parser:
        parser = Parser(prog=self.name, description=self.help, epilog=epilog(self.examples))
        _add_version(parser)
        if self.replays:
            parser.add_argument("--config", metavar="RUN_JSON", default=argparse.SUPPRESS, help=CONFIG_HELP)
        add_config_flags(parser, self.config, self.replays)
        return parser

    def parse(self, argv: Sequence[str] | None = None) -> Config:
        """The config that a command line means. Raises InputError, or SystemExit with code 2, for a wrong one."""
        flags = vars(self.parser().parse_intermixed_args(argv))  # words may stand after flags
        saved = flags.pop("config", None) if self.replays else None
        return build_config(self.config, self.read(flags), self.presets, saved)

    def main(self, argv: Sequence[str] | None = None) -> int:
        """Entry of the command; returns the exit code."""
        return run_guarded(self.name, lambda: self.run(self.parse(argv)))


@dataclass(frozen=True)
class CommandGroup:
    """Commands under one name, one line each; each in a module of ``package``, or of ``homes``, imported only when asked for.

    Its file has a ``COMMAND``, or else functions ``parse`` and ``main`` of the arguments after the command.
    """

    name: str
    help: str
    package: str
    commands: Mapping[str, str]
    metavar: str = "COMMAND"
    examples: tuple[str, ...] = ()
    homes: Mapping[str, str] = field(default_factory=dict)

    def parser(self) -> Parser:
        parser = Parser(prog=self.name, description=self.help, epilog=epilog(self.examples) if self.examples else None)
        _add_version(parser)
        commands = parser.add_subparsers(dest="command", metavar=self.metavar, required=True, parser_class=Parser)
        for name, what in self.commands.items():
            commands.add_parser(name, help=what, add_help=False)
        return parser

    def load(self, name: str) -> Any:
        """The command of this name."""
        module = import_module(self.homes.get(name, f"{self.package}.{name.replace('-', '_')}"))
        return getattr(module, "COMMAND", module)

    def parse(self, argv: Sequence[str]) -> Any:
        """The config that a command line means, without running it."""
        name, rest = self._split(argv)
        return self.load(name).parse(rest)

    def main(self, argv: Sequence[str] | None = None) -> int:
        """Entry of the group; returns the exit code."""

        def job() -> int:
            name, rest = self._split(sys.argv[1:] if argv is None else argv)
            code: int = self.load(name).main(rest)
            return code

        return run_guarded(self.name, job)

    def _split(self, argv: Sequence[str]) -> tuple[str, list[str]]:
        if not argv or argv[0] not in self.commands:
            self.parser().parse_args(argv[:1])  # prints help, or says that the command is unknown, and leaves
        return argv[0], list(argv[1:])


class _Version(argparse.Action):
    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        from importlib import metadata

        print(f"{parser.prog} {metadata.version('semu-diffusion')}")
        parser.exit()


def _add_version(parser: Parser) -> None:
    if " " not in parser.prog:  # of the programs, not of each command of `semu`
        parser.add_argument("--version", action=_Version, nargs=0, default=argparse.SUPPRESS, help="show the version and exit")
