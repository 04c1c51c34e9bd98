"""From the judge's predictions to the numbers of unlearning.

For samples of class c and a judge f:  accuracy(c) = share of the samples with f(x) = c.
  forget accuracy      mean over the erased classes
  unlearning accuracy  UA = 1 - forget accuracy
  retain accuracy      mean over the kept classes
  unconditional share  share of samples made without a label that f calls an erased class
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch

from semu_diffusion.errors import InputError

__all__ = [
    "NO_CLASS",
    "Accuracies",
    "accuracies",
    "answer_words",
    "answers",
    "unconditional_share",
    "wilson_interval",
    "with_interval",
]

NO_CLASS = "no class of the model"  # what a prediction of -1 is called


@dataclass(frozen=True)
class Accuracies:
    """Shares in [0, 1]; None where no class of that kind was sampled and can be judged.

    ``per_class`` is by name, in the order of the model's classes.
    """

    forget_accuracy: float | None
    unlearning_accuracy: float | None
    retain_accuracy: float | None
    per_class: dict[str, float]


def accuracies(
    predictions: torch.Tensor | Sequence[int],
    labels: torch.Tensor | Sequence[int],
    class_names: Sequence[str],
    forget: Collection[int],
    unjudged: Collection[str] = (),
) -> Accuracies:
    """Accuracies of samples whose classes are ``labels`` (N,) and which the judge calls ``predictions`` (N,).

    ``forget`` are the erased classes' indices. A prediction of -1 ("no class of the model") is never right.
    Classes named in ``unjudged``, which the judge does not know, are left out of every number; so are classes
    without samples.

    Raises InputError for lengths that differ, labels outside ``class_names``, or an erased class that cannot
    be judged.
    """
    predicted, actual = _integers(predictions), _integers(labels)
    if predicted.shape != actual.shape:
        raise InputError(f"{len(predicted)} predictions for {len(actual)} labels")
    used = {int(label) for label in actual.unique()} | set(forget)
    if used and not 0 <= min(used) <= max(used) < len(class_names):
        found = f"{min(used)} to {max(used)}"
        raise InputError(f"class indices must lie in 0 to {len(class_names) - 1}, not {found}")
    unknown = [class_names[index] for index in forget if class_names[index] in unjudged]
    if unknown:
        raise InputError(f"the judge knows no class like the erased {unknown[0]!r}; give a --class-mapping")

    per_class: dict[str, float] = {}
    for index, name in enumerate(class_names):
        own = predicted[actual == index]
        if len(own) and name not in unjudged:
            per_class[name] = float((own == index).double().mean())
    erased = {class_names[index] for index in forget}
    forgotten = _mean([share for name, share in per_class.items() if name in erased])
    kept = _mean([share for name, share in per_class.items() if name not in erased])
    return Accuracies(forgotten, None if forgotten is None else 1 - forgotten, kept, per_class)


def answers(predictions: torch.Tensor | Sequence[int], class_names: Sequence[str]) -> dict[str, float]:
    """Share of the samples by what the judge calls them, the most frequent first; -1 is ``NO_CLASS``.

    Unlearning accuracy counts a sample that shows nothing as a success; of what an erased class is answered with, this
    tells the anchor from the rest. InputError for a share of no samples.
    """
    predicted = _integers(predictions)
    if len(predicted) == 0:
        raise InputError("a share of no samples is not defined")
    counts = Counter(predicted.tolist())
    return {NO_CLASS if i < 0 else class_names[i]: count / len(predicted) for i, count in counts.most_common()}


def answer_words(shares: Mapping[str, float], most: int = 4) -> str:
    """``bird 55 %, deer 20 %, cat 5 %, others 20 %``: the greatest shares, and the sum of the rest."""
    first = list(shares.items())[:most]
    rest = 1 - sum(share for _, share in first)
    if len(shares) > most:
        first.append(("others", rest))
    return ", ".join(f"{name} {100 * share:.0f} %" for name, share in first)


def unconditional_share(predictions: torch.Tensor | Sequence[int], forget: Collection[int]) -> float:
    """Share of samples made without a label whose prediction is an erased class."""
    predicted = _integers(predictions)
    if len(predicted) == 0:
        raise InputError("a share of no samples is not defined")
    return float(torch.isin(predicted, torch.tensor(sorted(forget), dtype=torch.long)).double().mean())


def wilson_interval(successes: int, count: int, z: float = 1.959964) -> tuple[float, float]:
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


def with_interval(share: float, count: int) -> str:
    """``6.2 %  (1.1 to 28.3)``: the share of ``count`` samples in per cent, and the 95 % interval of its true value."""
    low, high = wilson_interval(round(share * count), count)
    return f"{100 * share:.1f} %  ({100 * low:.1f} to {100 * high:.1f})"


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _integers(values: torch.Tensor | Sequence[int]) -> torch.Tensor:
    return torch.as_tensor(values, dtype=torch.long).cpu().flatten()
