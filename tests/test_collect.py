"""What an erasure reads off the model before it trains."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from semu_diffusion.erase.collect import find_subspaces
from semu_diffusion.erase.config import SubspaceConfig
from semu_diffusion.errors import InputError
from semu_diffusion.protection import InputMoments


def test_a_layer_that_the_loss_reaches_is_never_left_unprotected_in_silence(generator: torch.Generator) -> None:
    """As where the network is compiled, and its hooks do not fire."""
    layers = {"reached": nn.Linear(4, 4), "idle": nn.Linear(4, 4)}
    gradients = {"reached": torch.randn(4, 4, generator=generator), "idle": torch.zeros(4, 4)}
    with pytest.raises(InputError, match="no kept input of reached was seen") as caught:
        find_subspaces(SubspaceConfig(), layers, gradients, {}, generator, None)
    assert "\n" not in str(caught.value)
    find_subspaces(SubspaceConfig(protect="none"), layers, gradients, {}, generator, None)
    seen = InputMoments()
    seen.add(torch.randn(1, 2, 4, generator=generator))
    found = find_subspaces(SubspaceConfig(), layers, gradients, {"reached": seen}, generator, None)
    assert [space.trained_parameters > 0 for space in found.values()] == [True, False]
