"""Edits that others publish, LoRA files, whole checkpoints and UNets alone: put on the model and taken off as a patch is."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from semu_diffusion.errors import InputError
from semu_diffusion.models.base import DiffusionModel
from semu_diffusion.models.text_conditional import TextConditional
from semu_diffusion.options import require
from semu_diffusion.patches.lora_file import lora_patches, read_lora
from semu_diffusion.peers.edit import Edit, WeightEdit

__all__ = ["PipelineEdit", "checkpoint_edit", "lora_edit", "network_edit"]

UNSCORED = ("safety_checker", "image_encoder", "feature_extractor")  # say nothing of what a model draws


@dataclass(frozen=True, eq=False)
class PipelineEdit:
    """An edit for each of a pipeline's networks, by the pipeline's name of it; ``layers`` are those that change."""

    parts: Mapping[str, Edit]
    layers: tuple[str, ...]
    trained_parameters: int

    @property
    def nbytes(self) -> int:
        return sum(edit.nbytes for edit in self.parts.values())

    def parameters_of(self, model: Any) -> int:
        """The numbers of what it edits a share of: the denoiser's, or where other networks change too, those of them all."""
        networks = _networks(model)
        own = [model.denoiser] if all(networks[part] is model.denoiser for part in self.parts) else networks.values()
        return sum(parameter.numel() for network in own for parameter in network.parameters())

    @contextmanager
    def applied(self, model: Any) -> Iterator[Any]:
        """Inside, every part is edited, and the prompts are encoded by the edited text encoders; then all is as before."""
        with ExitStack() as stack:
            for part, edit in self.parts.items():
                stack.enter_context(edit.applied(SimpleNamespace(denoiser=_networks(model)[part])))
            told = any(part.startswith("text_encoder") for part in self.parts)
            yield model.encoded_again() if told and isinstance(model, TextConditional) else dataclasses.replace(model)


def lora_edit(model: DiffusionModel, given: str | Path, strength: float = 1.0) -> PipelineEdit:
    """The LoRA of a file or folder, ``strength`` times as strong. Raises InputError as `read_lora` and `lora_patches`."""
    lora = read_lora(given)
    networks = _networks(model)
    own = next(part for part, network in networks.items() if network is model.denoiser)
    patches = lora_patches(lora, networks, own)
    trained = sum(pair[role].numel() for pair in lora.factors.values() for role in ("up", "down"))
    layers = tuple(f"{part}.{name}" for part, patch in patches.items() for name in patch.layers)
    return PipelineEdit({part: patch.scale(strength) for part, patch in patches.items()}, layers, trained)


def checkpoint_edit(model: DiffusionModel, other: Any, source: str, strength: float = 1.0) -> PipelineEdit:
    """What ``other``, a pipeline of ``source``, changes in the model's: W + s (W' - W) for every tensor that differs.

    Raises InputError for a pipeline of another architecture, numbers that are not finite, and one that changes nothing.
    """
    theirs, parts = _networks(SimpleNamespace(pipeline=other)), {}
    _check_process(model, other, source)
    for part, network in _networks(model).items():
        if part not in theirs:
            raise InputError(f"--edited {source} is of another architecture: it has no {part}")
        old, new = network.state_dict(), theirs[part].state_dict()
        wrong = next((name for name in (*old, *new) if name not in old or name not in new), None)
        if wrong is not None:
            raise InputError(f"--edited {source} is of another architecture: {part}.{wrong} is in one of the two models alone")
        parts[part] = _differences(part, network, new, source, strength)
    return _weights_edit(parts, source)


def network_edit(
    model: DiffusionModel, tensors: Mapping[str, torch.Tensor], source: str, strength: float = 1.0
) -> PipelineEdit:
    """The same of the denoiser's ``tensors``, all of them or some; the others stay as they are. Raises InputError as it."""
    part = next(part for part, network in _networks(model).items() if network is model.denoiser)
    return _weights_edit({part: _differences(part, model.denoiser, tensors, source, strength)}, source)


def _weights_edit(changed: Mapping[str, Mapping[str, torch.Tensor]], source: str) -> PipelineEdit:
    parts = {part: WeightEdit(values, sum(map(torch.numel, values.values()))) for part, values in changed.items() if values}
    if not parts:
        raise InputError(f"--edited {source} has the very weights of the model: nothing was edited")
    layers = dict.fromkeys(f"{part}.{name.rpartition('.')[0]}" for part, edit in parts.items() for name in edit.values)
    return PipelineEdit(parts, tuple(layers), sum(edit.trained_parameters for edit in parts.values()))


def _networks(model: Any) -> dict[str, nn.Module]:
    """The networks of a model's pipeline that decide what it draws, by its names of them."""
    parts = model.pipeline.components.items()
    return {name: part for name, part in parts if isinstance(part, nn.Module) and name not in UNSCORED}


def _check_process(model: Any, other: Any, source: str) -> None:
    """InputError where the two pipelines' networks predict different things."""
    own, their = (getattr(one.scheduler, "config", {}).get("prediction_type", "epsilon") for one in (model.pipeline, other))
    if own != their:
        raise InputError(f"--edited {source} is another kind of model: it predicts {their}, the model {own}")


def _is_rounded(one: torch.Tensor, other: torch.Tensor) -> bool:
    """True if one of the two is the other, saved in half precision: no edit."""
    return any(
        torch.equal(mine.to(half).to(theirs.dtype), theirs)
        for half in (torch.float16, torch.bfloat16)
        for mine, theirs in ((one, other), (other, one))
    )


def _differences(
    part: str, network: nn.Module, new: Mapping[str, torch.Tensor], source: str, strength: float
) -> dict[str, torch.Tensor]:
    """The tensors of ``new`` that are others than the network's, ``strength`` times as far away."""
    old, found, weights = network.state_dict(), {}, dict(network.named_parameters())
    for name, given in new.items():
        value = old[name]
        if given.shape != value.shape:
            shapes = f"{tuple(given.shape)}, the model's {tuple(value.shape)}"
            raise InputError(f"--edited {source} is of another architecture: its {part}.{name} is {shapes}")
        given = given.to(value.device, value.dtype)
        if torch.equal(given, value) or _is_rounded(given, value):
            continue
        if not torch.isfinite(given).all():
            raise InputError(f"--edited {source}: {part}.{name} holds other than finite numbers")
        if name not in weights:  # another name of a weight that is shared, or a constant of the architecture
            continue
        if strength != 1:
            given = (value.float() + strength * (given.float() - value.float())).to(value.dtype)
            require(
                bool(torch.isfinite(given).all()), f"--strength {strength}: {part}.{name} would no longer be finite numbers"
            )
        found[name] = given.detach().to("cpu", copy=True)
    return found
