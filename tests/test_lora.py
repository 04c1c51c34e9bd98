"""A patch is a LoRA: the same update, and the same pictures when PEFT loads it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from patches import random_patch
from tiny_models import tiny_unet
from torch import nn

from semu_diffusion.errors import InputError
from semu_diffusion.patch import ErasurePatch
from semu_diffusion.patches.lora import lora_factors, no_lora, save_lora, save_peft_folder


@pytest.mark.parametrize("strength", [1.0, 0.5, -2.0])
def test_up_times_down_is_the_update(strength: float) -> None:
    patch = random_patch(tiny_unet(), rank=4).scale(strength)
    for name, layer in patch.layers.items():
        up, down = lora_factors(layer, strength)
        torch.testing.assert_close((up @ down).reshape(layer.shape), patch.delta(name), atol=1e-6, rtol=1e-4)
        assert len(down) == up.shape[1] <= 4


def test_factors_are_balanced_and_no_longer_than_the_update_needs() -> None:
    patch = random_patch(nn.Sequential(nn.Linear(30, 20)), rank=5)
    layer = patch.layers["0"]
    layer.core[0] = torch.outer(torch.ones(5), torch.arange(5.0)) + torch.outer(torch.arange(5.0), torch.ones(5))
    up, down = lora_factors(layer)
    assert up.shape == (20, 2)
    assert down.shape == (2, 30)
    torch.testing.assert_close(up.norm(dim=0), down.norm(dim=1), rtol=1e-2, atol=0)
    layer.core.zero_()
    up, down = lora_factors(layer)
    assert up.shape == (20, 1)
    assert not (up @ down).any()


def test_per_channel_is_refused(tmp_path: Path) -> None:
    patch = random_patch(tiny_unet(), matricisation="per_channel")
    with pytest.raises(InputError, match="matricisation full"):
        save_peft_folder(patch, tmp_path / "lora")
    assert not (tmp_path / "lora" / "adapter_model.safetensors").exists()


def test_a_convolution_with_groups_is_refused_since_no_lora_is_for_it(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3, groups=2))
    patch = random_patch(net)
    saved = ErasurePatch.load(patch.save(tmp_path / "patch.safetensors"))
    for one in (patch, saved):
        with pytest.raises(InputError, match=r"1 is a convolution with groups.*--layers …,!1"):
            save_peft_folder(one, tmp_path / "lora")
    assert not (tmp_path / "lora").exists()
    assert no_lora(random_patch(nn.Sequential(nn.Conv2d(4, 4, 3)))) is None


@pytest.mark.parametrize("metadata", [{"class_names": ["cat"], "forget": ["cat"]}, {"family": "pixart"}])
def test_what_no_pipeline_loads_is_no_lora_file(metadata: dict[str, object], tmp_path: Path) -> None:
    patch = dataclasses.replace(random_patch(tiny_unet()), metadata=metadata)
    with pytest.raises(InputError, match="load no LoRA files: save_peft_folder"):
        save_lora(patch, tmp_path / "lora")
    assert not (tmp_path / "lora").exists()


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    return x, torch.tensor([3, 70]), torch.tensor([0, 3])


@pytest.mark.parametrize("only", ["all", "attention"])
def test_peft_loads_the_folder_and_answers_as_the_patched_model(only: str, tmp_path: Path, recwarn) -> None:  # type: ignore[no-untyped-def]
    from peft import PeftModel

    x, t, labels = inputs()
    unet = tiny_unet()
    with torch.no_grad():
        original = unet(x, t, class_labels=labels).sample
    patch = random_patch(unet, rank=3, size=0.5, only=only).scale(0.8)
    named = ErasurePatch(patch.layers, patch.fingerprint, {"base_model": "some/model"}, patch.strength)
    folder = save_peft_folder(named, tmp_path / "lora")
    assert sorted(path.name for path in folder.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    with torch.no_grad():
        adapted = PeftModel.from_pretrained(tiny_unet(), folder)(x, t, class_labels=labels).sample
        patch.apply(unet)
        patched = unet(x, t, class_labels=labels).sample
    assert (adapted - patched).norm() <= 1e-5 * patched.norm()
    assert (patched - original).norm() > 1e-2 * patched.norm()
    assert not [warning for warning in recwarn if "missing" in str(warning.message).lower()]
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == "some/model"


def test_peft_adapts_the_named_layers_alone_where_other_names_end_alike(tmp_path: Path) -> None:
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer

    def model() -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            inner = nn.ModuleDict({"conv": nn.Linear(6, 6), "a_b": nn.Linear(6, 6)})
            return nn.ModuleDict({"conv": nn.Linear(6, 6), "inner": inner, "inner_conv": nn.Linear(6, 6)})

    patch = random_patch(model(), rank=2)
    outer = ErasurePatch({"conv": patch.layers["conv"]}, patch.fingerprint)
    adapted = PeftModel.from_pretrained(model(), save_peft_folder(outer, tmp_path / "lora"))
    found = [name for name, module in adapted.base_model.model.named_modules() if isinstance(module, LoraLayer)]
    assert found == ["conv"]
