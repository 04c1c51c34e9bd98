"""Every example runs as it stands, on tiny models where it would take long."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from saved_models import saved_judge, saved_model
from text_models import tiny_pipeline

from semu_diffusion.pipelines.cli.main import main as semu

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
QUICK: dict[str, Any] = {"steps": 2, "forget_samples": 4, "kept_samples": 6, "precision": "fp32"}


def example(name: str) -> dict[str, Any]:
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))


@pytest.fixture(autouse=True)
def somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_the_example_by_hand_ends_in_asserts_that_hold(capsys: pytest.CaptureFixture[str]) -> None:
    example("by_hand")
    assert "parameters trained" in capsys.readouterr().out


def test_the_example_of_a_class_draws_and_saves(tmp_path: Path) -> None:
    settings = {name: value for name, value in QUICK.items() if name != "steps"}
    example("erase_class")["main"](saved_model(tmp_path / "model"), "red", 2, **settings, lr=1e-3)
    assert (tmp_path / "no-red.safetensors").is_file()
    assert (tmp_path / "no-red.png").is_file()


def test_the_example_of_a_concept_loads_its_lora(tmp_path: Path) -> None:
    tiny_pipeline().save_pretrained(tmp_path / "sd")
    example("erase_concept")["main"](str(tmp_path / "sd"), "cat", "dog", guidance_scale=3.0, **QUICK)
    assert {path.suffix for path in (tmp_path / "lora").iterdir()} == {".safetensors"}
    assert (tmp_path / "no-cat-concept.png").is_file()


def test_the_example_of_erasing_from_one_thing_keeps_prompts_with_each_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import semu_diffusion

    given, real = [], semu_diffusion.erase_concept
    monkeypatch.setattr(semu_diffusion, "erase_concept", lambda *words, **named: given.append(named) or real(*words, **named))
    tiny_pipeline().save_pretrained(tmp_path / "sd")
    example("erase_from")["main"](str(tmp_path / "sd"), guidance_scale=3.0, **QUICK)
    assert {"a pencil sketch of a dog", "a photo of a cat"} <= set(given[0]["retain_prompts"])
    assert (tmp_path / "erased-from.png").is_file()


def test_the_example_of_methods_prints_a_line_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, judge = saved_model(tmp_path / "model"), saved_judge(tmp_path / "judge")
    example("compare_methods")["main"](
        "red", "closed-form", "copy", model=model, images=2, sampling_steps=2, classifier=judge, revival=False
    )
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[-2:]] == ["closed-form", "copy"]


def test_the_control_of_revival_attacks_a_model_that_knew_and_one_that_did_not(capsys: pytest.CaptureFixture[str]) -> None:
    found = example("never_known")["main"](steps=2, attack_steps=2, samples=4)
    assert set(found) == {"knew it", "by its label", "never knew it"}
    assert "a model that never knew it: revival " in capsys.readouterr().out


def test_a_leco_of_other_code_is_scored_by_semu_evaluate(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    tiny_pipeline().save_pretrained(tmp_path / "sd")
    example("train_leco")["main"]("cat", "leco.safetensors", str(tmp_path / "sd"), steps=2, denoising_steps=3, lr=0.1)
    with safe_open("leco.safetensors", "pt") as file:
        keys = set(file.keys())
    stems = {key.split(".")[0] for key in keys}
    assert keys == {f"{stem}.{part}" for stem in stems for part in ("lora_down.weight", "lora_up.weight", "alpha")}
    assert "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k" in stems
    few = ["--classifier", "none", "--images-per-prompt", "1", "--sampling-steps", "2", "--output", "scored"]
    assert semu(["evaluate", "--lora", "leco.safetensors", "--model", "sd", "--forget", "cat", *few]) == 0
    metrics = json.loads(Path("scored/metrics.json").read_text())
    assert metrics["patch"]["layers"] == len(stems)
    assert metrics["forget_effect"]["paired"]["mse"] > 0


def test_every_example_is_run_here() -> None:
    here = Path(__file__).read_text()
    assert all(f'example("{path.stem}")' in here for path in EXAMPLES.glob("*.py"))
