"""`semu export --single-file`: diffusers reads the file back as the model with the patch in it, tensor by tensor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderTiny, DDIMScheduler, EulerDiscreteScheduler, StableDiffusionXLPipeline
from patches import random_patch
from safetensors.torch import load_file
from text_models import tiny_pipeline

from semu_diffusion.errors import InputError
from semu_diffusion.models.checkpoints import load_text_pipeline
from semu_diffusion.models.families import FAMILIES
from semu_diffusion.patch import ErasurePatch
from semu_diffusion.pipelines.cli.main import main as semu
from semu_diffusion.pipelines.patches import export
from semu_diffusion.pipelines.patches.single_file import original_tensors

Capture = pytest.CaptureFixture[str]


def parts(pipeline: Any) -> dict[str, torch.Tensor]:
    """Every number of the pipeline's networks."""
    networks = {name: module for name, module in pipeline.components.items() if isinstance(module, torch.nn.Module)}
    return {f"{name}.{key}": value for name, module in networks.items() for key, value in module.state_dict().items()}


@pytest.mark.parametrize(("shape", "family"), [("sd15", "sd1"), ("sd21", "sd2"), ("sdxl", "sdxl")])
def test_diffusers_reads_the_single_file_as_the_merged_model(
    shape: str, family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "family_of", lambda _: FAMILIES[family])  # which tells SD 2 by a width that no tiny model has
    pipeline = tiny_pipeline(shape)
    pipeline.save_pretrained(tmp_path / "model")
    patch = random_patch(pipeline.unet, rank=1)
    saved = ErasurePatch(patch.layers, patch.fingerprint, {"concept": ["cat"]}).save(tmp_path / "patch.safetensors")
    file = tmp_path / "one.safetensors"
    assert semu(["export", str(saved), "--model", str(tmp_path / "model"), "--single-file", str(file)]) == 0
    patch.apply(pipeline.unet)
    wanted = parts(pipeline)
    again = type(pipeline).from_single_file(str(file), config=str(tmp_path / "model"), local_files_only=True)
    found = parts(again)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(value, found[name]) for name, value in wanted.items())
    stems = {".".join(name.split(".")[:2]) for name in load_file(file)}
    texts = {"sd1": {"cond_stage_model.transformer"}, "sd2": {"cond_stage_model.model"}}
    assert {stem for stem in stems if stem.startswith("cond")} == texts.get(family, {"conditioner.embedders"})


def test_what_has_no_single_file_form_is_one_line_and_leaves_nothing(tmp_path: Path, capsys: Capture) -> None:
    pipeline = tiny_pipeline()
    patch = random_patch(pipeline.unet, rank=1)
    saved = str(ErasurePatch(patch.layers, patch.fingerprint, {"forget": ["cat"]}).save(tmp_path / "patch.safetensors"))
    for name, said in (
        ("one.ckpt", "must end in .safetensors"),
        ("patch.safetensors", "exists already"),
        ("one.safetensors", "is a layout of"),
    ):
        assert semu(["export", saved, "--single-file", str(tmp_path / name)]) == 2
        assert said in capsys.readouterr().err
    pipeline.vae = AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    )
    with pytest.raises(InputError, match="AutoencoderTiny"):
        original_tensors(pipeline, "sd1")
    clean = tiny_pipeline()
    clean.scheduler = DDIMScheduler.from_config(clean.scheduler.config, prediction_type="sample")
    with pytest.raises(InputError, match="this model predicts 'sample'"):
        original_tensors(clean, "sd1")
    assert [path.name for path in tmp_path.iterdir()] == ["patch.safetensors"]


@pytest.mark.parametrize(("predicts", "ends", "keys"), [
    ("epsilon", False, set()), ("v_prediction", False, {"v_pred"}), ("v_prediction", True, {"v_pred", "ztsnr"}),
])  # fmt: skip
def test_a_single_file_says_what_its_network_predicts_and_is_read_so(
    predicts: str, ends: bool, keys: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = tiny_pipeline("sdxl")
    noise = {"prediction_type": predicts, "rescale_betas_zero_snr": ends}
    pipeline.scheduler = EulerDiscreteScheduler.from_config(pipeline.scheduler.config, **noise)
    pipeline.save_pretrained(tmp_path / "model")
    patch = random_patch(pipeline.unet, rank=1)
    patch = ErasurePatch(patch.layers, patch.fingerprint, {"concept": ["cat"], "family": "sdxl"})
    saved, file = patch.save(tmp_path / "patch.safetensors"), tmp_path / "one.safetensors"
    assert semu(["export", str(saved), "--model", str(tmp_path / "model"), "--single-file", str(file)]) == 0
    assert {name for name in load_file(file) if "." not in name} == keys
    # diffusers takes every XL for one that predicts noise, as its config on the Hub does
    tiny_pipeline("sdxl").save_pretrained(tmp_path / "hub")
    read = StableDiffusionXLPipeline.from_single_file

    def as_on_the_hub(source: str, **settings: Any) -> Any:
        return read(source, config=str(tmp_path / "hub"), local_files_only=True, **settings)

    monkeypatch.setattr(StableDiffusionXLPipeline, "from_single_file", as_on_the_hub)
    config = load_text_pipeline(str(file)).scheduler.config
    assert (config.prediction_type, config.get("rescale_betas_zero_snr", False)) == (predicts, ends)
    if not ends:  # what a user says goes before what the file says
        assert load_text_pipeline(str(file), prediction="epsilon").scheduler.config.prediction_type == "epsilon"
