"""Promises of `semu assess`: shares by name, FID and nearest images where there is a data set, one line for bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from saved_models import saved_judge, saved_model
from text_models import WORDS, tiny_pipeline

from semu_diffusion.errors import InputError
from semu_diffusion.eval.metrics.nearest import nearest
from semu_diffusion.pipelines.cli.commands.assess import COMMAND
from semu_diffusion.pipelines.train.captions import cifar_vocabulary
from semu_diffusion.pipelines.train.picture_styles import STYLES

Capture = pytest.CaptureFixture[str]
main = COMMAND.main
QUICK = ["--samples-per-class", "3", "--sampling-steps", "2"]


@pytest.fixture
def data(tmp_path: Path) -> str:
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("test", 4)):
        for name in ("red", "green", "blue"):
            folder = tmp_path / "data" / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                Image.fromarray(rng.integers(0, 256, (8, 8, 3)).astype(np.uint8)).save(folder / f"{index}.png")
    return str(tmp_path / "data")


def metrics_of(run: Path) -> Any:
    return json.loads((run / "metrics.json").read_text())


def test_a_model_of_classes_is_judged_compared_and_searched_for_copies(data: str, tmp_path: Path, capsys: Capture) -> None:
    names = ("red", "green", "blue")
    model, judge = saved_model(tmp_path / "model", names=names, num_class_embeds=4), saved_judge(tmp_path / "judge", names)
    run = tmp_path / "run"
    assert main([model, *QUICK, "--classifier", judge, "--data", data, "--output", str(run)]) == 0
    found = metrics_of(run)
    assert set(found["object"]["each"]) == set(names)
    assert found["object"]["mean"] == pytest.approx(sum(found["object"]["each"].values()) / 3)
    assert found["object"]["worst"] == min(found["object"]["each"].values())
    assert found["object"]["worst"] == found["object"]["each"][found["object"]["worst_name"]]
    assert found["fid"]["samples"] == 9
    assert found["fid"]["reference_images"] == 12
    assert found["nearest"]["among"] == 24
    assert json.loads((run / "run.json").read_text())["status"] == "complete"
    for picture in ("samples.png", "nearest.png"):
        assert Image.open(run / picture).width > 300
    assert f"mean         {100 * found['object']['mean']:>6.1f} %" in capsys.readouterr().out


def test_a_model_that_cannot_be_guided_is_said_to_be_unguided(tmp_path: Path) -> None:
    names = ("red", "green")
    model, judge = saved_model(tmp_path / "model", names=names, num_class_embeds=2), saved_judge(tmp_path / "judge", names)
    assert main([model, *QUICK, "--classifier", judge, "--output", str(tmp_path / "run")]) == 0
    assert metrics_of(tmp_path / "run")["protocol"]["guidance_scale"] == 1.0


def test_the_model_is_never_deleted_with_the_run_it_lies_in(tmp_path: Path, capsys: Capture) -> None:
    run = tmp_path / "run"
    model = saved_model(run / "merged", names=("red", "green"), num_class_embeds=3)
    (run / "run.json").write_text("{}")
    assert main([model, *QUICK, "--output", str(run), "--overwrite"]) == 2
    assert "holds no run of this program, so it is not overwritten" in capsys.readouterr().err
    assert (run / "merged" / "model_index.json").is_file()


def test_a_model_of_words_is_judged_by_objects_and_styles(tmp_path: Path) -> None:
    tiny_pipeline().save_pretrained(tmp_path / "model")
    cifar_vocabulary(WORDS).save(tmp_path / "model")
    judges = ["--classifier", saved_judge(tmp_path / "objects", WORDS)]
    judges += ["--style-classifier", saved_judge(tmp_path / "styles", tuple(STYLES))]
    for name, count in (("three", "3"), ("four", "4")):
        flags = ["--samples-per-class", count, "--sampling-steps", "2", "--output", str(tmp_path / name)]
        assert main([str(tmp_path / "model"), *judges, *flags]) == 0
    found = metrics_of(tmp_path / "three")
    assert set(found["object"]["each"]) == set(WORDS)
    assert set(found["style"]["each"]) == set(STYLES)
    assert "fid" not in found
    # the first three samples are the same whatever the count: seeds belong to the group and the place
    for name, share in metrics_of(tmp_path / "four")["style"]["each"].items():
        assert round(4 * share) - round(3 * found["style"]["each"][name]) in (0, 1)


def test_what_cannot_be_assessed_is_one_line_and_nothing_is_written(tmp_path: Path, data: str, capsys: Capture) -> None:
    plain = saved_model(tmp_path / "plain", names=(), num_class_embeds=None)
    large = saved_model(tmp_path / "large", names=("red", "green"), num_class_embeds=3, sample_size=16)
    judge = saved_judge(tmp_path / "judge", ("red", "green"))
    for argv, said in (
        ([plain], "knows no classes"),
        (["nowhere"], "nowhere"),
        ([large, "--classifier", judge, "--data", data], "has images of (3, 8, 8), the model makes (3, 16, 16)"),
        ([large, "--samples-per-class", "1"], "must be at least 2"),
    ):
        assert main([*argv, "--output", str(tmp_path / "run")]) == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1
        assert not (tmp_path / "run").exists()


def test_the_nearest_row_is_found_by_direction_not_by_length() -> None:
    among = torch.tensor([[10.0, 0.0], [0.0, 0.1], [-1.0, 0.0]])
    similarity, index = nearest(torch.tensor([[0.0, 5.0], [3.0, 0.3], [-2.0, 0.1]]), among)
    assert index.tolist() == [1, 0, 2]
    assert similarity[0] == pytest.approx(1)
    assert similarity[1] == pytest.approx(3 / 9.09**0.5)
    with pytest.raises(InputError, match="one width"):
        nearest(torch.zeros(2, 3), among)
