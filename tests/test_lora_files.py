"""The LoRA files of a patch: what diffusers loads is the patch, and comes off again; one alpha for the other tools."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from patches import random_patch
from safetensors import safe_open
from safetensors.torch import load_file
from text_models import FAMILIES, tiny_pipeline

from semu_diffusion.domains.concepts import _unusual_blocks
from semu_diffusion.erase.face import erase_concept
from semu_diffusion.errors import InputError
from semu_diffusion.models.families import adapt_text_pipeline
from semu_diffusion.models.text_conditional import TextConditional
from semu_diffusion.patch import ErasurePatch
from semu_diffusion.patches.fingerprint import Fingerprint
from semu_diffusion.patches.lora import DIFFUSERS_LORA, KOHYA_LORA, save_lora
from semu_diffusion.patches.original_names import original_unet_name
from semu_diffusion.pipelines.patches.single_file import original_tensors
from semu_diffusion.pipelines.runs.lora_check import check_lora


def erased(pipeline: Any) -> ErasurePatch:
    quick = {"steps": 3, "forget_samples": 4, "kept_samples": 4, "precision": "fp32"}
    return erase_concept(
        pipeline, "cat", anchor="dog", retain_prompts=("a photo of a bird",), layers=("all", "!add_embedding.*"), **quick
    )


def answer(model: TextConditional) -> torch.Tensor:
    x = torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model.predict(x, torch.tensor([10, 60]), torch.tensor([0, 1]))


def test_the_check_of_a_lora_is_made_in_full_float32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TF32, which GPUs convolve in unasked, would show a difference where there is none."""
    pipeline, seen = tiny_pipeline(), []
    patch = erased(pipeline)
    save_lora(patch, tmp_path)
    model, predict = adapt_text_pipeline(pipeline, ["a photo of a cat"]), TextConditional.predict

    def watched(self: TextConditional, *given: Any) -> torch.Tensor:
        seen.append((torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32))
        return predict(self, *given)

    monkeypatch.setattr(TextConditional, "predict", watched)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    found = check_lora(model, patch, tmp_path)
    assert found is not None
    assert found.relative_difference < 1e-5
    assert found.same
    save_lora(patch.scale(0.0), tmp_path / "nothing")
    nothing = check_lora(model, patch.scale(0.0), tmp_path / "nothing")
    assert nothing is not None
    assert nothing.same  # a patch without an effect is no failure of its LoRA
    assert seen == [(False, False)] * 6
    assert torch.backends.cudnn.allow_tf32


def test_a_lora_of_which_nothing_is_loaded_is_not_the_patch_in_half_precision_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = tiny_pipeline()
    patch = erased(pipeline)
    pipeline.unet.bfloat16()
    patch = ErasurePatch(patch.layers, Fingerprint.of(pipeline.unet, patch.layers), patch.metadata, strength=0.03)
    model = adapt_text_pipeline(pipeline, ["a photo of a cat"])
    save_lora(patch, tmp_path)
    found = check_lora(model, patch, tmp_path)
    assert found is not None
    assert found.same
    assert found.share_of_effect > 0.5
    monkeypatch.setattr(type(pipeline), "load_lora_weights", lambda *_, **__: None)
    found = check_lora(model, patch, tmp_path)
    assert found is not None
    assert found.relative_difference < 5e-2  # by this alone it would pass
    assert found.share_of_effect == 0
    assert not found.same


@pytest.mark.parametrize("family", FAMILIES)
def test_diffusers_loads_the_lora_as_the_patch_and_unloads_it(family: str, tmp_path: Path) -> None:
    pipeline = tiny_pipeline(family)
    patch = erased(pipeline)
    ranks = {int(layer.ranks.max()) for layer in patch.layers.values()}
    assert len(ranks) > 1  # mixed ranks are what loaders get wrong
    save_lora(patch, tmp_path, family=family.replace("sd15", "sd1").replace("sd21", "sd2"))
    weights = {name: value.clone() for name, value in pipeline.unet.state_dict().items()}
    model = adapt_text_pipeline(pipeline, ["a photo of a cat"])
    original = answer(model)
    patch.apply(pipeline.unet)
    wanted = answer(model)
    patch.remove(pipeline.unet)
    effect = float((wanted - original).abs().max())
    for name in (DIFFUSERS_LORA, KOHYA_LORA):
        pipeline.load_lora_weights(tmp_path, weight_name=name, adapter_name="semu_cat")
        assert float((answer(model) - wanted).abs().max()) < 1e-5 * float(wanted.abs().max())
        assert effect > 1e-3 * float(wanted.abs().max())
        pipeline.set_adapters(["semu_cat"], [0.0])
        assert torch.allclose(answer(model), original, atol=1e-6)
        pipeline.unload_lora_weights()
        after = pipeline.unet.state_dict()
        assert after.keys() == weights.keys()
        assert all(torch.equal(value, after[name]) for name, value in weights.items())


