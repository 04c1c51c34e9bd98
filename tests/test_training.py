"""Promises of the training commands: a loadable folder comes out, and stopping and resuming changes nothing."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from saved_models import saved_judge
from tiny_models import tiny_unet

from semu_diffusion.errors import InputError
from semu_diffusion.eval.judges.image_classifier import ImageClassifier
from semu_diffusion.models.checkpoints import load_class_conditional
from semu_diffusion.pipelines.cli.commands.train import COMMAND as command
from semu_diffusion.pipelines.train import recipe
from semu_diffusion.pipelines.train.classifier import Classifier, ClassifierTraining, augmented
from semu_diffusion.pipelines.train.ddpm import DDPM, DDPMTraining
from semu_diffusion.pipelines.train.step import batch_indices, min_snr_weights, plain_attention, step_generator

TINY: dict[str, Any] = {"channels": (8, 16), "attention_levels": (1,), "head_dim": 8, "norm_groups": 4, "batch_size": 16}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64 pictures of 8x8 in two classes that are easy to tell apart, and 20 for the test."""
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for split, count in (("train", 32), ("test", 10)):
        for name, base in (("dark", 60), ("light", 190)):
            (folder / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(base - 50, base + 50, (8, 8, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{index:02d}.png")
    return folder


def judge_config(data: Path, output: Path, **changes: Any) -> ClassifierTraining:
    return ClassifierTraining(str(data), str(output), steps=30, widths=(4, 8, 8), batch_size=16, lr=0.1, **changes)


def ddpm_config(data: Path, output: Path, **changes: Any) -> DDPMTraining:
    return DDPMTraining(**{"data": str(data), "output": str(output), "steps": 6, **TINY, **changes})


def weights(output: Path) -> dict[str, torch.Tensor]:
    return load_file(next((output / "model").rglob("*.safetensors")))


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def stop_at(step: int, monkeypatch: pytest.MonkeyPatch, number: int = signal.SIGTERM) -> None:
    """Send this process the signal when the batch of ``step`` is drawn."""
    if signal.getsignal(number) == signal.SIG_IGN:  # the tests were started in the background of a shell
        signal.signal(number, signal.default_int_handler)

    def draw(count: int, batch_size: int, seed: int, now: int, device: torch.device) -> torch.Tensor:
        if now == step:
            os.kill(os.getpid(), number)
        return batch_indices(count, batch_size, seed, now, device)

    monkeypatch.setattr(recipe, "batch_indices", draw)


@pytest.fixture(scope="module")
def ddpm(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("ddpm")
    DDPM(ddpm_config(data, output)).train()
    return output


def test_a_classifier_learns_and_says_how_well(data: Path, tmp_path: Path) -> None:
    folder = Classifier(judge_config(data, tmp_path / "run")).train()
    model = ImageClassifier.load(folder)
    assert model.config.class_names == ("dark", "light")
    assert model.config.image_size == (8, 8)
    lines = [json.loads(line) for line in (tmp_path / "run" / "train.jsonl").read_text().splitlines()]
    assert lines[-1]["test_images"] == 20
    assert lines[-1]["test_accuracy"] >= 0.9
    assert f"**{lines[-1]['test_accuracy']:.4f}**" in (folder / "README.md").read_text()


@pytest.mark.usefixtures("heard")
@pytest.mark.parametrize("count", [60, 200, 300, 5000])
def test_epochs_are_passes_over_the_images_however_few(count: int, tmp_path: Path) -> None:
    config = ClassifierTraining(str(tmp_path), str(tmp_path / "run"), epochs=12).for_images(count)
    shown = sum(len(batch_indices(count, config.batch_size, 0, step)) for step in range(config.steps))
    assert shown / count == pytest.approx(12, rel=0.05)


def test_a_test_split_that_cannot_be_read_is_said_to_be_left_out(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(data, tmp_path / "data")
    assert Classifier(judge_config(folder, tmp_path / "run")).test is not None
    for path in (folder / "test").rglob("*.png"):
        path.write_bytes(b"broken")
    assert Classifier(judge_config(folder, tmp_path / "run")).test is None
    assert "the test split is left out: " in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_and_resumed_classifier_equals_one_that_was_not(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    Classifier(judge_config(data, tmp_path / "whole")).train()
    with monkeypatch.context() as patch:
        stop_at(11, patch, number)
        with pytest.raises(KeyboardInterrupt, match="Step 12 is kept"):
            Classifier(judge_config(data, tmp_path / "halves")).train()
    assert not (tmp_path / "halves" / "model").exists()
    Classifier(judge_config(data, tmp_path / "halves")).train()
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "halves"))


def test_a_trained_ddpm_is_a_model_with_names_and_a_null_class(ddpm: Path) -> None:
    loaded = load_class_conditional(ddpm / "model")
    assert loaded.names == ("dark", "light")
    assert loaded.null == 2
    assert loaded.image_shape == (3, 8, 8)
    (images,) = loaded.sample([0, 1], [0, 1], steps=2)
    assert images.shape == (2, 3, 8, 8)
    assert images.isfinite().all()
    assert all(value.dtype == torch.float16 for value in weights(ddpm).values())
    card = (ddpm / "model" / "README.md").read_text()
    assert "6 steps, 96 images seen" in card
    assert "judge" not in card  # nothing was measured, so nothing is claimed
    assert sorted(path.name for path in ddpm.iterdir()) == ["checkpoint.pt", "model", "train.jsonl", "training.json"]


def test_a_stopped_and_resumed_ddpm_equals_one_that_was_not(
    data: Path, ddpm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stop_at(2, patch)
        with pytest.raises(KeyboardInterrupt, match="Step 3 is kept"):
            DDPM(ddpm_config(data, tmp_path)).train()
    half = weights(tmp_path)  # a checkpoint leaves a model that can be used
    assert not same(half, weights(ddpm))
    DDPM(ddpm_config(data, tmp_path)).train()
    assert same(weights(tmp_path), weights(ddpm))


def test_dropout_is_the_steps_own_whatever_the_global_random_state(data: Path, ddpm: Path, tmp_path: Path) -> None:
    for name, draws in (("one", 1), ("two", 7)):
        torch.rand(draws)  # the state before the training is another each time
        before = torch.random.get_rng_state()
        DDPM(ddpm_config(data, tmp_path / name, dropout=0.5)).train()
        assert torch.equal(torch.random.get_rng_state(), before)
    assert same(weights(tmp_path / "one"), weights(tmp_path / "two"))
    assert not same(weights(tmp_path / "one"), weights(ddpm))


def test_a_finished_training_is_not_trained_further(data: Path, ddpm: Path) -> None:
    before = weights(ddpm)
    DDPM(ddpm_config(data, ddpm)).train()
    assert same(weights(ddpm), before)


def test_export_only_writes_the_model_of_the_checkpoint(data: Path, ddpm: Path, tmp_path: Path) -> None:
    (tmp_path / "checkpoint.pt").write_bytes((ddpm / "checkpoint.pt").read_bytes())
    DDPM(ddpm_config(data, tmp_path, export_only=True)).train()
    assert same(weights(tmp_path), weights(ddpm))
    with pytest.raises(InputError, match="holds no checkpoint"):
        DDPM(ddpm_config(data, tmp_path / "nothing", export_only=True)).train()


def test_the_card_says_what_the_judge_measured(data: Path, ddpm: Path, tmp_path: Path) -> None:
    judge = Classifier(judge_config(data, tmp_path / "judge")).train()
    (tmp_path / "checkpoint.pt").write_bytes((ddpm / "checkpoint.pt").read_bytes())
    DDPM(ddpm_config(data, tmp_path, export_only=True, classifier=str(judge), judged_samples=2)).train()
    measured = json.loads((tmp_path / "train.jsonl").read_text().splitlines()[-1])
    assert measured["samples_per_class"] == 2
    assert measured["sample_accuracy"] == pytest.approx(sum(measured["per_class"].values()) / 2)
    assert f"**{measured['sample_accuracy']:.3f}**" in (tmp_path / "model" / "README.md").read_text()


def test_a_class_that_the_judge_does_not_know_is_no_failure_of_the_model(data: Path, ddpm: Path, tmp_path: Path) -> None:
    judge = saved_judge(tmp_path / "judge", names=("dark", "other"))
    (tmp_path / "checkpoint.pt").write_bytes((ddpm / "checkpoint.pt").read_bytes())
    DDPM(ddpm_config(data, tmp_path, export_only=True, classifier=judge, judged_samples=2)).train()
    measured = json.loads((tmp_path / "train.jsonl").read_text().splitlines()[-1])
    assert set(measured["per_class"]) == {"dark"}
    assert measured["sample_accuracy"] == measured["per_class"]["dark"]


def test_a_test_split_without_one_of_the_classes_is_measured_by_name(data: Path, tmp_path: Path) -> None:
    part = shutil.copytree(data, tmp_path / "data")
    shutil.rmtree(part / "test" / "dark")  # the light ones are number 0 of the test folders now
    shutil.copytree(part / "test" / "light", part / "test" / "unknown")
    Classifier(judge_config(part, tmp_path / "run")).train()
    measured = json.loads((tmp_path / "run" / "train.jsonl").read_text().splitlines()[-1])
    assert measured["test_images"] == 10
    assert measured["test_accuracy"] >= 0.9
    assert set(measured["per_class"]) == {"light"}


def test_the_log_of_a_training_without_a_checkpoint_is_not_gone_on_with(data: Path, tmp_path: Path) -> None:
    (tmp_path / "training.json").write_text('{"written_by": "semu_diffusion"}')
    cut = '{"step": 1, "per_class": {"dark": 1.0}'  # of a process that was killed
    (tmp_path / "train.jsonl").write_text(json.dumps({"step": 50, "loss": 9.0}) + "\n" + cut + "\n")
    DDPM(ddpm_config(data, tmp_path)).train()
    assert [json.loads(line)["step"] for line in (tmp_path / "train.jsonl").read_text().splitlines()] == [6]


def test_two_trainings_in_one_folder_are_refused(data: Path, tmp_path: Path) -> None:
    first, second = (DDPM(ddpm_config(data, tmp_path / "run")) for _ in range(2))
    with first.run.held(), pytest.raises(InputError, match="another process is at work in"):
        second.train()
    assert not (tmp_path / "run").exists()
    second.train()
    assert not list((tmp_path / "run").glob(".*"))


@pytest.mark.parametrize("name", ["model/weights.txt", "checkpoint.pt", "train.jsonl"])
def test_what_no_training_wrote_is_never_replaced(data: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    with pytest.raises(InputError, match="that no training here wrote"):
        DDPM(ddpm_config(data, tmp_path, resume=False)).train()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / name]
    assert (tmp_path / name).read_text() == "mine"


def test_a_training_says_where_it_ran(ddpm: Path) -> None:
    about = json.loads((ddpm / "training.json").read_text())
    assert about["threads"] == torch.get_num_threads()
    assert about["precision"] in ("fp32", "bf16")  # what auto came to
    assert about["config"]["steps"] == 6


def test_a_killed_training_leaves_nothing_half_done_behind_the_next(data: Path, ddpm: Path, tmp_path: Path) -> None:
    run = shutil.copytree(ddpm, tmp_path / "run")
    (run / "model").rename(run / ".model.1234567.last")  # killed between two renamings
    (run / ".model.1234567.part").mkdir()
    for name in (".checkpoint.pt.1234567.part", ".lock"):
        (run / name).write_text("half")
    held = DDPM(ddpm_config(data, run)).run
    with held.held():
        assert same(weights(run), weights(ddpm))
    assert not list(run.glob(".*"))


def test_a_full_disk_in_a_checkpoint_is_an_error_of_the_disk(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = torch.save

    def full(content: Any, file: Any) -> None:
        with open("/dev/full", "wb", buffering=0) as nowhere:
            real(content, nowhere)

    monkeypatch.setattr(torch, "save", full)
    flags = ["--channels", "8,16", "--attention-levels", "1", "--head-dim", "8", "--norm-groups", "4", "--steps", "2"]
    assert command.main(["ddpm", "--data", str(data), "--output", str(tmp_path / "run"), "--batch-size", "4", *flags]) == 2
    assert "no space left on the device" in capsys.readouterr().err
    assert not list((tmp_path / "run").rglob("*.part"))


def test_a_checkpoint_of_other_settings_is_refused(data: Path, ddpm: Path, tmp_path: Path) -> None:
    (tmp_path / "checkpoint.pt").write_bytes((ddpm / "checkpoint.pt").read_bytes())
    with pytest.raises(InputError, match=r"lr: 0.0003 there, 0.1 now"):
        DDPM(ddpm_config(data, tmp_path, lr=0.1)).train()
    (tmp_path / "checkpoint.pt").write_bytes(b"cut")
    with pytest.raises(InputError, match="not a readable checkpoint"):
        DDPM(ddpm_config(data, tmp_path)).train()


def test_a_training_can_start_from_a_model(data: Path, ddpm: Path, tmp_path: Path) -> None:
    DDPM(ddpm_config(data, tmp_path, init_from=str(ddpm / "model"), steps=1, lr=1e-9, final_lr=1e-9)).train()
    for name, value in weights(tmp_path).items():
        assert torch.allclose(value, weights(ddpm)[name], atol=1e-6), name
    assert str(ddpm) not in (tmp_path / "model" / "unet" / "config.json").read_text()  # no word of where it came from


def test_a_start_that_does_not_fit_the_data_is_refused(ddpm: Path, tmp_path: Path) -> None:
    for name in ("one", "two", "three"):
        (tmp_path / "three" / name).mkdir(parents=True)
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "three" / name / "0.png")
        (tmp_path / "large" / name).mkdir(parents=True)
        Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(tmp_path / "large" / name / "0.png")
    for folder in ("three", "large"):
        with pytest.raises(InputError):
            DDPM(ddpm_config(tmp_path / folder, tmp_path / "out", init_from=str(ddpm / "model"))).train()


def test_the_minutes_end_a_training(data: Path, tmp_path: Path) -> None:
    DDPM(ddpm_config(data, tmp_path, steps=10**9, max_minutes=0.01)).train()
    assert (tmp_path / "model" / "model_index.json").is_file()
    assert 0 < torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] < 10**4


def test_weights_that_are_no_longer_numbers_are_never_kept(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exploding = ddpm_config(data, tmp_path, lr=1e30, clip=0.0, warmup=0.0, save_every=0.0)
    with pytest.raises(InputError, match=r"the loss became nan in step \d; try a lower --lr"):
        DDPM(exploding).train()
    kept = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["state"]["model"]
    assert all(value.isfinite().all() for value in kept.values())


def test_a_setting_that_came_after_the_checkpoint_had_its_default(data: Path, ddpm: Path, tmp_path: Path) -> None:
    content = torch.load(ddpm / "checkpoint.pt", weights_only=True)
    settings = json.loads(content["config"])
    del settings["dropout"]
    torch.save({**content, "config": json.dumps(settings)}, tmp_path / "checkpoint.pt")
    DDPM(ddpm_config(data, tmp_path)).train()
    assert same(weights(tmp_path), weights(ddpm))
    with pytest.raises(InputError, match=r"dropout: 0.0 there, 0.5 now"):
        DDPM(ddpm_config(data, tmp_path, dropout=0.5)).train()


def test_training_leaves_the_global_random_state_alone(data: Path, tmp_path: Path) -> None:
    before = torch.random.get_rng_state()
    DDPM(ddpm_config(data, tmp_path, steps=2)).train()
    assert torch.equal(torch.random.get_rng_state(), before)


def test_every_epoch_shows_every_image_once_in_another_order() -> None:
    epochs = [torch.cat([batch_indices(10, 5, seed=0, step=2 * epoch + part) for part in (0, 1)]) for epoch in (0, 1)]
    for epoch in epochs:
        assert epoch.sort().values.tolist() == list(range(10))
    assert epochs[0].tolist() != epochs[1].tolist()


def test_an_order_is_shuffled_once_an_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []
    original = torch.randperm
    monkeypatch.setattr(torch, "randperm", lambda count, **given: (drawn.append(count), original(count, **given))[1])
    for step in range(9):
        batch_indices(31, 10, seed=5, step=step)
    assert drawn == [31, 31, 31]


def test_min_snr_weights_follow_the_paper() -> None:
    from diffusers import DDPMScheduler

    t = torch.arange(0, 1000, 50)
    for kind, denominator in (("epsilon", lambda snr: snr), ("v_prediction", lambda snr: snr + 1)):
        scheduler = DDPMScheduler(prediction_type=kind)
        kept = scheduler.alphas_cumprod[t]
        snr = kept / (1 - kept)
        expected = torch.minimum(snr, torch.tensor(5.0)) / denominator(snr)
        assert torch.allclose(min_snr_weights(scheduler, t, 5.0), expected, rtol=1e-4)
    assert min_snr_weights(scheduler, t, 0.0).eq(1).all()


def test_plain_attention_computes_the_same() -> None:
    from diffusers.models.attention_processor import AttnProcessor

    unet, x, t = tiny_unet(), torch.randn(2, 3, 8, 8), torch.tensor([3, 60])
    labels = torch.tensor([0, 2])
    before = unet(x, t, class_labels=labels).sample
    plain_attention(unet)
    processors = [module.processor for module in unet.modules() if hasattr(module, "processor")]
    assert processors
    assert all(type(processor) is AttnProcessor for processor in processors)
    torch.testing.assert_close(unet(x, t, class_labels=labels).sample, before)


def test_augmentation_moves_mirrors_and_blanks() -> None:
    images = torch.arange(64, dtype=torch.uint8).view(1, 1, 8, 8).repeat(40, 3, 1, 1)
    plain = augmented(images, step_generator(0, 0), shift=0, cutout=0, flip=False)
    assert torch.equal(plain, images)
    mirrored = augmented(images, step_generator(0, 0), shift=0, cutout=0)
    flipped = mirrored[:, 0, 0, 0] == 7
    assert 5 < flipped.sum() < 35
    assert torch.equal(mirrored[flipped], images.flip(3)[flipped])
    blanked = augmented(images, step_generator(0, 0), shift=0, cutout=0.25, flip=False)
    assert ((blanked == 128).sum(dim=(1, 2, 3)) <= 12).all()  # 2x2 of three channels at most, less at the border
    assert (blanked == 128).any()
    moved = augmented(images, step_generator(0, 0), cutout=0, flip=False)
    assert len({tuple(image.flatten().tolist()) for image in moved}) > 4
    again = augmented(images, step_generator(0, 0), cutout=0, flip=False)
    assert torch.equal(moved, again)
    edges = torch.zeros(200, 3, 8, 8, dtype=torch.uint8)
    edges[..., 4:] = 200
    softened = augmented(edges, step_generator(0, 0), shift=0, cutout=0, flip=False, soften=0.5)
    changed = (softened != edges).flatten(1).any(1)
    assert 70 < changed.sum() < 130
    step = [one[changed][..., 4].float().mean() - one[changed][..., 3].float().mean() for one in (edges, softened)]
    assert 0.3 < float(step[1] / step[0]) < 0.9  # the edge is less steep


def test_impossible_settings_are_refused(data: Path) -> None:
    good = ddpm_config(data, Path("unused"))
    for change in ({"channels": (6,)}, {"attention_levels": (2,)}, {"label_drop": 1.0}, {"steps": 0}, {"data": ""}):
        with pytest.raises(InputError):
            dataclasses.replace(good, **change)
    judge = judge_config(data, Path("unused"))
    for config, wrong, said in (
        (good, {"head_dim": 32}, "--head-dim 32: must lie in 1 to 16"),
        (good, {"attention_levels": (0,), "head_dim": 16}, "--head-dim 16: must lie in 1 to 8"),
        (good, {"dropout": 1.0}, "--dropout"),
        (good, {"classifier": "embedded", "judged_samples": 0}, "--judged-samples"),
        (judge, {"momentum": 1.0}, "--momentum"),
        (judge, {"label_smoothing": 2.0}, "--label-smoothing"),
    ):
        with pytest.raises(InputError, match=said):
            dataclasses.replace(config, **wrong)
    with pytest.raises(InputError, match="nowhere"):
        DDPM(dataclasses.replace(good, classifier="./nowhere")).train()
    with pytest.raises(InputError, match="multiples of 16"):
        DDPM(dataclasses.replace(good, channels=(8,) * 5)).train()


def test_the_commands_end_with_code_2_and_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for model in command.commands:
        flags = ["--autoencoder", "x"] if model == "text-to-image" else []
        assert command.main([model, "--data", str(tmp_path / "absent"), "--output", str(tmp_path / "out"), *flags]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert "no such folder" in error
    assert not (tmp_path / "out").exists()


def test_a_command_line_means_its_settings(data: Path) -> None:
    flags = "--channels 8,16 --norm-groups 4 --attention-levels 1 --head-dim 8 --no-flip --lr 0.1"
    config = command.parse(["ddpm", "--data", str(data), "--output", "out", *flags.split()])
    assert config == ddpm_config(data, Path("out"), steps=100_000, batch_size=64, flip=False, lr=0.1)
    assert command.parse(["classifier", "--data", "x", "--output", "y", "--widths", "4,8"]).widths == (4, 8)
    with pytest.raises(InputError, match="--data and --output"):
        command.parse(["ddpm"])
    with pytest.raises(InputError, match="whole numbers"):
        command.parse(["classifier", "--data", "x", "--output", "y", "--widths", "4,wide"])
