"""The numbers of unlearning, counted by hand."""

from __future__ import annotations

import pytest
import torch

from semu_diffusion.errors import InputError
from semu_diffusion.eval.metrics.unlearning import (
    NO_CLASS,
    accuracies,
    answer_words,
    answers,
    unconditional_share,
    wilson_interval,
    with_interval,
)

NAMES = ("cat", "dog", "fish")


def test_accuracies_are_those_counted_by_hand() -> None:
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2])
    predictions = torch.tensor([0, 1, 1, -1, 1, 1, 2, 0])
    found = accuracies(predictions, labels, NAMES, forget=[0])
    assert found.per_class == {"cat": 0.25, "dog": 1.0, "fish": 0.5}
    assert found.forget_accuracy == 0.25
    assert found.unlearning_accuracy == 0.75
    assert found.retain_accuracy == 0.75


def test_several_erased_classes_are_averaged_and_count_alike() -> None:
    found = accuracies([0, 1, 0, 0, 0, 2], [0, 1, 1, 1, 1, 2], NAMES, forget=(0, 1))
    assert found.forget_accuracy == (1 + 0.25) / 2
    assert found.unlearning_accuracy == pytest.approx(0.375)
    assert found.retain_accuracy == 1.0


def test_order_of_samples_does_not_matter() -> None:
    labels = torch.arange(60) % 3
    predictions = torch.randint(-1, 3, (60,), generator=torch.Generator().manual_seed(0))
    order = torch.randperm(60, generator=torch.Generator().manual_seed(1))
    ordered = accuracies(predictions, labels, NAMES, [2])
    assert ordered == accuracies(predictions[order], labels[order], NAMES, [2])


def test_what_was_not_sampled_or_cannot_be_judged_is_in_no_number() -> None:
    found = accuracies([0, -1, -1], [0, 1, 1], NAMES, forget=[0], unjudged=("dog",))
    assert found.per_class == {"cat": 1.0}
    assert found.retain_accuracy is None
    nothing = accuracies([1], [1], NAMES, forget=[0])
    assert nothing.forget_accuracy is None
    assert nothing.unlearning_accuracy is None
    with pytest.raises(InputError, match=r"'dog'.*--class-mapping"):
        accuracies([0], [0], NAMES, forget=[1], unjudged=("dog",))


def test_wrong_lengths_and_classes_are_refused() -> None:
    with pytest.raises(InputError, match="2 predictions for 1 labels"):
        accuracies([0, 1], [0], NAMES, [0])
    with pytest.raises(InputError, match="0 to 2"):
        accuracies([0], [3], NAMES, [0])
    with pytest.raises(InputError, match="0 to 2"):
        accuracies([0], [0], NAMES, [7])


def test_answers_say_what_became_of_the_erased_class_the_most_frequent_first() -> None:
    found = answers([1, 2, 1, -1, 1, 2, 1, 0], NAMES)
    assert list(found.items()) == [("dog", 0.5), ("fish", 0.25), (NO_CLASS, 0.125), ("cat", 0.125)]
    assert answer_words(found, most=2) == "dog 50 %, fish 25 %, others 25 %"
    assert answer_words({"dog": 1.0}) == "dog 100 %"
    with pytest.raises(InputError, match="no samples"):
        answers([], NAMES)


def test_unconditional_share_counts_all_erased_classes() -> None:
    assert unconditional_share([0, 1, 2, -1, 0], forget=[0]) == 0.4
    assert unconditional_share(torch.tensor([0, 1, 2, -1, 0]), forget=[0, 2]) == pytest.approx(0.6)
    with pytest.raises(InputError):
        unconditional_share([], forget=[0])


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
    assert with_interval(0.0, 10) == "0.0 %  (0.0 to 27.8)"
    assert with_interval(0.016, 500) == "1.6 %  (0.8 to 3.1)"
    with pytest.raises(InputError):
        wilson_interval(3, 2)
