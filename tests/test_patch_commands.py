"""`semu info | merge | grid | evaluate` on the run folder of a tiny erasure."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from saved_models import QUICK, saved_judge, saved_judges, saved_model

from semu_diffusion.eval.probes.class_vector import ClassVectorProbe
from semu_diffusion.eval.results import Evaluation
from semu_diffusion.eval.scorer import Scorer
from semu_diffusion.models.checkpoints import load_class_conditional
from semu_diffusion.models.pipeline import ClassConditionalPipeline
from semu_diffusion.patch import ErasurePatch
from semu_diffusion.pipelines.cli.commands.erase_class import main as erase_class
from semu_diffusion.pipelines.cli.main import main as semu

FEW = ("--images-per-class", "2", "--sampling-steps", "2")
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved_model(tmp_path_factory.mktemp("models") / "model")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, model_folder: str) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "red"
    given = ["--model", model_folder, "--classifier", "none", *QUICK, "--lr", "0.3", "--save-images"]
    assert erase_class([*given, "--forget", "red", "--output", str(folder)]) == 0
    return folder


def refused(capsys: Capture, said: str, code: int) -> None:
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    assert said in err
    assert err.startswith("semu ")
    assert err.count("\n") == 1


def metrics_of(folder: Path) -> Evaluation:
    return Evaluation.from_json(json.loads((folder / "metrics.json").read_text()))


def samples(model: Any) -> torch.Tensor:
    return torch.cat(list(model.sample([0, 1, 2, 3], range(4), steps=2)))


def test_info_says_what_a_patch_holds(finished: Path, capsys: Capture) -> None:
    assert semu(["info", str(finished), "--layers"]) == 0
    out = capsys.readouterr().out
    patch = ErasurePatch.load(finished / "patch.safetensors")
    assert "forget: red" in out
    assert f"trained parameters: {patch.trained_parameters:,}" in out
    assert patch.fingerprint.structure in out
    lines = {line.split()[0]: line for line in out.splitlines() if "|dW|" in line}
    assert set(lines) == set(patch.layers)
    for name, line in lines.items():
        assert float(line.split()[-1]) == pytest.approx(float(patch.delta(name).norm()), abs=1e-4)


def test_what_a_foreign_patch_says_of_itself_stays_on_its_line(tmp_path: Path, finished: Path, capsys: Capture) -> None:
    patch = ErasurePatch.load(finished / "patch.safetensors")
    told = {"note": "x\x1b[2J\n  trained parameters: 1", "k\ney": ["a", "b\x07"]}
    dataclasses.replace(patch, metadata=told).save(tmp_path / "foreign.safetensors")
    assert semu(["info", str(tmp_path / "foreign.safetensors")]) == 0
    out = capsys.readouterr().out
    assert "  note: x?[2J trained parameters: 1\n  k ey: a, b?\n" in out
    assert all(line.isprintable() for line in out.splitlines())


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_a_merged_model_is_the_patched_one(tmp_path: Path, finished: Path, model_folder: str, strength: float) -> None:
    target = tmp_path / "below" / "merged"
    patch_file = str(finished / "patch.safetensors")
    assert semu(["merge", patch_file, "--output", str(target), "--strength", str(strength)]) == 0
    model = load_class_conditional(model_folder)
    plain = samples(model)
    ErasurePatch.load(patch_file).scale(strength).apply(model.denoiser)
    merged = load_class_conditional(target)
    assert (merged.names, merged.null) == (model.names, model.null)
    weights = model.denoiser.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in merged.denoiser.state_dict().items())
    assert torch.equal(samples(merged), samples(model))
    assert not torch.equal(samples(merged), plain)
    assert ClassConditionalPipeline.from_pretrained(target).labels["red"] == 0
    assert [path.name for path in target.parent.iterdir()] == ["merged"]
    assert not any(model_folder in config.read_text() for config in target.rglob("*.json"))  # a path tells of a machine


def test_applied_patches_leave_the_classes_their_names(tmp_path: Path) -> None:
    model = saved_model(tmp_path / "model", names=())  # four embeddings and no names: they come from the command line
    named = ["--model", model, "--class-names", "red,green,blue", "--classifier", "none", *QUICK]
    for name in ("red", "green"):
        assert erase_class([*named, "--forget", name, "--output", str(tmp_path / name)]) == 0
    runs = [str(tmp_path / name) for name in ("red", "green")]
    assert semu(["apply", *runs, "--model", model, "--output", str(tmp_path / "both")]) == 0
    both = load_class_conditional(tmp_path / "both")
    assert (both.names, both.null) == (("red", "green", "blue"), 3)


def test_merge_needs_a_new_folder_and_the_right_model(
    tmp_path: Path, finished: Path, model_folder: str, capsys: Capture
) -> None:
    refused(capsys, "say where the merged model goes with --output", semu(["merge", str(finished)]))
    refused(capsys, "exists already", semu(["merge", str(finished), "--output", str(tmp_path)]))
    merged = str(tmp_path / "merged")
    assert semu(["merge", str(finished), "--output", merged]) == 0
    capsys.readouterr()
    others = {
        "already merged, or trained further": merged,
        "weights of": saved_model(tmp_path / "other", seed=1),
        "this patch was made for another model": saved_model(tmp_path / "wide", block_out_channels=(8, 24)),
    }
    for said, other in others.items():
        for command in (["merge", "--output", str(tmp_path / "no")], ["grid", "--output", str(tmp_path / "no.png")]):
            refused(capsys, said, semu([command[0], str(finished), "--model", other, *command[1:]]))
        rest = ["--output", str(tmp_path / "no"), "--classifier", "none"]
        refused(capsys, said, semu(["evaluate", str(finished), "--model", other, *rest]))
    assert not list(tmp_path.glob("no*"))


def test_files_that_are_no_patch_are_refused(tmp_path: Path, finished: Path, capsys: Capture) -> None:
    whole = (finished / "patch.safetensors").read_bytes()
    cases = {"half": whole[: len(whole) // 2], "empty": b"", "text": b"no patch at all, just text"}
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
        for command in ("info", "grid"):
            refused(capsys, "is not a readable safetensors file", semu([command, str(tmp_path / name)]))
    save_file({"a": torch.zeros(1)}, tmp_path / "other")
    refused(capsys, "not a patch of this program", semu(["info", str(tmp_path / "other")]))
    save_file({"a": torch.zeros(1)}, tmp_path / "damaged", metadata={"semu": '{"format": "semu-patch-1", "layers": {"x": 1}}'})
    refused(capsys, "damaged", semu(["info", str(tmp_path / "damaged")]))
    refused(capsys, "no such patch file", semu(["info", str(tmp_path)]))


def test_a_grid_shows_before_and_after(tmp_path: Path, finished: Path, capsys: Capture) -> None:
    drawn = []
    for strength in ("0", "1"):
        picture = tmp_path / f"{strength}.png"
        flags = ["--images", "2", "--sampling-steps", "2", "--strength", strength, "--output", str(picture)]
        assert semu(["grid", str(finished), *flags]) == 0
        assert capsys.readouterr().out == f"{picture}\n"
        drawn.append(np.array(Image.open(picture)))
    assert drawn[0].shape == drawn[1].shape
    middle = drawn[0].shape[1] // 2
    assert (drawn[0][:, :middle] == drawn[1][:, :middle]).all()  # left: the original both times
    assert (drawn[0] != drawn[1]).any()
    widths = []
    for count in ("8", "9"):  # a run's own picture has eight
        picture = tmp_path / f"{count}.png"
        assert semu(["grid", str(finished), "--images", count, "--sampling-steps", "2", "--output", str(picture)]) == 0
        widths.append(Image.open(picture).width)
    assert widths[1] > widths[0]


def test_a_grid_replaces_only_pictures_of_its_own(tmp_path: Path, finished: Path, capsys: Capture) -> None:
    photo, notes, picture = tmp_path / "photo.png", tmp_path / "notes.txt", tmp_path / "grid.png"
    Image.new("RGB", (4, 4)).save(photo)
    notes.write_text("mine")
    flags = ["--images", "1", "--sampling-steps", "2", "--output"]
    for given in (photo, notes):
        before = given.read_bytes()
        code = semu(["grid", str(finished), *flags, str(given)])
        refused(capsys, f"{given} is there already and is no report", code)
        assert given.read_bytes() == before
    for folder in (str(tmp_path), f"{tmp_path}/new/"):
        refused(capsys, "is a folder: name a file", semu(["grid", str(finished), *flags, folder]))
    assert not (tmp_path / "new").exists()
    for _ in range(2):
        assert semu(["grid", str(finished), *flags, str(picture)]) == 0
    assert semu(["grid", str(finished), *flags, str(finished / "before_after.png")]) == 0  # a run's is one of its own


def test_evaluate_gives_the_numbers_of_the_run_again(tmp_path: Path, finished: Path, capsys: Capture) -> None:
    folder = tmp_path / "again"
    assert semu(["evaluate", str(finished), "--classifier", "none", *FEW, "--json", "--output", str(folder)]) == 0
    found = json.loads(capsys.readouterr().out)
    first = json.loads((finished / "metrics.json").read_text())
    again, first = Evaluation.from_json(found), Evaluation.from_json(first)
    assert again.cost.seconds["train"] is again.cost.erasure is None
    same = {name: getattr(first, name) for name in ("lora", "protection", "cost")}  # are of the erasure
    assert dataclasses.replace(again, **same) == first
    assert json.loads((folder / "run.json").read_text())["status"] == "complete"
    assert (folder / "before_after.png").is_file()


def test_evaluate_takes_another_judge_and_refuses_an_existing_folder(tmp_path: Path, finished: Path, capsys: Capture) -> None:
    judge = saved_judge(tmp_path / "judge")
    arguments = ["evaluate", str(finished), "--classifier", judge, *FEW, "--output", str(tmp_path / "run")]
    assert semu([*arguments, "--strength", "0"]) == 0
    out = capsys.readouterr().out
    assert "sees red (erased)" in out
    found = metrics_of(tmp_path / "run")
    assert found.before == found.after  # at strength 0 nothing is changed
    assert found.side_effects is not None
    assert found.side_effects.paired["mse"] == 0
    assert {distance.after for distance in found.distances.values()} == {0}
    refused(capsys, "already holds a run", semu(arguments))


def test_evaluate_never_replaces_the_run_whose_patch_it_scores(finished: Path, capsys: Capture) -> None:
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    again = ["evaluate", str(finished), "--classifier", "none", *FEW, "--output", str(finished), "--overwrite"]
    refused(capsys, "--overwrite would delete", semu(again))
    assert {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()} == before


def test_revival_says_what_it_learned_from(
    tmp_path: Path, finished: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ClassVectorProbe, "default", dataclasses.replace(ClassVectorProbe.default, steps=2, samples=2))
    (tmp_path / "photos").mkdir()
    Image.fromarray(np.zeros((8, 8, 3), dtype=np.uint8)).save(tmp_path / "photos" / "1.png")
    arguments = ["evaluate", str(finished), "--classifier", saved_judge(tmp_path / "judge"), *FEW, "--revival"]
    photos = str(tmp_path / "photos")
    for name, flags, source, count in (
        ("made", [], "made by the original model", 64),
        ("given", ["--forget-images", photos], photos, 1),
    ):
        assert semu([*arguments, *flags, "--output", str(tmp_path / name)]) == 0
        found = metrics_of(tmp_path / name).after.probes["class-vector"]["red"]
        assert (found.learned_from, found.training_images) == (source, count)


def test_evaluate_says_so_and_fails_where_a_patch_destroys_the_model(tmp_path: Path, finished: Path, capsys: Capture) -> None:
    rest = ["--classifier", "none", *FEW, "--strength", "1e5", "--output", str(tmp_path / "run")]
    assert semu(["evaluate", str(finished), *rest]) == 1
    assert "the patch destroys the model: the kept samples" in capsys.readouterr().err
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"].startswith("collapsed")


def test_an_interrupted_evaluation_says_what_it_keeps(
    tmp_path: Path, finished: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(Scorer, "score", stop)
    folder = tmp_path / "run"
    assert semu(["evaluate", str(finished), "--classifier", "none", *FEW, "--output", str(folder)]) == 130
    assert f"{folder} keeps run.json." in capsys.readouterr().err
    assert json.loads((folder / "run.json").read_text())["status"] == "interrupted"


def test_the_patch_of_an_unconditional_model_can_be_looked_at_again(tmp_path: Path, capsys: Capture) -> None:
    source = saved_model(tmp_path / "model", names=(), num_class_embeds=None)
    (tmp_path / "spots").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "spots" / "1.png")
    given = ["--model", source, "--forget-images", str(tmp_path / "spots"), "--classifier", "none", *QUICK, "--lr", "1e-4"]
    assert erase_class([*given, "--forget", "spots", "--output", str(tmp_path / "run")]) == 0
    assert semu(["grid", str(tmp_path / "run"), "--sampling-steps", "2", "--output", str(tmp_path / "grid.png")]) == 0
    rest = [*FEW, "--classifier", "none", "--output", str(tmp_path / "again")]
    assert semu(["evaluate", str(tmp_path / "run"), *rest]) == 0
    assert "forget: spots" not in capsys.readouterr().err


@pytest.fixture(scope="module")
def concept_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of erase-concept on a model with a vocabulary."""
    from text_models import WORDS, tiny_pipeline

    from semu_diffusion.pipelines.cli.commands.erase_concept import main as erase_concept
    from semu_diffusion.pipelines.train.captions import cifar_vocabulary

    folder = tmp_path_factory.mktemp("concepts")
    tiny_pipeline().save_pretrained(folder / "model")
    dataclasses.replace(cifar_vocabulary(WORDS), judges=saved_judges(folder, WORDS)).save(folder / "model")
    given = ["cat", "--model", str(folder / "model"), "--anchor", "dog", "--steps", "2", "--forget-samples", "4"]
    few = ["--kept-samples", "4", "--images-per-prompt", "1", "--sampling-steps", "2", "--no-revival"]
    assert erase_concept([*given, *few, "--output", str(folder / "cat")]) == 0
    return folder / "cat"


