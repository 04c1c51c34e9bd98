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
    single_file: str | None = option(
        None, "file for the full model in the original layout of Stable Diffusion, as ComfyUI and A1111 read it", metavar="FILE"
    )


def run(config: ExportConfig) -> int:
    if config.merged is None and config.lora is None and config.single_file is None:
        raise InputError("say what to write: --merged DIR, --lora DIR, --single-file FILE, or several")
    if config.single_file is not None and not config.single_file.endswith(".safetensors"):
        raise InputError(f"--single-file {config.single_file}: its name must end in .safetensors")
    from semu_diffusion.pipelines.patches.export import export, new_place

    merged, lora = new_place("--merged", config.merged), new_place("--lora", config.lora)
    for line in export(config.patch, config.strength, config, merged, lora, new_place("--single-file", config.single_file)):
        print(line)
    return 0


COMMAND = Command(
    "semu export",
    "Write a patch as a merged pipeline, as a single file, or as LoRA files.",
    ExportConfig,
    run,
    examples=(
        "semu export runs/cat --merged without-cat --lora lora",
        "semu export runs/cat --strength 0.7 --lora gentle",
        "semu export runs/cat --single-file without-cat.safetensors",
    ),
)
