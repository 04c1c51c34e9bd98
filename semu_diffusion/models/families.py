"""FAMILIES: one line for every family of models that something is erased from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import nn

from semu_diffusion.errors import InputError
from semu_diffusion.models.adapters.auraflow import AuraFlow
from semu_diffusion.models.adapters.ddpm import PixelDdpm
from semu_diffusion.models.adapters.dit import DiT
from semu_diffusion.models.adapters.flux import Flux
from semu_diffusion.models.adapters.flux2 import Flux2
from semu_diffusion.models.adapters.pixart import PixArt
from semu_diffusion.models.adapters.qwen_image import QwenImage
from semu_diffusion.models.adapters.sana import Sana
from semu_diffusion.models.adapters.sd3 import StableDiffusion3
from semu_diffusion.models.adapters.stable_diffusion import StableDiffusion
from semu_diffusion.models.adapters.z_image import ZImage
from semu_diffusion.models.class_conditional import ClassConditional
from semu_diffusion.models.guards import check_network
from semu_diffusion.models.prompt_table import ENCODERS
from semu_diffusion.models.text_conditional import TextConditional
from semu_diffusion.patch import ErasurePatch
from semu_diffusion.patches.lora import save_lora, save_peft_folder
from semu_diffusion.patches.wrappers import unwrapped

__all__ = [
    "FAMILIES",
    "Family",
    "adapt_pipeline",
    "adapt_text_pipeline",
    "check_family",
    "family_of",
    "family_of_folder",
    "network_of",
    "takes",
]


TWINS = {"comfyui": "diffusers, and for ComfyUI", "kohya": "diffusers, and for ComfyUI and A1111"}


@dataclass(frozen=True)
class Family:
    """``pipelines``: diffusers' classes of it. ``adapter``: what makes a `DiffusionModel` of one in memory. ``lora``: how a
    patch of it is exported, as a PEFT folder, as diffusers' LoRA file, or that with its twin in kohya's names, for ComfyUI
    alone or for all that know these."""

    name: str
    title: str
    pipelines: tuple[str, ...]
    adapter: type[Any]
    lora: Literal["peft", "diffusers", "comfyui", "kohya"]

    @property
    def clients(self) -> str:
        """Who loads the LoRA, in words."""
        return {"peft": "PEFT", "diffusers": "diffusers", **TWINS}[self.lora]

    def save_lora(self, patch: ErasurePatch, folder: Path) -> None:
        """Write a patch of this family in the form that a loader of LoRA takes."""
        if self.lora == "peft":
            save_peft_folder(patch, folder)
        else:
            save_lora(patch, folder, self.name)

    @property
    def kind(self) -> Literal["class", "concept"]:
        """What is erased from it."""
        return "concept" if issubclass(self.adapter, TextConditional) else "class"


PIXELS = ("ClassConditionalPipeline", "DDPMPipeline", "DDIMPipeline")
TEXT, XL = (
    ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline"),
    ("StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline"),
)
FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family("ddpm", "a DDPM on pixels, with classes or without", PIXELS, PixelDdpm, "peft"),
        Family("dit", "DiT", ("DiTPipeline",), DiT, "peft"),
        Family("sd1", "Stable Diffusion 1", TEXT, StableDiffusion, "kohya"),
        Family("sd2", "Stable Diffusion 2", TEXT, StableDiffusion, "kohya"),
        Family("sdxl", "Stable Diffusion XL", XL, StableDiffusion, "kohya"),
        Family("sd3", "Stable Diffusion 3", ("StableDiffusion3Pipeline",), StableDiffusion3, "comfyui"),
        Family("flux", "Flux.1", ("FluxPipeline",), Flux, "comfyui"),
        Family("pixart", "PixArt-Σ", ("PixArtSigmaPipeline",), PixArt, "peft"),
        Family("sana", "Sana", ("SanaPipeline",), Sana, "diffusers"),
        Family("auraflow", "AuraFlow", ("AuraFlowPipeline",), AuraFlow, "diffusers"),
        Family("z-image", "Z-Image", ("ZImagePipeline",), ZImage, "diffusers"),
        Family("flux2", "FLUX.2", ("Flux2Pipeline", "Flux2KleinPipeline"), Flux2, "diffusers"),
        Family("qwen-image", "Qwen-Image", ("QwenImagePipeline",), QwenImage, "diffusers"),
    )
}


def family_of_folder(index: Mapping[str, Any]) -> str:
    """What a folder is by its model_index.json, in words: its pipeline, and the network in it."""
    pipeline = str(index.get("_class_name", "pipeline without a name"))
    latent = "vae" in index or "vqvae" in index
    titles = [one.title for one in FAMILIES.values() if pipeline in one.pipelines and (one.name != "ddpm" or not latent)]
    if titles:
        return f"{' or '.join(titles)} ({pipeline})"
    parts = (index.get(part) for part in ("transformer", "unet"))
    network = next((one[1] for one in parts if isinstance(one, list) and len(one) == 2), None)
    return f"a {'latent diffusion model, ' if latent else ''}{pipeline}" + (f" with a {network}" if network else "")


def takes(kind: Literal["class", "concept"]) -> str:
    """What ``erase-class`` or ``erase-concept`` takes, for people."""
    titles = [family.title for family in FAMILIES.values() if family.kind == kind]
    return f"erase-{kind} takes {' or '.join([', '.join(titles[:-1]), titles[-1]] if titles[1:] else titles)}"


def adapt_pipeline(pipeline: Any) -> ClassConditional:
    """The adapter of a class-conditional pipeline that is already in memory, with the names of its classes.

    Raises InputError for a pipeline of another family, or one that cannot be erased from.
    """
    adapter = _adapter(pipeline, "class", "the pipeline")
    found: ClassConditional = adapter.adapt(pipeline)
    return found


def adapt_text_pipeline(pipeline: Any, prompts: Sequence[str], source: str = "") -> TextConditional:
    """The adapter of a text-to-image pipeline that is already in memory, with a table of the prompts.

    Raises InputError for a pipeline of another family, one that cannot be erased from, or a prompt that is too long.
    """
    found: TextConditional = _text_adapter(pipeline, source).adapt(pipeline, prompts, source)
    return found


def check_family(pipeline: Any, source: str = "") -> None:
    """InputError for anything but a text-to-image pipeline that can be erased from, all of it loaded."""
    _text_adapter(pipeline, source).check(pipeline, source or "the pipeline")


def family_of(pipeline: Any) -> Family:
    """The family of a pipeline in memory. Raises InputError for one of none."""
    for family in FAMILIES.values():
        if _is_of(pipeline, family.adapter):
            return FAMILIES[family.adapter.family_of(pipeline)]
    raise InputError(f"the pipeline is a {type(pipeline).__name__}; {takes('class')}; {takes('concept')}")


def network_of(pipeline: Any) -> Any:
    """The network of a pipeline that patches go on."""
    return pipeline.transformer if getattr(pipeline, "unet", None) is None else pipeline.unet


def _is_of(pipeline: Any, adapter: type[Any]) -> bool:
    network = getattr(pipeline, adapter.part, None)
    return isinstance(network, nn.Module) and isinstance(unwrapped(network), adapter.network)


def _text_adapter(pipeline: Any, source: str) -> type[Any]:
    name = source or "the pipeline"
    texts = any(getattr(pipeline, f"tokenizer{ending}", None) is not None for ending in ENCODERS)
    if not texts or any(getattr(pipeline, part, None) is None for part in ("vae", "encode_prompt")):
        _check_whole(pipeline, name, ("vae", "text_encoder", "tokenizer"))
        raise InputError(f"{name} is a {type(pipeline).__name__}; {takes('concept')}")
    return _adapter(pipeline, "concept", name)


def _adapter(pipeline: Any, kind: Literal["class", "concept"], name: str) -> type[Any]:
    """The adapter that takes the pipeline's network."""
    adapters = dict.fromkeys(family.adapter for family in FAMILIES.values() if family.kind == kind)
    for adapter in adapters:
        if _is_of(pipeline, adapter):
            return adapter
    for part in ("unet", "transformer"):
        if isinstance(getattr(pipeline, part, None), nn.Module):
            check_network(getattr(pipeline, part), name)  # what is wrapped around it (PEFT) says more than that it is unknown
    _check_whole(pipeline, name, ("unet", "transformer"))
    raise InputError(f"{name} is a {type(pipeline).__name__}; {takes(kind)}")


def _check_whole(pipeline: Any, name: str, parts: Sequence[str]) -> None:
    """InputError for a part that was left out to save memory, of a pipeline that is known otherwise."""
    names = {base.__name__ for base in type(pipeline).__mro__}
    known = any(not names.isdisjoint(family.pipelines) for family in FAMILIES.values())
    missing = [part for part in parts if getattr(pipeline, part, pipeline) is None]
    if known and missing:
        raise InputError(f"{name} has no {missing[0]}: load the pipeline with all of its parts")
