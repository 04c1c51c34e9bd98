"""The LoRA twin of SD3 and Flux.1: in the original names, where query, key and value are one layer, it is the same update."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.loaders.lora_conversion_utils import _convert_kohya_flux_lora_to_diffusers
from diffusers.loaders.single_file_utils import convert_sd3_transformer_checkpoint_to_diffusers
from family_models import built
from patches import random_patch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from semu_diffusion.errors import InputError
from semu_diffusion.models.families import adapt_text_pipeline
from semu_diffusion.patch import ErasurePatch, LayerPatch
from semu_diffusion.patches.fingerprint import Fingerprint
from semu_diffusion.patches.lora import KOHYA_LORA, save_lora
from semu_diffusion.patches.transformer_names import original_place
from semu_diffusion.pipelines.patches.published import lora_edit

WIDTH = 3072  # that of the published Flux, which diffusers' reader of kohya's files counts with
FLUX = {
    "transformer_blocks.0.attn.to_q": WIDTH,
    "transformer_blocks.0.attn.to_k": WIDTH,
    "transformer_blocks.0.attn.to_v": WIDTH,
    "transformer_blocks.3.attn.to_v": WIDTH,
    "transformer_blocks.0.attn.to_out.0": WIDTH,
    "transformer_blocks.0.attn.add_k_proj": WIDTH,
    "transformer_blocks.0.attn.to_add_out": WIDTH,
    "transformer_blocks.0.ff.net.0.proj": 4 * WIDTH,
    "single_transformer_blocks.7.attn.to_k": WIDTH,
    "single_transformer_blocks.7.proj_mlp": 4 * WIDTH,
    "single_transformer_blocks.2.attn.to_q": WIDTH,
    "single_transformer_blocks.7.proj_out": WIDTH,
    "time_text_embed.guidance_embedder.linear_2": WIDTH,
}


def layer(outputs: int, inputs: int, rank: int, seed: int) -> LayerPatch:
    generator = torch.Generator().manual_seed(seed)
    left, right = (torch.linalg.qr(torch.randn(size, rank, generator=generator))[0] for size in (outputs, inputs))
    core = torch.randn(1, rank, rank, generator=generator)
    return LayerPatch(left[None], core, right[None], torch.tensor([rank]), (outputs, inputs))


def test_diffusers_reads_the_twin_of_flux_as_the_patch(tmp_path: Path) -> None:
    layers = {name: layer(width, 16, 1 + place % 3, place) for place, (name, width) in enumerate(FLUX.items())}
    patch = ErasurePatch(layers, Fingerprint("", tuple(layers), torch.zeros(len(layers), 5)), {}, strength=0.5)
    save_lora(patch, tmp_path, "flux")
    found = _convert_kohya_flux_lora_to_diffusers(load_file(tmp_path / KOHYA_LORA))
    parts = {name.rpartition(".lora_")[0].removeprefix("transformer.") for name in found}
    for name in parts:
        down, up = (next(found[key] for key in found if key.endswith(f"{name}.lora_{which}.weight")) for which in "AB")
        delta = 0.5 * layers[name].delta() if name in layers else torch.zeros(len(up), 16)
        torch.testing.assert_close(up @ down, delta, rtol=1e-4, atol=1e-6)
    assert parts >= set(layers)
    with safe_open(tmp_path / KOHYA_LORA, "pt") as file:
        assert file.metadata()["ss_base_model_version"] == "flux1"


class Partial(dict[str, torch.Tensor]):
    """A checkpoint that lacks tensors, which nobody compares."""

    def pop(self, name: str, *_: Any) -> torch.Tensor:
        return super().pop(name, torch.zeros(6, 1))


def test_the_twin_of_sd3_is_the_patch_by_diffusers_own_names(tmp_path: Path) -> None:
    transformer = built("sd3").transformer
    patch = random_patch(transformer)
    save_lora(patch, tmp_path, "sd3")
    twin = load_file(tmp_path / KOHYA_LORA)
    original = {original_place(name, "sd3", one.shape[:2]).name for name, one in patch.layers.items()}
    deltas = Partial()
    for name in original:
        key = f"lora_unet_{name.replace('.', '_')}"
        down, up = twin.pop(f"{key}.lora_down.weight"), twin.pop(f"{key}.lora_up.weight")
        deltas[f"{name}.weight"] = up.flatten(1) @ down.flatten(1) * (float(twin.pop(f"{key}.alpha")) / len(down))
    assert not twin
    found = convert_sd3_transformer_checkpoint_to_diffusers(deltas)
    assert len(patch.layers) > 50
    for name, one in patch.layers.items():
        torch.testing.assert_close(found[f"{name}.weight"].reshape(one.shape), one.delta(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", ["sd3", "flux"])
def test_every_layer_of_the_network_has_a_place_and_another_none(family: str) -> None:
    patch = random_patch(built(family).transformer, rank=1)
    places = [original_place(name, family, one.shape[:2]) for name, one in patch.layers.items()]
    assert len({(place.name, place.index) for place in places}) == len(places)
    with pytest.raises(InputError, match="has no mid_block"):
        original_place("mid_block", family, (2, 2))


@pytest.mark.parametrize("family", ["sd3", "flux"])
def test_a_lora_by_the_original_names_is_read_as_the_patch_it_is_of(family: str, tmp_path: Path) -> None:
    pipeline = built(family)
    patch = random_patch(pipeline.transformer, size=0.3).scale(0.5)
    save_lora(patch, tmp_path, family)
    file = tmp_path / KOHYA_LORA
    model = adapt_text_pipeline(pipeline, ["a cat"])
    edit = lora_edit(model, file).parts["transformer"]
    assert edit.layers.keys() == patch.layers.keys()  # type: ignore[attr-defined]
    for name in patch.layers:
        torch.testing.assert_close(edit.delta(name), patch.delta(name), rtol=1e-4, atol=1e-6)  # type: ignore[attr-defined]
    tensors = load_file(file)
    key = next(name for name in tensors if name.endswith("attn_qkv.lora_up.weight"))
    save_file({**tensors, key: tensors[key][:-1].clone()}, tmp_path / "short.safetensors")
    with pytest.raises(InputError, match="outputs, the model's layer"):
        lora_edit(model, tmp_path / "short.safetensors")
