"""Promises of report.html: three verdicts by their rules, everything measured in one file, nothing of another address."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import re
import shutil
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from saved_models import QUICK, saved_judge, saved_model
from test_results import FULL, old_class_run
from text_models import tiny_pipeline
from tiny_models import NAMES

from semu_diffusion.eval.metrics.unlearning import difference_interval
from semu_diffusion.eval.pictures import Pictures
from semu_diffusion.eval.probes.class_vector import ClassVectorProbe
from semu_diffusion.eval.results import Evaluation, Revival, Scores
from semu_diffusion.models.checkpoints import load_class_conditional
from semu_diffusion.pipelines.cli.commands.erase_class import main as erase_class
from semu_diffusion.pipelines.cli.commands.erase_concept import main as erase_concept
from semu_diffusion.pipelines.cli.main import main as semu
from semu_diffusion.pipelines.report.card import patch_card
from semu_diffusion.pipelines.report.page.entries import Entry, read_entries
from semu_diffusion.pipelines.report.page.neighbours import matrices
from semu_diffusion.pipelines.report.page.numbers import about_erased
from semu_diffusion.pipelines.report.page.run import TABLES, read_run
from semu_diffusion.pipelines.report.page.usage import usages
from semu_diffusion.pipelines.report.page.verdicts import answer_of, verdicts

Capture = pytest.CaptureFixture[str]


def pixels(address: str) -> torch.Tensor:
    """The picture (C, H, W) of a data address."""
    head, _, content = address.partition(",")
    assert head == "data:image/webp;base64"
    return torch.from_numpy(np.array(Image.open(io.BytesIO(base64.b64decode(content))))).permute(2, 0, 1)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of classes with a judge and a probe."""
    home = tmp_path_factory.mktemp("report")
    model, judge = saved_model(home / "model"), saved_judge(home / "judge")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ClassVectorProbe, "default", dataclasses.replace(ClassVectorProbe.default, steps=2, samples=4))
        flags = [*QUICK, "--revival", "--output", str(home / "red")]
        assert erase_class(["red", "--model", model, "--classifier", judge, *flags]) == 0
    return home / "red"


@pytest.fixture(scope="module")
def concept_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("report")
    tiny_pipeline().save_pretrained(home / "model")
    flags = ["--anchor", "dog", "--steps", "2", "--forget-samples", "4", "--kept-samples", "4"]
    flags += ["--images-per-prompt", "1", "--judged-prompts", "3", "--sampling-steps", "2", "--output", str(home / "cat")]
    assert erase_concept(["cat", "--model", str(home / "model"), *flags]) == 0
    return home / "cat"


def page(folder: Path) -> str:
    return (folder / "report.html").read_text(encoding="utf-8")


def text(html: str) -> str:
    """What a reader sees: no tags, no style, no script."""
    bare = re.sub(r"<(style|script)\b.*?</\1>", " ", html, flags=re.DOTALL)
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]+>", " ", bare)))


# ------------------------------------------------------------------ verdicts


@pytest.mark.parametrize(
    ("value", "low", "high", "answer"),
    [
        (0.0, 0.0, 0.1, "yes"), (0.0, 0.0, 0.11, "probably"), (0.12, 0.05, 0.3, "probably not"), (0.5, 0.11, 0.9, "no"),
    ],
)  # fmt: skip
def test_an_answer_is_sure_only_where_the_whole_interval_is(value: float, low: float, high: float, answer: str) -> None:
    assert answer_of(value, low, high, 0.1) == answer


def scored(forget: float, kept: float, revival: float | None = None, count: int = 500) -> Scores:
    probes = {}
    if revival is not None:
        probes = {"weak": {"cat": one(0.0)}, "strong": {"cat": one(revival)}}
    return Scores(
        forget_accuracy=forget, in_domain_accuracy=kept, cross_domain_accuracy=1.0, retain_accuracy=(1 + kept) / 2,
        samples={"forget": count, "in_domain": count, "cross_domain": count},
    ).with_probes(probes)  # fmt: skip


def one(share: float) -> Revival:
    return Revival(share, 60, 150, 3e-2, 32, 50, 3.0, 0, 64, "made by the original model", 0.2, 0.1)


