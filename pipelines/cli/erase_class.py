"""``erase-class``: take a class out of a class-conditional DDPM, and measure what became of it, in one run folder."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from semu_diffusion.domains.config import PRESETS
from semu_diffusion.options import build_config
from semu_diffusion.pipelines.cli.errors import run_guarded
from semu_diffusion.pipelines.cli.flags import Parser, add_config_flags, epilog
from semu_diffusion.pipelines.runs.config import EraseClassConfig

__all__ = ["main", "parse", "run"]

EXAMPLES = (
    "erase-class --forget cat",
    "erase-class --forget cat --forget dog --images-per-class 50 --sampling-steps 25 --output runs/no-pets",
    "erase-class --model my-ddpm/ --class-names red,green,blue --forget red --classifier none",
    "erase-class --config runs/cat/run.json --output runs/cat-again",
)


def parser() -> Parser:
    made = Parser(prog="erase-class", description=__doc__.replace("``", ""), epilog=epilog(EXAMPLES))
    made.add_argument("--config", metavar="RUN_JSON", help="settings of an earlier run; flags given here override them")
    add_config_flags(made, EraseClassConfig)
    return made


def parse(argv: Sequence[str] | None = None) -> EraseClassConfig:
    """The config that a command line means. Raises InputError, or SystemExit with code 2, for a wrong one."""
    flags = vars(parser().parse_args(argv))
    return build_config(EraseClassConfig, flags, PRESETS, flags.pop("config"))


def main(argv: Sequence[str] | None = None) -> int:
    return run_guarded("erase-class", lambda: run(parse(argv)))


def run(config: EraseClassConfig) -> int:
    from semu_diffusion.pipelines.runs.erase import erase_classes

    return erase_classes(config)


if __name__ == "__main__":
    sys.exit(main())
