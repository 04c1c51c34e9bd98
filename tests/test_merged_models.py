"""A merged model is a diffusers model like the one that came in: its class, its scheduler, its pictures at strength 0."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, DiffusionPipeline, PNDMScheduler, UNet2DModel
from patches import random_patch
from text_models import tiny_pipeline
from tiny_models import NAMES, tiny_unet

from semu_diffusion.models.checkpoints import load_class_conditional
from semu_diffusion.pipelines.cli.main import main as semu


def ddpm_folder(folder: Path, unet: UNet2DModel, **index: Any) -> Path:
    """A folder of diffusers' own DDPMPipeline, with a scheduler that ours would not choose."""
    DDPMPipeline(unet, DDPMScheduler(num_train_timesteps=100, variance_type="fixed_large")).save_pretrained(folder)
    path = folder / "model_index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **index}))
    return folder


def merged(folder: Path, network: Any, strength: float, **metadata: Any) -> Path:
    """The model of ``folder`` with a random patch in it, as `semu merge` writes it."""
    patch = random_patch(network, rank=1)
    target = folder.with_name(f"{folder.name}-{strength:g}")
    saved = type(patch)(patch.layers, patch.fingerprint, metadata).save(target.with_suffix(".safetensors"))
    arguments = ["merge", str(saved), "--model", str(folder), "--strength", str(strength), "--output", str(target)]
    assert semu(arguments) == 0
    return target


def pictures(folder: Path, *words: str) -> Any:
    pipeline = DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    return np.asarray(pipeline(*words, num_inference_steps=3, generator=generator, output_type="np").images)


def parts(folder: Path) -> tuple[Any, Any]:
    """What says how the model is loaded and sampled."""
    files = (folder / "model_index.json", folder / "scheduler" / "scheduler_config.json")
    index, scheduler = (json.loads(path.read_text()) for path in files)
    return index, scheduler


@pytest.mark.parametrize("at_root", [False, True])
def test_a_merged_ddpm_is_loaded_and_sampled_by_plain_diffusers_as_the_original(at_root: bool, tmp_path: Path) -> None:
    unet = tiny_unet(num_class_embeds=None)
    folder = ddpm_folder(tmp_path / "ddpm", unet)
    original, wanted = parts(folder), pictures(folder)
    if at_root:  # as google/ddpm-cifar10-32 lies on the Hub
        for path in [*folder.glob("unet/*"), *folder.glob("scheduler/*")]:
            path.rename(folder / path.name)
        shutil.rmtree(folder / "unet")
        shutil.rmtree(folder / "scheduler")
    result = merged(folder, unet, 0, forget=["cat"], class_names=["cat"])
    assert parts(result) == original
    assert np.array_equal(pictures(result), wanted)
    assert not np.array_equal(pictures(merged(folder, unet, 1, forget=["cat"], class_names=["cat"])), wanted)


def test_a_merged_class_conditional_model_keeps_its_index_and_its_names(tmp_path: Path) -> None:
    unet = tiny_unet()
    named = ddpm_folder(tmp_path / "named", unet, id2label=dict(enumerate((*NAMES, "none"))), _name_or_path="/secret/place")
    result = merged(named, unet, 1, forget=["red"])
    index, scheduler = parts(named)
    assert parts(result) == ({key: value for key, value in index.items() if key != "_name_or_path"}, scheduler)
    nameless = ddpm_folder(tmp_path / "nameless", unet)
    result = merged(nameless, unet, 1, forget=["red"], class_names=NAMES, null_class=3)
    assert parts(result)[0]["_class_name"] == "DDPMPipeline"
    assert parts(result)[1] == parts(nameless)[1]
    for folder in (named, result):
        found = load_class_conditional(folder)
        assert (found.names, found.null) == (NAMES, 3)


def test_a_merged_stable_diffusion_is_loaded_and_sampled_by_plain_diffusers_as_the_original(tmp_path: Path) -> None:
    pipeline = tiny_pipeline()
    pipeline.scheduler = PNDMScheduler.from_config(pipeline.scheduler.config, skip_prk_steps=True, steps_offset=1)
    pipeline.save_pretrained(tmp_path / "sd")
    result = merged(tmp_path / "sd", pipeline.unet, 0, concept=["cat"])
    assert parts(result) == parts(tmp_path / "sd")
    assert np.array_equal(pictures(result, "a cat"), pictures(tmp_path / "sd", "a cat"))
    assert not np.array_equal(
        pictures(merged(tmp_path / "sd", pipeline.unet, 1, concept=["cat"]), "a cat"), pictures(result, "a cat")
    )
