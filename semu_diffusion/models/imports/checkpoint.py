"""The tensors of a research checkpoint, read so that nothing in it is executed, and what is made of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler, UNet2DModel

from semu_diffusion.errors import InputError, reason
from semu_diffusion.models.weight_files import check_not_something_else

__all__ = ["Imported", "State", "read_checkpoint"]

State = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Imported:
    """A network in float32, its noise schedule, and the index of its null class among the embeddings; None without one."""

    unet: UNet2DModel
    scheduler: DDPMScheduler
    null_class: int | None


def read_checkpoint(path: str | Path, ema: bool = False) -> dict[str, torch.Tensor]:
    """The network's tensors in such a file: ``[state, optimizer, step, ema]``, or a state alone; of the moving average if
    ``ema``. Nothing is unpickled but tensors and plain values. Raises InputError for any other file.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise InputError(f"{path}: a folder, name the file in it" if path.is_dir() else f"{path}: no such file")
    check_not_something_else(path, str(path))
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of a pickle that holds more than tensors, and of a file that is none
        raise InputError(f"{path} cannot be read as a checkpoint of tensors ({reason(error, 120)})") from error
    if ema and not (isinstance(content, list | tuple) and len(content) > 3 and isinstance(content[-1], Mapping)):
        raise InputError(f"{path} holds no moving average: leave --ema out")
    state = content[-1 if ema else 0] if isinstance(content, list | tuple) and content else content
    if not isinstance(state, Mapping):
        raise InputError(f"{path} is no checkpoint of a DDPM: it holds a {type(content).__name__}")
    return {str(name).removeprefix("module."): tensor for name, tensor in state.items() if isinstance(tensor, torch.Tensor)}