def judged(before: Scores, after: Scores, **changes: Any) -> tuple[str, ...]:
    found = dataclasses.replace(FULL, **{"collapsed": None, "before": before, "after": after, **changes})
    return tuple(verdict.answer for verdict in verdicts(found))


def test_three_questions_are_answered_each_by_itself() -> None:
    good = scored(0.98, 0.97, 0.9)
    assert judged(good, scored(0.0, 0.97, 0.0)) == ("yes", "yes", "yes")
    assert judged(good, scored(0.0, 0.97, 0.9)) == ("yes", "yes", "no")  # a renamed label
    assert judged(good, scored(0.9, 0.97, 0.9)) == ("no", "yes", "no")
    assert judged(good, scored(0.0, 0.50, 0.0)) == ("yes", "no", "yes")  # the worst group decides, the other is whole
    assert judged(good, scored(0.0, 0.97, 0.0, count=20)) == ("probably", "probably", "yes")
    assert judged(good, scored(0.0, 0.97), collapsed="all alike") == ("yes", "no", "not measured")
    assert judged(Scores(), Scores()) == ("not measured",) * 3


def test_what_the_original_never_made_is_not_called_gone() -> None:
    never = dataclasses.replace(scored(0.0, 0.97), judged_as={"cat": {"dog": 1.0}})
    assert judged(never, scored(0.0, 0.97))[0] == "not measured"


def test_an_attempt_that_fails_on_the_original_too_is_no_depth() -> None:
    good, never = scored(0.98, 0.97, 0.9), scored(0.98, 0.97, 0.0)
    assert judged(never, scored(0.0, 0.97, 0.0))[2] == "not measured"
    assert judged(never, scored(0.0, 0.97, 0.9))[2] == "no"
    assert judged(good, scored(0.0, 0.97, 0.0))[2] == "yes"


def test_an_interval_by_prompt_and_a_new_kept_group_decide_too() -> None:
    before, after = (dataclasses.replace(s, kept_held_out_accuracy=1.0) for s in (scored(0.98, 0.97), scored(0.0, 0.97)))
    counted = {**after.samples, "kept_held_out": 100}
    after = dataclasses.replace(after, kept_held_out_accuracy=0.2, samples=counted, intervals={"forget": (0.0, 0.4)})
    assert judged(before, after) == ("probably", "no", "not measured")


def test_what_learns_nothing_does_not_decide_the_depth() -> None:
    after = scored(0.0, 0.97).with_probes({"completion": {"cat": Revival(0.9, 24, control=1.0)}})
    found = verdicts(dataclasses.replace(FULL, collapsed=None, before=scored(0.98, 0.97), after=after))[2]
    assert found.answer == "not measured"
    assert "completion" in found.said


def test_a_group_is_of_what_its_pictures_say(run: Path) -> None:
    pictures = read_run(run).pictures
    assert pictures is not None
    assert about_erased("forget", pictures)
    assert not about_erased("in_domain", pictures)
    rows = tuple(dataclasses.replace(row, group="in_other_tongues") for row in pictures.rows if row.group == "forget")
    assert about_erased("in_other_tongues", Pictures(rows, {}))
    assert not about_erased("kept_held_out", None)


def test_pairs_narrow_the_interval_of_a_fall() -> None:
    """Newcombe 1998, table II: 36 of 50 in both, 12 and 2 in one alone; his method 10 gives 0.0569 to 0.3404."""
    low, high = difference_interval(48, 38, 50, 36)
    assert (round(low, 4), round(high, 4)) == (0.0569, 0.3404)
    alone, paired = difference_interval(180, 180, 200), difference_interval(180, 180, 200, 179)
    assert paired[1] - paired[0] < alone[1] - alone[0]
    before, after = scored(0.9, 0.9), scored(0.0, 0.88)
    pairs = {"in_domain": {"dog": {"dog": {"dog": 440, "cat": 10}, "cat": {"cat": 50}}}}
    found = dataclasses.replace(FULL, before=before, after=after, collapsed=None)
    known, unknown = verdicts(found, Pictures((), pairs))[1], verdicts(found)[1]
    assert known.value == unknown.value
    assert known.high < unknown.high


# ------------------------------------------------------------------ the page of a run


