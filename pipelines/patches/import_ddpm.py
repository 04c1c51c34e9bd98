"""A research checkpoint becomes a folder that every command takes for a model."""

from __future__ import annotations

from collections.abc import Sequence

from semu_diffusion.files import atomic_folder
from semu_diffusion.models.adapters.ddpm import check_unet
from semu_diffusion.models.class_names import NO_NULL, class_names
from semu_diffusion.models.imports import guided_diffusion, selective_amnesia
from semu_diffusion.models.imports.checkpoint import read_checkpoint
from semu_diffusion.models.pipeline import ClassConditionalPipeline
from semu_diffusion.pipelines.patches.export import new_place

__all__ = ["import_ddpm"]


def import_ddpm(checkpoint: str, output: str, names: Sequence[str] = (), ema: bool = False, size: int | None = None) -> str:
    """Write the pipeline of a checkpoint and return a line on it. Raises InputError for a file that is none."""
    target = new_place("DIR", output)
    state = read_checkpoint(checkpoint, ema)
    made = (guided_diffusion if guided_diffusion.FIRST in state else selective_amnesia).imported(state, size)
    unet, null = made.unet, NO_NULL if made.null_class is None else made.null_class
    found = class_names(checkpoint, int(unet.config.num_class_embeds), names, {"null_class": null}, None)
    check_unet(unet, checkpoint)
    assert target is not None
    with atomic_folder(target) as beside:
        ClassConditionalPipeline(unet, made.scheduler, found.labels(), found.null).save_pretrained(beside)
    side, count = unet.config.sample_size, len(found.names)
    return f"{target}: a class-conditional DDPM of {count} classes at {side}x{side}, for erase-class --model {target}"
