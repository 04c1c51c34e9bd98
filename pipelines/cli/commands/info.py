"""``semu info``."""

from __future__ import annotations

from dataclasses import dataclass

from semu_diffusion.options import option
from semu_diffusion.pipelines.cli.command import Command

__all__ = ["COMMAND", "InfoConfig"]


@dataclass(frozen=True)
class InfoConfig:
    patch: str = option(
        "", "patch.safetensors, or the run folder that holds it", metavar="PATCH", positional=True, required=True
    )
    layers: bool = option(False, "list every layer with its rank and the size of its update")


def run(config: InfoConfig) -> int:
    from semu_diffusion.pipelines.patches.patches import describe

    print("\n".join(describe(config.patch, config.layers)))
    return 0


COMMAND = Command(
    "semu info",
    "What a patch holds.",
    InfoConfig,
    run,
    examples=("semu info runs/cat", "semu info runs/cat/patch.safetensors --layers"),
)
