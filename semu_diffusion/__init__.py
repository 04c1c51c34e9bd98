"""Take a concept out of a diffusion model: forget gradient -> dominant subspace -> R trained inside it -> patch.

    import semu_diffusion as semu
    pipe = semu.ClassConditionalPipeline.from_pretrained("my-ddpm")
    patch = semu.erase_class(pipe, "cat")
    patch.save("no-cat.safetensors")
    patch.apply(pipe.unet)
    patch.remove(pipe.unet)      # every byte as before

Names are imported when first used, so that importing the package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "ClassConditional": "semu_diffusion.models.class_conditional",
    "load_class_conditional": "semu_diffusion.models.checkpoints",
    "ClassConditionalPipeline": "semu_diffusion.models.pipeline",
    "ErasurePatch": "semu_diffusion.patch",
    "InputError": "semu_diffusion.errors",
    "InputMoments": "semu_diffusion.protection",
    "PatchedLayers": "semu_diffusion.patches.patched",
    "Subspace": "semu_diffusion.subspace",
    "collect_gradients": "semu_diffusion.gradients",
    "collect_moments": "semu_diffusion.protection",
    "train_patch": "semu_diffusion.erasure",
    "erase_class": "semu_diffusion.erase.face",
    "erase_concept": "semu_diffusion.erase.face",
    "layer_subspace": "semu_diffusion.subspace",
    "run_to_end": "semu_diffusion.erase.run",
    "save_lora": "semu_diffusion.patches.lora",
    "save_peft_folder": "semu_diffusion.patches.lora",
    "select_layers": "semu_diffusion.layers",
}

__all__ = [*_HOME, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'semu_diffusion' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
