"""`--questions FILE.json`: the field's groups of questions for any model, in a form that is checked before any work."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from saved_models import saved_judge
from text_models import WORDS, tiny_pipeline

from semu_diffusion import assets
from semu_diffusion.domains.named_questions import named_questions
from semu_diffusion.domains.questions import NAMED_GROUPS, concept_questions
from semu_diffusion.domains.vocabulary import read_vocabulary
from semu_diffusion.errors import InputError
from semu_diffusion.pipelines.cli.commands.erase_concept import main as erase_concept
from semu_diffusion.pipelines.cli.main import main as semu
from semu_diffusion.pipelines.train.captions import cifar_vocabulary

Capture = pytest.CaptureFixture[str]
EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "questions.json"
GIVEN = {
    "binomials": {"cat": {"a cat and a dog": "dog"}},
    "implicit": {"cats": ["it purrs"], "moon": ["it shines"]},
    "languages": {"cat": ["un chat"]},
    "look_alikes": {"cat": {"a lynx": None, "a puppy": "dog"}},
}
QUICK = [
    "--steps", "2", "--forget-samples", "4", "--kept-samples", "4", "--images-per-prompt", "1", "--sampling-steps", "2",
    "--no-revival", "--probes", "none",
]  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny Stable Diffusion without a vocabulary, as the Hub's models are."""
    folder = tmp_path_factory.mktemp("model") / "sd"
    tiny_pipeline().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def judged(model: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same with a vocabulary that names a judge."""
    folder = tmp_path_factory.mktemp("judged")
    shutil.copytree(model, folder / "sd")
    judge = saved_judge(folder / "judge", names=WORDS)
    dataclasses.replace(cifar_vocabulary(WORDS), judges={"object": judge}).save(folder / "sd")
    return str(folder / "sd")


def asked(content: Any, *concepts: str, **named: Any) -> dict[str, list[tuple[str, str | None]]]:
    found = concept_questions(
        concepts, [f"a photo of a {one}" for one in concepts], [], named=named_questions(content), **named
    )
    return {group: [(q.condition, q.answer) for q in found[group]] for group in NAMED_GROUPS if group in found}


def test_a_file_asks_of_what_is_erased_in_the_singular_or_plural_with_a_vocabulary_or_without() -> None:
    wanted = {
        "binomial": [("a cat and a dog", "dog")],
        "implicit": [("it purrs", "cat")],
        "language": [("un chat", "cat")],
        "look_alike": [("a lynx", None), ("a puppy", "dog")],
    }
    assert asked(GIVEN, "cat") == wanted
    assert asked(GIVEN, "kitten", vocabulary=cifar_vocabulary(WORDS)) == wanted
    both = asked(GIVEN, "cat", "dog")
    assert both["look_alike"] == [("a lynx", None)]  # what is erased itself need not be seen
    assert "binomial" not in both
    assert asked(GIVEN, "the moon") == {"implicit": [("it shines", "the moon")]}


def test_sentences_of_a_vocabulary_are_paired_with_what_is_kept_of_any_model() -> None:
    content = {"binomials": ["a photo of a {kept} and a {erased}"]}
    assert asked(content, "a cat", alternatives=["dog", "owl"])["binomial"] == [
        ("a photo of a dog and a cat", "dog"), ("a photo of an owl and a cat", "owl"),
    ]  # fmt: skip
    assert len(asked(content, "a cat")["binomial"]) == 4
    own = read_vocabulary(assets.folder("tiny-sd"))
    beside = asked({"binomials": {"cat": {"a cat on a ship": "ship"}}}, "cat", vocabulary=own)["binomial"]
    assert beside[-1] == ("a cat on a ship", "ship")
    assert len(beside) == 5  # the vocabulary's own are asked too


def test_questions_of_other_things_alone_and_answers_that_no_judge_knows_are_refused() -> None:
    with pytest.raises(InputError, match="--questions: asks of cat, cats, moon, and dog is erased"):
        asked(GIVEN, "dog")
    with pytest.raises(InputError, match="'lynx', which must be seen, is no object of the vocabulary"):
        asked({"look_alikes": {"cat": {"a lynx": "lynx"}}}, "cat", vocabulary=cifar_vocabulary(WORDS))


@pytest.mark.parametrize(("content", "said"), [
    ("{", "is not readable JSON"), ([], "it needs groups of questions"), ({}, "it needs groups of questions"),
    ({"riddles": {"cat": ["it purrs"]}}, "'riddles' is no group of questions: choose from binomials"),
    ({"implicit": {}}, "implicit is not of the form"), ({"implicit": {"cat": []}}, "have an empty prompt, or none"),
    ({"implicit": {"cat": "it purrs"}}, "are no list of prompts"), ({"implicit": {"cat": [3]}}, "are no list of prompts"),
    ({"languages": {"cat": [" "]}}, "have an empty prompt, or none"), ({"languages": ["chat"]}, "languages is not of the form"),
    ({"languages": {" ": ["chat"]}}, "a name without a letter"),
    ({"look_alikes": {"cat": ["a lynx"]}}, "are not of the form"), ({"look_alikes": {"cat": {}}}, "have an empty prompt"),
    ({"look_alikes": {"cat": {"a lynx": 3}}}, "are no list of prompts"), ({"binomials": []}, "have an empty prompt, or none"),
    ({"binomials": ["a {kept}"]}, "lacks {kept} or {erased}"), ({"binomials": 3}, "binomials is not of the form"),
    ({"binomials": ["a {kept}, a {erased} and {}"]}, "has braces around something else"),
    ({"implicit": {"cat": ["purr " * 200]}}, "tokens"),
])  # fmt: skip
def test_a_file_that_cannot_be_asked_is_one_line_and_nothing_is_written(
    tmp_path: Path, model: str, capsys: Capture, content: Any, said: str
) -> None:
    file = tmp_path / "questions.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    given = ["cat", "--model", model, "--questions", str(file), "--output", str(tmp_path / "run")]
    code = erase_concept([*given, "--anchor", "dog", *QUICK, "--classifier", "none"])
    out, err = capsys.readouterr()
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert said in err
    assert not (tmp_path / "run").exists()


def test_the_example_asks_any_model_and_run_json_replays_it_without_the_file(
    tmp_path: Path, model: str, capsys: Capture
) -> None:
    file = tmp_path / "questions.json"
    file.write_text(EXAMPLE.read_text())
    given = ["cat", "--model", model, "--anchor", "dog", "--questions", str(file), "--classifier", "none", *QUICK]
    assert erase_concept([*given, "--output", str(tmp_path / "cat")]) == 0
    example = json.loads(EXAMPLE.read_text())
    record = json.loads((tmp_path / "cat" / "run.json").read_text())
    assert record["config"]["questions"] == example
    protocol = json.loads((tmp_path / "cat" / "metrics.json").read_text())["protocol"]
    for group, name in zip(NAMED_GROUPS, ("binomials", "implicit", "languages", "look_alikes"), strict=True):
        assert protocol["conditions"][group] == list(example[name]["cat"])
    file.unlink()
    again = ["--config", str(tmp_path / "cat" / "run.json"), "--output", str(tmp_path / "again")]
    assert erase_concept(again) == 0
    assert json.loads((tmp_path / "again" / "metrics.json").read_text())["protocol"] == protocol
    capsys.readouterr()
    record["config"]["questions"] = {"implicit": {"cat": []}}
    (tmp_path / "cat" / "run.json").write_text(json.dumps(record))
    assert erase_concept([*again, "--overwrite"]) == 2
    assert "questions: implicit of 'cat' have an empty prompt" in capsys.readouterr().err


def test_a_run_and_evaluate_ask_by_the_files_questions_in_table_report_and_card(
    tmp_path: Path, judged: str, capsys: Capture
) -> None:
    (tmp_path / "questions.json").write_text(json.dumps(GIVEN))
    shared = ["--model", judged, "--questions", str(tmp_path / "questions.json")]
    few = ["--images-per-prompt", "1", "--sampling-steps", "2", "--no-revival", "--probes", "none"]
    said = {
        "binomial": "right on what is asked for beside it",
        "implicit": "sees it described without its name",
        "language": "sees it asked for in other languages",
        "look_alike": "right on what only looks or sounds like it",
    }
    assert erase_concept(["cat", *shared, *QUICK, "--anchor", "dog", "--output", str(tmp_path / "cat")]) == 0
    table = {"cat": capsys.readouterr().out}
    assert semu(["evaluate", str(tmp_path / "cat"), *shared, *few, "--output", str(tmp_path / "run")]) == 0
    table["run"] = capsys.readouterr().out
    for run, out in table.items():
        metrics = json.loads((tmp_path / run / "metrics.json").read_text())
        page = (tmp_path / run / "report.html").read_text()
        assert metrics["protocol"]["conditions"]["implicit"] == ["it purrs"]
        assert "it purrs" in page
        assert "described without its name" in page
        for group, words in said.items():
            assert metrics["after"][f"{group}_accuracy"] is not None
            assert words in out
    card = (tmp_path / "cat" / "README.md").read_text()
    assert all(words in card for words in said.values())
