"""The scorer: seeds by condition, conditions sampled once, judges that know what was erased, honest distances."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from patches import random_patch
from tiny_models import NAMES, tiny_model

from semu_diffusion.domains.questions import Question, class_questions, conditions
from semu_diffusion.errors import InputError
from semu_diffusion.eval.evaluate import evaluate
from semu_diffusion.eval.judges.class_mapping import ClassMapping
from semu_diffusion.eval.judges.judge import Judge
from semu_diffusion.eval.judges.networks import JudgeNetwork
from semu_diffusion.eval.metrics.fid import FeatureExtractor
from semu_diffusion.eval.results import Scores
from semu_diffusion.eval.scorer import NO_CONDITION, Reference, Sampling, Scorer
from semu_diffusion.patch import ErasurePatch

SAMPLING = Sampling(images=3, unconditional=4, steps=2, guidance_scale=3.0)
COLOURS = FeatureExtractor("colours", 3, "0", lambda images: images.float().mean((2, 3)))


def judge(unjudged: tuple[str, ...] = ()) -> Judge:
    """Sees the colour that is strongest."""
    network = JudgeNetwork(
        name="colours", sha256="0", classes=3, categories=NAMES, dim=3, channels=3, chunk=8,
        logits=lambda x: x.mean((2, 3)), features=lambda x: x.mean((2, 3)),
    )  # fmt: skip
    return Judge(network, NAMES, ClassMapping(torch.arange(3), unjudged), torch.device("cpu"))


def scorer(*erased: str, **changes: object) -> Scorer:
    made = Scorer("class", erased, class_questions(NAMES, erased), SAMPLING, {"object": judge()}, COLOURS)
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


def test_a_condition_has_its_own_seeds_whatever_else_is_asked_and_in_whatever_order() -> None:
    model = tiny_model()
    first, second = (scorer(name).sample(model) for name in ("red", "blue"))
    assert list(first) != list(second)
    assert all(torch.equal(first[name], second[name]) for name in (*NAMES, NO_CONDITION))
    more = scorer("red", sampling=dataclasses.replace(SAMPLING, images=5)).sample(model)
    assert torch.equal(more["green"][:3], first["green"])
    other = scorer("red", sampling=dataclasses.replace(SAMPLING, seed=1)).sample(model)
    assert not torch.equal(other["green"], first["green"])
    seeds = [SAMPLING.seeds(name, 3) for name in (*NAMES, NO_CONDITION)]
    assert all(0 <= seed < 2**31 for own in seeds for seed in own)


def test_known_samples_are_not_made_again() -> None:
    model, asked = tiny_model(), scorer("red")
    before = asked.sample(model)
    marked = {name: torch.zeros_like(images) for name, images in before.items()}
    again = asked.sample(model, known={"green": marked["green"]})
    assert torch.equal(again["green"], marked["green"])
    assert torch.equal(again["red"], before["red"])
    assert list(asked.sample(model, known=marked)) == list(before)


def test_scores_are_those_counted_by_hand() -> None:
    colour = {name: torch.zeros(3, 3, 8, 8, dtype=torch.uint8) for name in (*NAMES, NO_CONDITION)}
    colour["red"][:1, 0], colour["red"][1:, 1] = 200, 200  # one is red, two are green
    colour["green"][:, 1] = 200
    colour["blue"][:2, 2], colour["blue"][2, 0] = 200, 200
    colour[NO_CONDITION][:2, 0], colour[NO_CONDITION][2, 1] = 200, 200
    found = scorer("red").score(colour)
    assert found.forget_accuracy == pytest.approx(1 / 3)
    assert found.unlearning_accuracy == pytest.approx(2 / 3)
    assert found.per_condition == pytest.approx({"red": 1 / 3, "green": 1.0, "blue": 2 / 3})
    assert found.in_domain_accuracy == found.retain_accuracy == pytest.approx(5 / 6)
    assert found.unconditional_share == pytest.approx(2 / 3)
    assert found.judged_as == {"red": pytest.approx({"green": 2 / 3, "red": 1 / 3})}
    assert found.samples == {"forget": 3, "in_domain": 6}
    assert scorer("red", judges={}).score(colour) == Scores()


def test_a_judge_is_given_many_questions_pictures_at_a_time_and_says_of_each_what_it_says_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own, calls = judge(), list[int]()

    def logits(x: torch.Tensor) -> torch.Tensor:
        calls.append(len(x))
        return own.network.logits(x)

    counted = dataclasses.replace(own, network=dataclasses.replace(own.network, logits=logits))
    asked = scorer("red", judges={"object": counted})
    samples, every = asked.sample(tiny_model()), [q for group in asked.questions.values() for q in group]
    for most, chunks in ((256, 2), (4, 3)):  # 9 pictures in chunks of 8; those of one question alone
        monkeypatch.setattr("semu_diffusion.eval.scorer.AT_A_TIME", most)
        calls.clear()
        found = asked.verdicts(samples, every)
        assert calls == [8] * chunks
        assert list(found) == every
        for question, said in found.items():
            assert all(map(torch.equal, said, own.verdicts(samples[question.condition])))


def test_a_kept_class_that_the_judge_does_not_know_is_in_no_number_and_an_erased_one_is_refused() -> None:
    model = tiny_model()
    found = scorer("red", judges={"object": judge(("blue",))})
    assert set(found.score(found.sample(model)).per_condition) == {"red", "green"}
    with pytest.raises(InputError, match=r"no class like the erased 'blue'; give a --class-mapping"):
        scorer("blue", judges={"object": judge(("blue",))})


def test_more_images_go_on_from_those_that_are_known() -> None:
    model, asked = tiny_model(), scorer("red")
    first = asked.sample(model)
    more = dataclasses.replace(asked, sampling=dataclasses.replace(SAMPLING, images=5))
    marked = {name: torch.zeros_like(images) for name, images in first.items()}
    again, anew = more.sample(model, known=marked), more.sample(model)
    assert torch.equal(again["green"], torch.cat([marked["green"], anew["green"][3:]]))
    assert torch.equal(asked.sample(model, known=anew)["green"], first["green"])


def test_sampling_goes_on_until_every_interval_is_narrow_enough_or_there_are_images_enough() -> None:
    model = tiny_model()

    def needed(width: float, most: int) -> tuple[int, float]:
        sampling = dataclasses.replace(SAMPLING, images=most, interval_width=width)
        asked, found = scorer("red", sampling=sampling).narrowed(model)
        assert all(len(found[name]) == asked.sampling.images for name in NAMES)
        return asked.sampling.images, max(high - low for low, high in asked.score(found).intervals.values())

    assert needed(0.99, 64)[0] == 8
    count, width = needed(0.35, 64)
    assert 8 < count < 64
    assert width <= 0.35
    assert needed(0.01, 20)[0] == 20
    asked = scorer("red", sampling=dataclasses.replace(SAMPLING, images=64, interval_width=0.99))
    evaluation, before, after, _ = evaluate(asked, model, random_patch(model.denoiser))
    assert len(before["red"]) == len(after["red"]) == evaluation.protocol.images_per_condition == 8


def test_what_is_kept_is_compared_with_itself_or_with_a_reference() -> None:
    asked = scorer("red")
    before = asked.sample(tiny_model())
    drift = asked.distances(before, before)
    assert {name: (found.before, round(found.after, 6)) for name, found in drift.items()} == {"fid": (0, 0), "kid": (0, 0)}
    assert all(found.paired and found.images == found.reference_images == 6 for found in drift.values())
    images = torch.randint(0, 256, (10, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    far = scorer("red", reference=Reference(images, "noise")).distances(before, before)
    for found in far.values():
        assert (found.paired, found.reference, found.reference_images) == (False, "noise", 10)
        assert found.before == found.after != 0
    assert scorer("red", extractor=None).distances(before, before) == {}


def test_styles_are_not_compared_with_a_reference_of_objects() -> None:
    questions = {
        "forget": (Question("a cat", "object", "cat"),),
        "in_domain": (Question("a dog", "object", "dog"),),
        "cross_domain": (Question("a sketch of a dog", "style", "sketch"), Question("a dog", "style", "photo")),
    }
    images = torch.randint(0, 256, (4, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    samples = dict.fromkeys(conditions(questions), images)
    asked = Scorer("concept", ("cat",), questions, SAMPLING, {}, COLOURS, Reference(images, "photos"))
    assert {found.images for found in asked.distances(samples, samples).values()} == {4}
    own = dataclasses.replace(asked, reference=None)
    assert {found.images for found in own.distances(samples, samples).values()} == {8}


def test_an_evaluation_leaves_the_model_as_it_was_and_compares_the_same_seeds() -> None:
    model = tiny_model()
    weights = {name: value.clone() for name, value in model.denoiser.state_dict().items()}
    patch: ErasurePatch = random_patch(model.denoiser)
    asked = scorer("red")
    found, before, after, _ = evaluate(asked, model, patch)
    assert all(torch.equal(value, weights[name]) for name, value in model.denoiser.state_dict().items())
    assert torch.equal(before["green"], asked.sample(model)["green"])
    with patch.applied(model):
        assert torch.equal(after["green"], asked.sample(model)["green"])
    assert found.side_effects is not None
    assert set(found.side_effects.per_condition) == {"green", "blue"}
    assert found.forget_effect is not None
    assert set(found.forget_effect.per_condition) == {"red"}
    nothing, *_ = evaluate(asked, model, patch.scale(0.0), known=before)
    assert nothing.before == nothing.after == found.before
    assert nothing.collapsed is None
