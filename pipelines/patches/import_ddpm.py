"""A research checkpoint becomes a folder that every command takes for a model."""

from __future__ import annotations

from collections.abc import Sequence

from semu_diffusion.files import atomic_folder
from semu_diffusion.models.adapters.ddpm_import import read_checkpoint, schedule, unet_of
from semu_diffusion.models.class_names import class_names
from semu_diffusion.models.pipeline import ClassConditionalPipeline
from semu_diffusion.pipelines.patches.export import new_place

__all__ = ["import_ddpm"]


def import_ddpm(checkpoint: str, output: str, names: Sequence[str] = (), ema: bool = False, size: int | None = None) -> str:
    """Write the pipeline of a checkpoint and return a line on it. Raises InputError for a file that is none."""
    target = new_place("DIR", output)
    unet = unet_of(read_checkpoint(checkpoint, ema), size)
    embeddings = int(unet.config.num_class_embeds)
    found = class_names(checkpoint, embeddings, names, {"null_class": embeddings - 1}, None)
    assert target is not None
    with atomic_folder(target) as beside:
        ClassConditionalPipeline(unet, schedule(), found.labels(), found.null).save_pretrained(beside)
    side, count = unet.config.sample_size, len(found.names)
    return f"{target}: a class-conditional DDPM of {count} classes at {side}x{side}, for erase-class --model {target}"
