"""`erase-class` end to end on tiny models: the run folder, the same again from run.json, and every way it may end early."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import shutil
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from safetensors import SafetensorError
from saved_models import QUICK, saved_judge, saved_model
from tiny_models import NAMES, tiny_model, tiny_unet

import semu_diffusion as semu
from semu_diffusion.erase.loss import ErasureLoss
from semu_diffusion.eval.guards import collapse
from semu_diffusion.eval.probes.class_vector import ClassVectorProbe
from semu_diffusion.eval.results import Evaluation, Scores
from semu_diffusion.eval.scorer import Scorer
from semu_diffusion.models.checkpoints import load_class_conditional
from semu_diffusion.models.pipeline import ClassConditionalPipeline
from semu_diffusion.patch import ErasurePatch
from semu_diffusion.pipelines.cli.commands.erase_class import main
from semu_diffusion.pipelines.report.words import interval_words, shares_words
from semu_diffusion.pipelines.runs import folder as run_folder
from semu_diffusion.pipelines.runs.config import EraseClassConfig
from semu_diffusion.pipelines.runs.domains import load_classes
from semu_diffusion.pipelines.runs.folder import RunFolder
from semu_diffusion.pipelines.runs.scorer import make_scorer

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved_model(tmp_path_factory.mktemp("models") / "model")


@pytest.fixture(scope="module")
def judge_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved_judge(tmp_path_factory.mktemp("models") / "judge")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, model_folder: str) -> Path:
    """The folder of a run without a judge, with every picture kept."""
    folder = tmp_path_factory.mktemp("runs") / "red"
    assert run(model_folder, "--forget", "red", "--save-images", "--output", str(folder)) == 0
    return folder


def run(model: str, *flags: str, judge: str = "none") -> int:
    return main(["--model", model, "--classifier", judge, *QUICK, *flags])


def metrics_of(folder: Path) -> Evaluation:
    return Evaluation.from_json(json.loads((folder / "metrics.json").read_text()))


def status_of(folder: Path) -> str:
    return str(json.loads((folder / "run.json").read_text())["status"])


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def seeds(condition: str) -> list[int]:
    """Those of its first two samples: from its letters alone."""
    first = zlib.crc32(condition.encode()) % 2**30
    return [first, first + 1]


@pytest.fixture
def quick_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ClassVectorProbe, "default", dataclasses.replace(ClassVectorProbe.default, steps=2))


def refused(capsys: Capture, said: str, code: int) -> None:
    out, err = capsys.readouterr()
    assert code == 2
    assert said in err
    assert err.startswith("erase-class: ")
    assert err.count("\n") == 1
    assert out == ""


# ------------------------------------------------------------------ what a run leaves


def test_a_run_folder_holds_what_is_promised(finished: Path) -> None:
    files = {path.name for path in finished.iterdir()}
    names = "run.json patch.safetensors lora metrics.json metrics.jsonl images README.md before_after.png pictures.json"
    assert files == {*names.split(), "report.html"}
    assert {p.name for p in (finished / "lora").iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    steps = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [step["index"] for step in steps] == [1, 2]
    assert all(step["loss"] > 0 and "forget" in step["parts"] for step in steps)
    record = json.loads((finished / "run.json").read_text())
    assert record["status"] == "complete"
    assert record["config"]["forget"] == ["red"]
    assert set(record["anchors"]) == {"red"}
    assert record["anchors"]["red"] in ("green", "blue")
    assert 0 < record["protection"]["gradient_energy_kept"] < 1
    assert torch.__version__.startswith(record["packages"]["torch"])
    assert Image.open(finished / "before_after.png").width > 300


def test_overwrite_knows_all_that_a_run_writes(finished: Path, tmp_path: Path) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    with RunFolder(run, "", overwrite=True) as folder, folder.recorded(about := {}):
        assert {path.name for path in run.iterdir()} == {"run.json", ".lock"}
        about["status"] = "complete"


SCORES = {
    "forget_accuracy", "unlearning_accuracy", "paraphrase_accuracy", "in_domain_accuracy", "cross_domain_accuracy",
    "kept_held_out_accuracy", "binomial_accuracy", "implicit_accuracy", "language_accuracy", "look_alike_accuracy",
    "retain_accuracy", "unconditional_share", "revival", "clip_score", "per_condition", "judged_as",
    "samples", "intervals", "probes",
}  # fmt: skip
PROTOCOL = {
    "seed", "sampler", "steps", "guidance_scale", "images_per_condition", "unconditional_samples", "conditions", "judges",
    "metrics",
    "features",
}  # fmt: skip
PROMISED = {
    "schema_version", "kind", "erased", "protocol", "before", "after", "side_effects", "held_out_effect", "forget_effect",
    "unprompted_effect", "distances", "patch", "lora", "protection", "cost", "collapsed",
}  # fmt: skip


def test_metrics_have_exactly_the_promised_keys_and_only_json_is_printed(
    tmp_path: Path, model_folder: str, judge_folder: str, capsys: Capture, quick_probes: None
) -> None:
    folder = tmp_path / "run"
    assert run(model_folder, "--forget", "RED", "--revival", "--json", "--output", str(folder), judge=judge_folder) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((folder / "metrics.json").read_text())
    assert set(printed) == PROMISED
    assert printed["schema_version"] == 2
    assert set(printed["before"]) == set(printed["after"]) == SCORES
    assert set(printed["protocol"]) == PROTOCOL
    found = metrics_of(folder)
    assert (found.kind, found.erased) == ("class", ("red",))
    for scores in (found.before, found.after):
        assert set(scores.per_condition) == set(NAMES)
        shares = (
            scores.forget_accuracy, scores.unlearning_accuracy, scores.retain_accuracy, scores.unconditional_share,
            scores.revival, *scores.per_condition.values(),
        )  # fmt: skip
        assert all(share is not None and 0 <= share <= 1 for share in shares)
        assert scores.forget_accuracy == scores.per_condition["red"] == scores.judged_as["red"].get("red", 0)
        assert scores.unlearning_accuracy == 1 - scores.per_condition["red"]
        assert scores.retain_accuracy == scores.in_domain_accuracy
        assert sum(scores.judged_as["red"].values()) == pytest.approx(1)
        assert scores.samples == {"forget": 2, "in_domain": 4}
        assert set(scores.probes) == {"class-vector", "completion"}
        assert scores.probes["class-vector"]["red"].steps == 2
        assert scores.paraphrase_accuracy is scores.cross_domain_accuracy is None
    assert found.protocol.judges["object"].sha256 == digests(Path(judge_folder))["model.safetensors"]
    assert set(found.distances) == {"fid", "kid"}
    for distance in found.distances.values():
        assert (distance.before, distance.images, distance.reference_images) == (0, 4, 4)
        assert distance.paired
        assert "same seeds" in distance.reference
        assert distance.extractor.dim == 8
    assert found.fid is not None
    assert found.fid.after >= 0
    assert found.side_effects is not None
    assert set(found.side_effects.per_condition) == {"green", "blue"}
    assert found.patch is not None
    assert found.patch.bytes == (folder / "patch.safetensors").stat().st_size
    assert found.patch.model_parameters == sum(p.numel() for p in tiny_unet().parameters())
    assert set(found.cost.seconds) == {"prepare", "collect", "subspace", "train", "evaluate"}


def test_the_lora_is_checked_as_peft_loads_it(finished: Path) -> None:
    lora = metrics_of(finished).lora
    assert lora is not None
    assert lora.same
    assert lora.relative_difference < 1e-5
    assert lora.share_of_effect == pytest.approx(1, abs=1e-3)
    assert lora.unloaded_equal


def test_without_a_judge_the_accuracies_are_null_and_the_rest_is_measured(finished: Path) -> None:
    found = metrics_of(finished)
    assert found.before == found.after == Scores()
    assert found.protocol.judges == found.distances == {}
    assert found.side_effects is not None
    assert found.side_effects.paired["mse"] > 0
    assert found.side_effects.paired["ssim"] < 1


def test_saved_pictures_are_the_models_samples_at_their_native_size(finished: Path, model_folder: str) -> None:
    classes = {path.name for path in (finished / "images" / "before").iterdir()}
    assert classes == {*NAMES, "(no condition)"} == {path.name for path in (finished / "images" / "after").iterdir()}
    pictures = sorted((finished / "images" / "before" / "green").glob("*.png"))
    assert [p.name for p in pictures] == ["00000.png", "00001.png"]
    model = load_class_conditional(model_folder)
    (samples,) = model.sample([1, 1], seeds("green"), steps=2)
    for picture, sample in zip(pictures, samples, strict=True):
        pixels = np.array(Image.open(picture))
        assert pixels.shape == (8, 8, 3)
        assert np.abs(pixels.transpose(2, 0, 1) - sample.numpy() * 255).max() <= 0.5001


def test_the_summary_shows_the_numbers_and_the_folder(
    tmp_path: Path, model_folder: str, judge_folder: str, capsys: Capture
) -> None:
    assert run(model_folder, "--forget", "red", "--output", str(tmp_path / "run"), judge=judge_folder) == 0
    out, _ = capsys.readouterr()
    after = metrics_of(tmp_path / "run").after

    def said(words: str) -> str:
        return next(line for line in out.splitlines() if line.startswith(words))

    assert after.forget_accuracy is not None
    assert after.in_domain_accuracy is not None
    assert said("sees red (erased)").endswith(interval_words(after.forget_accuracy, 2))  # of 2 samples nearly all may be true
    assert said("right on others of its kind").endswith(interval_words(after.in_domain_accuracy, 2 * (len(NAMES) - 1)))
    assert "features (8-d)]" in said("FID of what is kept")  # whose FID this is
    assert "biased upward" in said("FID of what is kept")
    assert "features (8-d)]" in said("KID of what is kept")
    assert f"asked for red, the judge now sees: {shares_words(after.judged_as['red'])}" in out
    assert "lora/, loaded as users do" in out
    assert str(tmp_path / "run" / "before_after.png") in out
    assert len(out.splitlines()) <= 20


def test_the_patch_is_the_one_that_was_measured(finished: Path, model_folder: str) -> None:
    model = load_class_conditional(model_folder)
    ErasurePatch.load(finished / "patch.safetensors").apply(model.denoiser)
    (samples,) = model.sample([0, 0], seeds("red"), steps=2)
    after = np.stack([np.array(Image.open(p)) for p in sorted((finished / "images" / "after" / "red").glob("*.png"))])
    assert np.abs(after.transpose(0, 3, 1, 2) - samples.numpy() * 255).max() <= 0.5001


def test_an_erasure_leaves_the_model_as_it_was(tmp_path: Path, model_folder: str) -> None:
    before = digests(Path(model_folder))
    weights = {name: tensor.clone() for name, tensor in load_class_conditional(model_folder).denoiser.state_dict().items()}
    pipeline = ClassConditionalPipeline.from_pretrained(model_folder)
    pipeline.set_progress_bar_config(disable=True)
    patch = semu.erase_class(pipeline, "red", steps=2, forget_samples=4, kept_samples=6)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in pipeline.unet.state_dict().items())
    patch.apply(pipeline.unet)
    assert not all(torch.equal(tensor, weights[name]) for name, tensor in pipeline.unet.state_dict().items())
    patch.remove(pipeline.unet)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in pipeline.unet.state_dict().items())
    assert run(model_folder, "--forget", "red", "--output", str(tmp_path / "run")) == 0
    assert digests(Path(model_folder)) == before


# ------------------------------------------------------------------ the same again


def test_a_replayed_config_gives_the_same_patch_and_pictures(tmp_path: Path, finished: Path) -> None:
    again = tmp_path / "again"
    assert main(["--config", str(finished / "run.json"), "--output", str(again)]) == 0
    old, new = digests(finished), digests(again)
    same = [name for name in old if name not in ("run.json", "metrics.json", "metrics.jsonl", "report.html")]
    assert {name: new[name] for name in same} == {name: old[name] for name in same}
    first, second = metrics_of(finished), metrics_of(again)
    assert dataclasses.replace(second, cost=first.cost) == first


def test_patch_and_pictures_do_not_depend_on_the_batch_size_of_the_evaluation(tmp_path: Path, model_folder: str) -> None:
    found = []
    for size in ("16", "64"):
        folder = tmp_path / size
        flags = ("--forget", "red", "--save-images", "--images-per-class", "20", "--eval-batch-size", size)
        assert run(model_folder, *flags, "--output", str(folder)) == 0
        found.append({k: v for k, v in digests(folder).items() if k.startswith("images/") or k == "patch.safetensors"})
    assert len(found[0]) == 1 + 2 * 4 * 20
    assert found[0] == found[1]


def test_another_seed_is_another_patch(tmp_path: Path, finished: Path) -> None:
    assert main(["--config", str(finished / "run.json"), "--seed", "1", "--output", str(tmp_path / "run")]) == 0
    assert digests(tmp_path / "run")["patch.safetensors"] != digests(finished)["patch.safetensors"]


# ------------------------------------------------------------------ models and images of other kinds


def test_several_classes_are_erased_at_once(tmp_path: Path, model_folder: str, judge_folder: str) -> None:
    folder = tmp_path / "run"
    flags = ("--forget", "red", "--forget", "2", "--forget", "red", "--output", str(folder))
    assert run(model_folder, *flags, judge=judge_folder) == 0
    assert json.loads((folder / "run.json").read_text())["anchors"] == {"red": "green", "blue": "green"}
    after = metrics_of(folder).after
    assert after.forget_accuracy == (after.per_condition["red"] + after.per_condition["blue"]) / 2
    assert ErasurePatch.load(folder / "patch.safetensors").metadata["forget"] == ["red", "blue"]


@pytest.mark.parametrize("flags", [("--target", "unconditional"), ("--target", "ascent", "--lr", "1e-4")])
def test_every_class_can_be_erased_where_none_is_needed_to_answer_with(
    tmp_path: Path, model_folder: str, judge_folder: str, flags: tuple[str, ...]
) -> None:
    forget = [part for name in NAMES for part in ("--forget", name)]
    assert run(model_folder, *forget, *flags, "--output", str(tmp_path / "run"), judge=judge_folder) in (0, 1)
    after = metrics_of(tmp_path / "run").after
    assert after.retain_accuracy is None
    assert after.unlearning_accuracy is not None


@pytest.mark.parametrize(
    "flags",
    [
        ("--preset", "official", "--retain", "self", "--steps", "2"),
        ("--unlabelled", "0.3", "--adversarial", "0.3"),
        ("--images-per-class", "1", "--guidance-scale", "1", "--layers", "conv", "--protect", "none"),
    ],
)
def test_other_settings_run_to_the_end(tmp_path: Path, model_folder: str, judge_folder: str, flags: tuple[str, ...]) -> None:
    assert run(model_folder, "--forget", "red", *flags, "--output", str(tmp_path / "run"), judge=judge_folder) in (0, 1)
    assert status_of(tmp_path / "run") != "running"


def pictures(folder: Path, count: int = 3, size: int = 8, mode: str = "RGB") -> str:
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for index in range(count):
        shape = (size, size, 3) if mode == "RGB" else (size, size)
        Image.fromarray(random.integers(0, 256, shape, dtype=np.uint8)).save(folder / f"{index}.png")
    return str(folder)


def test_an_unconditional_model_needs_images_and_runs_with_them(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source = saved_model(tmp_path / "model", names=(), num_class_embeds=None)
    refused(capsys, "give them with --forget-images", run(source, "--forget", "spots"))
    for flags, said in (
        (("--target", "fixed"), "--target fixed needs class labels"),
        (("--anchor", "dots"), "--anchor needs class labels"),
        (("--adversarial", "0.5"), "--adversarial needs class labels"),
    ):
        refused(capsys, said, run(source, "--forget", "spots", *flags, "--forget-images", "nowhere"))
    assert not (tmp_path / "runs").exists()
    images = pictures(tmp_path / "spots")
    assert run(source, "--forget", "spots", "--forget-images", images, "--lr", "1e-4", "--save-images") == 0
    folder = tmp_path / "runs" / "spots"
    found = metrics_of(folder)
    assert found.side_effects is not None
    assert found.side_effects.paired["mse"] > 0
    assert [path.name for path in (folder / "images" / "after").iterdir()] == ["(no condition)"]
    assert ErasurePatch.load(folder / "patch.safetensors").metadata["forget"] == ["spots"]


def test_an_unconditional_model_retains_and_is_compared_with_what_is_not_erased(tmp_path: Path, judge_folder: str) -> None:
    source = saved_model(tmp_path / "model", names=(), num_class_embeds=None)
    for number, name in enumerate(("red", "green", "blue")):
        pictures(tmp_path / "data" / "train" / name, count=3 + number)
    data = str(tmp_path / "data")
    config = EraseClassConfig(
        model=source,
        forget=("red",),
        forget_images=f"{data}/train/red",
        retain=data,
        fid_reference=data,
        classifier=judge_folder,
        images_per_condition=4,
        sampling_steps=2,
    )
    subject = load_classes(config)
    task = subject.task(lambda *_: None, subject.forget_images())
    assert task.retain_set is not None
    assert len(task.retain_set.images) == 4 + 5  # of green and blue
    scorer = make_scorer(subject)
    assert scorer.reference is not None
    assert len(scorer.reference.images) == 4 + 5
    before = scorer.sample(subject.model)
    assert scorer.score(before).unconditional_share is not None
    assert scorer.score(before).forget_accuracy is None  # nothing can be asked of it
    distance = scorer.distances(before, before)["kid"]
    assert (distance.paired, distance.reference_images) == (False, 9)
    assert distance.before == distance.after != 0


def test_given_images_are_the_forget_set(tmp_path: Path, model_folder: str, finished: Path) -> None:
    flags = ("--forget", "red", "--forget-images", pictures(tmp_path / "red"), "--output", str(tmp_path / "run"))
    assert run(model_folder, *flags) == 0
    assert digests(tmp_path / "run")["patch.safetensors"] != digests(finished)["patch.safetensors"]


def test_given_images_of_the_kept_classes_are_the_retain_set(tmp_path: Path, model_folder: str, capsys: Capture) -> None:
    for name in ("red", "green", "other"):
        pictures(tmp_path / "data" / name)
    flags = ("--forget", "red", "--retain", str(tmp_path / "data"))
    assert run(model_folder, *flags, "--output", str(tmp_path / "run")) == 0
    steps = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(step["parts"]["retain"] > 0 for step in steps)
    capsys.readouterr()
    refused(
        capsys, "none of its classes is a kept class", run(model_folder, "--forget", "green", "--forget", "red", *flags[2:])
    )


# ------------------------------------------------------------------ bad input: one line, exit code 2, nothing written


def test_a_task_that_cannot_be_done_leaves_nothing_behind(
    tmp_path: Path, model_folder: str, judge_folder: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "1.png").write_bytes(b"no picture")
    other_judge = saved_judge(tmp_path / "other", names=("green", "blue"))
    for place, names, size in (("partly", ("red", "green"), 8), ("large", ("red", "green", "blue"), 9)):
        for name in names:
            pictures(tmp_path / place / "train" / name, size=size)
    reference = ("--classifier", judge_folder, "--fid-reference")
    cases: list[tuple[tuple[str, ...], str]] = [
        (("--forget", "rad"), "no class 'rad': did you mean red?"),
        (("--forget", "zzz"), "its classes are red, green, blue"),
        (("--forget", "red", "--anchor", "gren"), "did you mean green"),
        (("--forget", "red", "--anchor", "red"), "--anchor red is itself to be erased"),
        (("--forget", "red", "--forget", "green", "--forget", "blue"), "no class is left to relabel to"),
        (("--forget", "red", "--layers", "nothing.*"), "no Linear or Conv2d layer matches nothing.*"),
        (("--forget", "red", "--class-names", "a,b"), "has 3 classes, but 2 class names were given"),
        (("--forget", "red", "--device", "quantum"), "--device quantum is not available here"),
        (("--forget", "red", "--forget-images", "empty"), "empty holds no images"),
        (("--forget", "red", "--forget-images", "broken"), "cannot be read as an image"),
        (("--forget", "red", "--forget-images", "missing/"), "missing"),
        (("--forget", "red", "--forget-images", pictures(tmp_path / "big", size=9)), "9x9 RGB, but the model makes 8x8 RGB"),
        (("--forget", "red", "--forget-images", pictures(tmp_path / "grey", mode="L")), "8x8 grey, but the model makes"),
        (("--forget", "red", "--forget", "blue", "--forget-images", "empty"), "holds the images of one class"),
        (("--forget", "red", "--retain", "empty"), "empty"),
        (("--forget", "red", "--classifier", other_judge), "knows no class like the erased 'red'"),
        (("--forget", "red", "--classifier", "empty"), "empty holds no classifier"),
        (("--forget", "red", "--sampling-steps", "2000"), "2000 sampling steps, but the model has 100 timesteps"),
        (("--forget", "red", *reference, "partly"), "partly has no class blue: FID would compare different things"),
        (("--forget", "red", *reference, "large"), "images (3, 9, 9), the model makes (3, 8, 8)"),
        (("--forget", "red", "--fid-reference", "partly"), "--fid-reference needs features to compare"),
    ]
    for flags, said in cases:
        refused(capsys, said, run(model_folder, *flags))
    refused(capsys, "is not a diffusers model", run("empty", "--forget", "red"))
    refused(capsys, "no such folder", run("./missing", "--forget", "red"))
    assert not (tmp_path / "runs").exists()


def test_an_existing_run_is_refused_and_not_touched(finished: Path, model_folder: str, capsys: Capture) -> None:
    before = digests(finished)
    refused(capsys, "already holds a run", run(model_folder, "--forget", "red", "--output", str(finished)))
    assert digests(finished) == before


def test_a_run_is_replaced_only_when_told_and_other_folders_never(tmp_path: Path, model_folder: str, capsys: Capture) -> None:
    (tmp_path / "run.json").write_text('{"written_by": "semu_diffusion", "status": "running"}')
    (tmp_path / "samples.png").write_text("of an earlier run")
    (tmp_path / "notes.txt").write_text("mine")
    assert run(model_folder, "--forget", "red", "--output", str(tmp_path), "--overwrite") == 0
    assert status_of(tmp_path) == "complete"
    assert not (tmp_path / "samples.png").exists()
    assert (tmp_path / "notes.txt").read_text() == "mine"
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "mine.txt").write_text("keep")
    capsys.readouterr()
    code = run(model_folder, "--forget", "red", "--output", str(photos), "--overwrite")
    refused(capsys, "holds no run of this program, so it is not overwritten", code)
    assert (photos / "mine.txt").read_text() == "keep"
    inside = pictures(tmp_path / "pictures")  # of the run that would be replaced
    refused(
        capsys,
        f"--overwrite would delete {inside}",
        run(model_folder, "--forget", "red", "--forget-images", inside, "--output", str(tmp_path), "--overwrite"),
    )
    assert len(list(Path(inside).iterdir())) > 0


def test_runs_without_output_get_folders_of_their_own(
    tmp_path: Path, model_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert run(model_folder, "--forget", "red", "--forget", "blue") == 0
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"red-blue", "red-blue-2"}


def test_an_output_that_cannot_be_written_is_refused(
    tmp_path: Path, model_folder: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("mine")
    for output in (tmp_path / "file", tmp_path / "file" / "below"):
        refused(capsys, "is a file, not a folder", run(model_folder, "--forget", "red", "--output", str(output)))
    monkeypatch.setattr(run_folder.os, "access", lambda *_: False)
    refused(capsys, "no permission to write in", run(model_folder, "--forget", "red", "--output", str(tmp_path / "new")))
    monkeypatch.undo()

    def deny(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "new"))

    monkeypatch.setattr(Path, "mkdir", deny)
    refused(capsys, "no permission to write", run(model_folder, "--forget", "red", "--output", str(tmp_path / "new")))


# ------------------------------------------------------------------ ends that are not a success


def test_a_full_disk_is_one_line_and_leaves_no_half_file(
    tmp_path: Path, model_folder: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Any, path: Path, **__: Any) -> None:
        Path(path).write_bytes(b"half")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("safetensors.torch.save_file", fail)
    refused(capsys, "no space left on the device", run(model_folder, "--forget", "red", "--output", str(tmp_path / "run")))
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"run.json", "metrics.jsonl"}
    assert status_of(tmp_path / "run") == "failed"


def test_a_full_disk_that_cannot_even_take_the_status_is_still_one_line(
    tmp_path: Path, model_folder: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.replace

    def full(source: Any, target: Any) -> None:
        if Path(target).name == "patch.safetensors" or full.hit:  # type: ignore[attr-defined]
            full.hit = True  # type: ignore[attr-defined]
            raise OSError(errno.ENOSPC, "No space left on device", str(target))
        real(source, target)

    full.hit = False  # type: ignore[attr-defined]
    monkeypatch.setattr(os, "replace", full)
    refused(capsys, "no space left on the device", run(model_folder, "--forget", "red", "--output", str(tmp_path / "run")))


@pytest.mark.parametrize("moment", ["training", "evaluation"])
def test_ctrl_c_keeps_what_was_finished_and_says_so(
    tmp_path: Path, model_folder: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    def stop(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    if moment == "evaluation":
        monkeypatch.setattr(Scorer, "sample", stop)
    else:
        monkeypatch.setattr(ErasureLoss, "draw", stop)
    folder = tmp_path / "run"
    assert run(model_folder, "--forget", "red", "--output", str(folder)) == 130
    out, err = capsys.readouterr()
    assert out == ""
    assert f"erase-class: stopped by Ctrl-C. {folder} keeps" in err
    assert status_of(folder) == "interrupted"
    if moment == "evaluation":
        assert "patch.safetensors" in err
        ErasurePatch.load(folder / "patch.safetensors").apply(load_class_conditional(model_folder).denoiser)
    assert not list(folder.glob(".*"))


@pytest.mark.parametrize("steps", ["1", "3"])
def test_an_erasure_that_diverges_makes_no_patch(tmp_path: Path, model_folder: str, capsys: Capture, steps: str) -> None:
    flags = ("--forget", "red", "--lr", "1e29", "--no-lr-decay", "--steps", steps, "--output", str(tmp_path / "run"))
    assert run(model_folder, *flags) == 1
    assert "lower --lr" in capsys.readouterr().err
    assert status_of(tmp_path / "run").startswith(("failed", "collapsed"))
    assert not (tmp_path / "run" / "patch.safetensors").exists()


def test_weights_that_are_not_numbers_are_said_in_one_line(tmp_path: Path, capsys: Capture) -> None:
    source = saved_model(tmp_path / "model")
    file = tmp_path / "model" / "unet" / "diffusion_pytorch_model.safetensors"
    weights = safetensors.torch.load_file(file)
    weights["conv_in.weight"].fill_(float("nan"))
    safetensors.torch.save_file(weights, file, metadata={"format": "pt"})
    code = run(source, "--forget", "red", "--output", str(tmp_path / "run"))
    refused(capsys, "the weights of conv_in.weight are not finite numbers", code)
    assert not (tmp_path / "run").exists()


def test_a_destroyed_model_is_no_success(
    tmp_path: Path, model_folder: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply, remove = ErasurePatch.apply, ErasurePatch.remove

    def blind(self: ErasurePatch, unet: Any) -> None:
        apply(self, unet)
        unet.conv_out.bias.data -= 1e4  # every image becomes white

    def restore(self: ErasurePatch, unet: Any) -> None:
        remove(self, unet)
        unet.conv_out.bias.data += 1e4

    monkeypatch.setattr(ErasurePatch, "apply", blind)
    monkeypatch.setattr(ErasurePatch, "remove", restore)
    folder = tmp_path / "run"
    assert run(model_folder, "--forget", "red", "--output", str(folder)) == 1
    assert "the erasure destroyed the model: the kept samples have lost their contrast" in capsys.readouterr().err
    assert status_of(folder).startswith("collapsed: ")
    names = {path.name for path in folder.iterdir()}
    assert {"patch.collapsed.safetensors", "lora.collapsed", "before_after.png", "metrics.json"} <= names
    assert not {"patch.safetensors", "lora"} & names


def test_collapse_is_lost_contrast_lost_variety_or_a_judge_that_finds_half_wrong() -> None:
    def samples(images: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"red": images, "green": images}

    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (12, 3, 8, 8), generator=generator, dtype=torch.uint8)
    good, none = samples(noise), (Scores(), Scores())
    assert collapse(good, good, ["green"], none) is None
    assert "contrast" in str(collapse(good, samples(noise // 8 + 100), ["green"], none))
    assert "alike" in str(collapse(good, samples(noise[:1].expand(12, -1, -1, -1)), ["green"], none))

    def judged(count: int) -> tuple[Scores, Scores]:
        return tuple(Scores(in_domain_accuracy=a, samples={"in_domain": count}) for a in (0.9, 0.4))  # type: ignore[return-value]

    assert "in-domain accuracy fell from 0.90 to 0.40" in str(collapse(good, good, ["green"], judged(12)))
    assert collapse(samples(noise[:2]), samples(noise[:2]), ["green"], judged(2)) is None  # of two images: chance
    assert "contrast" in str(collapse({"": noise}, {"": noise // 8}, [""], none))


def test_titles_that_a_file_system_takes_for_one_get_folders_of_their_own() -> None:
    titles = ["a cat, oil", "a cat. oil", "A cat; oil", "x" * 90, "x" * 95, "", "(no label)"]
    found = run_folder.folder_names(titles)
    assert list(found) == titles
    assert len({name.lower() for name in found.values()}) == len(titles)
    assert found["a cat, oil"] == "a cat_ oil"
    assert found[""] == "(no condition)"
    assert found["(no label)"] == "(no label)"
    assert all(not set(name) & set('/\\:*?"<>|') for name in found.values())


def test_the_python_face_refuses_what_the_command_line_refuses() -> None:
    pipeline = tiny_model().pipeline
    with pytest.raises(semu.InputError, match="did you mean red"):
        semu.erase_class(pipeline, "reds")
    with pytest.raises(semu.InputError, match="unknown settings: speed"):
        semu.erase_class(pipeline, "red", speed=3)
    with pytest.raises(semu.InputError, match="must lie in"):
        semu.erase_class(pipeline, "red", explained_variance=2.0)
    with pytest.raises(semu.InputError, match="must be a tensor"):
        semu.erase_class(pipeline, "red", forget_images="./nowhere")
    for given, said in (
        ({"forget": ["blue"]}, "what to erase is given twice: red, and as forget"),
        ({"retain": "cifar1O"}, "give self or none"),
        ({"lr_decay": "no"}, "lr_decay cannot be 'no': it is True or False"),
        ({"memory": 2_000}, "memory cannot be 2000: it is text"),
        ({"layers": 5}, "layers cannot be 5: it is a list"),
        ({"layers": [0]}, "layers cannot hold 0: it is a list of text"),
        *(({name: None}, f"{name} cannot be None: leave it out") for name in ("protect", "target", "layers", "gradient")),
        ({"forget_images": torch.zeros(0, 3, 8, 8)}, "at least one image"),
    ):
        with pytest.raises(semu.InputError, match=said):
            semu.erase_class(pipeline, "red", **given)
    for setting, choices in (
        ("protect", "null-space, none"),
        ("preset", "default, official"),
        ("precision", "auto, fp32"),
    ):
        with pytest.raises(semu.InputError, match=f"{setting} cannot be 'nulspace': choose from {choices}"):
            semu.erase_class(pipeline, "red", **{setting: "nulspace"})


def test_a_model_in_train_mode_gets_the_patch_that_it_gets_in_eval_mode() -> None:
    """A model fresh from training: its dropout would make the same seed another patch."""
    pipeline = tiny_model(dropout=0.5).pipeline
    settings = {"steps": 2, "forget_samples": 4, "kept_samples": 6}
    patches = [semu.erase_class(pipeline, "red", **settings)]
    pipeline.unet.train()
    pipeline.unet.mid_block.eval()  # a part that its owner keeps frozen stays as it was too
    modes = [module.training for module in pipeline.unet.modules()]
    patches.append(semu.erase_class(pipeline, "red", **settings))
    assert [module.training for module in pipeline.unet.modules()] == modes
    assert all(torch.equal(patches[0].delta(name), patches[1].delta(name)) for name in patches[0].layers)


def test_the_python_face_makes_the_patch_of_the_command_line(finished: Path, model_folder: str) -> None:
    pipeline = load_class_conditional(model_folder).pipeline
    patch = semu.erase_class(pipeline, "red", steps=2, forget_samples=4, kept_samples=6)
    saved = ErasurePatch.load(finished / "patch.safetensors")
    assert patch.metadata["forget"] == saved.metadata["forget"] == ["red"]
    assert set(patch.layers) == set(saved.layers)
    assert all(torch.equal(patch.delta(name), saved.delta(name)) for name in saved.layers)
