"""Every command and every line of Python that the README shows runs to its end, on tiny models and data of the same names."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from saved_models import QUICK, saved_judge, saved_model
from test_readme import README, command_lines, fences
from text_models import WORDS, tiny_pipeline

from semu_diffusion import assets
from semu_diffusion.eval.judges import networks
from semu_diffusion.eval.probes.class_vector import ClassVectorProbe
from semu_diffusion.eval.probes.pseudo_word import PseudoWordProbe
from semu_diffusion.eval.probes.revival import Learning
from semu_diffusion.peers import methods
from semu_diffusion.pipelines.cli.commands import erase_class, erase_concept
from semu_diffusion.pipelines.cli.main import main as semu
from semu_diffusion.pipelines.train.captions import cifar_vocabulary
from semu_diffusion.pipelines.train.picture_styles import STYLES

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SCORED = ("--images-per-class", "2", "--sampling-steps", "2")
CONCEPT = (
    "--steps", "2", "--forget-samples", "4", "--kept-samples", "4", "--images-per-prompt", "1",
    "--sampling-steps", "2",
)  # fmt: skip
SMALL = {
    "ddpm": ("--channels", "8,16", "--attention-levels", "1", "--head-dim", "8", "--norm-groups", "4", "--batch-size", "4"),
    "classifier": ("--widths", "4,8,8", "--batch-size", "4"),
    "autoencoder": ("--channels", "8,16", "--norm-groups", "4", "--batch-size", "4"),
    "text-to-image": (
        "--channels", "16", "--plain-levels", "0", "--head-dim", "8", "--norm-groups", "4", "--text-width", "32",
        "--batch-size", "4",
    ),
}  # fmt: skip


MAINS = {"erase-class": erase_class.main, "erase-concept": erase_concept.main, "semu": semu}


def pictures(folder: Path, count: int) -> None:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for index in range(count):
        Image.fromarray(rng.integers(0, 256, (8, 8, 3)).astype(np.uint8)).save(folder / f"{index}.png")


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with everything the README names, tiny, and tiny embedded models; Hub ids are folders here."""
    saved_model(tmp_path / "my-ddpm")
    saved_judge(tmp_path / "my-judge")
    saved_model(tmp_path / "google" / "ddpm-cifar10-32", names=(), num_class_embeds=None)
    pictures(tmp_path / "photos", 6)
    pictures(tmp_path / "cats", 6)
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            pictures(tmp_path / "uoft-cs" / "cifar10" / split / name, 4)
    embedded = tmp_path / "embedded"
    saved_model(embedded / "ddpm-cifar10", names=CIFAR10, num_class_embeds=11)
    saved_judge(embedded / "cifar10-classifier", names=CIFAR10)
    saved_judge(embedded / "style-classifier", names=tuple(STYLES))
    for folder in (embedded / "tiny-sd", tmp_path / "my-stable-diffusion"):
        tiny_pipeline().save_pretrained(folder)
    cifar_vocabulary(WORDS).save(embedded / "tiny-sd")
    monkeypatch.setattr(assets, "folder", lambda name: embedded / name)
    monkeypatch.setattr(networks, "embedded", lambda name: embedded / name)
    for probe in (ClassVectorProbe, PseudoWordProbe):
        monkeypatch.setattr(probe, "default", Learning(steps=2, batch_size=2, restarts=2, screened=1))
    short = {"steps": 2, "forget_samples": 4, "kept_samples": 6}
    for name, method in methods.METHODS.items():
        quick = dataclasses.replace(method, overrides={**short, **method.overrides}, expected=())
        monkeypatch.setitem(methods.METHODS, name, quick)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def shortened(program: str, arguments: Sequence[str]) -> list[str]:
    """The command as shown, with a few flags behind it that make it fast."""
    if program == "erase-class":
        replayed = "--config" in arguments  # it has them from the run that it replays
        return [*arguments, *(() if replayed else QUICK)]
    if program == "erase-concept":
        return [*arguments, *CONCEPT]
    if arguments[0] == "train":
        return [*arguments, "--steps", "2", *SMALL[arguments[1]]]
    if arguments[0] == "assess":
        return [*arguments, "--samples-per-class", "2", "--sampling-steps", "2"]
    if arguments[0] == "grid":
        return [*arguments, *SCORED[2:]]
    few = ("--probe-samples", "2", "--unconditional-samples", "2")
    return [*arguments, *((*SCORED, *few) if arguments[0] in ("evaluate", "benchmark") else ())]


