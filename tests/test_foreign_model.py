"""Nothing is tuned to CIFAR-10: the default settings run on a model of another size, grey, with other classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler
from PIL import Image
from saved_models import saved_judge
from tiny_models import tiny_unet

from semu_diffusion.models.checkpoints import load_class_conditional
from semu_diffusion.patch import ErasurePatch
from semu_diffusion.pipelines.cli.commands.erase_class import main, parse
from semu_diffusion.pipelines.cli.main import main as semu

DIGITS = ("zero", "one", "two", "three")


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Grey 8x8, four classes, v-prediction, cosine schedule, T = 50, saved by diffusers' own pipeline, without names."""
    folder = tmp_path_factory.mktemp("digits") / "model"
    unet = tiny_unet(in_channels=1, out_channels=1, num_class_embeds=5, block_out_channels=(12, 24), attention_head_dim=6)
    scheduler = DDPMScheduler(num_train_timesteps=50, beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
    DDPMPipeline(unet, scheduler).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def erased(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with every setting of the erasure at its default; only the proof is short."""
    judge = saved_judge(tmp_path_factory.mktemp("judge"), DIGITS, channels=1)
    folder = tmp_path_factory.mktemp("runs") / "three"
    proof = ["--images-per-class", "3", "--sampling-steps", "3", "--save-images"]
    given = ["--model", str(digits), "--class-names", ",".join(DIGITS), "--classifier", judge, "--output", str(folder)]
    assert main([*given, "--forget", "three", *proof]) == 0
    return folder


def read(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text())


def test_the_default_settings_run_on_a_foreign_model(erased: Path) -> None:
    config, defaults = read(erased, "run.json")["config"], parse(["--forget", "three"])
    for name in ("layers", "explained_variance", "protect", "target", "steps", "lr", "max_rank", "forget_samples"):
        value = getattr(defaults, name)
        assert config[name] == (list(value) if isinstance(value, tuple) else value)
    assert read(erased, "run.json")["status"] == "complete"
    assert len((erased / "metrics.jsonl").read_text().splitlines()) == defaults.steps


def test_its_classes_size_and_channels_are_its_own(erased: Path) -> None:
    metrics = read(erased, "metrics.json")
    assert set(metrics["after"]["per_condition"]) == set(DIGITS)
    assert metrics["after"]["unconditional_share"] is not None
    assert {path.name for path in (erased / "images" / "after").iterdir()} == {*DIGITS, "(no condition)"}
    picture = Image.open(next((erased / "images" / "after" / "three").iterdir()))
    assert (picture.mode, picture.size) == ("L", (8, 8))


def test_the_model_answers_otherwise(erased: Path, digits: Path) -> None:
    model = load_class_conditional(digits, DIGITS)
    patch = ErasurePatch.load(erased / "patch.safetensors")
    x, t = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(5, 45, 5)
    anchor = DIGITS.index(read(erased, "run.json")["anchors"]["three"])
    with torch.no_grad():
        own, other = (model.predict(x, t, torch.full((8,), index)) for index in (3, anchor))
        wanted = other + read(erased, "run.json")["config"]["overshoot"] * (other - own)
        before = (own - wanted).square().mean()
        patch.apply(model.denoiser)
        after = (model.predict(x, t, torch.full((8,), 3)) - wanted).square().mean()
    assert after < before


def test_its_patch_is_a_small_share_of_it_in_layers_of_the_default_kind(erased: Path) -> None:
    patch = read(erased, "metrics.json")["patch"]
    assert 0 < patch["fraction"] < 0.05
    assert 0 < read(erased, "run.json")["protection"]["response_on_kept"] < 1


def test_the_other_commands_know_its_names_from_the_patch(erased: Path, tmp_path: Path) -> None:
    picture = tmp_path / "grid.png"
    assert semu(["grid", str(erased), "--images", "1", "--sampling-steps", "2", "--output", str(picture)]) == 0
    assert Image.open(picture).height > 4 * 96
