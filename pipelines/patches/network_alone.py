"""The UNet (or transformer) alone, as ESD and others publish what they edited: a folder of diffusers, or one safetensors file.

A file has diffusers' names or those of the original UNet, and may hold the edited layers alone, as ESD-x does with its
cross-attention: what it does not name stays the model's.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from semu_diffusion.errors import InputError, Notice
from semu_diffusion.models.weight_files import INDEX, check_not_pickled, check_not_something_else, load_network, read_config
from semu_diffusion.patches.original_names import original_unet_key, uniform

__all__ = ["network_alone", "say_what_is_missing"]

PREFIX = re.compile(r"^(model\.diffusion_model|diffusion_model|unet|transformer|module)\.")
WHOLE = ("first_stage_model.", "cond_stage_model.", "conditioner.", "vae.", "text_encoder")  # parts that only models have


def network_alone(given: str, network: nn.Module) -> dict[str, torch.Tensor] | None:
    """The tensors at ``given`` by the ``network``'s own names; None for what is no network alone, but a whole model or nothing.

    Raises InputError, one line, for pickled files, those that cannot be read, and tensors that the network does not have.
    """
    path = Path(given).expanduser()
    source = f"--edited {given}"
    if path.is_dir():
        if (path / INDEX).is_file() or (path / "scheduler_config.json").is_file() or not (path / "config.json").is_file():
            return None
        if read_config(path / "config.json").get("_class_name") != type(network).__name__:
            return None
        tensors = dict(load_network(path, type(network), source, next(network.parameters()).dtype).state_dict())
        other = min(tensors.keys() ^ network.state_dict().keys(), default=None)
        if other is not None:
            raise InputError(f"{source} is of another architecture: {other} is in one of the two networks alone")
        return tensors
    if not path.is_file():
        return None
    check_not_pickled(path, source)
    check_not_something_else(path, source)
    try:
        with safe_open(path, framework="pt") as file:
            names = _own_names(list(file.keys()), network, source)
            return None if names is None else {own: file.get_tensor(key) for own, key in names.items()}
    except (SafetensorError, OSError):
        return None  # said by whoever reads it as a model


def say_what_is_missing(given: str, tensors: Mapping[str, torch.Tensor], network: nn.Module, changed: int) -> None:
    """Notice of a file that holds but a part of its network, with the number of layers that it ``changed``."""
    total = len(network.state_dict())
    if len(tensors) < total:
        of = f"{len(tensors)} of the network's {total} tensors: the others stay the model's, and {changed} layers change"
        warnings.warn(f"--edited {given} holds {of}", Notice, stacklevel=2)


def _own_names(keys: list[str], network: nn.Module, source: str) -> dict[str, str] | None:
    """The file's key for each of the network's names that it has; None if it holds a whole model, or none of them."""
    known = {**_original_names(network), **{name: name for name in network.state_dict()}}
    bare = {key: PREFIX.sub("", key) for key in keys}
    if any(key.startswith(WHOLE) for key in keys) or not any(name in known for name in bare.values()):
        return None
    strange = next((key for key, name in bare.items() if name not in known), None)
    if strange is not None:
        raise InputError(f"{source} is of another architecture: the model's {type(network).__name__} has no {strange}")
    found = {known[name]: key for key, name in bare.items()}
    if len(found) < len(keys):
        raise InputError(f"{source} names a tensor twice, by diffusers' and by the original name: give one of the two")
    return found


def _original_names(network: nn.Module) -> dict[str, str]:
    """The network's own name of each tensor by that of the original code, as far as it has one."""
    blocks = uniform(getattr(getattr(network, "config", None), "layers_per_block", 2)) or 2
    found: dict[str, str] = {}
    state = network.state_dict()
    for key in state:
        with suppress(InputError):  # of a network that the original code does not have
            found[original_unet_key(key, state, blocks)] = key
    return found
