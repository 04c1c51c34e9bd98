"""`semu benchmark`: one table from one run, continued where it stopped, never mixed with another protocol."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from saved_models import saved_judge, saved_model
from text_models import WORDS, tiny_pipeline

from semu_diffusion.erasure import Diverged
from semu_diffusion.errors import InputError
from semu_diffusion.eval.probes import PROBES
from semu_diffusion.eval.probes.class_vector import ClassVectorProbe
from semu_diffusion.eval.probes.pseudo_word import PseudoWordProbe
from semu_diffusion.eval.probes.revival import Learning
from semu_diffusion.eval.results import Evaluation
from semu_diffusion.eval.scorer import NOTHING, Scorer
from semu_diffusion.peers.methods import Expected, Method
from semu_diffusion.pipelines.benchmark import run as benchmark
from semu_diffusion.pipelines.benchmark.rows import merged_rows
from semu_diffusion.pipelines.benchmark.tuning import beyond
from semu_diffusion.pipelines.cli.main import main as semu
from semu_diffusion.pipelines.report import results
from semu_diffusion.pipelines.report.columns import COLUMNS, Column
from semu_diffusion.pipelines.report.expected import beside_table, missed
from semu_diffusion.pipelines.report.mark import MARK
from semu_diffusion.pipelines.runs.ownership import held
from semu_diffusion.pipelines.train.captions import cifar_vocabulary

CHEAP = {name for name, probe in PROBES.items() if not probe.learns}
Capture = pytest.CaptureFixture[str]
QUICK = {"steps": 2, "forget_samples": 4, "kept_samples": 6, "precision": "fp32"}


@pytest.fixture
def few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Flags of a benchmark whose rows take a moment: a variant of the default of two steps, from a file."""
    for probe in (ClassVectorProbe, PseudoWordProbe):
        monkeypatch.setattr(probe, "default", Learning(steps=2, batch_size=2, restarts=2, screened=1))
    methods = tmp_path / "methods.json"
    methods.write_text(json.dumps({"short": {"base": "default", "title": "SEMU, two steps", **QUICK}}))
    where = ["--output", str(tmp_path / "page.md"), "--work", str(tmp_path / "work")]
    lean = ["--images", "2", "--sampling-steps", "2", "--probe-samples", "2", "--unconditional-samples", "3"]
    return [*lean, "--methods", f"{methods},copy", *where]


@pytest.fixture
def arguments(tmp_path: Path, few: list[str]) -> list[str]:
    """A benchmark of two methods and one class."""
    model, judge = saved_model(tmp_path / "model"), saved_judge(tmp_path / "judge")
    return ["benchmark", "red", "--model", model, "--classifier", judge, *few]


def rows(tmp_path: Path, name: str = "classes") -> list[Any]:
    return [json.loads(line) for line in (tmp_path / "work" / f"{name}.jsonl").read_text().splitlines()]


def test_a_benchmark_writes_every_row_and_the_page(tmp_path: Path, arguments: list[str], capsys: Capture) -> None:
    assert semu(arguments) == 0
    protocol, *found = rows(tmp_path)
    assert [(row["method"], row["erased"]) for row in found] == [("short", "red"), ("copy", "red")]
    assert protocol["protocol"]["images_per_condition"] == 2
    measured = [Evaluation.from_json(row["evaluation"]) for row in found]
    for row, one in zip(found, measured, strict=True):
        assert one.after.unlearning_accuracy is not None
        assert one.after.revival is not None
        assert one.before.probes.keys() == one.after.probes.keys() == {"class-vector", *CHEAP}
        assert one.protocol.unconditional_samples == 3
        assert one.kid is not None
        assert {"git_commit", "packages", "threads", "device", "settings"} <= set(row)
    assert measured[0].before == measured[1].before  # the same samples of the original for every method
    assert measured[1].side_effects is not None
    assert measured[1].side_effects.paired_mse == 0  # a copied class embedding changes no other class
    assert found[0]["settings"] == QUICK
    page = (tmp_path / "page.md").read_text()
    assert "2 images of every condition" in page
    for row, one in zip(found, measured, strict=True):
        name, share = max(one.after.judged_as["red"].items(), key=lambda pair: pair[1])
        assert f"| {row['title']} ({name} {share:.0%}) |" in page  # what is made in its place
    tables = [[line.count("|") for line in part.splitlines()] for part in re.findall(r"(?:^\|.*\n)+", page, re.MULTILINE)]
    assert len(tables) == 2  # the methods beside the original, by the judge and by the probes
    assert all(len(set(counts)) == 1 for counts in tables)
    assert "![The front](page-classes.svg)" in page
    picture = ElementTree.fromstring((tmp_path / "page-classes.svg").read_text())
    drawn = ["".join(text.itertext()) for text in picture.iter("{http://www.w3.org/2000/svg}text")]
    assert {"1  SEMU, two steps", "2  class-embedding copy (trivial)", "revival (lower is better)"} <= set(drawn)
    assert "page.md holds 2 rows" in capsys.readouterr().out
    table = list(csv.DictReader((tmp_path / "page.csv").open(encoding="utf-8")))
    content = json.loads((tmp_path / "page.json").read_text())
    (section,) = content["sections"].values()
    assert section["protocol"] == protocol["protocol"]
    assert section["rows"] == found
    for line, row, one, means in zip(table, found, measured, section["methods"], strict=True):
        assert (line["method"], line["erased"], line["seed"]) == (row["method"], "red", "0")
        assert float(line["UA"]) == means["means"]["UA"] == one.after.unlearning_accuracy
        assert float(line["revival"]) == one.after.revival
        assert float(line["completion"]) == one.after.probes["completion"]["red"].share
    assert {line["written_by"] for line in table} == {content["written_by"]} == {MARK}