def test_a_run_ends_with_a_page_that_needs_nothing_else(run: Path, concept_run: Path) -> None:
    for folder in (run, concept_run):
        html = page(folder)
        addresses = re.findall(r"""(?:src|href)=["']([^"']+)""", html)
        assert addresses
        local = {name for name in addresses if not name.startswith(("data:", "#"))}
        assert local <= {path.name for path in folder.iterdir()}
        assert "run.json" in local
        assert not re.search(r"https?://|url\(|@import", html)
        assert "default-src 'none'" in html
        assert html.count("<h1>") == 1
        assert all('alt="' in image for image in re.findall(r"<img [^>]*>", html))

        assert len(html) < 3_000_000


def test_the_card_names_what_was_erased_as_the_model_does_and_no_lora_that_is_not_there(run: Path) -> None:
    record, metrics = (json.loads((run / name).read_text()) for name in ("run.json", "metrics.json"))
    asked = {**record, "config": {**record["config"], "forget": ["0"]}}
    assert f"# Without: {', '.join(metrics['erased'])}\n" in patch_card(asked, metrics)
    assert "There is no LoRA of it" in patch_card({**record, "no_lora": "its convolutions have groups"}, metrics)
    assert "There is no LoRA of it" not in patch_card(record, metrics)


def test_a_patch_that_was_measured_at_strength_zero_is_said_to_be(run: Path) -> None:
    found = read_run(run)
    none = dataclasses.replace(found, record={**found.record, "config": {**found.record["config"], "strength": 0}})
    assert (found.strength, none.strength) == (1.0, 0.0)


def test_a_page_away_from_its_run_links_to_nothing_that_is_not_there(run: Path, tmp_path: Path) -> None:
    assert semu(["report", str(run), "--output", str(tmp_path / "page.html")]) == 0
    html = (tmp_path / "page.html").read_text()
    assert {name for name in re.findall(r"""href=["']([^"']+)""", html) if not name.startswith(("data:", "#"))} == set()
    assert "Files of the run folder, which this page does not lie in: run.json, metrics.json" in html


@pytest.mark.parametrize("name", ["report-class.html", "report-concept.html"])
def test_the_example_pages_are_small_whole_and_of_a_commit(name: str) -> None:
    path = Path(__file__).parents[1] / "docs" / name
    html = path.read_text()
    assert path.stat().st_size < 3 * 2**20
    assert re.search(r"<dt>git commit</dt><dd>[0-9a-f]{7,}</dd>", html)
    assert "-dirty" not in html
    assert {name for name in re.findall(r"""(?:src|href)=["']([^"']+)""", html) if not name.startswith(("data:", "#"))} == set()


def test_the_page_shows_every_number_and_every_chosen_picture(run: Path) -> None:
    html, said = page(run), text(page(run))
    found = Evaluation.from_json(json.loads((run / "metrics.json").read_text()))
    for words in ("Gone?", "The rest unharmed?", "Deep?", "Erased", "Kept", "Depth", "Patch", "Protocol", "Limits"):
        assert words in said
    assert "“red” was taken out of model: of 2 samples that ask for it by name" in said
    for name in NAMES:
        assert name in said
    assert "brought back: class-vector" in said
    assert found.patch is not None
    assert f"{found.patch.trained_parameters:,}" in said
    for layer in read_run(run).layers:
        assert layer.name in said
    rows = Pictures.from_json(json.loads((run / "pictures.json").read_text())).rows
    assert {row.condition for row in rows} == {*NAMES, "", "class-vector: red", "completion: red"}
    assert "attempts by class-vector" in said
    for row in rows:
        assert row.images["before"] in html
        assert row.images["after"] in html
        assert str(row.seed) in html
    assert all(("anchor" in row.images) == (row.condition == "red") for row in rows)
    for step in ("collect", "subspace", "train", "evaluate"):
        assert step in said
    assert "erase-class --config run.json" in said


def test_every_verdict_stands_beside_its_interval_and_its_threshold(run: Path) -> None:
    said, found = text(page(run)), read_run(run)
    measured = [one for one in verdicts(found.evaluation, found.pictures) if one.value is not None]
    assert said.count("; good up to ") == len(measured) > 0
    for one in measured:
        words = f"95 % interval {one.shown(one.low)} to {one.shown(one.high)}; good up to {one.shown(one.limit)}"
        assert text(words) in said


