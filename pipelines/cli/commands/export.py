"""``semu export``."""

from __future__ import annotations

from dataclasses import dataclass

from semu_diffusion.errors import InputError
from semu_diffusion.options import option
from semu_diffusion.pipelines.cli.command import Command
from semu_diffusion.pipelines.patches.patch_settings import BaseModel, PatchFile

__all__ = ["COMMAND", "ExportConfig"]


@dataclass(frozen=True)
class ExportConfig(BaseModel, PatchFile):
    merged: str | None = option(None, "folder for the full pipeline with the patch in its weights", metavar="DIR")
    lora: str | None = option(
        None,
        "folder for the LoRA files: for diffusers, ComfyUI and A1111; of a DDPM, for PEFT",
        metavar="DIR",
    )


def run(config: ExportConfig) -> int:
    if config.merged is None and config.lora is None:
        raise InputError("say what to write: --merged DIR, --lora DIR, or both")
    from semu_diffusion.pipelines.patches.export import export, new_folder

    merged, lora = new_folder("--merged", config.merged), new_folder("--lora", config.lora)
    for line in export(config.patch, config.strength, config, merged, lora):
        print(line)
    return 0


COMMAND = Command(
    "semu export",
    "Write a patch as a merged pipeline or as LoRA files.",
    ExportConfig,
    run,
    examples=("semu export runs/cat --merged without-cat --lora lora", "semu export runs/cat --strength 0.7 --lora gentle"),
)
