"""``erase-class``."""

from __future__ import annotations

import sys

from semu_diffusion.domains.config import PRESETS
from semu_diffusion.pipelines.cli.command import Command
from semu_diffusion.pipelines.runs.config import EraseClassConfig

__all__ = ["COMMAND", "main", "parse"]


def run(config: EraseClassConfig) -> int:
    from semu_diffusion.pipelines.runs.erase import erase_classes

    return erase_classes(config)


COMMAND = Command(
    "erase-class",
    "Take classes out of a class-conditional DDPM or DiT and measure what became of them, in one run folder.",
    EraseClassConfig,
    run,
    examples=(
        "erase-class cat",
        "erase-class cat --method closed-form",
        "erase-class cat dog --images-per-class 50 --sampling-steps 25 --output runs/no-pets",
        "erase-class red --model my-ddpm/ --class-names red,green,blue --classifier none",
        "erase-class --config runs/cat/run.json --output runs/cat-again",
    ),
    presets=PRESETS,
    replays=True,
)
parse, main = COMMAND.parse, COMMAND.main

if __name__ == "__main__":
    sys.exit(main())