def test_the_page_draws_what_became_of_the_class_with_its_counts(run: Path) -> None:
    pictures = read_run(run).pictures
    assert pictures is not None
    became, figure = pictures.became["forget"]["red"], page(run).partition("What became of red")[2]
    said = text(figure.partition("</figure>")[0])
    total = sum(sum(row.values()) for row in became.values())
    pairs = [(old, new, count) for old, row in became.items() for new, count in row.items() if count]
    assert pairs
    assert all(f"{old} to {new}: {count} of {total}" in said for old, new, count in pairs)


def test_the_page_says_of_each_layer_its_rank_the_energy_kept_and_the_response(run: Path) -> None:
    said, layers = text(page(run)), read_run(run).layers
    keys = list(dict.fromkeys(key for layer in layers for key in layer.protection))  # the name's layers have none
    assert {"gradient_energy_kept", "response_on_kept"} <= set(keys)
    for layer in layers:
        values = [layer.protection.get(key) for key in keys]
        numbers = " ".join("–" if value is None else f"{value:.3g}" for value in values)
        assert f"{layer.name} {'×'.join(map(str, layer.shape))} {layer.rank} {layer.size:.4f} {numbers} " in said


def test_the_limits_and_the_protocol_say_what_a_reader_must_know(run: Path) -> None:
    said = text(page(run))
    assert "The place of the edit is itself a hint" in said
    assert "starts from the same noise before and after" in said


def test_what_a_later_version_measures_appears_by_itself(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("run.json", "pictures.json"):
        (folder / name).write_text((run / name).read_text())
    metrics = json.loads((run / "metrics.json").read_text())
    for when in ("before", "after"):
        metrics[when]["probes"]["noise-search"] = metrics[when]["probes"]["class-vector"]
        metrics[when]["samples"]["cross_domain"] = 4
        metrics[when]["cross_domain_accuracy"] = 0.75
        metrics[when]["intervals"]["cross_domain"] = [0.123, 0.987]
    metrics["distances"]["mmd"] = metrics["distances"]["kid"]
    metrics["side_effects"]["paired"]["dists"] = 0.125
    metrics["protocol"]["conditions"]["look_alikes"] = ["crimson"]
    metrics["cost"]["seconds"]["probe"] = 77.0
    (folder / "metrics.json").write_text(json.dumps(metrics))
    assert semu(["report", str(folder)]) == 0
    said = text(page(folder))
    for words in (
        "brought back: noise-search",
        "the other kind",
        "MMD to",
        "DISTS of",
        "look alikes",
        "crimson",
        "77 s",
        "12.3",
    ):
        assert words in said


def test_of_an_old_run_the_page_leaves_out_what_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"config": {"forget": ["cat"]}, "base_model": {"source": "embedded"}}))
    (tmp_path / "metrics.json").write_text(json.dumps(old_class_run()))
    assert semu(["report", str(tmp_path)]) == 0
    html, said = page(tmp_path), text(page(tmp_path))
    assert "was taken out of ddpm-cifar10" in said
    for absent in ("Pictures", "Where in the network", "Training", "<figure>", 'class="gallery"'):
        assert absent not in re.sub(r"<(style|script|dialog)\b.*?</\1>", "", html, flags=re.DOTALL)


def test_words_of_a_user_are_never_markup(run: Path, tmp_path: Path) -> None:
    for name in ("metrics.json", "run.json", "pictures.json"):
        evil = (run / name).read_text().replace('"red"', json.dumps("</script><img src=x onerror=alert(1)>"))
        (tmp_path / name).write_text(evil)
    assert semu(["report", str(tmp_path)]) == 0
    assert "<img src=x" not in page(tmp_path)
    assert page(tmp_path).count("</script>") == 2


