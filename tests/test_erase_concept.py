"""Promises of the `erase-concept` command: a whole run folder, a LoRA that was checked, one line for what cannot be done."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from saved_models import saved_model
from text_models import FAMILIES, tiny_pipeline

from semu_diffusion.eval.results import Evaluation
from semu_diffusion.eval.scorer import Scorer
from semu_diffusion.patch import ErasurePatch
from semu_diffusion.patches.lora import DIFFUSERS_LORA, KOHYA_LORA
from semu_diffusion.pipelines.cli.commands import erase_concept
from semu_diffusion.pipelines.cli.commands.erase_concept import main
from semu_diffusion.pipelines.runs.folder import RunFolder

Capture = pytest.CaptureFixture[str]
QUICK = [
    "--anchor", "dog", "--steps", "2", "--forget-samples", "4", "--kept-samples", "4", "--lr", "3e-3",
    "--images-per-prompt", "1", "--judged-prompts", "3", "--sampling-steps", "2",
]  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    tiny_pipeline().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def finished(model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("runs") / "cat"
    assert main(["cat", "--model", model, *QUICK, "--save-images", "--output", str(output)]) == 0
    return output


def read(run: Path, name: str) -> Any:
    return json.loads((run / name).read_text())


def test_a_run_folder_holds_patch_lora_picture_and_numbers(finished: Path) -> None:
    names = {path.name for path in finished.iterdir()}
    assert names == {
        "patch.safetensors",
        "lora",
        "README.md",
        "before_after.png",
        "metrics.json",
        "metrics.jsonl",
        "pictures.json",
        "report.html",
        "run.json",
        "images",
    }
    assert {path.name for path in (finished / "lora").iterdir()} == {DIFFUSERS_LORA, KOHYA_LORA}
    run, metrics = read(finished, "run.json"), read(finished, "metrics.json")
    assert run["status"] == "complete"
    assert run["anchors"] == {"cat": "dog"}
    assert ErasurePatch.load(finished / "patch.safetensors").metadata["concept"] == ["cat"]
    found = Evaluation.from_json(metrics)
    assert (found.kind, found.erased) == ("concept", ("cat",))
    assert found.lora is not None
    assert found.lora.relative_difference < 1e-5
    assert found.lora.unloaded_equal is True
    assert found.forget_effect is not None
    assert found.forget_effect.paired["mse"] > 0
    assert found.patch is not None
    assert found.patch.trained_parameters > 0
    assert set(found.cost.seconds) == {"prepare", "collect", "subspace", "train", "evaluate"}
    assert len(found.protocol.conditions["cross_domain"]) == 3
    assert found.protocol.unconditional_samples == 10
    assert Image.open(finished / "before_after.png").width > 300
    shown = {path.name for path in (finished / "images" / "before").iterdir()}
    assert {"a photo of a cat", "(no condition)"} < shown


def test_overwrite_knows_all_that_a_run_writes(finished: Path, tmp_path: Path) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    with RunFolder(run, "", overwrite=True) as folder, folder.recorded(about := {}):
        assert {path.name for path in run.iterdir()} == {"run.json", ".lock"}
        about["status"] = "complete"


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_runs_to_the_end(family: str, tmp_path: Path, capsys: Capture) -> None:
    tiny_pipeline(family).save_pretrained(tmp_path / "model")
    assert main(["cat", "kitten", "--model", str(tmp_path / "model"), *QUICK, "--output", str(tmp_path / "run")]) == 0
    out = capsys.readouterr().out
    assert "cat replaced by 'dog'" in out
    assert "unloading restores every weight" in out
    assert str(tmp_path / "run") in out


def test_a_replayed_config_gives_the_same_patch_and_numbers(finished: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    assert main(["--config", str(finished / "run.json"), "--output", str(again)]) == 0
    assert (again / "patch.safetensors").read_bytes() == (finished / "patch.safetensors").read_bytes()
    first, second = (read(run, "metrics.json") for run in (finished, again))
    assert first["side_effects"] == second["side_effects"]


def test_only_json_is_printed_when_asked(model: str, tmp_path: Path, capsys: Capture) -> None:
    assert main(["cat", "--model", model, *QUICK, "--json", "--output", str(tmp_path / "run")]) == 0
    assert json.loads(capsys.readouterr().out) == read(tmp_path / "run", "metrics.json")


def test_without_peft_the_lora_is_written_and_said_to_be_unchecked(
    model: str, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("semu_diffusion.pipelines.runs.lora_check.find_spec", lambda name: None)
    assert main(["cat", "--model", model, *QUICK, "--output", str(tmp_path / "run")]) == 0
    assert "lora/ was not checked" in capsys.readouterr().out
    assert (tmp_path / "run" / "lora" / DIFFUSERS_LORA).is_file()


def test_ctrl_c_keeps_the_patch_and_says_so(
    model: str, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("semu_diffusion.eval.scorer.Scorer.sample", stop)
    assert main(["cat", "--model", model, *QUICK, "--output", str(tmp_path / "run")]) == 130
    assert "patch.safetensors" in capsys.readouterr().err
    assert read(tmp_path / "run", "run.json")["status"] == "interrupted"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "MODEL"], "nothing to erase"),
        (["cat", "--model", "MODEL", "--classifier", "nowhere"], "no such folder"),
        (["cat", "--model", "nowhere/at/all"], "no such folder"),
        (["cat", "--model", "nowhere/"], "no such folder"),  # a path, not an id: the Hub is not asked
        (["cat", "--model", "EMPTY"], "is no diffusers pipeline"),
        (["cat", "--model", "DDPM"], "erase-class takes classes out of it"),
        (["cat", "--model", "PICKLE"], "pickled checkpoints are not read"),
        (["cat", "--model", "MODEL", "--anchor", "cat"], "is what shall be erased"),
        (["a photo of " * 20, "--model", "MODEL"], "tokens, the text encoder takes 24"),
        (["cat", "--model", "MODEL", "--forget-images", "EMPTY"], "holds no images"),
        (["cat", "--model", "MODEL", "--sampling-steps", "500"], "the model has 100 timesteps: take fewer"),
        (["cat", "--model", "MODEL", "--layers", "nothing*"], "no Linear or Conv2d layer matches"),
        (["cat", "--model", "MODEL", "--device", "abacus"], "--device abacus is not available here"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_leaves_nothing(
    arguments: list[str], said: str, model: str, tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "model.ckpt").write_bytes(b"x")
    places = {"MODEL": model, "EMPTY": str(tmp_path / "empty"), "PICKLE": str(tmp_path / "model.ckpt")}
    if "DDPM" in arguments:
        places["DDPM"] = saved_model(tmp_path / "ddpm")
    given = [places.get(word, word) for word in arguments]
    anchor = [] if "--anchor" in given else ["--anchor", "dog"]
    assert main([*given, *anchor, "--output", str(tmp_path / "run")]) == 2
    err = capsys.readouterr().err
    assert re.search(said, err.splitlines()[-1]), err
    assert not (tmp_path / "run").exists()


def test_a_run_is_not_overwritten_unasked(finished: Path, model: str, capsys: Capture) -> None:
    before = (finished / "run.json").read_bytes()
    assert main(["dog", "--model", model, *QUICK, "--anchor", "bird", "--output", str(finished)]) == 2
    assert "already holds a run" in capsys.readouterr().err
    assert (finished / "run.json").read_bytes() == before
    mine = finished / "keep.txt"
    mine.write_text("a photo of a bird\n")
    flags = ["--anchor", "bird", f"--retain-prompts={mine}", "--output", str(finished), "--overwrite"]
    assert main(["dog", "--model", model, *QUICK, *flags]) == 2
    assert f"--overwrite would delete {mine}" in capsys.readouterr().err
    mine.unlink()


def test_a_destroyed_model_is_no_success(model: str, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = Scorer.sample, []

    def grey_after(*given: Any) -> dict[str, torch.Tensor]:
        calls.append(given)
        found = real(*given)
        return found if len(calls) == 1 else {prompt: torch.full_like(images, 128) for prompt, images in found.items()}

    monkeypatch.setattr(Scorer, "sample", grey_after)
    assert main(["cat", "--model", model, *QUICK, "--output", str(tmp_path / "run")]) == 1
    assert "destroyed the model" in capsys.readouterr().err
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"patch.collapsed.safetensors", "lora.collapsed"} <= names
    assert "patch.safetensors" not in names


def test_help_is_there_without_torch() -> None:
    import subprocess
    import sys

    code = (
        "import sys; from semu_diffusion.pipelines.cli.commands.erase_concept import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\nassert 'torch' not in sys.modules"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert "CONCEPT" in found.stdout


def test_words_may_stand_before_and_after_the_flags() -> None:
    for arguments in (
        ["cat", "dog", "--model", "there"],
        ["--model", "there", "cat", "dog"],
        ["cat", "--model", "there", "dog"],
    ):
        assert erase_concept.parse(arguments).concept == ("cat", "dog")


def test_prompts_come_from_the_command_line_or_a_file_of_lines(tmp_path: Path) -> None:
    (tmp_path / "stay.txt").write_text("a tree\n\n  a photo of a house \n")
    config = erase_concept.parse(["cat", "--retain-prompts", "a bird", "--retain-prompts", str(tmp_path / "stay.txt")])
    assert config.retain_prompts == ("a bird", "a tree", "a photo of a house")
    assert config.prompt_files == (str(tmp_path / "stay.txt"),)


@pytest.mark.parametrize("content", [None, " \n", b"\xff\xfe"])
def test_a_file_of_prompts_that_holds_none_is_one_line(content: Any, tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "stay.txt"
    if content is not None:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    assert main(["cat", "--retain-prompts", str(path), "--output", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "stay.txt" in said
    assert not (tmp_path / "run").exists()
