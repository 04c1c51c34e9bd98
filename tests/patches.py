"""Patches with random factors, for the tests of what is done with a patch."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from semu_diffusion.errors import InputError
from semu_diffusion.layers import select_layers
from semu_diffusion.matrices import Matricisation
from semu_diffusion.patch import ErasurePatch
from semu_diffusion.patches.patched import PatchedLayers
from semu_diffusion.subspace import layer_subspace


def random_layers(
    model: nn.Module, seed: int = 0, rank: int = 2, matricisation: Matricisation = "full", size: float = 0.1, only: str = "all"
) -> PatchedLayers:
    """Every layer with a random subspace of this rank, and an R that makes an update of ``size`` times the weight's norm."""
    generator = torch.Generator().manual_seed(seed)
    layers = select_layers(model, [only])
    subspaces = {
        name: layer_subspace(
            torch.randn(layer.weight.shape, generator=generator),
            layer.weight.detach().float(),
            explained_variance=1.0,
            matricisation=matricisation,
            max_rank=rank,
        )
        for name, layer in layers.items()
    }
    patched = PatchedLayers(model, subspaces)
    for name, core in patched.core.items():
        core.copy_(torch.randn(core.shape, generator=generator))
        core *= size * layers[name].weight.detach().float().norm() / core.norm()
    return patched


def random_patch(model: nn.Module, seed: int = 0, **settings: object) -> ErasurePatch:
    return random_layers(model, seed, **settings).patch({"seed": seed})  # type: ignore[arg-type]


def weight_bytes(model: nn.Module) -> dict[str, bytes]:
    """Every number of the model, as bytes."""
    return {name: value.detach().contiguous().view(torch.uint8).numpy().tobytes() for name, value in model.state_dict().items()}


def refused(patch: ErasurePatch, model: nn.Module, match: str) -> None:
    """The model does not take the patch, one line says why, and no weight has changed."""
    before = weight_bytes(model)
    with pytest.raises(InputError, match=match) as caught:
        patch.apply(model)
    assert "\n" not in str(caught.value)
    assert weight_bytes(model) == before