def test_a_patch_that_was_scored_again_has_its_own_page_with_the_patch_of_the_run(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "again"
    model, judge = (str(run.parent / name) for name in ("model", "judge"))
    flags = ["--model", model, "--classifier", judge, "--images-per-class", "3", "--sampling-steps", "2"]
    assert semu(["evaluate", str(run), *flags, "--probes", "none", "--output", str(folder)]) == 0
    said = text(page(folder))
    assert "Nothing was learned to bring it back" in said
    assert "Where in the network" in said
    assert "Training" in said
    assert "--config run.json" not in said


# ------------------------------------------------------------------ how it is used


def test_the_lines_for_a_class_put_the_patch_on_and_take_it_off(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run)
    for use in usages(read_run(run)):
        pipe = load_class_conditional(run.parent / "model").pipeline
        before = {name: tensor.clone() for name, tensor in pipe.unet.state_dict().items()}
        space: dict[str, Any] = {"pipe": pipe}
        exec(use.lines, space)
        assert use.tool == "PEFT" or any(not torch.equal(t, before[n]) for n, t in pipe.unet.state_dict().items())
        exec(use.off.partition(" restores")[0], space)
        after = pipe.unet.state_dict()
        assert after.keys() == before.keys()
        assert all(torch.equal(tensor, before[name]) for name, tensor in after.items())


def test_the_lines_for_a_concept_load_its_lora_in_diffusers_and_peft(
    concept_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(concept_run)
    found = {use.tool: use for use in usages(read_run(concept_run))}
    assert set(found) == {
        "semu-diffusion", "diffusers, from this folder", "diffusers, from the Hub", "ComfyUI", "A1111", "Forge", "sd-scripts",
        "PEFT",
    }  # fmt: skip
    for tool in ("diffusers, from this folder", "PEFT"):
        pipe = tiny_pipeline()
        space: dict[str, Any] = {"pipe": pipe}
        exec(found[tool].lines, space)
        assert pipe.get_active_adapters() == ["no_cat"]
        exec(found[tool].off.partition(",")[0].partition(";")[0], space)
        assert tool == "PEFT" or not pipe.get_list_adapters()
    assert json.loads(found["ComfyUI"].lines)["inputs"]["lora_name"] == "no-cat.safetensors"
    assert found["A1111"].lines == found["Forge"].lines == "<lora:no-cat:1>"
    named = [word for word in found["sd-scripts"].lines.split() if word.endswith(".safetensors")]
    assert [(concept_run / name).is_file() for name in named] == [True]


# ------------------------------------------------------------------ several


def test_several_runs_become_one_page_with_their_neighbours_and_links(run: Path, tmp_path: Path, capsys: Capture) -> None:
    target = tmp_path / "all.html"
    assert semu(["report", str(run), str(run), "--output", str(target)]) == 0
    assert capsys.readouterr().out.strip() == str(target)
    html, said = target.read_text(), text(target.read_text())
    assert "2 erasures compared" in said
    assert html.count('class="own"') == 2
    (link,) = set(re.findall(r'href="([^"#]*report\.html)"', html))
    assert (target.parent / link).resolve() == (run / "report.html").resolve()
    assert "not measured alike" not in said


def test_the_matrix_has_what_was_erased_on_its_diagonal(run: Path) -> None:
    (entry,) = read_entries(run)
    names, ((_, cells),) = matrices({"": [entry]})[""]
    assert names[0] == "red"
    assert set(names) == set(NAMES)
    found = Evaluation.from_json(json.loads((run / "metrics.json").read_text()))
    for name, cell in zip(names, cells, strict=True):
        assert cell is not None
        assert cell["before"] == pytest.approx(found.before.per_condition[name])
        assert cell["after"] == pytest.approx(found.after.per_condition[name])
        assert cell["own"] is (name == "red")


def test_the_matrix_shows_what_was_asked_by_name_not_another_group_with_the_same_answer(run: Path) -> None:
    (entry,) = read_entries(run)
    assert entry.pictures is not None
    lost = {"green": {"green": {"blue": 4}, "blue": {}, "red": {}}}
    more = dataclasses.replace(entry.pictures, became={**entry.pictures.became, "binomial": lost})
    assert matrices({"": [entry]}) == matrices({"": [dataclasses.replace(entry, pictures=more)]})


def test_of_a_model_without_names_the_unconditional_share_is_judged() -> None:
    protocol = dataclasses.replace(FULL.protocol, conditions={}, unconditional_samples=200)
    before, after = Scores(unconditional_share=0.5), Scores(unconditional_share=0.0)
    found = dataclasses.replace(FULL, collapsed=None, before=before, after=after, protocol=protocol)
    gone = verdicts(found)[0]
    assert (gone.answer, gone.value) == ("yes", 0.0)
    assert "in 0 of 200 samples" in gone.said


def test_a_destroyed_model_is_offered_to_nobody(run: Path) -> None:
    record, metrics = (json.loads((run / name).read_text()) for name in ("run.json", "metrics.json"))
    card = patch_card(record, {**metrics, "collapsed": "the kept samples are noise"})
    assert "This patch destroys the model: the kept samples are noise." in card
    assert "Load it" not in card
    found = read_run(run)
    assert usages(found)
    assert not usages(dataclasses.replace(found, evaluation=dataclasses.replace(found.evaluation, collapsed="noise")))


@pytest.fixture
def benchmark(run: Path, tmp_path: Path) -> Path:
    """Rows of two methods: one of two things, the other of one of them, by another protocol."""
    metrics = json.loads((run / "metrics.json").read_text())
    rows = []
    for method, title, erased, gone in (
        ("default", "SEMU, default", "red", 0.25), ("default", "SEMU (default)", "blue", 0.75),
        ("uce", "UCE", "red", 0.5),
    ):  # fmt: skip
        protocol = {**metrics["protocol"], "steps": 7} if method == "uce" else metrics["protocol"]
        evaluation = {**metrics, "protocol": protocol, "after": {**metrics["after"], "unlearning_accuracy": gone}}
        about = {"method": method, "title": title, "erased": erased, "kind": "class", "seconds": {"train": 2.0}}
        rows.append({**about, "trained_fraction": 0.01, "bytes": 1000, "evaluation": evaluation})
    path = tmp_path / "classes.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in ({"protocol": {}}, *rows)))
    return path


def test_a_benchmark_becomes_a_page_and_other_protocols_are_named(run: Path, benchmark: Path, tmp_path: Path) -> None:
    assert semu(["report", str(benchmark), "--output", str(tmp_path / "page.html")]) == 0
    said = text((tmp_path / "page.html").read_text())
    assert "3 erasures compared" in said
    assert "SEMU, default" in said
    assert "steps: 2; 7" in said
    assert 'its numbers the means over the same things: the class "red".' in said
    assert semu(["report", str(tmp_path), "--output", str(tmp_path / "page.html")]) == 0
    assert semu(["report", str(run), str(benchmark), "--output", str(tmp_path / "both.html")]) == 0  # a run beside rows
    assert "4 erasures compared" in text((tmp_path / "both.html").read_text())


def test_the_page_averages_methods_over_the_same_things_alone(benchmark: Path, tmp_path: Path) -> None:
    assert semu(["report", str(benchmark), "--output", str(tmp_path / "page.html")]) == 0
    html = (tmp_path / "page.html").read_text().partition("<h3>Numbers</h3>")[2].partition("<details")[0]
    found = {}
    for table in re.findall(r"<table>.*?</table>", html, re.DOTALL):
        lines = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", line) for line in re.findall(r"<tr>.*?</tr>", table, re.DOTALL)]
        found[text(table.partition("</caption>")[0]).strip()] = {re.sub(r" \(.*", "", line[0]): line[1] for line in lines[1:]}
    both, one = found["2 classes: red, blue"], found['The class "red"']
    assert both == {"the original": both["the original"], "SEMU, default": "0.500"}
    assert one == {"the original": both["the original"], "SEMU, default": "0.250", "UCE": "0.500"}


def test_the_front_of_a_page_shows_any_two_columns(run: Path, benchmark: Path, tmp_path: Path, capsys: Capture) -> None:
    words = ["report", str(benchmark), "--output", str(tmp_path / "page.html"), "--axes"]
    assert semu([*words, "Kept, own kind,erase s"]) == 0
    html = (tmp_path / "page.html").read_text()
    assert re.findall(r'<svg class="plot"[^>]*aria-label="([^"]*)"', html) == [
        "seconds of the erasure (log, lower is better) against kept, own kind (higher is better)"
    ]
    assert re.findall(r'<option value="([^"]*)" selected>', html) == ["kept, own kind", "erase s"]
    for arguments, said in (
        ([*words, "drift,beauty"], "--axes drift,beauty: give two of these, with a comma between them: UA; paraphrases; "),
        (["report", str(run), "--axes", "drift,UA"], "there is no front here"),
        (
            ["report", str(run), str(run), "--output", str(tmp_path / "runs.html"), "--axes", "drift,UA"],
            "there is no front here",
        ),
    ):
        assert semu(arguments) == 2
        err = capsys.readouterr().err
        assert said in err
        assert err.count("\n") == 1
    assert (tmp_path / "page.html").read_text() == html
    assert not (tmp_path / "runs.html").exists()


def word_entry(erased: str, kind: str, groups: dict[str, dict[str, float]]) -> Entry:
    """A row of a benchmark of words: of each group the conditions with the share judged right after; 1 before."""
    after = {condition: share for asked in groups.values() for condition, share in asked.items()}
    evaluation = dataclasses.replace(
        FULL,
        erased=(erased,),
        before=Scores(per_condition=dict.fromkeys(after, 1.0)),
        after=Scores(per_condition=after, judged_as={erased: {"dog" if kind == "object" else "photo": 1.0}}),
        protocol=dataclasses.replace(FULL.protocol, conditions={group: list(asked) for group, asked in groups.items()}),
    )
    return Entry(erased, "a method", evaluation, {"kind": kind, "erased": erased}, "words")


def test_the_matrix_of_words_has_a_column_for_each_thing_that_its_prompts_show() -> None:
    cat = word_entry("cat", "object", {
        "forget": {"a photo of a cat": 0.0, "a photo of a kitten": 0.5}, "paraphrase": {"a tomcat": 0.0},
        "in_domain": {"a photo of a dog": 0.75},
        "cross_domain": {"a photo of a dog": 0.75, "a sepia photo of a dog": 1.0, "a pencil sketch of a dog": 0.5},
    })  # fmt: skip
    sketch = word_entry("sketch", "style", {
        "forget": {"a pencil sketch of a cat": 0.0, "a pencil sketch of a dog": 0.0},
        "in_domain": {"a photo of a cat": 0.5, "a sepia photo of a dog": 1.0, "a sepia photo of a cat": 0.0},
        "cross_domain": {"a photo of a dog": 0.25, "a photo of a cat": 0.5},
    })  # fmt: skip
    names, rows = matrices({"a method": [cat, sketch]})["a method"]
    assert set(names) == {"cat", "sketch", "dog", "photo", "a sepia photo of …"}
    assert names[:2] == ["cat", "sketch"]
    after = {erased: {n: cell["after"] for n, cell in zip(names, cells, strict=True) if cell} for erased, cells in rows}
    assert after["cat"] == {"cat": 0.25, "dog": 0.75, "sketch": 0.5, "a sepia photo of …": 1.0}
    assert after["sketch"] == {"sketch": 0.0, "photo": 0.5, "a sepia photo of …": 0.5, "dog": 0.25}
    assert [[bool(cell and cell["own"]) for cell in cells[:2]] for _, cells in rows] == [[True, False], [False, True]]


def test_what_is_no_run_is_one_line_and_nothing_else_is_replaced(run: Path, tmp_path: Path, capsys: Capture) -> None:
    mine = tmp_path / "notes.html"
    mine.write_text("my own notes")
    old = tmp_path / "old.jsonl"
    old.write_text('{"protocol": {}}\n{"method": "default", "erased": "cat"}\n')
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "metrics.json").write_text("{")
    (broken / "run.json").write_text("{}")
    for arguments, said in (
        ([str(run), "--output", str(mine)], "is no report"),
        ([str(run), "--output", str(tmp_path)], "is a folder"),
        ([str(tmp_path)], "holds no evaluated run"),
        ([str(tmp_path / "missing.jsonl")], "no such file"),
        ([str(old)], "earlier version"),
        ([str(broken)], "holds no evaluated run"),
    ):
        assert semu(["report", *arguments]) == 2
        err = capsys.readouterr().err
        assert said in err
        assert err.count("\n") == 1
    assert mine.read_text() == "my own notes"
    assert not (broken / "report.html").exists()


def test_a_run_json_that_was_edited_by_hand_is_one_line(run: Path, tmp_path: Path, capsys: Capture) -> None:
    folder = shutil.copytree(run, tmp_path / "run")
    record = json.loads((folder / "run.json").read_text())
    words = ["report", str(folder), "--output", str(tmp_path / "page.html")]
    for name in TABLES:
        for value in ("x", [], 5):
            (folder / "run.json").write_text(json.dumps({**record, name: value}))
            assert semu(words) == 2
            assert f"is not what a run writes: its {name} is no object" in capsys.readouterr().err
        (folder / "run.json").write_text(json.dumps({**record, name: None}))
        assert semu(words) == 0
