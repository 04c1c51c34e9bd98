"""``semu merge``."""

from __future__ import annotations

from dataclasses import dataclass

from semu_diffusion.errors import InputError
from semu_diffusion.options import option
from semu_diffusion.pipelines.cli.command import Command
from semu_diffusion.pipelines.patches.patch_settings import BaseModel, PatchFile

__all__ = ["COMMAND", "MergeConfig"]


@dataclass(frozen=True)
class MergeConfig(BaseModel, PatchFile):
    output: str | None = option(None, "folder for the merged model, in diffusers layout", metavar="DIR")


def run(config: MergeConfig) -> int:
    if not config.output:
        raise InputError("say where the merged model goes with --output")
    from semu_diffusion.pipelines.patches.export import export, new_place

    for line in export(config.patch, config.strength, config, new_place("--output", config.output)):
        print(line)
    return 0


COMMAND = Command(
    "semu merge",
    "Write a model with the patch in its weights for good.",
    MergeConfig,
    run,
    examples=("semu merge runs/cat --output ddpm-without-cat", "semu merge runs/cat --strength 0.5 --output ddpm-less-cat"),
)
