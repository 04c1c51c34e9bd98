"""From a diffusers folder, a Hub id or a pipeline in memory to a `ClassConditional`, or one line that says why not."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler, UNet2DModel

from semu_diffusion.errors import InputError
from semu_diffusion.models.ddpm import ClassConditional
from semu_diffusion.models.hub import folder_or_snapshot
from semu_diffusion.models.pipeline import ClassConditionalPipeline

__all__ = ["adapt_pipeline", "load_class_conditional"]

FILES = ("*.json", "*.safetensors", "unet/*.json", "unet/*.safetensors", "scheduler/*.json")  # nothing that carries code


def load_class_conditional(
    source: str | Path,
    class_names: Sequence[str] = (),
    null_class: int | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> ClassConditional:
    """Load a diffusers folder or Hub id whose denoiser is a UNet2DModel.

    Layouts: ``model_index.json`` of DDPMPipeline, DDIMPipeline or ClassConditionalPipeline; bare ``unet/`` (+
    ``scheduler/``); or the files at the root, as ``google/ddpm-cifar10-32`` has them. Weights must be safetensors.

    Class names come from ``class_names``, else from the pipeline's ``id2label``, else they are the indices. The null class
    is ``null_class``, else the pipeline's, else the last index if the model has one class embedding more than names.

    Raises InputError, one line, for anything that is no such model.
    """
    folder, revision = folder_or_snapshot(str(source), "--model takes a diffusers folder or a Hub id", FILES)
    index = _read_json(folder / "model_index.json") if (folder / "model_index.json").is_file() else {}
    unet_folder = folder / "unet" if (folder / "unet" / "config.json").is_file() else folder
    if not (unet_folder / "config.json").is_file():
        raise InputError(f"{source} is not a diffusers model: it has neither unet/config.json nor config.json")
    found = _read_json(unet_folder / "config.json").get("_class_name")
    if found != "UNet2DModel":
        raise InputError(f"{source} holds a {found}; erase-class takes a UNet2DModel")
    unet = _load_unet(unet_folder, str(source), dtype).to(device).to(memory_format=torch.channels_last)
    _require_supported(unet, index, str(source))
    scheduler = _load_scheduler(folder, str(source))
    names, null = _classes(str(source), unet.config.num_class_embeds, tuple(class_names), index, null_class)
    pipeline = ClassConditionalPipeline(unet.eval(), scheduler, dict(enumerate(names)), null)
    return ClassConditional(pipeline, names, null, str(source), revision)


def adapt_pipeline(pipeline: ClassConditionalPipeline) -> ClassConditional:
    """The adapter of a pipeline that is already in memory; class names and null class as `load_class_conditional`.

    Raises InputError for a pipeline whose UNet is not supported, or whose names do not fit it.
    """
    config = {"id2label": pipeline.config.id2label, "null_class": pipeline.config.null_class}
    _require_supported(pipeline.unet, {}, "the pipeline")
    names, null = _classes("the pipeline", pipeline.unet.config.num_class_embeds, (), config, None)
    return ClassConditional(pipeline, names, null)


def _require_supported(unet: UNet2DModel, index: dict[str, Any], source: str) -> None:
    if any(part in index for part in ("vae", "vqvae")):
        raise InputError(f"{source} is a latent diffusion model; erase-class takes one that works on pixels")
    if unet.config.out_channels != unet.config.in_channels:
        raise InputError(f"{source}: a UNet that also predicts the variance is not supported")
    if unet.config.in_channels not in (1, 3):
        raise InputError(f"{source} makes images of {unet.config.in_channels} channels; grey (1) and RGB (3) are supported")
    if unet.config.class_embed_type is not None:
        raise InputError(f"{source}: class_embed_type {unet.config.class_embed_type!r} is not supported, only class indices")
    if unet.config.sample_size is None:
        raise InputError(f"{source}: unet/config.json has no sample_size, so the image size is unknown")


def _load_scheduler(folder: Path, source: str) -> DDPMScheduler:
    path = (folder / "scheduler" if (folder / "scheduler").is_dir() else folder) / "scheduler_config.json"
    if not path.is_file():
        raise InputError(f"{source} has no scheduler/scheduler_config.json, so its noise schedule is unknown")
    config = _read_json(path)
    if "beta_schedule" not in config:
        raise InputError(f"{source}: {config.get('_class_name')} has no beta_schedule, so the model is no DDPM")
    try:
        return DDPMScheduler.from_config(config)
    except (NotImplementedError, TypeError, ValueError) as error:
        raise InputError(f"{path} is not the config of a noise schedule ({' '.join(str(error).split())[:150]})") from error


def _classes(
    source: str, embeddings: int | None, given: tuple[str, ...], index: dict[str, Any], null_class: int | None
) -> tuple[tuple[str, ...], int | None]:
    if embeddings is None:
        return given, None
    saved = _saved_names(source, index.get("id2label"))
    if null_class is None:
        null_class = index.get("null_class")
    if null_class is not None and not (isinstance(null_class, int) and 0 <= null_class < embeddings):
        raise InputError(f"--null-class {null_class}: {source} has class embeddings 0 to {embeddings - 1}")
    names = given or saved
    if not names:
        names = tuple(str(i) for i in range(embeddings if null_class is None else embeddings - 1))
    if null_class is None and embeddings == len(names) + 1:
        null_class = embeddings - 1
    expected = embeddings if null_class is None else embeddings - 1
    if len(names) != expected:
        raise InputError(f"{source} has {expected} classes, but {len(names)} class names were given")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"{source}: {twice[0]!r} is the name of several classes; give distinct ones with --class-names")
    if null_class is not None and null_class < len(names):
        raise InputError(f"--null-class {null_class}: the null class must be the last index, {embeddings - 1}")
    return names, null_class


def _saved_names(source: str, id2label: Any) -> tuple[str, ...]:
    """Names of a pipeline's ``id2label`` by index; () if it has none."""
    try:
        named = {int(index): str(name) for index, name in (id2label or {}).items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise InputError(f"{source}: id2label must map class indices to names") from error
    if sorted(named) != list(range(len(named))):
        raise InputError(f"{source}: id2label must name the classes 0 to {len(named) - 1}, each once")
    return tuple(named[index] for index in range(len(named)))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path} is not readable JSON ({error})") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} is not a JSON object")
    return content


def _load_unet(folder: Path, source: str, dtype: torch.dtype) -> UNet2DModel:
    weights = sorted(path.name for path in folder.glob("diffusion_pytorch_model*.safetensors"))
    if not weights:
        raise InputError(f"{source}: no safetensors weights in {folder}; pickled .bin weights are not read")
    plain = [name for name in weights if name.count(".") == 1]  # beside it a variant (fp16) is the lesser one
    variant = None if plain else weights[0].split(".")[1].split("-")[0]
    try:
        unet, loading = UNet2DModel.from_pretrained(
            folder,
            use_safetensors=True,
            variant=variant,
            torch_dtype=dtype,
            low_cpu_mem_usage=False,
            output_loading_info=True,
        )
        if loading["missing_keys"]:  # diffusers would go on with random numbers there
            raise ValueError(f"no weights for {sorted(loading['missing_keys'])[0]}")
        return unet
    except Exception as error:  # broken headers, missing tensors and wrong shapes come as OSError, ValueError, RuntimeError, …
        raise InputError(
            f"{source}: the weights in {folder} cannot be loaded ({' '.join(str(error).split())[:200]})"
        ) from error
