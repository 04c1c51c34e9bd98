"""The layers that carry the update while it is trained are those that the patch makes."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable

import pytest
import torch
from patches import random_layers
from torch import nn
from toy_batches import predict, subspaces_of

from semu_diffusion.errors import InputError
from semu_diffusion.models.class_conditional import ClassConditional
from semu_diffusion.patches import patched as patched_module
from semu_diffusion.patches.patched import PatchedLayers
from semu_diffusion.subspace import layer_subspace


def test_the_patched_model_is_the_original_before_the_first_step(model: ClassConditional) -> None:
    before = predict(model)
    patched = PatchedLayers(model.denoiser, subspaces_of(model))
    assert sum(parameter.numel() for parameter in patched.parameters()) == patched.patch().trained_parameters > 0
    with patched.attached():
        assert (predict(model) - before).norm() <= 1e-6 * before.norm()
    patched.patch().apply(model.denoiser)
    assert torch.equal(predict(model), before)


@pytest.mark.parametrize("matricisation", ["full", "per_channel"])
def test_attached_is_the_patch_applied_and_original_switches_it_off(model: ClassConditional, matricisation) -> None:  # type: ignore[no-untyped-def]
    before = predict(model)
    patched = random_layers(model.denoiser, matricisation=matricisation, size=0.5)
    with patched.attached():
        inside = predict(model)
        with patched.attached():
            assert torch.equal(predict(model), inside)  # not twice
        assert torch.equal(predict(model), inside)
        with patched.original():
            assert torch.equal(predict(model), before)
        assert torch.equal(predict(model), inside)
    assert torch.equal(predict(model), before)
    patched.patch().apply(model.denoiser)
    applied = predict(model)
    assert (applied - before).norm() > 1e-2 * before.norm()
    assert (applied - inside).norm() < 1e-5 * applied.norm()


def test_in_half_precision_the_trained_weights_are_the_applied_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = nn.Sequential(nn.Linear(16, 16)).bfloat16()
    x = torch.randn(5, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    monkeypatch.setattr(patched_module, "_factored_is_cheaper", lambda *_: False)
    patched = random_layers(layer)
    with patched.attached(), torch.no_grad():
        inside = layer(x)
    patched.patch().apply(layer)
    assert torch.equal(layer(x), inside)


LAYERS = {
    "linear": (nn.Linear(12, 7), (2, 5, 12)),
    "conv": (nn.Conv2d(3, 5, 3, padding=1), (2, 3, 6, 6)),
    "strided": (nn.Conv2d(3, 5, 3, stride=2, dilation=2, bias=False), (2, 3, 9, 9)),
    "pointwise": (nn.Conv2d(3, 5, 1), (2, 3, 6, 6)),
    "pointwise, unbatched": (nn.Conv2d(3, 5, 1), (3, 6, 6)),
    "same": (nn.Conv2d(3, 5, 3, padding="same"), (2, 3, 6, 6)),
    "unbatched": (nn.Conv2d(3, 5, 3, padding=1), (3, 6, 6)),
    "reflecting": (nn.Conv2d(3, 5, 3, padding=1, padding_mode="reflect"), (2, 3, 6, 6)),
    "grouped": (nn.Conv2d(4, 6, 3, groups=2), (2, 4, 6, 6)),
}


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("kind", LAYERS)
def test_factored_and_materialised_agree_in_output_and_gradient(
    kind: str, layout: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, shape = LAYERS[kind]
    net = nn.Sequential(copy.deepcopy(layer)).requires_grad_(False)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    if len(shape) == 4:
        net, x = net.to(memory_format=layout), x.to(memory_format=layout)
    choose, thin, taken = patched_module._factored_is_cheaper, patched_module._with_update, []
    monkeypatch.setattr(patched_module, "_with_update", lambda *args: (taken.append(1), thin(*args))[1])
    results = {}
    for factored in (True, False):
        patched = random_layers(net, size=0.5)
        core = patched.core["0"].requires_grad_(True)
        possible = kind not in ("reflecting", "grouped")
        assert isinstance(choose(net[0], patched.subspaces["0"], x), bool)
        if possible:
            monkeypatch.setattr(patched_module, "_factored_is_cheaper", lambda *_, answer=factored: answer)
        given = x.clone().requires_grad_(True)
        with patched.attached():
            output = net(given)
        output.square().sum().backward()
        results[factored] = (output.detach(), core.grad, given.grad)
        assert len(shape) < 4 or output.is_contiguous(memory_format=layout)
        assert bool(taken) == (factored and possible)
        taken.clear()
    for one, other in zip(results[True], results[False], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    patched.patch().apply(net)
    torch.testing.assert_close(net(x), results[False][0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("kind", ["linear", "conv", "pointwise"])
def test_in_mixed_precision_the_update_has_the_dtype_of_what_it_is_added_to(
    kind: str, stored: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights in bfloat16, or in float32 under autocast, where another layer's output may be in float32."""
    layer, shape = LAYERS[kind]
    net = nn.Sequential(copy.deepcopy(layer)).to(stored).requires_grad_(False)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(stored)
    results = {}
    for factored in (True, False):
        monkeypatch.setattr(patched_module, "_factored_is_cheaper", lambda *_, answer=factored: answer)
        patched = random_layers(net, size=0.5)
        core = patched.core["0"].requires_grad_(True)
        with patched.attached(), torch.autocast("cpu", torch.bfloat16, enabled=stored == torch.float32):
            output = net(x)
        assert output.dtype == torch.bfloat16
        output.float().square().sum().backward()
        results[factored] = (output.detach().float(), core.grad)
    for one, other in zip(results[True], results[False], strict=True):
        assert (one - other).norm() < 2e-2 * other.norm()
    left, right = (getattr(patched, side)["0"][0].float() for side in ("left", "right"))
    with torch.autocast("cpu", torch.bfloat16):
        plain = net[0](x).float()
        assert patched_module._with_update(net[0], x, plain, right, left).dtype == torch.float32


