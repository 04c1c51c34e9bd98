"""``semu apply``."""

from __future__ import annotations

from dataclasses import dataclass

from semu_diffusion.options import option
from semu_diffusion.pipelines.cli.command import Command
from semu_diffusion.pipelines.patches.patch_settings import BaseModel

__all__ = ["COMMAND", "ApplyConfig"]


@dataclass(frozen=True)
class ApplyConfig(BaseModel):
    patches: tuple[str, ...] = option(
        (), "patch files, or the run folders that hold them", metavar="PATCH", positional=True, required=True
    )
    output: str | None = option(None, "folder for the model with all patches in its weights", metavar="DIR")
    strength: float = option(1.0, "factor on every update, beside the strength that its patch was saved with", metavar="S")


def run(config: ApplyConfig) -> int:
    from semu_diffusion.pipelines.patches.export import apply

    for line in apply(config.patches, config.strength, config, config.output):
        print(line)
    return 0


COMMAND = Command(
    "semu apply",
    "Put several patches on one model: how much they interfere, and with --output the model that has them all.",
    ApplyConfig,
    run,
    examples=("semu apply runs/cat runs/ship", "semu apply runs/cat runs/ship --output without-both"),
)
