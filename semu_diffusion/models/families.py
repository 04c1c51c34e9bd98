"""FAMILIES: one line for every family of models that something is erased from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from semu_diffusion.models.ddpm import adapt_pipeline
from semu_diffusion.models.stable_diffusion import adapt_text_pipeline

__all__ = ["FAMILIES", "Family", "family_of_folder"]


@dataclass(frozen=True)
class Family:
    """``pipelines``: diffusers' classes of it. ``adapt``: a pipeline in memory to its `DiffusionModel`. ``lora``: how a patch
    of it is exported, as a PEFT folder or as diffusers' LoRA file with its twin for other tools."""

    name: str
    title: str
    pipelines: tuple[str, ...]
    adapt: Callable[..., Any]
    lora: Literal["peft", "diffusers"]


PIXELS = ("ClassConditionalPipeline", "DDPMPipeline", "DDIMPipeline")
TEXT, XL = (
    ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline"),
    ("StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline"),
)
FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family("ddpm", "a DDPM on pixels, with classes or without", PIXELS, adapt_pipeline, "peft"),
        Family("sd1", "Stable Diffusion 1", TEXT, adapt_text_pipeline, "diffusers"),
        Family("sd2", "Stable Diffusion 2", TEXT, adapt_text_pipeline, "diffusers"),
        Family("sdxl", "Stable Diffusion XL", XL, adapt_text_pipeline, "diffusers"),
    )
}


def family_of_folder(index: Mapping[str, Any]) -> str:
    """What a folder is by its model_index.json, in words: its pipeline, and the network in it."""
    pipeline = str(index.get("_class_name", "pipeline without a name"))
    latent = "vae" in index or "vqvae" in index
    titles = [one.title for one in FAMILIES.values() if pipeline in one.pipelines and (one.name != "ddpm" or not latent)]
    if titles:
        return f"{' or '.join(titles)} ({pipeline})"
    network = next((index[part][1] for part in ("transformer", "unet") if isinstance(index.get(part), list)), None)
    return f"a {'latent diffusion model, ' if latent else ''}{pipeline}" + (f" with a {network}" if network else "")