# names of the published XL (two blocks in each resolution) as sd-scripts and the LoRA files trained with it have them
XL_NAMES = {
    "conv_in": "input_blocks_0_0",
    "time_embedding.linear_2": "time_embed_2",
    "add_embedding.linear_1": "label_emb_0_0",
    "down_blocks.0.resnets.0.conv1": "input_blocks_1_0_in_layers_2",
    "down_blocks.0.downsamplers.0.conv": "input_blocks_3_0_op",
    "down_blocks.1.resnets.0.conv_shortcut": "input_blocks_4_0_skip_connection",
    "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q": "input_blocks_4_1_transformer_blocks_0_attn1_to_q",
    "down_blocks.2.attentions.1.transformer_blocks.9.ff.net.2": "input_blocks_8_1_transformer_blocks_9_ff_net_2",
    "mid_block.resnets.1.time_emb_proj": "middle_block_2_emb_layers_1",
    "mid_block.attentions.0.proj_in": "middle_block_1_proj_in",
    "up_blocks.0.upsamplers.0.conv": "output_blocks_2_2_conv",
    "up_blocks.1.attentions.2.transformer_blocks.1.attn2.to_out.0": "output_blocks_5_1_transformer_blocks_1_attn2_to_out_0",
    "up_blocks.2.resnets.2.conv2": "output_blocks_8_0_out_layers_3",
    "conv_out": "out_2",
}


def test_the_twin_of_an_xl_has_the_names_that_sd_scripts_loads() -> None:
    assert {name: original_unet_name(name, 2).replace(".", "_") for name in XL_NAMES} == XL_NAMES
    for unknown in (
        "class_embedding",
        "down_blocks.0.motion_modules.0.proj_in",
        "down_blocks.0.resnets.0.conv3",
        "encoder_hid_proj",
    ):
        with pytest.raises(InputError, match=f"has no {unknown}"):
            original_unet_name(unknown, 2)


def xl(**changes: Any) -> Any:
    """A tiny XL whose UNet is built otherwise."""
    pipeline = tiny_pipeline("sdxl")
    config = {key: value for key, value in pipeline.unet.config.items() if not key.startswith("_")}
    pipeline.unet = UNet2DConditionModel(**{**config, **changes}).eval()
    return pipeline


def twin_names(pipeline: Any, folder: Path) -> set[str]:
    """Layers of the A1111 file, by the names of the original network."""
    patch = dataclasses.replace(random_patch(pipeline.unet, only="conv"), metadata={
        "family": "sdxl", **_unusual_blocks(adapt_text_pipeline(pipeline, ["a cat"])),
    })  # fmt: skip
    save_lora(patch, folder)
    if not (folder / KOHYA_LORA).exists():
        return set()
    return {name.removeprefix("lora_unet_").split(".")[0] for name in load_file(folder / KOHYA_LORA)}


def test_the_twin_of_an_odd_xl_names_layers_that_its_original_has(tmp_path: Path) -> None:
    layers = tiny_pipeline("sdxl").unet.config.layers_per_block
    listed, usual = xl(layers_per_block=[layers] * 2), xl()
    assert twin_names(listed, tmp_path / "list") == twin_names(usual, tmp_path / "number")
    plain = xl(
        block_out_channels=(8, 8, 16), down_block_types=("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"), attention_head_dim=(2, 2, 2),
        transformer_layers_per_block=(1, 1, 2), layers_per_block=1,
    )  # fmt: skip
    original = {name.removeprefix("model.diffusion_model.").rpartition(".")[0] for name in original_tensors(plain, "sdxl")}
    assert twin_names(plain, tmp_path / "plain") <= {name.replace(".", "_") for name in original}
    uneven = xl(layers_per_block=[layers, layers + 1])
    assert not twin_names(uneven, tmp_path / "uneven")  # no original network has such blocks
    with pytest.raises(InputError, match="equally many layers"):
        original_tensors(uneven, "sdxl")


def test_the_kohya_twin_has_one_alpha_and_names_its_family(tmp_path: Path) -> None:
    pipeline = tiny_pipeline()
    patch = erased(pipeline).scale(0.5)
    save_lora(patch, tmp_path, family="sd2")
    with safe_open(tmp_path / KOHYA_LORA, "pt") as file:
        assert file.metadata()["ss_v2"] == "True"  # A1111 files it under SD 1 without
    assert patch.metadata["family"] == "sd1"
    save_lora(ErasurePatch(patch.layers, patch.fingerprint, {**patch.metadata, "family": "sdxl"}, patch.strength), tmp_path)
    weights = load_file(tmp_path / KOHYA_LORA)
    with safe_open(tmp_path / KOHYA_LORA, "pt") as file:
        assert file.metadata()["ss_base_model_version"].startswith("sdxl")
        assert json.loads(file.metadata()["semu"])["strength"] == 0.5
    with pytest.raises(InputError, match="is a LoRA of a patch"):
        ErasurePatch.load(tmp_path / KOHYA_LORA)
    alphas = {float(value) for name, value in weights.items() if name.endswith(".alpha")}
    assert alphas == {1.0}
    for name in patch.layers:
        key = "lora_unet_" + original_unet_name(name, 2).replace(".", "_")
        down, up = weights[f"{key}.lora_down.weight"], weights[f"{key}.lora_up.weight"]
        delta = (up.flatten(1) @ down.flatten(1)) / len(down)
        assert torch.allclose(delta.reshape(patch.delta(name).shape), patch.delta(name), atol=1e-6)