def test_evaluate_gives_the_numbers_of_a_run_of_concepts_again(tmp_path: Path, concept_run: Path, capsys: Capture) -> None:
    few = ["--images-per-prompt", "1", "--sampling-steps", "2", "--no-revival"]
    assert semu(["evaluate", str(concept_run), *few, "--output", str(tmp_path / "again")]) == 0
    assert "sees cat (erased)" in capsys.readouterr().out
    first, again = metrics_of(concept_run), metrics_of(tmp_path / "again")
    same = {name: getattr(first, name) for name in ("lora", "protection", "cost")}
    assert dataclasses.replace(again, **same) == first
    alone = tmp_path / "alone.safetensors"  # without the run's settings beside it
    alone.write_bytes((concept_run / "patch.safetensors").read_bytes())
    model = str(concept_run.parent / "model")
    assert semu(["evaluate", str(alone), "--model", model, *few, "--output", str(tmp_path / "third")]) == 0
    assert metrics_of(tmp_path / "third").after == first.after


def test_a_grid_of_prompts_shows_before_and_after(tmp_path: Path, concept_run: Path, capsys: Capture) -> None:
    picture = tmp_path / "grid.png"
    assert semu(["grid", str(concept_run), "--images", "2", "--sampling-steps", "2", "--output", str(picture)]) == 0
    assert capsys.readouterr().out == f"{picture}\n"
    assert Image.open(picture).width > 300


def test_evaluate_and_grid_refuse_another_text_model(tmp_path: Path, concept_run: Path, capsys: Capture) -> None:
    from text_models import tiny_pipeline

    tiny_pipeline(seed=1).save_pretrained(tmp_path / "other")
    for command in ("evaluate", "grid"):
        flags = ["--model", str(tmp_path / "other"), "--output", str(tmp_path / "no")]
        refused(capsys, "this patch was made for another model", semu([command, str(concept_run), *flags]))
    assert not (tmp_path / "no").exists()