def test_concepts_are_compared_by_the_same_command(tmp_path: Path, few: list[str]) -> None:
    folder = tmp_path / "sd"
    tiny_pipeline().save_pretrained(folder)
    judge = saved_judge(tmp_path / "judge", names=WORDS)
    dataclasses.replace(cifar_vocabulary(WORDS), judges={"object": judge}).save(folder)
    few = [word.replace(",copy", ",remap") for word in few]
    assert semu(["benchmark", "cat", "cat+dog", "--model", str(folder), *few]) == 0
    found = rows(tmp_path, "concepts")[1:]
    expected = [("short", "cat"), ("short", "cat+dog"), ("remap", "cat"), ("remap", "cat+dog")]
    assert [(row["method"], row["erased"]) for row in found] == expected
    assert [row["kind"] for row in found] == ["object"] * 4
    assert all(row["evaluation"]["after"]["paraphrase_accuracy"] is not None for row in found)
    assert '## The object "cat"\n' in (tmp_path / "page.md").read_text()  # the pair has a line of its own alone


def test_a_second_call_goes_on_and_measures_nothing_twice(
    tmp_path: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    measured: list[tuple[str, str]] = []
    real = benchmark._measure

    def counted(method: Any, name: str, *rest: Any) -> Any:
        if measured and stop_after_one:
            raise KeyboardInterrupt
        measured.append((method.name, name))
        return real(method, name, *rest)

    monkeypatch.setattr(benchmark, "_measure", counted)
    stop_after_one = True
    assert semu(arguments) == 130
    assert "classes.jsonl keeps 1 rows; the same command goes on from there." in capsys.readouterr().err
    assert len(rows(tmp_path)) == 2
    first = (tmp_path / "work" / "classes.jsonl").read_bytes()
    stop_after_one = False
    assert semu(arguments) == 0
    assert measured == [("short", "red"), ("copy", "red")]
    done = (tmp_path / "work" / "classes.jsonl").read_bytes()
    assert done.startswith(first)
    assert semu(arguments) == 0
    assert (tmp_path / "work" / "classes.jsonl").read_bytes() == done
    assert len(measured) == 2


def test_several_seeds_are_rows_of_their_own_and_the_page_has_mean_and_spread(tmp_path: Path, arguments: list[str]) -> None:
    assert semu([*arguments, "--methods", "copy", "--seeds", "0,1", "--no-revival", "--probes", "none"]) == 0
    found = [row for row in rows(tmp_path)[1:] if row["method"] == "copy"]
    assert [row["seed"] for row in found] == [0, 1]
    drifts = [row["evaluation"]["side_effects"]["per_condition"] for row in found]
    assert found[0]["evaluation"]["protocol"]["seed"] == 0
    assert set(drifts[0]) == {"green", "blue"}
    page = (tmp_path / "page.md").read_text()
    assert ", seeds 0, 1. " in page
    assert "| class-embedding copy (trivial) (" in page
    assert " ± " in page


def test_the_mean_is_over_seeds_and_the_spread_is_that_of_the_seeds_means() -> None:
    values = {(0, "a"): 0.2, (0, "b"): 0.4, (1, "a"): 0.6, (1, "b"): 0.4}
    found = [{"seed": seed, "erased": name, "value": value} for (seed, name), value in values.items()]
    column = Column("x", ".3f", lambda row: row["value"])
    assert column.text(found) == "0.400 ± 0.141"
    assert column.text(found[:2]) == "0.300"
    assert column.text([*found, {"seed": 2, "value": None}]) == "–"


def test_rows_of_several_processes_make_one_page_and_share_what_the_original_gives(
    tmp_path: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    made: list[tuple[str, int]] = []
    real = Scorer.sample

    def counted(self: Scorer, model: Any, progress: Any = None, stage: str = "sampling", known: Any = NOTHING) -> Any:
        made.append((stage, len(known)))
        return real(self, model, progress, stage, known)

    monkeypatch.setattr(Scorer, "sample", counted)
    shared = [*arguments, "--cache", str(tmp_path / "original")]
    short = arguments[arguments.index("--methods") + 1].split(",")[0]
    for name, method in (("a", "copy"), ("b", short)):
        flags = [flag if flag != str(tmp_path / "work") else str(tmp_path / name) for flag in shared]
        assert semu([flag if flag != arguments[arguments.index("--methods") + 1] else method for flag in flags]) == 0
    assert [known for stage, known in made if stage == "sampling before"] == [0, 4]  # three classes and none
    first, second = (json.loads((tmp_path / name / "classes.jsonl").read_text().splitlines()[1]) for name in "ab")
    assert first["evaluation"]["before"] == second["evaluation"]["before"]
    merged = ["benchmark", "--merge", f"{tmp_path / 'a'},{tmp_path / 'b'}", "--output", str(tmp_path / "all.md")]
    assert semu(merged) == 0
    page = (tmp_path / "all.md").read_text()
    assert "| SEMU, two steps (" in page
    assert "| class-embedding copy (trivial) (" in page
    protocol = (tmp_path / "b" / "classes.jsonl").read_text().replace('"steps": 2', '"steps": 3', 1)
    (tmp_path / "b" / "classes.jsonl").write_text(protocol)
    assert semu(merged) == 2
    assert "were measured by different protocols (steps)" in capsys.readouterr().err
    assert (tmp_path / "all.md").read_text() == page


def test_rows_of_tuned_methods_are_merged_with_others_of_the_same_protocol(tmp_path: Path) -> None:
    protocols = [{"steps": 2}, {"steps": 2, "tuning": {"seed": 7}}, {"steps": 2, "tuning": {"seed": 8}}]
    paths = [tmp_path / f"{number}.jsonl" for number in range(3)]
    for number, (path, protocol) in enumerate(zip(paths, protocols, strict=True)):
        lines = [{"protocol": protocol}, {"method": f"m{number}", "erased": "cat"}]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    for order in (paths[:2], paths[1::-1], [paths[0], paths[1], paths[0]]):
        first, *rows = merged_rows(order)
        assert first["protocol"] == protocols[1]
        assert {row["method"] for row in rows} == {"m0", "m1"}
    with pytest.raises(InputError, match=r"2\.jsonl and .*0\.jsonl were measured by different protocols \(tuning\)"):
        merged_rows(paths)


def test_a_row_that_was_written_in_part_is_measured_again_and_the_others_are_kept(
    tmp_path: Path, arguments: list[str], capsys: Capture
) -> None:
    assert semu(arguments) == 0
    whole = rows(tmp_path)
    file = tmp_path / "work" / "classes.jsonl"
    file.write_text(file.read_text()[:-40])
    assert semu(arguments) == 0
    assert "its last row was written in part only" in capsys.readouterr().err
    again = rows(tmp_path)
    assert again[:2] == whole[:2]
    assert again[2]["evaluation"]["after"] == whole[2]["evaluation"]["after"]


@pytest.mark.parametrize("name", ["page.md", "page.csv", "page.json", "page-classes.svg"])
def test_a_file_of_others_is_never_replaced(tmp_path: Path, arguments: list[str], capsys: Capture, name: str) -> None:
    (tmp_path / name).write_text("Results,written\n1,by me\n")
    assert semu(arguments) == 2
    assert f"{tmp_path / name} is there already and is no report of this program" in capsys.readouterr().err
    assert (tmp_path / name).read_text().endswith("by me\n")
    assert not (tmp_path / "work").exists()


def test_tuning_searches_as_many_values_for_each_method_on_what_is_not_reported(
    tmp_path: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    measured: list[tuple[Any, ...]] = []
    real = benchmark._measure

    def counted(method: Any, name: str, seed: int, *rest: Any) -> Any:
        measured.append((method.name, method.overrides.get("lr"), name, seed))
        row = real(method, name, seed, *rest)
        row["evaluation"]["after"]["unlearning_accuracy"] = float(method.overrides.get("lr") == 0.09)  # three times its own
        return row

    monkeypatch.setattr(benchmark, "_measure", counted)
    lean = [*arguments, "--no-revival", "--probes", "none", "--tune"]
    assert semu([*lean, "--tune-on", "red"]) == 2
    assert "--tune-on red: is reported" in capsys.readouterr().err
    assert semu([*lean, "--tune-on", "blue"]) == 0
    search = [("short", lr, "blue", 10_000) for lr in (0.03, 0.009, 0.09, 0.27)]  # the last: one beyond the edge
    assert measured == [*search, ("short", 0.09, "red", 0), ("copy", None, "red", 0)]
    protocol, *found = rows(tmp_path)
    tuning = protocol["protocol"]["tuning"]
    assert tuning["knobs"]["default"] == ["lr", [0.3, 1.0, 3.0]]
    assert tuning["knobs"]["uce"] == ["preserve", [0.1, 1.0, 10.0]]
    assert (tuning["erased"], tuning["seed"], "copy" in tuning["knobs"]) == (["blue"], 10_000, False)
    assert "one step further in that direction, at most 2 times" in tuning["edge"]
    assert [row["settings"].get("lr") for row in found] == [0.09, None]
    scores = [row["score"] for row in rows(tmp_path, "tuning-class")[1:]]
    assert scores.index(max(scores)) == 2
    page = (tmp_path / "page.md").read_text()
    assert "| SEMU, two steps, tuned: lr 0.09 (" in page
    assert "Tuned before on blue (seed 10000), which is not reported, by the mean of unlearning accuracy" in page
    assert semu([*lean, "--tune-on", "blue"]) == 0
    assert len(measured) == 6  # the search is continued, not made again
    assert semu(arguments) == 2
    assert "measured by another protocol" in capsys.readouterr().err


def test_two_benchmarks_in_one_folder_are_refused(tmp_path: Path, arguments: list[str], capsys: Capture) -> None:
    with held(tmp_path / "work"):
        assert semu(arguments) == 2
    assert "another process is at work in" in capsys.readouterr().err


def test_rows_of_another_protocol_are_refused(tmp_path: Path, arguments: list[str], capsys: Capture) -> None:
    work = tmp_path / "work"
    work.mkdir()
    (work / "classes.jsonl").write_text(json.dumps({"protocol": {"steps": 9}}) + "\n")
    for content, said in (
        ((work / "classes.jsonl").read_text(), "measured by another protocol"),
        ("{", "is not a benchmark's"),
    ):
        (work / "classes.jsonl").write_text(content)
        assert semu(arguments) == 2
        err = capsys.readouterr().err
        assert said in err
        assert err.count("\n") == 1
        assert (work / "classes.jsonl").read_text() == content
    assert not (tmp_path / "page.md").exists()


def test_rows_of_another_model_are_not_continued(tmp_path: Path, arguments: list[str], capsys: Capture) -> None:
    assert semu([*arguments, "--methods", "copy"]) == 0
    kept = (tmp_path / "work" / "classes.jsonl").read_bytes()
    other = saved_model(tmp_path / "other", seed=1)
    assert semu([*arguments, "--methods", "copy", "--model", other]) == 2
    assert "measured by another protocol" in capsys.readouterr().err
    assert (tmp_path / "work" / "classes.jsonl").read_bytes() == kept


def test_a_method_that_diverges_has_no_row_and_the_others_have(
    tmp_path: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    real = benchmark._measure

    def diverging(method: Any, *rest: Any) -> Any:
        if method.name == "short":
            raise Diverged("the loss is no number")
        return real(method, *rest)

    monkeypatch.setattr(benchmark, "_measure", diverging)
    assert semu(arguments) == 1
    assert [row["method"] for row in rows(tmp_path)[1:]] == ["copy"]
    assert "no row for short of red: the loss is no number" in capsys.readouterr().err


def test_a_benchmark_that_is_stopped_before_its_first_row_has_measured_nothing(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def stopped(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(benchmark, "_measure", stopped)
    assert semu(arguments) == 130
    assert "stopped by Ctrl-C. Nothing was measured yet." in capsys.readouterr().err


@pytest.mark.parametrize(("model", "code"), [("ddpm-cifar10", 1), ("my-ddpm", 0)])
def test_a_merged_page_names_a_method_below_its_number(
    model: str, code: int, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    row = {"method": "default", "erased": "cat", "evaluation": {"after": {"unlearning_accuracy": 0.4}}}
    found = [{"protocol": {"model": model}}, row]
    monkeypatch.setattr(benchmark, "write_page", lambda *_, **__: [found])
    assert semu(["benchmark", "--merge", "parts", "--output", "all.md"]) == code
    assert ("unlearning_accuracy 0.400, expected 1 within 0.1" in capsys.readouterr().err) is (code == 1)


def test_what_makes_no_table_is_refused(tmp_path: Path, arguments: list[str], few: list[str], capsys: Capture) -> None:
    unconditional = saved_model(tmp_path / "plain", names=(), num_class_embeds=None)
    for flags, said in (
        ([*arguments, "--classifier", "none"], "needs a judge"),
        ([*arguments, "--model", unconditional], "names neither classes nor a vocabulary"),
        ([*arguments, "--axes", "drift,magic"], "--axes drift,magic: give two of these"),
        ([*arguments, "--methods", "magic"], "--methods magic: unknown; there are default, "),
        ([*arguments, "--methods", "remap"], "is not a method for class models"),
        (["benchmark", "rod", *arguments[2:]], "did you mean red"),
    ):
        assert semu(flags) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "work").exists()


def test_a_variant_of_another_original_is_refused(tmp_path: Path, arguments: list[str], capsys: Capture) -> None:
    variant = tmp_path / "variant.json"
    variant.write_text(json.dumps({"other": {"base": "closed-form", "null_class": 1}}))
    assert semu([*arguments, "--methods", str(variant)]) == 2
    assert "the method 'other' sets 'null_class', which all rows share" in capsys.readouterr().err


def test_what_the_judge_says_of_several_seeds_is_their_mean() -> None:
    rows = [{"erased": "cat", "evaluation": {"after": {"judged_as": {"cat": one}}}} for one in ({"ship": 1.0}, {"deer": 1.0})]
    assert results._became([*rows, rows[1]]) == " (deer 67%)"


def test_a_variant_that_was_changed_is_not_taken_for_the_one_that_was_measured(
    tmp_path: Path, arguments: list[str], capsys: Capture
) -> None:
    lean = [*arguments, "--no-revival", "--probes", "none"]
    assert semu(lean) == 0
    variant = tmp_path / "variant.json"
    content = json.loads(Path(next(word for word in arguments if ".json" in word).split(",")[0]).read_text())
    content["short"]["steps"] = 3
    variant.write_text(json.dumps(content))
    place = next(index for index, word in enumerate(lean) if ".json" in word)
    assert semu([*lean[:place], str(variant), *lean[place + 1 :]]) == 2
    assert "short was measured with other settings" in capsys.readouterr().err


def test_what_was_found_elsewhere_stands_beside_the_row_of_the_same_model_and_thing_and_is_checked_to_both_sides() -> None:
    seen = (Expected("revival", 0.5, 0.1, "tiny-sd", "cat", "aaaa", "by them"), Expected("unlearning_accuracy", 1.0, 0.1))
    methods = {
        "known": Method("known", "the known", lambda *_: None, expected=seen),
        "other": Method("other", "the other", lambda *_: None, note="nobody has"),
    }
    protocol = {"protocol": {"model": "tiny-sd", "weights": "aaaabb"}}
    for revival, agrees in ((0.35, "**no**"), (0.45, "yes"), (0.6, "yes"), (0.65, "**no**")):
        found = [protocol, row_of("known", "cat", revival, 0.9), row_of("known", "dog", 0.0, 0.9)]
        page = list(beside_table(methods, found))
        (line,) = [line for line in page if line.startswith("| the known")]
        assert line == f"| the known | cat | revival | {revival:.2f} | 0.50 | 0.10 | {agrees} | by them, on this model |"
        said = list(missed(methods.values(), found))
        assert any(line.startswith(f"known: revival {revival:.3f}, expected 0.5") for line in said) is (agrees != "yes")
        assert "known: unlearning_accuracy 0.500, expected 1 within 0.1" in said
    older = {"protocol": {"model": "tiny-sd", "weights": "cccc"}}
    page = list(beside_table(methods, [older, row_of("known", "cat", 0.0, 0.9), row_of("other", "cat", 0.0, 0.9)]))
    (line,) = [line for line in page if "by them" in line]
    assert line.endswith("| **no** | by them, on other weights of this model (aaaa) |")
    assert page[-1] == "the other: nobody has."
    assert not any("revival" in line for line in missed(methods.values(), [older, row_of("known", "cat", 0.0, 0.9)]))
    for model, erased in (("my-sd", "cat"), ("ddpm-cifar10", "cat"), ("tiny-sd", "dog")):
        nothing = [{"protocol": {"model": model, "weights": "aaaabb"}}, row_of("known", erased, 0.0, 0.9)]
        assert not list(beside_table(methods, nothing))


def test_beyond_the_edge_is_one_step_as_far_as_its_neighbour_and_in_the_middle_none() -> None:
    assert beyond(0.09, [0.009, 0.03, 0.09]) == [0.27]
    assert beyond(0.01, [0.01, 0.1, 1.0]) == [0.001]
    assert beyond(0.1, [0.01, 0.1, 1.0]) == []


def row_of(method: str, erased: str, revival: float, before: float, **other: Any) -> dict[str, Any]:
    after = {"unlearning_accuracy": 0.5, "revival": revival}
    return {
        "method": method, "title": f"the {method}", "erased": erased, "kind": "class", "trained_fraction": 0.001, "bytes": 2000,
        "seconds": {"train": 1.0}, "seed": 0, **other,
        "evaluation": {"before": {"revival": before}, "after": after, "side_effects": {"paired": {"mse": 0.01}}},
    }  # fmt: skip


def test_what_was_not_measured_is_a_dash() -> None:
    row = row_of("copy", "red", 0.4, 0.9)
    table = results._table(results.ALONE, "the copy", "erased", iter([("red", [row], False)]), COLUMNS)
    line = dict(zip(table.columns, table.lines[0], strict=True))
    assert (line["erased"], line["UA"], line["drift"]) == ("red", "0.500", "0.0100")
    assert line["paraphrases"] == line["SSIM"] == "–"


def test_a_spread_over_seeds_is_of_the_same_things_in_each() -> None:
    found = [
        row_of("copy", name, 0.4, 1.0) | {"seed": seed} for name, seed in (("red", 0), ("blue", 0), ("red", 1), ("red", 2))
    ]
    compared = {(one.things, one.seeds): len(one.rows) for one in results.comparisons(found)}
    assert compared == {(("red",), (0, 1, 2)): 3, (("red", "blue"), (0,)): 2}


def test_methods_stand_beside_each_other_on_the_same_things_alone() -> None:
    wide = [row_of("wide", name, revival, 1.0) for name, revival in (("red", 0.2), ("blue", 0.4), ("green", 0.9))]
    found = [*wide, row_of("narrow", "red", 0.3, 1.0), row_of("other", "red", 0.1, 1.0), row_of("wide", "red+blue", 0.0, 1.0)]
    compared = [(one.things, list(one.methods)) for one in results.comparisons(found)]
    assert compared == [(("red", "blue", "green"), ["wide"]), (("red",), ["wide", "narrow", "other"])]
    assert [(one.title, one.values["revival"]) for one in results.points(found)] == [
        ("the wide", 0.2), ("the narrow", 0.3), ("the other", 0.1),
    ]  # fmt: skip
    protocol = {
        "images_per_condition": 2, "unconditional_samples": 100, "sampler": "DDIM", "steps": 2, "guidance_scale": 3.0,
        "judges": {}, "model": "x", "weights": "y", "probes": {},
    }  # fmt: skip
    page = results.page({"Classes": [{"protocol": protocol}, *found]})
    assert "of its unprompted share 0.05 (100 samples)" in page
    first, second = page.split("## 3 classes: red, blue, green")[1].split('## The class "red"')
    assert [line.split(" | ")[0] for line in first.splitlines() if line.startswith("| the")] == ["| the original", "| the wide"]
    assert "| the original | – |  | 1.00 |" in second
    assert "| the other | 0.500 | 0.0100 | 0.10 |" in second
    assert "| red+blue | 0.500 |" in page.split("## Each by itself: the wide")[1]