def test_the_way_is_chosen_by_cost() -> None:
    def factored(layer: nn.Module, rank: int, *shape: int) -> bool:
        space = random_layers(nn.Sequential(layer), rank=rank).subspaces["0"]
        return patched_module._factored_is_cheaper(layer, space, torch.zeros(shape))

    assert factored(nn.Linear(512, 512), 2, 4, 512)
    assert not factored(nn.Linear(64, 64), 32, 1000, 64)


def test_a_forward_that_a_layer_has_of_its_own_comes_back(model: ClassConditional) -> None:
    """As accelerate's hooks leave it: an attribute of the instance."""
    layer = model.denoiser.conv_in
    calls = []

    def hooked(old: Callable[..., torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return old(x)

    own = layer.forward = functools.partial(hooked, layer.forward)
    before = predict(model)
    patched = random_layers(model.denoiser)
    with patched.attached():
        assert not torch.equal(predict(model), before)
        calls.clear()
        with patched.original():
            assert torch.equal(predict(model), before)
        assert calls == [1]
    assert layer.forward is own
    assert torch.equal(predict(model), before)
    assert all("forward" not in other.__dict__ for name, other in patched.layers.items() if name != "conv_in")


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
        self.b.weight = self.a.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(torch.tanh(self.a(x)))


def test_a_weight_that_two_modules_share_is_trained_in_both(generator: torch.Generator) -> None:
    net, x = Tied(), torch.randn(5, 8, generator=generator)
    before = snapshot_of_forwards(net)
    patched = random_layers(net, size=0.5)
    assert list(patched.layers) == ["a"]
    with patched.attached(), torch.no_grad():
        inside = net(x)
    assert snapshot_of_forwards(net) == before
    patched.patch().apply(net)
    torch.testing.assert_close(net(x).detach(), inside)


def snapshot_of_forwards(net: nn.Module) -> list[bool]:
    return ["forward" in module.__dict__ for module in net.modules()]


def test_a_weight_shared_with_a_module_of_another_kind_is_refused() -> None:
    net = nn.ModuleDict({"words": nn.Embedding(6, 4), "head": nn.Linear(4, 6, bias=False)})
    net["head"].weight = net["words"].weight
    with pytest.raises(InputError, match=r"head is shared with words.*!head"):
        random_layers(net, seed=1)


def test_a_layer_with_a_zero_gradient_is_left_out() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    gradients = {"0": torch.zeros(3, 3), "1": torch.ones(3, 3)}
    spaces = {name: layer_subspace(gradient, net[int(name)].weight.detach()) for name, gradient in gradients.items()}
    patched = PatchedLayers(net, spaces)
    assert list(patched.core) == list(patched.patch().layers) == ["1"]
