"""From a diffusers folder, a Hub id or one safetensors file to a Stable Diffusion pipeline, or one line that says why not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors import safe_open

from semu_diffusion.errors import InputError
from semu_diffusion.models.hub import is_hub_id
from semu_diffusion.models.stable_diffusion import check_family

__all__ = ["hub_revision", "load_text_pipeline"]

TEXT_KEY = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"  # SD 1 and 2: (320, text width)
SD2_TEXT_WIDTH = 1024


def load_text_pipeline(
    source: str,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    checked: bool = False,
    prediction: str | None = None,
) -> Any:
    """The pipeline of ``source``, without a progress bar and (unless ``checked``) a safety checker; safetensors only.

    ``prediction``, epsilon or v_prediction, is what the network predicts, where a single file does not say so itself.
    Raises InputError, one line, for anything that is no text-to-image pipeline with a UNet.
    """
    path = Path(source).expanduser()
    try:
        if path.is_file():
            pipeline = _single_file(path, dtype, prediction)
        elif path.is_dir() or is_hub_id(source):
            if prediction is not None:
                raise InputError(f"--prediction is for a single file; what {source} predicts stands in its scheduler")
            place = path if path.is_dir() else source
            if DiffusionPipeline.load_config(place).get("_class_name") == "ClassConditionalPipeline":  # diffusers lacks it
                raise InputError(f"{source} is a class-conditional model: erase-class takes classes out of it")
            options: dict[str, Any] = {"use_safetensors": True, "dtype": dtype}
            pipeline = DiffusionPipeline.from_pretrained(place, **options)
        else:
            raise InputError(f"{source}: no such folder or file, and not a Hub id of the form owner/name")
    except InputError:
        raise
    except Exception as error:  # diffusers, transformers and the Hub client raise a dozen classes; each means the same here
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"{source} cannot be loaded as a diffusers pipeline ({reason})") from error
    check_family(pipeline, source)
    if getattr(pipeline, "safety_checker", None) is not None and not checked:
        pipeline.safety_checker = None  # black pictures would count as erased ones
    pipeline.set_progress_bar_config(disable=True)
    pipeline.unet.to(device)  # text encoders and autoencoder come to the device when they are needed, and leave it again
    return pipeline


def hub_revision(source: str) -> str | None:
    """The commit of a Hub id that was loaded, from the folder of its snapshot; None for anything else."""
    from huggingface_hub import try_to_load_from_cache

    if Path(source).expanduser().exists() or not is_hub_id(source):
        return None
    found = try_to_load_from_cache(source, "model_index.json")
    return Path(found).parent.name if isinstance(found, str) else None


def _single_file(path: Path, dtype: torch.dtype, prediction: str | None) -> Any:
    """Of one file. diffusers takes each SD 2.x for the 768 pixel model, which predicts v; the base of 512 predicts noise."""
    if path.suffix != ".safetensors":
        raise InputError(f"{path} is no safetensors file; pickled checkpoints are not read: convert it first")
    with safe_open(path, "pt") as content:
        keys = set(content.keys())
        xl = any(key.startswith("conditioner.embedders.1.") for key in keys)
        second = TEXT_KEY in keys and content.get_slice(TEXT_KEY).get_shape()[-1] == SD2_TEXT_WIDTH
    if second and prediction is None:
        raise InputError(
            f"{path} is a Stable Diffusion 2.x, and the file does not say what it predicts: give --prediction epsilon (the "
            "base model of 512 pixels) or --prediction v_prediction (that of 768)"
        )
    pipeline = (StableDiffusionXLPipeline if xl else StableDiffusionPipeline).from_single_file(str(path), dtype=dtype)
    if prediction is not None:
        scheduler = pipeline.scheduler
        pipeline.scheduler = type(scheduler).from_config(scheduler.config, prediction_type=prediction)
    if second and prediction == "epsilon":
        pipeline.unet.register_to_config(sample_size=64)
    return pipeline
