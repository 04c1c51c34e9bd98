"""Several processes at one job: they end in what one alone does, the first writes and speaks, a benchmark's rows are shared."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from saved_models import QUICK, saved_judge, saved_model

from semu_diffusion import distributed
from semu_diffusion.patch import ErasurePatch
from semu_diffusion.pipelines.cli.commands.erase_class import main as erase_class
from semu_diffusion.pipelines.cli.main import main as semu

LAUNCHER = "torch.distributed.run --standalone --nproc-per-node 2 -m semu_diffusion.pipelines.cli.main"
FLAGS = [
    *("red", *QUICK, "--images-per-class", "18", "--save-images", "--precision", "fp32", "--sampling-precision", "fp32"),
    *("--batch-size", "5", "--max-rank", "2", "--guidance-scale", "2", "--device", "cpu"),
]


def launched(*arguments: str) -> subprocess.CompletedProcess[str]:
    alone = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    return subprocess.run(
        [sys.executable, "-m", *LAUNCHER.split(), *arguments],
        capture_output=True,
        text=True,
        env={**alone, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        timeout=300,
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, subprocess.CompletedProcess[str]]:
    """The same erasure by one process and by two, and what the two said."""
    folder = tmp_path_factory.mktemp("runs")
    model, judge = saved_model(folder / "model"), saved_judge(folder / "judge")
    flags = [*FLAGS, "--model", model, "--classifier", judge]
    assert erase_class([*flags, "--output", str(folder / "one")]) == 0
    said = launched("erase-class", *flags, "--output", str(folder / "two"))
    assert said.returncode == 0, said.stderr
    return folder / "one", folder / "two", said


def test_two_processes_make_the_patch_of_one_up_to_rounding(runs: Any) -> None:
    one, two = (ErasurePatch.load(folder / "patch.safetensors") for folder in runs[:2])
    assert set(one.layers) == set(two.layers)
    for name in one.layers:
        difference, norm = (one.delta(name) - two.delta(name)).norm(), one.delta(name).norm()
        assert difference <= 3e-2 * norm, f"{name}: {difference / norm:.1e}"  # by way of int8, as the golden test says


def test_two_processes_sample_the_originals_pictures_of_one_to_the_bit(runs: Any) -> None:
    pictures = [
        {path.relative_to(folder): path.read_bytes() for path in folder.glob("images/before/*/*.png")} for folder in runs[:2]
    ]
    assert len(pictures[0]) >= 54
    assert pictures[0] == pictures[1]


def test_the_first_of_two_processes_writes_and_speaks_for_both(runs: Any) -> None:
    one, two, said = runs
    assert {path.name for path in two.iterdir()} == {path.name for path in one.iterdir()}
    assert said.stdout.count("parameters trained") == 1
    steps = (two / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["index"] for line in steps] == [1, 2]
    passes = [json.loads((folder / "metrics.json").read_text())["cost"]["passes"] for folder in (one, two)]
    assert sum(passes[0].values()) <= sum(passes[1].values()) < 1.3 * sum(passes[0].values())  # shared out, not done twice


def test_shares_of_a_batch_average_to_the_mean_of_all_its_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    for rows in (1, 5, 6):
        values, found = torch.arange(rows, dtype=torch.float64) ** 2, []
        for number in range(3):
            monkeypatch.setenv("WORLD_SIZE", "3")
            monkeypatch.setenv("RANK", str(number))
            with distributed.together():
                found.append(distributed.part(rows) * values[distributed.share(rows)].mean())
        assert torch.stack(found).mean() == pytest.approx(float(values.mean()))


def test_a_launch_that_forms_no_group_is_refused_and_the_python_face_shares_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert distributed.processes() == 1  # a user's own launch, each process with a task of its own
    assert erase_class(["red", "--model", saved_model(tmp_path / "model"), "--classifier", "none", *QUICK]) == 2
    assert "no such group of processes was formed" in capsys.readouterr().err


def test_shards_of_a_benchmark_are_the_rows_of_the_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, judge = saved_model(tmp_path / "model"), saved_judge(tmp_path / "judge")
    flags = [
        "--model",
        model,
        "--classifier",
        judge,
        "--images",
        "2",
        "--sampling-steps",
        "2",
        "--no-revival",
        "--probes",
        "none",
    ]
    flags += ["--unconditional-samples", "2", "--methods", "copy,closed-form"]
    page, work = str(tmp_path / "page.md"), str(tmp_path / "work")
    assert (
        semu(["benchmark", "red", "green", *flags, "--output", str(tmp_path / "whole.md"), "--work", str(tmp_path / "all")])
        == 0
    )
    for shard in ("1/3", "2/3", "3/3"):
        assert semu(["benchmark", "red", "green", *flags, "--output", page, "--work", work, "--shard", shard]) == 0
        assert not Path(page).exists()
    assert semu(["benchmark", "--merge", work, "--output", page]) == 0
    whole, shards = (
        [json.loads(line) for path in paths for line in path.read_text().splitlines()[1:]]
        for paths in ([tmp_path / "all" / "classes.jsonl"], sorted((tmp_path / "work").glob("shard-*/classes.jsonl")))
    )
    assert sorted((row["method"], row["erased"]) for row in shards) == sorted((row["method"], row["erased"]) for row in whole)
    assert len(shards) == 4
    capsys.readouterr()
    assert semu(["benchmark", "red", *flags, "--output", page, "--shard", "4/3"]) == 2
    assert "--shard 4/3: needs K/N with K from 1 to N, as in 3/16" in capsys.readouterr().err
