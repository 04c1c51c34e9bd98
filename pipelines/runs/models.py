"""The model that a run's settings name, on its device."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from semu_diffusion import assets, distributed
from semu_diffusion.errors import InputError
from semu_diffusion.models.checkpoints import load_class_conditional, load_text_pipeline
from semu_diffusion.models.class_conditional import ClassConditional
from semu_diffusion.models.families import network_of
from semu_diffusion.pipelines.runs.config import ClassModelConfig, TextModelConfig

__all__ = ["checked_device", "load_model", "load_text_model"]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def checked_device(name: str | None) -> torch.device:
    """The device of this name, or the best there is; InputError for one that is not available or lacks float64.

    Of several processes at one job, ``cuda`` is each one's own GPU.
    """
    distributed.join(cpu=name == "cpu")
    device = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        where = torch.device(device)
        torch.empty(0, dtype=torch.float64, device=where)  # the subspaces are computed in it; Apple's GPUs have none
    except (RuntimeError, AssertionError, TypeError) as error:
        raise InputError(f"--device {device} is not available here ({str(error).splitlines()[0]})") from error
    return where


def load_model(config: ClassModelConfig) -> ClassConditional:
    """The class-conditional model of the settings; ``embedded`` is the CIFAR-10 DDPM that comes with the package."""
    source = assets.placed(config.model, "class")
    model = load_class_conditional(source, config.class_names, config.null_class, device=checked_device(config.device))
    return dataclasses.replace(model, source=config.model)


def load_text_model(config: TextModelConfig) -> tuple[Any, str]:
    """The text-to-image pipeline of the settings, and the folder or id it was loaded from; ``embedded`` comes along too."""
    source, device = assets.placed(config.model, "concept"), checked_device(config.device)
    if config.weights == "fp16" and device.type == "cpu":
        raise InputError("--weights fp16: a CPU neither trains nor samples in it; give fp32 or bf16")
    pipeline = load_text_pipeline(source, device, DTYPES[config.weights], prediction=config.prediction)
    if config.gradient_checkpointing:
        network_of(pipeline).enable_gradient_checkpointing()
    return pipeline, source
