"""From the judges' predictions to the numbers of unlearning.

For the samples of a condition c whose right answer is a: accuracy(c) = share of the samples that the judge calls a.
  forget accuracy      mean over the conditions that were erased
  unlearning accuracy  UA = 1 - forget accuracy
  retain accuracy      mean over the conditions that were kept
  unconditional share  share of samples made without a condition that the judge calls what was erased
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence

import torch

from semu_diffusion.domains.questions import Question, Questions
from semu_diffusion.errors import InputError

__all__ = [
    "NO_CLASS",
    "accuracies",
    "clustered_interval",
    "difference_interval",
    "judged_as",
    "mean",
    "share",
    "wilson_interval",
]

NO_CLASS = "no class of the model"  # what a prediction of -1 is called


def accuracies(
    questions: Questions, seen: Mapping[Question, torch.Tensor], class_names: Mapping[str, Sequence[str]]
) -> dict[str, dict[Question, float]]:
    """Of each group the accuracy of every question in ``seen``; others were not judged and are in no number.

    ``seen``: the predictions (n,) for a question's samples, indices into ``class_names`` of its kind; -1 is never right.
    """
    return {
        group: {
            question: share(seen[question], [class_names[question.kind].index(str(question.answer))])
            for question in asked
            if question in seen
        }
        for group, asked in questions.items()
    }


def mean(values: Collection[float]) -> float | None:
    """Every question counts alike, whatever its number of samples; None of nothing."""
    return sum(values) / len(values) if values else None


def share(predictions: torch.Tensor, wanted: Collection[int]) -> float:
    """Share of the predictions that are one of the classes ``wanted``; InputError for none at all."""
    if len(predictions) == 0:
        raise InputError("a share of no samples is not defined")
    return float(torch.isin(predictions.cpu(), torch.tensor(sorted(wanted), dtype=torch.long)).double().mean())


def judged_as(predictions: torch.Tensor, class_names: Sequence[str]) -> dict[str, float]:
    """Share of the samples by what the judge calls them, the most frequent first; -1 is ``NO_CLASS``.

    Unlearning accuracy counts a sample that shows nothing as a success; of what replaces an erased class, this tells the
    anchor from the rest. InputError for a share of no samples.
    """
    if len(predictions) == 0:
        raise InputError("a share of no samples is not defined")
    counts = Counter(predictions.tolist())
    return {NO_CLASS if i < 0 else class_names[i]: count / len(predictions) for i, count in counts.most_common()}


def wilson_interval(successes: float, count: float, z: float = 1.959964) -> tuple[float, float]:
    r"""Wilson's score interval of a binomial share p = k / n; z = 1.96 gives 95 % (Wilson 1927).

    ``(p + z²/2n ± z sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n)``. Unlike p ± z·σ it stays in [0, 1] and has a
    width at k = 0. InputError for what is no k of n.
    """
    if count < 1 or not 0 <= successes <= count:
        raise InputError(f"{successes} of {count} is no share")
    share, spread = successes / count, z * z / count
    centre = share + spread / 2
    half = z * math.sqrt(share * (1 - share) / count + spread / (4 * count))
    return max(0.0, (centre - half) / (1 + spread)), min(1.0, (centre + half) / (1 + spread))


def clustered_interval(shares: Sequence[float], each: int) -> tuple[float, float]:
    r"""95 % interval of the mean of ``shares``, each of ``each`` samples of a prompt, as of prompts like these.

    Samples of one prompt are alike. The variance of the mean over m prompts by the ratio estimator, sum (p_i - p)^2 / m (m-1),
    over that of m n independent samples, p (1 - p) / m n, is the design effect (Kish 1965), at least 1. The interval is that of
    Wilson for so many times fewer samples (Korn and Graubard 1998). InputError for no share.
    """
    count = len(shares)
    if count == 0:
        raise InputError("an interval of no shares is not defined")
    total, p = count * each, sum(shares) / count
    independent, effect = p * (1 - p) / total, 1.0
    if count > 1 and independent > 0:
        effect = max(1.0, sum((share - p) ** 2 for share in shares) / (count * (count - 1)) / independent)
    as_many = max(total / effect, 1.0)  # rounding must not leave less than one, as of two prompts, one all and one nothing
    return wilson_interval(p * as_many, as_many)


def difference_interval(first: int, second: int, count: int, both: int | None = None) -> tuple[float, float]:
    r"""The 95 % interval of p_1 - p_2 of two shares of the same ``count`` samples (Newcombe 1998, his method 10).

    With the Wilson limits l, u of each share and the correlation phi of the pairs,
    ``d - sqrt((p_1 - l_1)^2 - 2 phi (p_1 - l_1)(u_2 - p_2) + (u_2 - p_2)^2)`` below, and alike above. ``both``: samples that
    count in both shares; None takes phi = 0, which is wider. InputError for what are no shares of ``count``.
    """
    (l1, u1), (l2, u2) = wilson_interval(first, count), wilson_interval(second, count)
    p1, p2, phi = first / count, second / count, 0.0
    spread = math.sqrt(first * (count - first) * second * (count - second))
    if both is not None and spread > 0:
        agree = both * (count - first - second + both) - (first - both) * (second - both)
        phi = max(agree - count / 2, 0.0) / spread if agree > 0 else agree / spread
    low = math.sqrt(max((p1 - l1) ** 2 - 2 * phi * (p1 - l1) * (u2 - p2) + (u2 - p2) ** 2, 0.0))
    high = math.sqrt(max((u1 - p1) ** 2 - 2 * phi * (u1 - p1) * (p2 - l2) + (p2 - l2) ** 2, 0.0))
    return p1 - p2 - low, p1 - p2 + high
