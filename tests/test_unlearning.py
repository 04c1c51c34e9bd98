"""The numbers of unlearning, counted by hand."""

from __future__ import annotations

import pytest
import torch

from semu_diffusion.domains.questions import Question, Questions, class_questions
from semu_diffusion.errors import InputError
from semu_diffusion.eval.metrics.unlearning import (
    NO_CLASS,
    accuracies,
    clustered_interval,
    judged_as,
    mean,
    share,
    wilson_interval,
)
from semu_diffusion.pipelines.report.words import interval_words, shares_words

NAMES = ("cat", "dog", "fish")


def judged(erased: tuple[str, ...], labels: list[int], predictions: list[int]) -> tuple[dict[str, dict[str, float]], Questions]:
    """Accuracies by group and condition of samples of the classes ``labels`` that the judge calls ``predictions``."""
    questions = class_questions(NAMES, erased)
    found, seen = torch.tensor(predictions), {}
    for question in (q for group in questions.values() for q in group):
        own = found[torch.tensor(labels) == NAMES.index(question.condition)]
        if len(own):
            seen[question] = own
    each = accuracies(questions, seen, {"object": NAMES})
    return {group: {q.condition: value for q, value in pairs.items()} for group, pairs in each.items()}, questions


def test_accuracies_are_those_counted_by_hand() -> None:
    found, _ = judged(("cat",), [0, 0, 0, 0, 1, 1, 2, 2], [0, 1, 1, -1, 1, 1, 2, 0])
    assert found == {"forget": {"cat": 0.25}, "in_domain": {"dog": 1.0, "fish": 0.5}}
    assert mean(found["in_domain"].values()) == 0.75


def test_several_erased_classes_are_averaged_and_count_alike() -> None:
    found, _ = judged(("cat", "dog"), [0, 1, 1, 1, 1, 2], [0, 1, 0, 0, 0, 2])
    assert found["forget"] == {"cat": 1.0, "dog": 0.25}
    assert mean(found["forget"].values()) == pytest.approx(0.625)
    assert found["in_domain"] == {"fish": 1.0}


def test_what_was_not_sampled_or_cannot_be_judged_is_in_no_number() -> None:
    found, _ = judged(("cat",), [0], [0])
    assert found == {"forget": {"cat": 1.0}, "in_domain": {}}
    assert mean([]) is None
    with pytest.raises(InputError, match="no samples"):
        share(torch.tensor([], dtype=torch.long), [0])


def test_a_run_of_classes_asks_for_every_class_once_and_an_unconditional_model_for_none() -> None:
    asked = class_questions(NAMES, ("dog",))
    assert asked["forget"] == (Question("dog", "object", "dog"),)
    assert [q.condition for q in asked["in_domain"]] == ["cat", "fish"]
    assert class_questions(("dog",), ("dog",), conditional=False) == {
        "forget": (Question("", "object", "dog"),),
        "in_domain": (),
    }


def test_judged_as_says_what_became_of_the_erased_class_the_most_frequent_first() -> None:
    found = judged_as(torch.tensor([1, 2, 1, -1, 1, 2, 1, 0]), NAMES)
    assert list(found.items()) == [("dog", 0.5), ("fish", 0.25), (NO_CLASS, 0.125), ("cat", 0.125)]
    assert shares_words(found, most=2) == "dog 50 %, fish 25 %, others 25 %"
    assert shares_words({"dog": 1.0}) == "dog 100 %"
    with pytest.raises(InputError, match="no samples"):
        judged_as(torch.tensor([], dtype=torch.long), NAMES)


def test_a_share_counts_all_wanted_classes() -> None:
    assert share(torch.tensor([0, 1, 2, -1, 0]), [0]) == pytest.approx(0.4)
    assert share(torch.tensor([0, 1, 2, -1, 0]), [0, 2]) == pytest.approx(0.6)


@pytest.mark.parametrize(  # R: prop.test(k, n, correct = FALSE)$conf.int
    ("successes", "count", "low", "high"),
    [(0, 10, 0.0, 0.277533), (10, 10, 0.722467, 1.0), (5, 10, 0.236593, 0.763407), (8, 500, 0.00813, 0.03125)],
)
def test_the_interval_is_wilsons(successes: int, count: int, low: float, high: float) -> None:
    assert wilson_interval(successes, count) == pytest.approx((low, high), abs=2e-5)


def test_the_interval_covers_the_true_share_about_as_often_as_it_says() -> None:
    draws = torch.rand(4000, 60, generator=torch.Generator().manual_seed(0)) < 0.1
    intervals = [wilson_interval(int(k), 60) for k in draws.sum(1)]
    covered = sum(low <= 0.1 <= high for low, high in intervals) / len(intervals)
    assert 0.93 < covered < 0.98


def test_a_share_is_shown_with_its_interval() -> None:
    assert interval_words(0.0, 10) == "0.0 %  (0.0 to 27.8)"
    assert interval_words(0.016, 500) == "1.6 %  (0.8 to 3.1)"
    with pytest.raises(InputError):
        wilson_interval(3, 2)


def test_an_interval_of_prompts_that_differ_is_wider_and_of_prompts_that_do_not_it_is_wilsons() -> None:
    assert clustered_interval([0.5] * 4, 10) == wilson_interval(20, 40)
    assert clustered_interval([0.0] * 4, 10) == wilson_interval(0, 40)
    low, high = clustered_interval([1.0, 1.0, 0.0, 0.0], 10)
    assert (low, high) == pytest.approx(
        wilson_interval(1.5, 3)
    )  # four prompts that are all or nothing say what three samples say
    with pytest.raises(InputError, match="no shares"):
        clustered_interval([], 10)


def test_two_prompts_that_are_all_and_nothing_have_an_interval_for_any_number_of_images() -> None:
    for each in range(1, 200):
        low, high = clustered_interval([1.0, 0.0], each)
        assert (low, high) == pytest.approx(wilson_interval(0.5, 1))
