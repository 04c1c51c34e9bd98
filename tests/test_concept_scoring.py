"""Promises of the proof of a concept's erasure: what is asked, who answers, what a learned pseudo-word brings back."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from text_models import WORDS, tiny_pipeline

from semu_diffusion.domains.concepts import prepare
from semu_diffusion.domains.config import ConceptErasureConfig
from semu_diffusion.domains.plan import plan
from semu_diffusion.domains.questions import questions
from semu_diffusion.domains.vocabulary import Subject, read_vocabulary
from semu_diffusion.errors import InputError
from semu_diffusion.eval.metrics.unlearning import answer_words, with_interval
from semu_diffusion.eval.probes.pseudo_word import learn_pseudo_word, text_revival
from semu_diffusion.models.stable_diffusion import adapt_text_pipeline, encode_prompts
from semu_diffusion.peers.token_remap import remap_prompts
from semu_diffusion.pipelines.benchmark import concepts as benchmark_concepts
from semu_diffusion.pipelines.benchmark.concept_methods import erased_by
from semu_diffusion.pipelines.cli.benchmark_concepts import COMMAND as BENCHMARK
from semu_diffusion.pipelines.cli.erase_concept import main
from semu_diffusion.pipelines.runs import concept_proof
from semu_diffusion.pipelines.runs.concept_scoring import NO_PROMPT, ConceptScorer
from semu_diffusion.pipelines.runs.concept_settings import EraseConceptRun
from semu_diffusion.pipelines.train.captions import HELD_OUT_TEMPLATES, HELD_OUT_WORDS, STYLE_WORDS, cifar_vocabulary

VOCABULARY = cifar_vocabulary(WORDS)
QUICK = [
    "--steps", "2", "--forget-samples", "4", "--kept-samples", "4", "--anchor-samples", "2", "--lr", "3e-3",
    "--images-per-prompt", "2", "--sampling-steps", "2",
]  # fmt: skip


def config(*concepts: str, **changes: Any) -> EraseConceptRun:
    return EraseConceptRun(
        **{"concept": concepts, "guidance_scale": 2.0, "images_per_prompt": 2, "sampling_steps": 2, **changes}
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    tiny_pipeline().save_pretrained(folder)
    VOCABULARY.save(folder)
    return str(folder)


class Named:
    """Knows its class names and nothing else."""

    unjudged: tuple[str, ...] = ()

    def __init__(self, class_names: tuple[str, ...]) -> None:
        self.class_names = class_names


class Seer:
    """Sees class 1 in bright images, 0 in others."""

    def predict(self, images: torch.Tensor) -> torch.Tensor:
        return (images.float().mean((1, 2, 3)) > 0.5).long()


# ---------------------------------------------------------------- words


def test_an_object_is_erased_in_every_style_and_tested_by_words_that_were_held_back() -> None:
    (one,), kept = plan(config("cat"), VOCABULARY)
    assert one.subject == Subject("cat", "object")
    assert {"a photo of a cat", "a kitten at night", "a poster of a kitty", "a cat"} <= set(one.prompts)
    held = {"tomcat"} | {template.format(word) for template in HELD_OUT_TEMPLATES["photo"] for word in ("cat", "kitten")}
    assert not any(word in prompt.split() for prompt in one.prompts for word in HELD_OUT_WORDS)
    assert not held & set(one.prompts)
    assert len(kept) == 2 * len(STYLE_WORDS)
    assert not any(set(prompt.split()) & set(one.words) for prompt in kept)
    asked = questions(["cat"], one.prompts, kept, vocabulary=VOCABULARY)
    assert {q.prompt for q in asked["forget"]} == {"a photo of a cat", "a photo of a kitten", "a photo of a kitty"}
    assert {"a photo of a tomcat", "an image of the cat"} <= {q.prompt for q in asked["paraphrase"]}
    assert not {q.prompt for q in asked["paraphrase"]} & set(one.prompts)
    assert {(q.kind, q.answer) for q in asked["in_domain"]} == {("object", "dog"), ("object", "bird")}
    assert {q.answer for q in asked["cross_domain"]} == set(STYLE_WORDS)
    assert not any("cat" in q.prompt for group in ("in_domain", "cross_domain") for q in asked[group])


def test_a_style_is_erased_with_every_object_and_answered_with_the_photo() -> None:
    (one,), kept = plan(config("pencil sketch"), VOCABULARY)
    assert one.subject == Subject("sketch", "style")
    assert one.candidates() == ["photo"]
    pairs = dict(zip(one.prompts, one.answers("photo"), strict=True))
    assert pairs["a pencil sketch of a dog"] == "a photo of a dog"
    assert dict(zip(one.prompts, one.answers("night"), strict=True))["a sketch of a bird"] == "a bird at night"
    assert not any("sketch" in prompt for prompt in kept)
    assert one.sentence("a pencil sketch of a dog") == "a {} of a dog"
    asked = questions(["sketch"], one.prompts, kept, vocabulary=VOCABULARY)
    assert {(q.kind, q.answer) for q in asked["cross_domain"]} == {("object", name) for name in WORDS}
    assert {q.answer for q in asked["in_domain"]} == set(STYLE_WORDS) - {"sketch"}
    assert not {q.prompt for q in asked["paraphrase"]} & set(one.prompts)


def test_objects_are_answered_in_their_style_and_each_concept_by_its_own_anchor() -> None:
    plans, kept = plan(config("cat", "dog"), VOCABULARY)
    answers = dict(zip(plans[0].prompts, plans[0].answers("bird"), strict=True))
    assert answers["a kitten at night"] == "a bird at night"
    assert answers["an image of a cat"] == "a photo of a bird"
    assert plans[0].candidates(plans[1].words) == ["bird"]
    assert not any("dog" in prompt or "cat" in prompt for prompt in kept)


def test_words_of_no_vocabulary_still_make_prompts_and_questions() -> None:
    (one,), kept = plan(config("the moon", synonyms=("full moon",)), None)
    assert "a photo of the moon" in one.prompts
    assert one.answers("sun")[0] == "a photo of the sun"
    asked = questions(["the moon"], one.prompts, kept[:3], alternatives=["sun"])
    assert [q.prompt for q in asked["in_domain"]] == ["a photo of a sun"]
    assert {q.answer for q in asked["cross_domain"]} == {None}
    own = questions(["the moon"], one.prompts, kept, ["earth's satellite"])
    assert [(q.prompt, q.answer) for q in own["paraphrase"]] == [("earth's satellite", "the moon")]


def test_a_vocabulary_comes_back_from_its_file_and_a_broken_one_is_one_line(tmp_path: Path) -> None:
    VOCABULARY.save(tmp_path)
    assert read_vocabulary(tmp_path) == dataclasses.replace(VOCABULARY)
    assert read_vocabulary(tmp_path / "nowhere") is None
    (tmp_path / "vocabulary.json").write_text('{"objects": 3}')
    with pytest.raises(InputError, match="no readable vocabulary"):
        read_vocabulary(tmp_path)


# ---------------------------------------------------------------- depth


def test_a_pseudo_word_learns_what_the_images_show() -> None:
    pipeline = tiny_pipeline()
    model = adapt_text_pipeline(pipeline, ["a photo of a cat"])
    before = {name: value.clone() for name, value in pipeline.text_encoder.state_dict().items()}
    rows = torch.zeros(8, dtype=torch.long)
    latents = torch.cat(list(model.sample_latents(rows.tolist(), range(8), 4)))
    vector, losses = learn_pseudo_word(model, latents, ["a photo of a {}"] * 8, steps=60, lr=1.0, seed=1)
    assert vector.shape == (pipeline.text_encoder.config.hidden_size,)
    assert sum(losses[-10:]) < sum(losses[:10])
    after = pipeline.text_encoder.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_revival_is_the_share_the_judge_sees_and_the_pseudo_word_stands_where_it_should() -> None:
    model = adapt_text_pipeline(tiny_pipeline(), ["a photo of a cat"])
    latents = torch.zeros(3, *model.latent_shape)
    quick: dict[str, Any] = {"steps": 2, "samples": 6, "sampling_steps": 2}
    shares = [text_revival(model, latents, ["a {} here"] * 3, Seer(), wanted, **quick) for wanted in (0, 1)]
    assert shares[0] is not None
    assert shares[1] is not None
    assert shares[0].share + shares[1].share == pytest.approx(1)
    assert shares[0].training_images == 3
    with pytest.raises(InputError, match="a sentence with one"):
        text_revival(model, latents, ["a photo"] * 3, Seer(), 0, **quick)
    assert text_revival(adapt_text_pipeline(tiny_pipeline("sdxl"), ["x"]), latents, ["{}"] * 3, Seer(), 0, **quick) is None


def test_the_remap_answers_listed_prompts_like_the_anchor_and_nothing_else() -> None:
    model = adapt_text_pipeline(tiny_pipeline(), ["a cat", "a dog", "a bird"])
    remapped = remap_prompts(model, {"a cat": "a dog"})
    x, t = torch.randn(1, *model.latent_shape), torch.tensor([50])
    with torch.no_grad():
        cat, dog, bird = (remapped.predict(x, t, torch.tensor([row])) for row in (0, 1, 2))
        assert torch.equal(cat, dog)
        assert torch.equal(bird, model.predict(x, t, torch.tensor([2])))
        assert not torch.equal(cat, model.predict(x, t, torch.tensor([0])))
    with pytest.raises(KeyError):
        remap_prompts(model, {"a zebra": "a dog"})


# ---------------------------------------------------------------- the whole


def test_a_prompts_pictures_do_not_depend_on_what_else_is_asked() -> None:
    pipeline = tiny_pipeline()
    found = []
    for concept in ("cat", "dog"):
        settings = config(concept, anchor="bird", classifier="none")
        scorer = ConceptScorer(settings, *plan(settings, VOCABULARY), VOCABULARY, torch.device("cpu"))
        task = prepare(pipeline, settings, "", VOCABULARY, scorer.prompts)
        found.append(scorer.sample(task.task.model, lambda *_: None, ""))
    shared = found[0].keys() & found[1].keys()
    assert {"a photo of a bird", NO_PROMPT} <= shared
    assert all(torch.equal(found[0][prompt], found[1][prompt]) for prompt in shared)


def test_metrics_hold_every_group_before_and_after(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cat", "--model", model, *QUICK, "--no-revival", "--output", str(tmp_path / "run")]) == 0
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    for when in ("before", "after"):
        found = metrics[when]
        shares = (
            "forget_accuracy", "unlearning_accuracy", "paraphrase_forget_accuracy", "in_domain_retain_accuracy",
            "cross_domain_retain_accuracy", "unconditional_share",
        )  # fmt: skip
        assert all(0 <= found[name] <= 1 for name in shares)
        assert found["unlearning_accuracy"] == pytest.approx(1 - found["forget_accuracy"])
        assert found["revival"] is None
    assert set(metrics["protocol"]["classifiers"]) == {"object", "style"}
    assert metrics["protocol"]["guidance_scale"] == VOCABULARY.guidance_scale
    out = capsys.readouterr().out
    assert "cat answered with" in out
    after, asked = metrics["after"], metrics["protocol"]
    groups = {
        "sees cat (erased)": "forget",
        "right on others of its kind": "in_domain",
        "right on the other kind": "cross_domain",
    }
    shares = ("forget_accuracy", "in_domain_retain_accuracy", "cross_domain_retain_accuracy")
    for (words, group), share in zip(groups.items(), shares, strict=True):
        pictures = asked["images_per_prompt"] * len(asked[f"{group}_prompts"])
        assert after["samples"][group] == pictures
        said = next(line for line in out.splitlines() if line.startswith(words))
        assert said.endswith(with_interval(after[share], pictures))
    assert after["answers"]["cat"].get("cat", 0) == pytest.approx(after["forget_accuracy"])
    assert f"asked for cat, the judge now sees: {answer_words(after['answers']['cat'])}" in out
    unprompted = next(line for line in out.splitlines() if "without a prompt" in line)
    assert unprompted.endswith(with_interval(after["unconditional_share"], asked["unconditional_samples"]))


def test_the_benchmark_measures_each_row_once_and_goes_on(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(benchmark_concepts.METHODS, "default", ("quick", {"steps": 1, "forget_samples": 2, "kept_samples": 2}))
    work, page = tmp_path / "work", tmp_path / "page.md"
    flags = [
        "--model", model, "--methods", "default,remap", "--images-per-prompt", "1", "--sampling-steps", "1", "--no-revival",
        "--work", str(work), "--output", str(page),
    ]  # fmt: skip
    assert BENCHMARK.main([*flags, "--concepts", "cat"]) == 0
    first = (work / "concepts.jsonl").read_text()
    assert BENCHMARK.main([*flags, "--concepts", "cat,sepia,cat+dog"]) == 0
    rows = [json.loads(line) for line in (work / "concepts.jsonl").read_text().splitlines()[1:]]
    assert (work / "concepts.jsonl").read_text().startswith(first)
    assert [(row["method"], row["class"]) for row in rows[:2]] == [("default", "cat"), ("remap", "cat")]
    assert len(rows) == 6
    remapped = next(row for row in rows if row["method"] == "remap" and row["class"] == "cat")
    assert remapped["side_effects"]["paired_mse"] == 0
    assert remapped["trained_fraction"] == 0
    assert "token remap (trivial), styles (1)" in page.read_text()
    assert BENCHMARK.main([*flags, "--concepts", "zebra"]) == 2
    other = tmp_path / "other"
    tiny_pipeline(seed=1).save_pretrained(other)
    VOCABULARY.save(other)
    flags[1] = str(other)
    assert BENCHMARK.main([*flags, "--concepts", "cat"]) == 2  # rows of another model are not continued


def test_a_benchmark_without_a_judge_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_pipeline().save_pretrained(tmp_path / "model")
    dataclasses.replace(VOCABULARY, judges={}).save(tmp_path / "model")
    flags = ["--model", str(tmp_path / "model"), "--work", str(tmp_path / "work"), "--output", str(tmp_path / "page.md")]
    assert BENCHMARK.main(flags) == 2
    assert "names no judge" in capsys.readouterr().err
    assert not (tmp_path / "work").exists()


def test_a_judge_of_words_knows_what_the_concept_is_answered_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("semu_diffusion.pipelines.runs.concept_scoring._judge", lambda name, names, device: Named(names))
    settings = config("cassette player", anchor="a radio", classifier="clip")
    scorer = ConceptScorer(settings, *plan(settings, None), None, torch.device("cpu"))
    assert {"cassette player", "radio", "dog"} <= set(scorer.judges["object"].class_names)
    known = config("cat", alternatives=("dog",), classifier="clip")
    with pytest.raises(InputError, match="--alternatives"):
        ConceptScorer(known, *plan(known, VOCABULARY), VOCABULARY, torch.device("cpu"))
    itself = config("cassette player", alternatives=("radio", "a cassette player"), classifier="clip")
    with pytest.raises(InputError, match="--alternatives a cassette player: is what shall be erased"):
        ConceptScorer(itself, *plan(itself, None), None, torch.device("cpu"))


def test_no_word_is_learned_of_a_model_of_two_text_encoders() -> None:
    settings = config("cat", classifier="auto")
    scorer = ConceptScorer(settings, *plan(settings, VOCABULARY), VOCABULARY, torch.device("cpu"))
    text = adapt_text_pipeline(tiny_pipeline("sdxl"), scorer.prompts)
    assert scorer.concept_latents(text) == []


def test_a_vocabulary_names_the_judges_it_has() -> None:
    assert set(cifar_vocabulary(("cat", "dog")).judges) == {"object", "style"}
    assert set(cifar_vocabulary(("red", "green")).judges) == {"style"}  # the embedded judge knows no colours
    settings = config("red", classifier="auto")
    vocabulary = dataclasses.replace(cifar_vocabulary(("red", "green")), judges={})
    assert ConceptScorer(settings, *plan(settings, vocabulary), vocabulary, torch.device("cpu")).judges == {}


def test_given_paraphrases_are_judged_as_what_the_vocabulary_calls_them() -> None:
    vocabulary = cifar_vocabulary(WORDS)
    for concept, kind, name in (("kitten", "object", "cat"), ("pencil sketch", "style", "sketch")):
        asked = questions([concept], [], ["a photo of a dog"], ["something else"], vocabulary)
        assert [(q.kind, q.answer) for q in asked["paraphrase"]] == [(kind, name)]


def test_the_remap_answers_every_sentence_with_a_known_word_and_not_the_word_held_back() -> None:
    vocabulary, pipeline = cifar_vocabulary(WORDS), tiny_pipeline()
    asked = ["the cat", "a tomcat here", "the bird"]
    task = prepare(pipeline, ConceptErasureConfig(concept=("cat",), anchor="dog", guidance_scale=3.0), "", vocabulary, asked)
    with erased_by("remap", task) as made:
        book, own = made.model, task.task.model
        for prompt, answer in (("the cat", "the dog"), ("a tomcat here", "a tomcat here"), ("the bird", "the bird")):
            expected = encode_prompts(pipeline, [answer]).embeddings[0]
            assert torch.allclose(book.table.embeddings[book.row(prompt)], expected, atol=1e-5)
        assert book.table.prompts[-1] == own.table.prompts[-1] == ""
        assert made.trained_parameters == 0


@pytest.mark.parametrize(
    ("before", "after", "pictures", "collapsed"),
    [(0.9, 0.1, 40, True), (1.0, 0.1, 2, True), (0.9, 0.5, 40, False), (0.125, 0.0, 8, False), (None, None, 40, False)],
)
def test_a_model_that_no_longer_draws_what_stays_has_collapsed(
    before: float | None, after: float | None, pictures: int, collapsed: bool
) -> None:
    scores = [{"in_domain_retain_accuracy": share, "cross_domain_retain_accuracy": None} for share in (before, after)]
    noise = torch.randint(0, 256, (pictures, 3, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    samples = {"a bird": noise, "a dog": noise}
    reason = concept_proof._collapse(samples, samples, list(samples), scores)
    assert (reason is not None) == collapsed
    flat = {prompt: torch.full_like(images, 90) for prompt, images in samples.items()}
    assert concept_proof._collapse(samples, flat, list(samples), scores) is not None
