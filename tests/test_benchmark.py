"""`semu benchmark`: one table from one run, continued where it stopped, never mixed with another protocol."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from saved_models import saved_judge, saved_model

from semu_diffusion.erasure import Diverged
from semu_diffusion.pipelines.benchmark import classes as benchmark
from semu_diffusion.pipelines.benchmark.rows import table_line
from semu_diffusion.pipelines.cli.main import main as semu
from semu_diffusion.pipelines.report import results_page
from semu_diffusion.pipelines.runs import scoring
from semu_diffusion.pipelines.runs.class_settings import EraseClassConfig

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A benchmark of two methods and one class, whose erasures are a few steps long."""

    def short(**settings: Any) -> EraseClassConfig:
        return EraseClassConfig(**{"steps": 2, "forget_samples": 4, "kept_samples": 6, **settings})

    monkeypatch.setattr(benchmark, "EraseClassConfig", short)
    monkeypatch.setattr(scoring, "REVIVAL_STEPS", 2)
    monkeypatch.setattr(scoring, "REVIVAL_SAMPLES", 2)
    model, judge = saved_model(tmp_path / "model"), saved_judge(tmp_path / "judge")
    few = ["--images-per-class", "2", "--sampling-steps", "2", "--classes", "red", "--methods", "default,copy"]
    where = ["--output", str(tmp_path / "page.md"), "--work", str(tmp_path / "work")]
    return ["benchmark", "--model", model, "--classifier", judge, *few, *where]


def rows(tmp_path: Path) -> list[Any]:
    return [json.loads(line) for line in (tmp_path / "work" / "rows.jsonl").read_text().splitlines()]


def test_a_benchmark_writes_every_row_and_the_page(tmp_path: Path, arguments: list[str], capsys: Capture) -> None:
    assert semu(arguments) == 0
    protocol, *found = rows(tmp_path)
    assert [(row["method"], row["class"]) for row in found] == [("default", "red"), ("copy", "red")]
    assert protocol["protocol"]["images_per_class"] == 2
    for row in found:
        assert 0 <= row["after"]["unlearning_accuracy"] <= 1
        assert 0 <= row["after"]["revival"] <= 1
        assert row["side_effects"]["paired_mse"] >= 0
    assert found[0]["before"] == found[1]["before"]  # the same samples of the original for every method
    assert found[1]["side_effects"]["paired_mse"] == 0  # a copied class embedding changes no other class
    page = (tmp_path / "page.md").read_text()
    assert "2 images of every class" in page
    for row in found:
        name, share = max(row["after"]["answers"]["red"].items(), key=lambda pair: pair[1])
        assert f"| red ({name} {share:.0%}) |" in page  # what is made in its place
    assert "SEMU, the default (1)" in page
    assert "class-embedding copy (trivial) (1)" in page
    lines = [line for line in page.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1
    assert "page.md holds 2 rows" in capsys.readouterr().out


def test_a_second_call_goes_on_and_measures_nothing_twice(
    tmp_path: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    measured: list[tuple[str, int]] = []
    real = benchmark._measure

    def counted(method: str, index: int, *rest: Any) -> Any:
        if measured and stop_after_one:
            raise KeyboardInterrupt
        measured.append((method, index))
        return real(method, index, *rest)

    monkeypatch.setattr(benchmark, "_measure", counted)
    stop_after_one = True
    assert semu(arguments) == 130
    assert "rows.jsonl keeps 1 rows; the same command goes on from there." in capsys.readouterr().err
    assert len(rows(tmp_path)) == 2
    first = (tmp_path / "work" / "rows.jsonl").read_bytes()
    stop_after_one = False
    assert semu(arguments) == 0
    assert measured == [("default", 0), ("copy", 0)]
    done = (tmp_path / "work" / "rows.jsonl").read_bytes()
    assert done.startswith(first)
    assert semu(arguments) == 0
    assert (tmp_path / "work" / "rows.jsonl").read_bytes() == done
    assert len(measured) == 2


def test_a_row_that_was_written_in_part_is_measured_again_and_the_others_are_kept(
    tmp_path: Path, arguments: list[str], capsys: Capture
) -> None:
    assert semu(arguments) == 0
    whole = rows(tmp_path)
    file = tmp_path / "work" / "rows.jsonl"
    file.write_text(file.read_text()[:-40])
    assert semu(arguments) == 0
    assert "its last row was written in part only" in capsys.readouterr().err
    again = rows(tmp_path)
    assert again[:2] == whole[:2]
    assert again[2]["after"] == whole[2]["after"]


def test_rows_of_another_protocol_are_refused(tmp_path: Path, arguments: list[str], capsys: Capture) -> None:
    work = tmp_path / "work"
    work.mkdir()
    (work / "rows.jsonl").write_text(json.dumps({"protocol": {"seed": 9}, "official_steps": 1000}) + "\n")
    for content, said in (((work / "rows.jsonl").read_text(), "measured by another protocol"), ("{", "is not a benchmark's")):
        (work / "rows.jsonl").write_text(content)
        assert semu(arguments) == 2
        err = capsys.readouterr().err
        assert said in err
        assert err.count("\n") == 1
        assert (work / "rows.jsonl").read_text() == content
    assert not (tmp_path / "page.md").exists()


def test_rows_of_another_model_are_not_continued(tmp_path: Path, arguments: list[str], capsys: Capture) -> None:
    assert semu([*arguments, "--methods", "copy"]) == 0
    kept = (tmp_path / "work" / "rows.jsonl").read_bytes()
    other = saved_model(tmp_path / "other", seed=1)
    assert semu([*arguments, "--methods", "copy", "--model", other]) == 2
    assert "measured by another protocol" in capsys.readouterr().err
    assert (tmp_path / "work" / "rows.jsonl").read_bytes() == kept


def test_a_method_that_diverges_has_no_row_and_the_others_have(
    tmp_path: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    real = benchmark._measure

    def diverging(method: str, *rest: Any) -> Any:
        if method == "default":
            raise Diverged("the loss is no number")
        return real(method, *rest)

    monkeypatch.setattr(benchmark, "_measure", diverging)
    assert semu(arguments) == 1
    assert [row["method"] for row in rows(tmp_path)[1:]] == ["copy"]
    assert "1 without a row (default of red: the loss is no number)" in capsys.readouterr().err


def test_what_makes_no_table_is_refused(tmp_path: Path, arguments: list[str], capsys: Capture) -> None:
    unconditional = saved_model(tmp_path / "plain", names=(), num_class_embeds=None)
    for flags, said in (
        (["--classifier", "none"], "needs a judge"),
        (["--model", unconditional], "needs a class-conditional model"),
        (["--classes", "rod"], "did you mean red"),
    ):
        assert semu([*arguments, *flags]) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "work").exists()


def test_what_was_not_measured_is_a_dash() -> None:
    score = dict.fromkeys(("unlearning_accuracy", "retain_accuracy", "revival", "unconditional_share"))
    row = {
        "method": "copy", "class": "red", "before": score, "after": {**score, "unlearning_accuracy": 0.5},
        "side_effects": {"paired_mse": 0.01, "paired_ssim": 0.9}, "fid": {"retain_after": None},
        "trained_fraction": 0.001, "bytes": 2000, "erase_seconds": 1.0,
    }  # fmt: skip
    line = table_line("red", [row], results_page.COLUMNS)
    assert line.startswith("| red | 0.500 | – | – | 0.0100 | 0.900 | – |")
    assert "nan" not in line.lower()
