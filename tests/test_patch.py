"""The patch goes on, comes off to the last bit, survives the disk, and refuses what it was not made for."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import pytest
import torch
from patches import random_patch, refused, weight_bytes
from tiny_models import tiny_unet
from torch import nn

from semu_diffusion.errors import InputError
from semu_diffusion.patch import ErasurePatch, LayerPatch
from semu_diffusion.patches.fingerprint import Fingerprint

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def net(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8, 4), nn.Linear(4, 2))


@pytest.mark.parametrize("matricisation", ["full", "per_channel"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_remove_after_apply_returns_the_very_same_bytes(dtype: torch.dtype, matricisation) -> None:  # type: ignore[no-untyped-def]
    unet = tiny_unet().to(dtype)
    patch = random_patch(unet, matricisation=matricisation)
    before = weight_bytes(unet)
    patch.apply(unet)
    during = weight_bytes(unet)
    assert all(during[f"{name}.weight"] != before[f"{name}.weight"] for name in patch.layers)
    assert all(during[name] == before[name] for name in before if name.removesuffix(".weight") not in patch.layers)
    patch.remove(unet)
    assert weight_bytes(unet) == before


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
def test_the_applied_weight_is_the_sum_rounded_once(dtype: torch.dtype) -> None:
    model = net().to(dtype)
    original = {name: value.clone() for name, value in model.state_dict().items()}
    patch = random_patch(model)
    patch.apply(model)
    for name in patch.layers:
        layer = patch.layers[name]
        delta = (layer.left[0].double() @ layer.core[0].double() @ layer.right[0].double().T).reshape(layer.shape)
        exact = original[f"{name}.weight"].double() + delta
        off = (model.get_submodule(name).weight.double() - exact).abs()
        # half a unit in the last place, and what the float32 product of the factors may be off
        assert (off <= torch.finfo(dtype).eps / 2 * exact.abs() + 1e-6 * delta.abs().max()).all()


def test_odd_values_and_memory_formats_come_back_bit_exactly() -> None:
    model = net().to(memory_format=torch.channels_last)
    with torch.no_grad():
        model[0].weight[0, 0, 0].copy_(torch.tensor([-0.0, 1e-42, 1e18]))
    patch = random_patch(model, size=1e-3)
    before, strides, pointer = weight_bytes(model), model[0].weight.stride(), model[0].weight.data_ptr()
    patch.apply(model)
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert weight_bytes(model) != before
    patch.remove(model)
    assert (weight_bytes(model), model[0].weight.stride(), model[0].weight.data_ptr()) == (before, strides, pointer)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2), (1, 2, 0)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_stacked_patches_come_off_in_any_order(dtype: torch.dtype, order: tuple[int, ...]) -> None:
    model = net().to(dtype)
    before = weight_bytes(model)
    patches = [random_patch(model, 0), random_patch(model, 1, only="linear"), random_patch(model, 2, only="0")]
    alone = []
    for patch in patches:
        patch.apply(model)
        alone.append(weight_bytes(model))
        patch.remove(model)
    for patch in patches:
        patch.apply(model)
    for index in order[:2]:
        patches[index].remove(model)
    assert weight_bytes(model) == alone[order[2]]
    patches[order[2]].remove(model)
    assert weight_bytes(model) == before


def test_stacked_updates_add_up() -> None:
    model = net()
    original = model[2].weight.detach().clone()
    one, two = random_patch(model, 0), random_patch(model, 1)
    one.apply(model)
    two.apply(model)
    torch.testing.assert_close(model[2].weight.detach(), original + one.delta("2") + two.delta("2"), atol=1e-6, rtol=0)


def test_strength_scales_the_update_and_nothing_is_changed_by_zero() -> None:
    model = net()
    before = weight_bytes(model)
    patch = random_patch(model)
    for name in patch.layers:
        torch.testing.assert_close(patch.scale(-2.5).delta(name), -2.5 * patch.delta(name))
        torch.testing.assert_close(patch.scale(3).scale(0.5).delta(name), 0.5 * patch.delta(name))
    patch.scale(0).apply(model)
    assert weight_bytes(model) == before
    assert patch.strength == 1.0
    with pytest.raises(dataclasses.FrozenInstanceError):
        patch.strength = 2.0  # type: ignore[misc]


def test_a_copied_model_can_still_be_freed_of_its_patch() -> None:
    model = net()
    before = weight_bytes(model)
    patch = random_patch(model)
    patch.apply(model)
    twin = copy.deepcopy(model)
    patch.remove(twin)
    assert weight_bytes(twin) == before
    assert weight_bytes(model) != before
    patch.remove(model)
    assert weight_bytes(model) == before


def test_a_patch_read_back_from_disk_is_the_one_on_the_model(tmp_path: Path) -> None:
    model = net()
    before = weight_bytes(model)
    patch = random_patch(model)
    loaded = ErasurePatch.load(patch.save(tmp_path / "p.safetensors"))
    patch.apply(model)
    with pytest.raises(InputError, match="already applied"):
        loaded.apply(model)
    loaded.remove(model)
    assert weight_bytes(model) == before


def test_what_is_not_on_the_model_cannot_be_removed_and_twice_is_refused() -> None:
    model = net()
    patch, other = random_patch(model, 0), random_patch(model, 1)
    with pytest.raises(InputError, match="not applied"):
        patch.remove(model)
    patch.apply(model)
    applied = weight_bytes(model)
    with pytest.raises(InputError, match="already applied"):
        patch.apply(model)
    with pytest.raises(InputError, match="not applied"):
        other.remove(model)
    assert weight_bytes(model) == applied


def test_another_strength_of_a_patch_is_not_added_to_the_one_that_is_there() -> None:
    model = net()
    before = weight_bytes(model)
    patch = random_patch(model)
    patch.apply(model)
    with pytest.raises(InputError, match="already applied to the model, at strength 1: remove it first"):
        patch.scale(0.5).apply(model)
    with pytest.raises(InputError, match=r"not applied to the model at strength 0\.5, but at 1"):
        patch.scale(0.5).remove(model)
    patch.remove(model)
    assert weight_bytes(model) == before


def test_a_patch_made_on_a_patched_model_goes_on_top_of_it() -> None:
    model = net()
    before = weight_bytes(model)
    first = random_patch(model, 0, size=0.3)
    first.apply(model)
    second = random_patch(model, 1)
    second.apply(model)
    first.remove(model)
    second.remove(model)
    assert weight_bytes(model) == before
    with pytest.raises(InputError, match="another model"):
        second.apply(model)


@pytest.mark.parametrize("fault", [RuntimeError, KeyboardInterrupt])
def test_an_apply_that_fails_midway_changes_nothing(fault: type[BaseException], monkeypatch: pytest.MonkeyPatch) -> None:
    model = net()
    first, second = random_patch(model, 0), random_patch(model, 1)
    first.apply(model)
    before, calls, delta = weight_bytes(model), [], LayerPatch.delta

    def failing(layer: LayerPatch) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 4:
            raise fault
        return delta(layer)

    monkeypatch.setattr(LayerPatch, "delta", failing)
    with pytest.raises(fault):
        second.apply(model)
    assert weight_bytes(model) == before
    second.apply(model)
    second.remove(model)
    assert weight_bytes(model) == before


# ---------------------------------------------------------------------------------------------------- which model


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_model_it_was_made_for_is_recognised_in_any_precision(dtype: torch.dtype) -> None:
    unet = tiny_unet()
    patch = random_patch(unet)
    cast = copy.deepcopy(unet).to(dtype)
    patch.apply(cast)
    patch.remove(cast)
    random_patch(copy.deepcopy(unet).to(dtype)).apply(unet)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_casting_is_recognised_for_weights_of_every_size_and_shape(dtype: torch.dtype) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(*(nn.Linear(n, m) for n in (1, 2, 3, 8, 64, 500) for m in (1, 4, 32) for _ in range(5)))
        for layer in model[::3]:
            nn.init.constant_(layer.weight, 0.123)
        for layer in model[1::3]:
            layer.weight.data.pow_(7)  # few weights hold all the norm
    patch = random_patch(model, rank=1)
    patch.apply(copy.deepcopy(model).to(dtype))


def test_other_architectures_are_refused() -> None:
    patch = random_patch(tiny_unet())
    refused(patch, tiny_unet(block_out_channels=(8, 32)), "other names or shapes")
    refused(patch, net(), "no layer conv_in")


def test_other_weights_are_refused() -> None:
    patch = random_patch(tiny_unet(0))
    refused(patch, tiny_unet(1), "weights of .* differ")
    wide = nn.Sequential(nn.Linear(600, 600))
    refused(random_patch(wide), nn.Sequential(nn.Linear(600, 600)), "weights of 0 differ")
    broken = tiny_unet(0)
    with torch.no_grad():
        broken.conv_in.weight[0, 0, 0, 0] = float("nan")
    refused(patch, broken, "weights of conv_in differ")


@pytest.mark.parametrize("size", [0.03, 0.3])
def test_a_merged_model_is_refused_even_where_the_update_is_small(size: float) -> None:
    """Real updates are 1 to 6 % of a weight's norm, and orthogonal to it, so that the norm shows nothing."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(*(nn.Conv2d(64, 64, 3) for _ in range(4)))
    patch = random_patch(model, size=size)
    patch.merge(model)
    refused(patch, model, "already merged")
    assert not hasattr(model, "_semu_patches")
    with pytest.raises(InputError, match="not applied"):
        patch.remove(model)


def test_merge_writes_what_apply_writes_and_refuses_a_model_with_patches_on() -> None:
    merged, applied = net(), net()
    patch, other = random_patch(merged, 0), random_patch(merged, 1)
    patch.merge(merged)
    patch.apply(applied)
    assert weight_bytes(merged) == weight_bytes(applied)
    with pytest.raises(InputError, match="remove them"):
        other.merge(applied)


def test_counts_are_those_of_the_factors() -> None:
    patch = random_patch(net(), rank=2)
    assert patch.trained_parameters == 3 * 4
    factors = 2 * ((8 + 27) + (4 + 8) + (2 + 4))  # U and V in int8, 2 columns each
    assert patch.nbytes == factors + 3 * (4 * 4 + 8)  # R in float32, a rank in int64


def test_two_updates_of_one_weight_are_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    layers = random_patch(model).layers
    model[1].weight = model[0].weight
    patch = ErasurePatch(layers, Fingerprint.of(model, layers), {})
    before = weight_bytes(model)
    with pytest.raises(InputError, match="0 and 1 share one weight"):
        patch.apply(model)
    assert weight_bytes(model) == before
