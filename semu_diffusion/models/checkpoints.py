"""From a diffusers folder, a Hub id or one safetensors file to a model, or one line that says why not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import diffusers
import torch
import transformers
from diffusers import DDPMScheduler, DiffusionPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DModel
from safetensors import safe_open
from torch import nn

from semu_diffusion.errors import InputError, reason
from semu_diffusion.files import tensors_only
from semu_diffusion.models.adapters.ddpm import PixelDdpm, check_unet
from semu_diffusion.models.adapters.dit import DiT
from semu_diffusion.models.class_conditional import ClassConditional
from semu_diffusion.models.class_names import class_names as names_of_classes
from semu_diffusion.models.families import FAMILIES, check_family, family_of_folder, network_of, takes
from semu_diffusion.models.guards import check_network
from semu_diffusion.models.hub import folder_or_snapshot, is_hub_id
from semu_diffusion.models.pipeline import ClassConditionalPipeline
from semu_diffusion.models.sampling import count_timesteps, noise_schedule
from semu_diffusion.models.weight_files import (
    INDEX,
    check_not_pickled,
    load_network,
    names_of,
    read_object,
    said_of_prediction,
    what_instead,
)

__all__ = ["FILES", "INDEX", "hub_revision", "kind_of", "load_class_conditional", "load_text_pipeline"]

PLACES = ("", *(f"{part}/" for part in ("unet", "transformer", "vae", "scheduler")))
# nothing that carries code; the card says under which license
FILES = (*(f"{place}*.{kind}" for place in PLACES for kind in ("json", "safetensors")), "README.md")
OPTIONAL = ("safety_checker", "feature_extractor", "image_encoder")  # what a pipeline may lack, and its index leave out
TEXT_KEY = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"  # SD 1 and 2: (320, text width)
SD2_TEXT_WIDTH = 1024


def load_class_conditional(
    source: str | Path,
    class_names: Sequence[str] = (),
    null_class: int | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> ClassConditional:
    """Load a diffusers folder or Hub id of a class-conditional model: one of a UNet2DModel, or a DiTPipeline.

    Layouts: ``model_index.json`` of DiTPipeline, DDPMPipeline, DDIMPipeline or ClassConditionalPipeline; bare ``unet/`` (+
    ``scheduler/``); or the files at the root, as ``google/ddpm-cifar10-32`` has them. Weights must be safetensors.

    Names and null class are those of `semu_diffusion.models.class_names`. Raises InputError, one line, for anything that is
    no such model.
    """
    name = str(source)
    folder, revision = folder_or_snapshot(name, "--model takes a diffusers folder or a Hub id", FILES)
    index = read_object(folder / INDEX) if (folder / INDEX).is_file() else {}
    if str(index.get("_class_name")) in FAMILIES["dit"].pipelines:
        pipeline = _loaded(name, lambda: _from_folder(folder, index, name, dtype, True))
        pipeline.transformer.to(device)
        return DiT.adapt(pipeline, class_names, null_class, name, revision)
    unet_folder = folder / "unet" if (folder / "unet" / "config.json").is_file() else folder
    _require_unet2d(folder, unet_folder, index, name)
    unet = load_network(unet_folder, UNet2DModel, name, dtype)
    check_network(unet, name)
    check_unet(unet, name)
    scheduler = _load_scheduler(folder, name)
    found = names_of_classes(name, unet.config.num_class_embeds, tuple(class_names), index, null_class)
    unet = unet.to(device).to(memory_format=torch.channels_last)
    pipeline = ClassConditionalPipeline(unet.eval(), scheduler, found.labels(), found.null)
    return PixelDdpm(pipeline, found.names, None if found.null is None else len(found.names), name, revision)


def _require_unet2d(folder: Path, unet_folder: Path, index: dict[str, Any], source: str) -> None:
    """InputError, saying what it is, for a folder of another family."""
    if any(part in index for part in ("vae", "vqvae")) or "transformer" in index:
        raise InputError(f"{source} is {family_of_folder(index)}; {takes('class')}")
    if not (unet_folder / "config.json").is_file():
        lacks = "it has neither unet/config.json nor config.json"
        raise InputError(f"{source} is not a diffusers model: {lacks}{what_instead(folder)}")
    found = read_object(unet_folder / "config.json").get("_class_name")
    if found != "UNet2DModel":
        what = f"a {found}" if found else "a config.json without a _class_name"
        raise InputError(f"{source} holds {what}; erase-class takes a UNet2DModel")


def _load_scheduler(folder: Path, source: str) -> DDPMScheduler:
    path = (folder / "scheduler" if (folder / "scheduler").is_dir() else folder) / "scheduler_config.json"
    if not path.is_file():
        hint = what_instead(folder)
        raise InputError(f"{source} has no scheduler/scheduler_config.json, so its noise schedule is unknown{hint}")
    return noise_schedule(read_object(path), source)


def kind_of(source: str) -> Literal["class", "concept"]:
    """What is erased from the model in this folder, Hub repository or single file; by its text encoder where its pipeline is
    of no family. Raises InputError for what is none of the three."""
    if Path(source).expanduser().is_file():
        return "concept"
    folder, _ = folder_or_snapshot(source, "", [INDEX])
    index = read_object(folder / INDEX) if (folder / INDEX).is_file() else {}
    known = [family.kind for family in FAMILIES.values() if index.get("_class_name") in family.pipelines]
    return known[0] if known else "concept" if any(part.startswith("text_encoder") for part in index) else "class"


def load_text_pipeline(
    source: str,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    checked: bool = False,
    prediction: str | None = None,
) -> Any:
    """The pipeline of ``source``, without a progress bar and (unless ``checked``) a safety checker; safetensors only.

    ``prediction``, epsilon or v_prediction, is what the network predicts, where a single file does not say so itself.
    Raises InputError, one line, for anything that is not a text-to-image pipeline of one of the `FAMILIES`.
    """
    path = Path(source).expanduser()

    def load() -> Any:
        if path.is_file():
            return _single_file(path, dtype, prediction)
        if prediction is not None:
            raise InputError(f"--prediction is for a single file; what {source} predicts stands in its scheduler")
        if not path.is_dir() and not is_hub_id(source):
            raise InputError(f"{source}: no such folder or file, and not a Hub id of the form owner/name")
        place, _ = folder_or_snapshot(source, "", [INDEX])
        return _from_folder(path if path.is_dir() else source, _text_index(place, source), source, dtype, checked)

    pipeline = _loaded(source, load)
    check_family(pipeline, source)
    if getattr(pipeline, "safety_checker", None) is not None and not checked:
        pipeline.safety_checker = None  # black pictures would count as erased ones
    pipeline.set_progress_bar_config(disable=True)
    network_of(pipeline).to(device)  # text encoders and autoencoder come to the device when they are needed, and leave it again
    return pipeline


def _loaded(source: str, load: Callable[[], Any]) -> Any:
    """What ``load`` returns; InputError for whatever it raises."""
    try:
        return load()
    except InputError:
        raise
    except Exception as error:  # diffusers, transformers and the Hub client raise a dozen classes; each means the same here
        raise InputError(f"{source} cannot be loaded as a diffusers pipeline ({reason(error)})") from error


def _text_index(folder: Path, source: str) -> dict[str, Any]:
    if not (folder / INDEX).is_file():
        raise InputError(f"{source} is no diffusers pipeline: it has no {INDEX}{what_instead(folder)}")
    index = read_object(folder / INDEX)
    texts = "text_encoder" in index or "text_encoder_2" in index
    pipeline = str(index.get("_class_name") or "pipeline without a name")
    if pipeline in FAMILIES["dit"].pipelines or ("unet" in index and not texts and "vae" not in index and "vqvae" not in index):
        raise InputError(f"{source} is a class-conditional model: erase-class takes classes out of it")
    known = any(pipeline in family.pipelines for family in FAMILIES.values())
    if not hasattr(diffusers, pipeline):
        raise InputError(f"{source} is a {pipeline}, which is no pipeline of diffusers {diffusers.__version__} itself")
    if not texts or not ("unet" in index or known):
        raise InputError(f"{source} is {family_of_folder(index)}; {takes('concept')}")
    return index


def _from_folder(place: Path | str, index: dict[str, Any], source: str, dtype: torch.dtype, checked: bool) -> Any:
    """Of a folder in this machine or of the Hub, in its full weights or, where there are none, those of a variant."""
    options: dict[str, Any] = {}
    if str(index.get("_class_name")).startswith("StableDiffusionPipeline"):
        absent = [part for part in OPTIONAL if part not in index]
        options |= dict.fromkeys(absent if checked else {*absent, "safety_checker"})
        if "safety_checker" in options:
            options["requires_safety_checker"] = False
    with tensors_only():
        if isinstance(place, Path):
            return _of_parts(place, index, source, dtype, options)
        try:
            return _of_parts(_downloaded(place, None, options), index, source, dtype, options)
        except (OSError, ValueError) as error:  # half of the Hub's snapshots have fp16 files alone
            try:
                return _of_parts(_downloaded(place, "fp16", options), index, source, dtype, options)
            except Exception:
                raise error from None


def _downloaded(source: str, variant: str | None, options: dict[str, Any]) -> Path:
    return Path(DiffusionPipeline.download(source, variant=variant, use_safetensors=True, **options))


def _of_parts(folder: Path, index: dict[str, Any], source: str, dtype: torch.dtype, given: dict[str, Any]) -> Any:
    """The pipeline of a folder whose networks are loaded one by one, so that each is whole, in whatever variant it has."""
    scheduler = folder / "scheduler" / "scheduler_config.json"
    if scheduler.is_file():
        count_timesteps(read_object(scheduler), source)  # before one is made of them
    networks, given = {}, dict(given)
    for part in OPTIONAL:
        if part in index and not (folder / part).is_dir():  # people delete what they do not need
            given |= {part: None} | ({"requires_safety_checker": False} if part == OPTIONAL[0] else {})
    for part, described in index.items():
        if described == [None, None]:  # as a pipeline is saved without its T5
            given.setdefault(part, None)
        kind = _network_class(described)
        if kind is None and part in ("unet", "transformer"):
            raise InputError(f"{source}: its {part} is {described!r}, which is no network of diffusers {diffusers.__version__}")
        if kind is not None and part not in given:
            if not (folder / part).is_dir():
                raise InputError(f"{source} has no folder {part}/, which its {INDEX} names")
            networks[part] = load_network(folder / part, kind, source, dtype)
    return DiffusionPipeline.from_pretrained(folder, use_safetensors=True, dtype=dtype, **networks, **given)


def _network_class(described: Any) -> Any:
    """The class that an entry of a model_index.json names, ``["transformers", "CLIPTextModel"]``; None if it is no network."""
    if not (isinstance(described, list) and len(described) == 2 and all(isinstance(word, str) for word in described)):
        return None
    library, name = described
    home = {"diffusers": diffusers, "transformers": transformers}.get(library) or getattr(diffusers.pipelines, library, None)
    kind = getattr(home, name, None) if isinstance(home, ModuleType) else None
    return kind if isinstance(kind, type) and issubclass(kind, nn.Module) else None


def hub_revision(source: str) -> str | None:
    """The commit of a Hub id that was loaded, from the folder of its snapshot; None for anything else."""
    from huggingface_hub import try_to_load_from_cache

    if Path(source).expanduser().exists() or not is_hub_id(source):
        return None
    found = try_to_load_from_cache(source, INDEX)
    return Path(found).parent.name if isinstance(found, str) else None


def _single_file(path: Path, dtype: torch.dtype, prediction: str | None) -> Any:
    """Of one file. diffusers takes each SD 2.x for the 768 pixel model, which predicts v; the base of 512 predicts noise."""
    check_not_pickled(path, str(path))
    keys = names_of(path)
    xl = any(key.startswith("conditioner.embedders.1.") for key in keys)
    second = False
    if TEXT_KEY in keys:
        with safe_open(path, "pt") as content:
            second = content.get_slice(TEXT_KEY).get_shape()[-1] == SD2_TEXT_WIDTH
    said, without_signal = said_of_prediction(path)
    prediction = prediction or said
    if second and prediction is None:
        raise InputError(
            f"{path} is a Stable Diffusion 2.x, and the file does not say what it predicts: give --prediction epsilon (the "
            "base model of 512 pixels) or --prediction v_prediction (that of 768)"
        )
    kind = StableDiffusionXLPipeline if xl else StableDiffusionPipeline
    with tensors_only():
        pipeline = kind.from_single_file(str(path), dtype=dtype)
    if prediction is not None:
        scheduler = pipeline.scheduler
        ends = {"rescale_betas_zero_snr": True} if without_signal else {}
        pipeline.scheduler = type(scheduler).from_config(scheduler.config, prediction_type=prediction, **ends)
    if second and prediction == "epsilon":
        pipeline.unet.register_to_config(sample_size=64)
    return pipeline
