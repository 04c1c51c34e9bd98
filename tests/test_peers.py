"""The methods compared with: they do what they say, and come off again to the last bit."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from patches import weight_bytes
from tiny_models import tiny_unet
from torch import nn

from semu_diffusion.erasure import Diverged
from semu_diffusion.models.class_conditional import ClassConditional
from semu_diffusion.peers.edit import WeightEdit, WholeWeights
from semu_diffusion.peers.fine_tuning import fine_tune
from semu_diffusion.peers.trivial import copy_class_embedding


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([3, 50])


def test_with_the_copied_row_the_erased_class_is_answered_as_the_anchor(model: ClassConditional) -> None:
    (x, t), unet = inputs(), model.denoiser
    before = weight_bytes(unet)
    erased, anchor, kept = (torch.full((2,), c) for c in (0, 1, 2))
    with torch.no_grad():
        wanted = {"erased": model.predict(x, t, anchor), "kept": model.predict(x, t, kept), "was": model.predict(x, t, erased)}
        edit = copy_class_embedding(unet, {0: 1})
        assert weight_bytes(unet) == before
        with edit.applied(model):
            assert torch.equal(model.predict(x, t, erased), wanted["erased"])
            assert torch.equal(model.predict(x, t, kept), wanted["kept"])
        assert not torch.equal(wanted["erased"], wanted["was"])
    assert weight_bytes(unet) == before
    assert edit.trained_parameters == 0  # a copy


def test_swapped_rows_are_taken_from_the_original(model: ClassConditional) -> None:
    weight = model.denoiser.class_embedding.weight.detach().clone()
    with copy_class_embedding(model.denoiser, {0: 1, 1: 0}).applied(model):
        assert torch.equal(model.denoiser.class_embedding.weight[:2], weight[[1, 0]])


def test_a_model_without_classes_has_no_row_to_copy() -> None:
    with pytest.raises(ValueError, match="no class embedding"):
        copy_class_embedding(tiny_unet(num_class_embeds=None), {0: 1})


def denoise(model: ClassConditional) -> Callable[[int], dict[str, torch.Tensor]]:
    x, t = inputs()
    labels, target = torch.tensor([0, 0]), torch.zeros_like(x)
    return lambda index: {"forget": (model.predict(x, t, labels) - target).square().mean()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fine_tuning_leaves_the_old_weights_and_its_edit_comes_off_bit_exactly(dtype: torch.dtype) -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1)).to(dtype)
    net.train()
    x = torch.randn(16, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    before = weight_bytes(net)
    steps, records = fine_tune(WholeWeights(net), lambda index: {"fit": (net(x) - 3).square().mean()}, 40, 3e-2), []
    try:
        while True:
            records.append(next(steps))
    except StopIteration as done:
        edit = done.value
    assert weight_bytes(net) == before
    assert net.training
    assert all(p.requires_grad and p.grad is None for p in net.parameters())
    assert records[-1].loss < 0.5 * records[0].loss
    assert edit.trained_parameters == sum(p.numel() for p in net.parameters())
    with edit.applied(SimpleNamespace(denoiser=net)):
        assert float((net(x) - 3).square().mean().detach()) <= 1.1 * records[-1].loss
    assert weight_bytes(net) == before


@pytest.mark.parametrize("end", ["closed", "failed", "diverged"])
def test_fine_tuning_that_ends_early_leaves_the_old_weights(end: str, model: ClassConditional) -> None:
    before, loss = weight_bytes(model.denoiser), denoise(model)

    def broken(index: int) -> dict[str, torch.Tensor]:
        if index == 2 and end == "failed":
            raise ZeroDivisionError
        return {"forget": loss(index)["forget"] * (float("nan") if index == 2 and end == "diverged" else 1)}

    steps = fine_tune(WholeWeights(model.denoiser), broken, 5, 1e-2)
    assert next(steps).gradient_norm > 0
    assert weight_bytes(model.denoiser) == before
    if end == "closed":
        steps.close()
    else:
        with pytest.raises(ZeroDivisionError if end == "failed" else Diverged):
            next(steps)
    assert weight_bytes(model.denoiser) == before


def test_an_edit_comes_off_to_the_last_byte_also_by_an_exception() -> None:
    net = nn.Linear(2, 2)
    before = weight_bytes(net)
    edit = WeightEdit({"weight": torch.ones(2, 2)}, 4)
    for error in (None, ZeroDivisionError):
        with pytest.raises(error) if error else nullcontext(), edit.applied(SimpleNamespace(denoiser=net)):
            assert torch.equal(net.weight, torch.ones(2, 2))
            if error is not None:
                raise error
        assert weight_bytes(net) == before
    assert edit.nbytes == 16