def test_the_commands_of_the_readme_run_one_after_the_other(checkout: Path) -> None:
    ours = [line for line in command_lines(README.read_text()) if line[0] in MAINS]
    assert len(ours) >= 12
    for program, *arguments in ours:
        assert MAINS[program](shortened(program, arguments)) == 0, shlex.join([program, *arguments])
    again = ("--config", "runs/cat/run.json", "--output", "runs/cat-again")
    assert erase_class.main(again) == 0
    first, again = (checkout / "runs" / name / "patch.safetensors" for name in ("cat", "cat-again"))
    assert first.read_bytes() == again.read_bytes()
    made = ("runs/no-red/metrics.json", "ddpm-without-cat/model_index.json", "grid.png", "runs/small.md", "lora")
    for name in (*made, "runs/no-pets/lora", "runs/tiny-sd-assessed/nearest.png", "without-cat/unet", "compared.html"):
        assert (checkout / name).stat().st_size > 0
    assert list((checkout / "train-runs" / "ddpm" / "model").rglob("*.safetensors"))


def test_the_python_of_the_readme_runs(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a model with the example's classes; what is shown to be removed is removed, to the last byte."""
    import semu_diffusion

    saved_model(checkout / "my-ddpm", names=("cat", "dog", "bird"))
    real = semu_diffusion.erase_class
    short: dict[str, Any] = {"steps": 2, "forget_samples": 4, "kept_samples": 6}
    monkeypatch.setattr(semu_diffusion, "erase_class", lambda *given: real(*given, **short))
    example, concepts = fences(README.read_text(), "python")
    names: dict[str, Any] = {}
    lines = example.splitlines()
    removal = next(i for i, line in enumerate(lines) if line.startswith("patch.remove"))
    exec("\n".join(lines[:1]) + "\npipe = semu.ClassConditionalPipeline.from_pretrained('my-ddpm')", names)
    before = {name: value.clone() for name, value in names["pipe"].unet.state_dict().items()}
    exec("\n".join(lines[: removal + 1]), names)
    after = names["pipe"].unet.state_dict()
    assert len(names["images"]) == 2
    assert all(value.equal(after[name]) for name, value in before.items())
    exec("\n".join(lines[removal + 1 :]), names)
    assert not all(value.equal(names["pipe"].unet.state_dict()[name]) for name, value in before.items())
    assert (checkout / "no-cat.safetensors").is_file()
    real_concept = semu_diffusion.erase_concept
    monkeypatch.setattr(semu_diffusion, "erase_concept", lambda *given, **named: real_concept(*given, **{**named, **short}))
    exec(concepts, names)
    assert len(list((checkout / "lora").iterdir())) == 2
    assert names["pipe"].get_list_adapters() == {"unet": ["semu_cat"]}


def test_a_run_folder_holds_only_what_its_page_lists(checkout: Path) -> None:
    """The table of the page against the folder of a run."""
    page = README.with_name("docs") / "run-folder.md"
    listed = {word.strip("`") for line in page.read_text().splitlines() if line.startswith("| `") for word in line.split()[1:2]}
    assert erase_class.main(["cat", "--save-images", *QUICK]) == 0
    (run,) = (checkout / "runs").iterdir()
    found = {path.name + ("/" if path.is_dir() else "") for path in run.iterdir()}
    assert found <= listed
    assert json.loads((run / "run.json").read_text())["status"] == "complete"
