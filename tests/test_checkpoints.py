"""Promises of loading: folders, files and Hub ids as people have them are loaded, or refused for what they are."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from family_models import built
from safetensors.torch import load_file, save_file
from saved_models import saved_model
from text_models import tiny_pipeline
from tiny_models import tiny_model, tiny_unet

from semu_diffusion import assets
from semu_diffusion.errors import InputError
from semu_diffusion.models.checkpoints import kind_of, load_class_conditional, load_text_pipeline
from semu_diffusion.models.families import FAMILIES, adapt_text_pipeline, family_of_folder

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 4265380512\n"
UNET = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_pipeline().save_pretrained(tmp_path / "sd")
    return tmp_path / "sd"


def edit_json(path: Path, without: tuple[str, ...] = (), **changes: Any) -> None:
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in content.items() if key not in without}))


def refused(source: Any, said: str, load: Callable[..., Any] = load_text_pipeline) -> None:
    with pytest.raises(InputError, match=said) as caught:
        load(str(source))
    assert "\n" not in str(caught.value)


def predicts_as(pipeline: Any, other: Any, close: float = 1e-6) -> None:
    models = [adapt_text_pipeline(one, ["a photo of a cat"]) for one in (pipeline, other)]
    x, t = torch.randn(1, *models[0].latent_shape, generator=torch.Generator().manual_seed(0)), torch.tensor([20])
    with torch.no_grad():
        found, expected = (model.predict(x, t, torch.tensor([0])) for model in models)
    assert torch.allclose(found, expected, atol=close)


# ------------------------------------------------------------------ weights as folders have them


def test_half_precision_files_alone_are_loaded(tmp_path: Path) -> None:
    pipeline = tiny_pipeline().to(torch.float16)
    pipeline.save_pretrained(tmp_path, variant="fp16")
    loaded = load_text_pipeline(str(tmp_path))
    assert loaded.unet.dtype == torch.float32
    predicts_as(loaded, tiny_pipeline(), 0.02)


def test_one_component_may_have_half_precision_files_alone(folder: Path) -> None:
    expected = load_text_pipeline(str(folder))
    shutil.rmtree(folder / "unet")
    tiny_pipeline().unet.half().save_pretrained(folder / "unet", variant="fp16")
    predicts_as(load_text_pipeline(str(folder)), expected, 0.02)


def test_full_weights_are_preferred(folder: Path) -> None:
    expected = load_text_pipeline(str(folder))
    tiny_pipeline(seed=1).unet.half().save_pretrained(folder / "unet", variant="fp16")
    predicts_as(load_text_pipeline(str(folder)), expected)


def test_sharded_weights_are_loaded(tmp_path: Path) -> None:
    pipeline = tiny_pipeline()
    pipeline.save_pretrained(tmp_path / "sd", max_shard_size="20KB")
    assert len(list((tmp_path / "sd" / "unet").glob("*.safetensors"))) > 1
    predicts_as(load_text_pipeline(str(tmp_path / "sd")), pipeline)
    saved_model(tmp_path / "ddpm")
    shutil.rmtree(tmp_path / "ddpm" / "unet")
    tiny_unet().save_pretrained(tmp_path / "ddpm" / "unet", max_shard_size="20KB")
    assert len(list((tmp_path / "ddpm" / "unet").glob("*.safetensors"))) > 1
    found = load_class_conditional(tmp_path / "ddpm").denoiser.state_dict()
    assert all(torch.equal(value, found[name]) for name, value in tiny_unet().state_dict().items())
    next((tmp_path / "ddpm" / "unet").glob("*-00001-*.safetensors")).unlink()
    refused(tmp_path / "ddpm", "cannot be loaded", load_class_conditional)


@pytest.mark.parametrize("part", ["text_encoder", "unet", "vae"])
def test_pickled_weights_are_refused_with_their_component(folder: Path, part: str) -> None:
    for file in (folder / part).glob("*.safetensors"):
        torch.save({}, file.with_suffix(".bin"))
        file.unlink()
    refused(folder, rf"no safetensors weights of the {part}.*\.bin weights are not read")
    for file in (folder / part).glob("*.bin"):
        file.unlink()
    refused(folder, rf"no safetensors weights of the {part} .*\(none\)")
    shutil.rmtree(folder / part)
    refused(folder, rf"no folder {part}/")


def test_a_pointer_or_a_web_page_is_said_to_be_one(folder: Path, tmp_path: Path) -> None:
    for content, said in ((POINTER, "git-lfs pointer"), ("<!DOCTYPE html><html>", "web page"), ("\n<html>", "web page")):
        (folder / "unet" / UNET).write_text(content)
        refused(folder, said)
        saved_model(tmp_path / "ddpm")
        (tmp_path / "ddpm" / "unet" / UNET).write_text(content)
        refused(tmp_path / "ddpm", said, load_class_conditional)
        (tmp_path / "model.safetensors").write_text(content)
        refused(tmp_path / "model.safetensors", said)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight", "a LoRA"),
        ("unet.down_blocks.0.attentions.0.to_q.lora_A.weight", "a LoRA"),
        ("unet.up_blocks.0.attn.processor.to_q_lora.down.weight", "a LoRA"),
        ("lycoris_unet_down_blocks_0.hada_w1_a", "a LoRA"),
        ("control_model.input_blocks.0.0.weight", "a ControlNet"),
        ("emb_params", "a textual inversion"),
        ("model.diffusion_model.input_blocks.0.0.scale_weight", "quantised weights"),
        ("scaled_fp8", "quantised weights"),
        ("double_blocks.0.img_attn.qkv.weight", "a diffusion transformer"),
        ("model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight", "a diffusion transformer"),
        ("down_blocks.0.resnets.0.conv1.weight", "a UNet alone"),
        ("first_stage_model.encoder.down.0.block.0.conv1.weight", "an autoencoder alone"),
        ("mid_block.conv.left", "a patch"),
    ],
)
def test_a_file_that_is_no_model_is_said_to_be_what_it_is(tmp_path: Path, name: str, said: str) -> None:
    save_file({name: torch.zeros(2, 4)}, tmp_path / "file.safetensors")
    refused(tmp_path / "file.safetensors", said)


def test_broken_and_pickled_files_are_one_line(tmp_path: Path) -> None:
    for name, content, said in (("a.safetensors", b"", "no whole safetensors"), ("b.ckpt", b"x", "convert it first")):
        (tmp_path / name).write_bytes(content)
        refused(tmp_path / name, said)


# ------------------------------------------------------------------ folders that are something else


def test_a_folder_of_the_hubs_cache_is_answered_with_its_snapshot(tmp_path: Path) -> None:
    cache = tmp_path / "models--me--ddpm"
    saved_model(cache / "snapshots" / "0123abc")
    for place in (cache, cache / "snapshots"):
        for load in (load_class_conditional, load_text_pipeline):
            refused(place, "Hub's cache.*snapshots/0123abc", load)
    assert load_class_conditional(cache / "snapshots" / "0123abc").names


def other(folder: Path) -> None:
    index = {
        "_class_name": "UnCLIPPipeline",
        "transformer": ["diffusers", "PriorTransformer"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (folder / "transformer").mkdir(parents=True)
    (folder / "model_index.json").write_text(json.dumps(index))


def test_a_folder_of_another_family_is_said_to_be_what_it_is(tmp_path: Path, folder: Path) -> None:
    other(tmp_path / "other")
    refused(tmp_path / "other", "UnCLIPPipeline with a PriorTransformer; erase-class takes", load_class_conditional)
    refused(tmp_path / "other", "UnCLIPPipeline")
    refused(folder, "Stable Diffusion 1 or Stable Diffusion 2 .*; erase-class takes", load_class_conditional)
    saved_model(tmp_path / "ddpm")
    refused(tmp_path / "ddpm", "a class-conditional model: erase-class takes classes out of it")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "no model_index.json")
    refused(tmp_path / "none", "no such folder")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"in_channels": 5, "out_channels": 1}, "takes 5 channels and gives 1"),
        ({"in_channels": 3, "out_channels": 6}, "also predicts the variance"),
        ({"sample_size": 9}, "9x9 does not go through a UNet of 2 resolutions"),
        ({"time_embedding_type": "fourier"}, "score matching"),
    ],
)
def test_a_unet_that_is_no_ddpms_is_refused_truly(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    saved_model(tmp_path)
    shutil.rmtree(tmp_path / "unet")
    tiny_unet(**changes).save_pretrained(tmp_path / "unet")
    refused(tmp_path, said, load_class_conditional)


# ------------------------------------------------------------------ indices and schedules


@pytest.mark.parametrize("checked", [False, True])
def test_a_pipeline_without_a_safety_checker_loads_and_is_saved_whole(folder: Path, tmp_path: Path, checked: bool) -> None:
    edit_json(
        folder / "model_index.json", ("safety_checker", "feature_extractor", "image_encoder"), requires_safety_checker=True
    )
    pipeline = load_text_pipeline(str(folder), checked=checked)
    pipeline.save_pretrained(tmp_path / "again")
    predicts_as(DiffusionPipeline.from_pretrained(tmp_path / "again"), pipeline)


def test_a_safety_checker_that_is_not_used_need_not_be_readable(folder: Path) -> None:
    edit_json(folder / "model_index.json", safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"])
    (folder / "safety_checker").mkdir()
    torch.save({}, folder / "safety_checker" / "pytorch_model.bin")
    assert load_text_pipeline(str(folder)).safety_checker is None
    with pytest.raises(InputError, match="no safetensors weights of the safety_checker"):
        load_text_pipeline(str(folder), checked=True)


@pytest.mark.parametrize("schedule", ["sigmoid", "laplace"])
def test_schedules_that_ddim_lacks_are_sampled_and_saved(tmp_path: Path, schedule: str) -> None:
    saved_model(tmp_path)
    edit_json(tmp_path / "scheduler" / "scheduler_config.json", beta_schedule=schedule)
    model = load_class_conditional(tmp_path)
    (images,) = model.sample([0], [0], steps=3)
    model.pipeline.save_pretrained(tmp_path / "again")
    again = load_class_conditional(tmp_path / "again")
    assert torch.equal(next(iter(again.sample([0], [0], steps=3))), images)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("offset", [0, 1])
def test_as_many_steps_as_timesteps_stay_within_the_schedule(tmp_path: Path, spacing: str, offset: int) -> None:
    saved_model(tmp_path)
    changes = {"num_train_timesteps": 4, "steps_offset": offset, "timestep_spacing": spacing, "_class_name": "DDIMScheduler"}
    edit_json(tmp_path / "scheduler" / "scheduler_config.json", **changes)
    model = load_class_conditional(tmp_path)
    for steps in (1, 2, 4):
        (images,) = model.sample([0], [0], steps=steps)
        assert images.isfinite().all()
        assert 0 <= int(model.scheduler.timesteps.min()) <= int(model.scheduler.timesteps.max()) < 4
        assert len(set(model.scheduler.timesteps.tolist())) == steps
    with pytest.raises(InputError, match="has 4 timesteps"):
        next(iter(model.sample([0], [0], steps=5)))


@pytest.mark.parametrize("name", ["model_index.json", "unet/config.json", "scheduler/scheduler_config.json"])
def test_a_byte_order_mark_before_json_is_read_over(tmp_path: Path, name: str) -> None:
    saved_model(tmp_path)
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + (tmp_path / name).read_bytes())
    if name != "unet/config.json":  # that one diffusers reads
        assert load_class_conditional(tmp_path).names


def test_every_family_says_how_it_is_adapted_and_exported() -> None:
    assert FAMILIES["ddpm"].adapter.adapt(tiny_model().pipeline).names == tiny_model().names
    assert FAMILIES["sdxl"].adapter.adapt(tiny_pipeline("sdxl"), ["a cat"]).family == "sdxl"
    assert FAMILIES["sdxl"].clients == "diffusers, and for ComfyUI and A1111"
    assert family_of_folder({"_class_name": "StableDiffusionXLPipeline"}) == "Stable Diffusion XL (StableDiffusionXLPipeline)"


def test_an_embedded_model_goes_by_its_name_unless_something_here_is_called_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert assets.placed("embedded", "concept") == assets.placed("tiny-sd") == str(assets.folder("tiny-sd"))
    assert assets.placed("owner/name", "class") == "owner/name"
    assert [kind_of(assets.placed(name)) for name in assets.MODELS.values()] == list(assets.MODELS)
    (tmp_path / "tiny-sd").mkdir()
    assert assets.placed("tiny-sd", "concept") == "tiny-sd"


# ------------------------------------------------------------------ folders as people have them


def renamed(file: Path, change: Callable[[str], str]) -> None:
    save_file({change(name): value for name, value in load_file(file).items()}, file, {"format": "pt"})


def old_attention(name: str) -> str:
    """As diffusers called an attention's layers in 2022, and the Hub's SD 1 and google/ddpm do."""
    for new, old in (("to_q.", "query."), ("to_k.", "key."), ("to_v.", "value."), ("to_out.0.", "proj_attn.")):
        name = name.replace(new, old) if ".attentions." in name else name
    return name


def test_names_of_older_libraries_are_read(folder: Path, tmp_path: Path) -> None:
    renamed(folder / "vae" / UNET, old_attention)
    renamed(folder / "text_encoder" / "model.safetensors", lambda name: f"text_model.{name.removeprefix('text_model.')}")
    edit_json(folder / "model_index.json", feature_extractor=["transformers", "CLIPFeatureExtractor"])  # which is gone
    (folder / "feature_extractor").mkdir()
    (folder / "feature_extractor" / "preprocessor_config.json").write_text('{"feature_extractor_type": "CLIPFeatureExtractor"}')
    loaded, expected = load_text_pipeline(str(folder)), tiny_pipeline()
    for part in ("vae", "text_encoder"):
        found = getattr(loaded, part).state_dict()
        assert all(torch.equal(value, found[name]) for name, value in getattr(expected, part).state_dict().items())
    saved_model(tmp_path / "ddpm")
    renamed(tmp_path / "ddpm" / "unet" / UNET, old_attention)
    found = load_class_conditional(tmp_path / "ddpm").denoiser.state_dict()
    assert all(torch.equal(value, found[name]) for name, value in tiny_unet().state_dict().items())


def test_optional_parts_whose_folders_were_deleted_are_done_without(folder: Path) -> None:
    parts = {
        "feature_extractor": ["transformers", "CLIPImageProcessor"],
        "safety_checker": ["stable_diffusion", "SafetyChecker"],
    }
    edit_json(folder / "model_index.json", **parts)
    for checked in (False, True):
        pipeline = load_text_pipeline(str(folder), checked=checked)
        assert pipeline.feature_extractor is None
        assert pipeline.safety_checker is None
    predicts_as(pipeline, tiny_pipeline())


@pytest.mark.parametrize(("changes", "said"), [
    ({"_class_name": "StableDiffusionLongPromptWeightingPipeline"}, "is no pipeline of diffusers"),
    ({"_class_name": ["my_pipeline", "MyPipeline"]}, "is no pipeline of diffusers"),
    ({"unet": ["my_unet", "MyUNet"]}, r"its unet is \['my_unet', 'MyUNet'\], which is no network of diffusers"),
    ({"unet": ["diffusers", "UNetOfTomorrow"]}, "no network of diffusers"),
    ({"unet": ["diffusers", "OnnxRuntimeModel"]}, "no network of diffusers"),
    ({"unet": [None, None]}, "no network of diffusers"),
])  # fmt: skip
def test_a_pipeline_or_network_of_other_code_is_one_line(folder: Path, changes: dict[str, Any], said: str) -> None:
    edit_json(folder / "model_index.json", **changes)
    refused(folder, said)


def test_a_level_too_high_or_too_deep_and_a_run_folder_are_answered_with_what_to_give(folder: Path, tmp_path: Path) -> None:
    saved_model(tmp_path / "ddpm")
    refused(folder / "unet", f"it is a part of a model: give {folder}$")
    shutil.rmtree(tmp_path / "ddpm" / "scheduler")
    refused(tmp_path / "ddpm" / "unet", f"it is a part of a model: give {tmp_path / 'ddpm'}$", load_class_conditional)
    refused(tmp_path, f"there is a model in it: give {tmp_path / 'ddpm'}$", load_class_conditional)
    run = tmp_path / "runs" / "cat"
    run.mkdir(parents=True)
    (run / "patch.safetensors").write_bytes(b"")
    for load in (load_class_conditional, load_text_pipeline):
        refused(run, f"it is a run of this program: semu evaluate {run} scores its patch", load)


def test_a_pipeline_saved_without_its_t5_loads_without_it(tmp_path: Path) -> None:
    pipeline = built("sd3")
    pipeline.text_encoder_3 = pipeline.tokenizer_3 = None
    pipeline.save_pretrained(tmp_path)
    edit_json(tmp_path / "model_index.json", text_encoder_3=[None, None], tokenizer_3=[None, None])
    loaded = load_text_pipeline(str(tmp_path))
    assert loaded.text_encoder_3 is None
    predicts_as(loaded, pipeline)
