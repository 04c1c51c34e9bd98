"""Promises of the evaluation of concepts: what is asked, who judges, what a learned pseudo-word brings back."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from saved_models import saved_judges
from text_models import WORDS, tiny_pipeline

from semu_diffusion.domains import concepts
from semu_diffusion.domains.plan import plan_words
from semu_diffusion.domains.questions import NAMED_GROUPS, concept_questions
from semu_diffusion.domains.vocabulary import Subject, Vocabulary, read_vocabulary
from semu_diffusion.errors import InputError
from semu_diffusion.eval.guards import collapse
from semu_diffusion.eval.judges.class_mapping import ClassMapping
from semu_diffusion.eval.judges.judge import Judge
from semu_diffusion.eval.judges.networks import JudgeNetwork
from semu_diffusion.eval.probes.probe import Shown
from semu_diffusion.eval.probes.pseudo_word import PseudoWordProbe
from semu_diffusion.eval.probes.revival import Learning, learn_vectors
from semu_diffusion.eval.results import Evaluation, Scores
from semu_diffusion.eval.scorer import NO_CONDITION
from semu_diffusion.models.families import adapt_text_pipeline
from semu_diffusion.peers.trivial import remap_prompts
from semu_diffusion.pipelines.cli.commands.erase_concept import main
from semu_diffusion.pipelines.report.words import interval_words, shares_words
from semu_diffusion.pipelines.runs import probe_images
from semu_diffusion.pipelines.runs import scorer as run_scorer
from semu_diffusion.pipelines.runs.config import EraseConceptConfig
from semu_diffusion.pipelines.runs.domains import ConceptSubject, concepts_of
from semu_diffusion.pipelines.runs.scorer import make_probes, make_scorer
from semu_diffusion.pipelines.train.captions import HELD_OUT_TEMPLATES, HELD_OUT_WORDS, STYLE_WORDS, cifar_vocabulary

VOCABULARY = cifar_vocabulary(WORDS)
QUICK = [
    "--steps", "2", "--forget-samples", "4", "--kept-samples", "4", "--lr", "3e-3",
    "--images-per-prompt", "2", "--sampling-steps", "2",
]  # fmt: skip


def config(*concepts: str, **changes: Any) -> EraseConceptConfig:
    return EraseConceptConfig(
        **{"concept": concepts, "guidance_scale": 2.0, "images_per_condition": 2, "sampling_steps": 2, **changes}
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    tiny_pipeline().save_pretrained(folder)
    judges = saved_judges(tmp_path_factory.mktemp("judges"), WORDS)
    dataclasses.replace(NAMED, look_alikes={"cat": {"a photo of a puppy": "dog"}}, judges=judges).save(folder)
    return str(folder)


def subject(settings: EraseConceptConfig, vocabulary: Vocabulary | None, family: str = "sd15") -> ConceptSubject:
    """What the settings mean on a tiny pipeline."""
    pipeline = tiny_pipeline(family)
    return concepts_of(pipeline, concepts.plan(pipeline, settings, vocabulary), settings, "")


def seer(names: tuple[str, ...] = ("dark", "bright")) -> Judge:
    """Sees class 1 in bright images, 0 in others."""

    def logits(images: torch.Tensor) -> torch.Tensor:
        light = images.mean((1, 2, 3))
        return torch.stack([0.5 - light, light - 0.5], dim=1)

    network = JudgeNetwork(
        name="seer", sha256="0", classes=2, categories=names, dim=2, channels=3, chunk=8, logits=logits, features=logits
    )
    return Judge(network, names, ClassMapping(torch.arange(2), ()), torch.device("cpu"))


# ---------------------------------------------------------------- words


def test_an_object_is_erased_in_every_style_and_tested_by_words_that_were_held_back() -> None:
    (one,), kept = plan_words(config("cat"), VOCABULARY)
    assert one.subject == Subject("cat", "object")
    assert {"a photo of a cat", "a kitten at night", "a poster of a kitty", "a cat"} <= set(one.prompts)
    held = {"tomcat"} | {template.format(word) for template in HELD_OUT_TEMPLATES["photo"] for word in ("cat", "kitten")}
    assert not any(word in prompt.split() for prompt in one.prompts for word in HELD_OUT_WORDS)
    assert not held & set(one.prompts)
    assert len(kept) == 2 * len(STYLE_WORDS)
    assert not any(set(prompt.split()) & set(one.words) for prompt in kept)
    asked = concept_questions(["cat"], one.prompts, kept, vocabulary=VOCABULARY)
    assert {q.condition for q in asked["forget"]} == {"a photo of a cat", "a photo of a kitten", "a photo of a kitty"}
    assert {"a photo of a tomcat", "an image of the cat"} <= {q.condition for q in asked["paraphrase"]}
    assert not {q.condition for q in asked["paraphrase"]} & set(one.prompts)
    assert {(q.kind, q.answer) for q in asked["in_domain"]} == {("object", "dog"), ("object", "bird")}
    assert {q.answer for q in asked["cross_domain"]} == set(STYLE_WORDS)
    assert not any("cat" in q.condition for group in ("in_domain", "cross_domain") for q in asked[group])


def test_a_style_is_erased_with_every_object_and_answered_with_the_photo() -> None:
    (one,), kept = plan_words(config("pencil sketch"), VOCABULARY)
    assert one.subject == Subject("sketch", "style")
    assert one.candidates() == ["photo"]
    pairs = dict(zip(one.prompts, one.answers("photo"), strict=True))
    assert pairs["a pencil sketch of a dog"] == "a photo of a dog"
    assert dict(zip(one.prompts, one.answers("night"), strict=True))["a sketch of a bird"] == "a bird at night"
    assert not any("sketch" in prompt for prompt in kept)
    assert one.sentence("a pencil sketch of a dog") == "a {} of a dog"
    asked = concept_questions(["sketch"], one.prompts, kept, vocabulary=VOCABULARY)
    assert {(q.kind, q.answer) for q in asked["cross_domain"]} == {("object", name) for name in WORDS}
    assert {q.answer for q in asked["in_domain"]} == set(STYLE_WORDS) - {"sketch"}
    assert not {q.condition for q in asked["paraphrase"]} & set(one.prompts)


def test_objects_are_answered_in_their_style_and_each_concept_by_its_own_anchor() -> None:
    plans, kept = plan_words(config("cat", "dog"), VOCABULARY)
    answers = dict(zip(plans[0].prompts, plans[0].answers("bird"), strict=True))
    assert answers["a kitten at night"] == "a bird at night"
    assert answers["an image of a cat"] == "a photo of a bird"
    assert plans[0].candidates(plans[1].words) == ["bird"]
    assert not any("dog" in prompt or "cat" in prompt for prompt in kept)


def test_what_is_held_out_is_none_of_the_erasures_prompts() -> None:
    (one,), kept = plan_words(config("cat"), VOCABULARY)
    held = concept_questions(["cat"], one.prompts, kept, vocabulary=VOCABULARY)["kept_held_out"][0].condition
    given = ["a pencil sketch of a cat", "the whiskered one"]  # the first is the erasure's own
    asked = concept_questions(["cat"], one.prompts, kept, given, VOCABULARY, retained=[held, *kept])
    assert [q.condition for q in asked["paraphrase"]] == ["the whiskered one"]
    assert held not in {q.condition for q in asked["kept_held_out"]}
    with pytest.raises(InputError, match="the erasure uses all of them itself"):
        concept_questions(["cat"], one.prompts, kept, given[:1], VOCABULARY)


@pytest.mark.parametrize(
    ("flags", "asked"),
    [
        ({"forget_prompts": ("my cat Tom", "a photo of a cat")}, {"my cat Tom", "a photo of a cat"}),
        ({"synonyms": ("mouser",)}, {"a photo of a cat", "a photo of a kitten", "a photo of a kitty", "a photo of a mouser"}),
    ],
)
def test_a_concept_is_asked_for_by_the_words_it_was_erased_with(flags: dict[str, Any], asked: set[str]) -> None:
    pipeline = tiny_pipeline()
    wanted = config("cat", **flags)
    plan = concepts.plan(pipeline, wanted, VOCABULARY)
    questions = concepts_of(pipeline, plan, wanted, "tiny").questions
    assert {(q.condition, q.answer) for q in questions["forget"]} == {(prompt, "cat") for prompt in asked}


def test_a_prompt_belongs_to_the_longest_concept_that_it_names() -> None:
    prompts = ["a photo of a dog", "a photo of a hot dog"]
    for order in (["dog", "hot dog"], ["hot dog", "dog"]):
        asked = concept_questions(order, prompts, [])["forget"]
        assert {q.condition: q.answer for q in asked} == {"a photo of a dog": "dog", "a photo of a hot dog": "hot dog"}


def test_a_name_with_underscores_is_asked_for_as_it_was_taught() -> None:
    folders = cifar_vocabulary(["tabby_cat", "golden_retriever", "owl"])
    for erased in ("tabby cat", "sketch"):
        plans, kept = plan_words(config(erased), folders)
        asked = concept_questions([erased], plans[0].prompts, kept, vocabulary=folders)
        answers = [plans[0].answers("golden retriever" if erased == "tabby cat" else "photo")]
        prompts = [q.condition for group in asked.values() for q in group] + list(plans[0].prompts) + answers[0] + kept
        assert prompts
        assert not any("_" in prompt for prompt in prompts)
        assert {q.answer for group in asked.values() for q in group if q.kind == "object"} <= {*folders.objects}


def test_every_object_of_a_vocabulary_may_be_erased() -> None:
    asked = concept_questions(list(WORDS), [], ["a photo of a house"], vocabulary=VOCABULARY)
    assert not asked["kept_held_out"]
    assert {q.answer for q in asked["forget"]} == set(WORDS)


def test_runs_of_neighbouring_seeds_share_no_noise_of_a_probe() -> None:
    first = [Learning(**run_scorer._sampled(config("cat", seed=seed, probe_samples=40))) for seed in (0, 1, 2)]
    used = [{*range(one.seed, one.seed + one.screened), *one.seeds} for one in first]
    assert not used[0] & used[1]
    assert not used[1] & used[2]
    assert first[0].seed == 0


def test_words_of_no_vocabulary_still_make_prompts_and_questions() -> None:
    (one,), kept = plan_words(config("the moon", synonyms=("full moon",)), None)
    assert "a photo of the moon" in one.prompts
    assert one.answers("sun")[0] == "a photo of the sun"
    asked = concept_questions(["the moon"], one.prompts, kept[:3], alternatives=["sun"])
    assert [q.condition for q in asked["in_domain"]] == ["a photo of a sun"]
    assert {q.answer for q in asked["cross_domain"]} == {None}
    own = concept_questions(["the moon"], one.prompts, kept, ["earth's satellite"])
    assert [(q.condition, q.answer) for q in own["paraphrase"]] == [("earth's satellite", "the moon")]


def test_a_vocabulary_comes_back_from_its_file_and_a_broken_one_is_one_line(tmp_path: Path) -> None:
    VOCABULARY.save(tmp_path)
    assert read_vocabulary(tmp_path) == dataclasses.replace(VOCABULARY)
    assert read_vocabulary(tmp_path / "nowhere") is None
    (tmp_path / "vocabulary.json").write_text('{"objects": 3}')
    with pytest.raises(InputError, match="no readable vocabulary"):
        read_vocabulary(tmp_path)


NAMED = dataclasses.replace(
    VOCABULARY,
    binomials=("a photo of a {kept} and a {erased}", "the {erased} beside the {kept}"),
    implicit={"cat": ("it purrs",)},
    languages={"cat": ("un chat", "猫"), "sketch": ("une esquisse",)},
    look_alikes={"cat": {"a photo of a puppy": "dog", "a photo of a lynx": None}},
)


def test_a_vocabulary_may_name_binomials_descriptions_languages_and_look_alikes(tmp_path: Path) -> None:
    NAMED.save(tmp_path)
    assert read_vocabulary(tmp_path) == NAMED
    asked = concept_questions(["a cat"], ["a photo of a cat"], [], vocabulary=read_vocabulary(tmp_path))
    found = {group: [(q.condition, q.answer) for q in asked[group]] for group in NAMED_GROUPS}
    assert found == {
        "binomial": [("a photo of a dog and a cat", "dog"), ("the cat beside the bird", "bird")],
        "implicit": [("it purrs", "cat")],
        "language": [("un chat", "cat"), ("猫", "cat")],
        "look_alike": [("a photo of a puppy", "dog"), ("a photo of a lynx", None)],
    }
    both = concept_questions(["cat", "dog"], [], [], vocabulary=NAMED)
    assert [q.answer for q in both["look_alike"]] == [None]  # what is erased itself is no look-alike that must stay
    style = concept_questions(["sketch"], [], [], vocabulary=NAMED)
    assert set(style) & set(NAMED_GROUPS) == {"language"}
    assert not set(concept_questions(["cat"], [], [], vocabulary=VOCABULARY)) & set(NAMED_GROUPS)


@pytest.mark.parametrize("broken", [
    {"binomials": ["a {kept}"]}, {"binomials": ["a {kept}, {erased} and {}"]}, {"binomials": 3},
    {"implicit": {"moon": ["it shines"]}}, {"implicit": {"cat": "it purrs"}},
    {"languages": ["chat"]}, {"look_alikes": {"cat": {"a lynx": "lynx"}}}, {"look_alikes": {"cat": ["a lynx"]}},
])  # fmt: skip
def test_questions_that_cannot_be_asked_are_refused_in_one_line(tmp_path: Path, broken: dict[str, Any]) -> None:
    VOCABULARY.save(tmp_path)
    path = tmp_path / "vocabulary.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **broken}))
    with pytest.raises(InputError, match="no readable vocabulary") as caught:
        read_vocabulary(tmp_path)
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------- depth


def test_a_pseudo_word_learns_what_the_images_show() -> None:
    pipeline = tiny_pipeline()
    model = adapt_text_pipeline(pipeline, ["a photo of a cat"])
    before = {name: value.clone() for name, value in pipeline.text_encoder.state_dict().items()}
    latents = torch.cat(list(model.sample_latents([0] * 8, range(8), 4)))
    shown = Shown("bright", seer(), latents, ("a photo of a {}",) * 8)
    how = Learning(steps=60, lr=1.0, batch_size=16, restarts=2)
    probe = PseudoWordProbe((shown,), how)
    start, unit = probe.start(model, shown, torch.Generator().manual_seed(1))
    words = start.clone().requires_grad_(True)
    with probe.attached(model, shown, words) as on:
        learn_vectors(model, latents, words, on.condition, how, torch.Generator().manual_seed(1), unit)
    assert words.shape == (2, pipeline.text_encoder.config.hidden_size)

    def loss(word: torch.Tensor) -> float:
        """Of the word as it is, the same draws for all."""
        fixed, still = word.detach()[None].clone().requires_grad_(True), Learning(steps=10, lr=0.0, batch_size=16)
        with probe.attached(model, shown, fixed) as on:
            return sum(learn_vectors(model, latents, fixed, on.condition, still, torch.Generator().manual_seed(2)))

    assert all(loss(words[restart]) < loss(start[restart]) for restart in range(2))
    after = pipeline.text_encoder.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_revival_is_the_share_the_judge_sees_and_the_pseudo_word_stands_where_it_should() -> None:
    model = adapt_text_pipeline(tiny_pipeline(), ["a photo of a cat"])
    latents = torch.zeros(3, *model.latent_shape)
    quick = Learning(steps=2, batch_size=2, samples=6, screened=2, restarts=2, sampling_steps=2)

    def revived(name: str, sentence: str = "a {} here", model: Any = model) -> Any:
        return PseudoWordProbe((Shown(name, seer(), latents, (sentence,) * 3),), quick).run(model)

    shares = [revived(name)[name] for name in ("dark", "bright")]
    assert shares[0].share + shares[1].share == pytest.approx(1)
    assert shares[0].training_images == 3
    with pytest.raises(InputError, match="a sentence with one"):
        revived("dark", "a photo")
    two = adapt_text_pipeline(tiny_pipeline("sdxl"), ["x"])  # a word of two text encoders
    assert revived("dark", model=two)["dark"].share + revived("bright", model=two)["bright"].share == pytest.approx(1)


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
    found = []
    for concept in ("cat", "dog"):
        asked = subject(config(concept, anchor="bird", classifier="none"), VOCABULARY)
        found.append(make_scorer(asked).sample(asked.model))
    shared = found[0].keys() & found[1].keys()
    assert {"a photo of a bird", NO_CONDITION} <= shared
    assert all(torch.equal(found[0][prompt], found[1][prompt]) for prompt in shared)


def test_metrics_hold_every_group_before_and_after(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cat", "--model", model, *QUICK, "--no-revival", "--output", str(tmp_path / "run")]) == 0
    metrics = Evaluation.from_json(json.loads((tmp_path / "run" / "metrics.json").read_text()))
    assert (metrics.kind, metrics.erased) == ("concept", ("cat",))
    for found in (metrics.before, metrics.after):
        shares = (
            found.forget_accuracy, found.unlearning_accuracy, found.paraphrase_accuracy, found.in_domain_accuracy,
            found.cross_domain_accuracy, found.retain_accuracy, found.unconditional_share,
        )  # fmt: skip
        assert all(share is not None and 0 <= share <= 1 for share in shares)
        assert found.forget_accuracy is not None
        assert found.unlearning_accuracy == pytest.approx(1 - found.forget_accuracy)
        assert found.revival is None
    assert set(metrics.protocol.judges) == {"object", "style"}
    assert metrics.protocol.guidance_scale == VOCABULARY.guidance_scale
    assert set(metrics.distances) == {"fid", "kid"}
    kept = {*metrics.protocol.conditions["in_domain"], *metrics.protocol.conditions["cross_domain"]}
    assert metrics.side_effects is not None
    assert set(metrics.side_effects.per_condition) == kept
    out = capsys.readouterr().out
    assert "cat replaced by" in out
    groups = {
        "sees cat (erased)": "forget",
        "right on others of its kind": "in_domain",
        "right on the other kind": "cross_domain",
        "right on what is kept, by other words and sentences": "kept_held_out",
        "sees it described without its name": "implicit",
        "sees it asked for in other languages": "language",
        "right on what is asked for beside it": "binomial",
        "right on what only looks or sounds like it": "look_alike",
    }
    for words, group in groups.items():
        pictures = metrics.protocol.images_per_condition * len(metrics.protocol.conditions[group])
        share = metrics.after.accuracy(group)
        assert share is not None
        assert metrics.after.samples[group] == pictures
        said = next(line for line in out.splitlines() if line.startswith(words))
        assert said.endswith(interval_words(share, pictures, metrics.after.intervals[group]))
    after = metrics.after
    assert after.judged_as["cat"].get("cat", 0) == pytest.approx(after.forget_accuracy)
    assert f"asked for cat, the judge now sees: {shares_words(after.judged_as['cat'])}" in out
    assert after.unconditional_share is not None
    unprompted = next(line for line in out.splitlines() if "sees it without a condition" in line)
    assert unprompted.endswith(interval_words(after.unconditional_share, metrics.protocol.unconditional_samples))


def test_a_judge_of_words_knows_what_the_concept_is_answered_with(monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[Any] = []
    monkeypatch.setattr(run_scorer, "load_judge", lambda name, class_names, *_: names.append(class_names) or seer())
    make_scorer(subject(config("moon", anchor="a sun", classifier="clip"), None))
    assert {"moon", "sun", "dog"} <= set(names[0])
    with pytest.raises(InputError, match="--alternatives"):
        subject(config("cat", alternatives=("dog",), classifier="clip"), VOCABULARY)
    with pytest.raises(InputError, match="--alternatives a moon: is what shall be erased"):
        subject(config("moon", alternatives=("sun", "a moon"), classifier="clip"), None)


def test_a_probe_learns_from_images_of_the_concept_and_each_concept_has_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe_images, "LEARNED_FROM", 4)
    asked = subject(config("cat", "dog", revival=True), VOCABULARY)
    scorer = make_scorer(asked)
    probe, completion = make_probes(asked, scorer)
    assert isinstance(probe, PseudoWordProbe)
    assert [shown.name for shown in probe.shown] == ["cat", "dog"]
    assert all(len(shown.clean) == len(shown.sentences) == 4 for shown in probe.shown)
    assert "a photo of a {}" in probe.shown[0].sentences
    assert [len(shown.started) for shown in completion.shown] == [24, 24]
    given, _ = make_probes(asked, scorer, torch.zeros(3, *asked.model.image_shape))
    assert isinstance(given, PseudoWordProbe)
    assert len(given.shown[0].clean) == 3
    none = subject(config("cat", classifier="none"), VOCABULARY)
    assert make_probes(none, make_scorer(none)) == ()


def test_a_vocabulary_names_the_judges_it_has() -> None:
    assert set(cifar_vocabulary(("cat", "dog")).judges) == {"object", "style"}
    assert set(cifar_vocabulary(("red", "green")).judges) == {"style"}  # the embedded judge knows no colours
    vocabulary = dataclasses.replace(cifar_vocabulary(("red", "green")), judges={})
    assert make_scorer(subject(config("red", classifier="auto"), vocabulary)).judges == {}


def test_given_paraphrases_are_judged_as_what_the_vocabulary_calls_them() -> None:
    vocabulary = cifar_vocabulary(WORDS)
    for concept, kind, name in (("kitten", "object", "cat"), ("pencil sketch", "style", "sketch")):
        asked = concept_questions([concept], [], ["a photo of a dog"], ["something else"], vocabulary)
        assert [(q.kind, q.answer) for q in asked["paraphrase"]] == [(kind, name)]


@pytest.mark.parametrize(
    ("before", "after", "pictures", "collapsed"),
    [
        (0.9, 0.1, 40, True),
        (1.0, 0.0, 3, True),
        (1.0, 0.0, 2, False),  # one in six by chance
        (0.9, 0.5, 40, False),
        (0.125, 0.0, 8, False),
        (None, None, 40, False),
    ],
)
def test_a_model_that_no_longer_draws_what_stays_has_collapsed(
    before: float | None, after: float | None, pictures: int, collapsed: bool
) -> None:
    scores = (
        Scores(in_domain_accuracy=before, samples={"in_domain": pictures}),
        Scores(in_domain_accuracy=after, samples={"in_domain": pictures}),
    )
    noise = torch.randint(0, 256, (pictures, 3, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    samples = {"a bird": noise, "a dog": noise}
    assert (collapse(samples, samples, list(samples), scores) is not None) == collapsed
    flat = {prompt: torch.full_like(images, 90) for prompt, images in samples.items()}
    assert collapse(samples, flat, list(samples), scores) is not None
