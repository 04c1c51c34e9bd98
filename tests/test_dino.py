"""Promises of DINOv2 drift: PEFT's definition, measured when asked for alone, and refused in one line where it cannot be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from saved_models import QUICK, saved_model

from semu_diffusion.errors import InputError
from semu_diffusion.eval.images import to_pil
from semu_diffusion.eval.metrics.dino import load_dino
from semu_diffusion.eval.results import Evaluation


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random DINOv2 as transformers saves one, with the image processor of the published ones at a smaller size."""
    from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

    place = tmp_path_factory.mktemp("dino")
    config = Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=14, patch_size=7, mlp_ratio=1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        Dinov2Model(config).save_pretrained(place)
    BitImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 14, "width": 14}).save_pretrained(place)
    return place


def test_drift_is_one_minus_the_cosine_of_the_class_tokens_of_the_pictures(folder: Path) -> None:
    from transformers import AutoImageProcessor, AutoModel

    drift = load_dino(str(folder))
    before, after = (torch.rand(3, 3, 20, 20, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    processor, model = AutoImageProcessor.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    tokens = []
    for images in (before, after):
        pixels = processor(images=[to_pil(image) for image in images], return_tensors="pt")
        with torch.no_grad():
            tokens.append(torch.nn.functional.normalize(model(**pixels).last_hidden_state[:, 0], dim=-1))
    found = drift(before, after)
    assert found.tolist() == pytest.approx((1 - (tokens[0] * tokens[1]).sum(-1)).tolist(), abs=1e-5)
    assert found.min() > 1e-4
    assert found.shape == (3,)
    assert drift(before, before).tolist() == pytest.approx([0, 0, 0], abs=1e-6)
    assert torch.equal(drift(before[2:], after[2:]), found[2:])  # whatever the batch
    assert (drift.network.dim, drift.network.name) == (16, folder.name)
    grey = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    assert drift(grey, grey.flip(-1)).min() > 0
    with pytest.raises(InputError, match="pairs of images"):
        drift(before, before[:2])


def test_a_run_measures_it_when_asked_for_and_not_otherwise(folder: Path, tmp_path: Path) -> None:
    from semu_diffusion.pipelines.cli.commands.erase_class import main

    model = saved_model(tmp_path / "model")
    found = {}
    for name, asked in (("with", ["--dino", str(folder)]), ("without", [])):
        flags = ["red", "--model", model, "--method", "closed-form", *QUICK, "--classifier", "none", *asked]
        assert main([*flags, "--output", str(tmp_path / name)]) == 0
        found[name] = Evaluation.from_json(json.loads((tmp_path / name / "metrics.json").read_text()))
    effect = found["with"].side_effects
    assert effect is not None
    assert 0 <= effect.paired["dino"] <= 2
    assert all("dino" in numbers for numbers in effect.per_condition.values())
    assert found["with"].protocol.metrics["dino"].sha256 == load_dino(str(folder)).network.sha256
    assert "DINOv2 drift" in (tmp_path / "with" / "README.md").read_text()
    assert f"DINO of pairs is measured by {folder.name}" in (tmp_path / "with" / "report.html").read_text()
    other = found["without"].side_effects
    assert other is not None
    assert "dino" not in other.paired
    assert not found["without"].protocol.metrics


def test_what_is_no_dinov2_is_refused_in_one_line_before_any_work(folder: Path, tmp_path: Path) -> None:
    from transformers import ViTConfig, ViTModel

    ViTModel(ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)).save_pretrained(
        tmp_path / "vit"
    )
    (tmp_path / "empty").mkdir()
    (tmp_path / "half").mkdir()
    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / "half" / name).write_bytes((folder / name).read_bytes())
    for name, said in (
        ("vit", "model_type is vit"),
        ("empty", "no DINOv2"),
        ("half", "no DINOv2"),
        ("nowhere", "no such folder"),
    ):
        with pytest.raises(InputError, match=said) as caught:
            load_dino(str(tmp_path / name))
        assert "\n" not in str(caught.value)
