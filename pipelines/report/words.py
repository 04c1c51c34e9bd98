"""How the numbers of an evaluation are put in words, wherever they are shown."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from semu_diffusion.assets import EMBEDDED, MODELS, Kind
from semu_diffusion.eval.metrics.unlearning import wilson_interval
from semu_diffusion.eval.results import Evaluation, Scores
from semu_diffusion.models.hub import is_hub_id

__all__ = ["SHARES", "Share", "base_name", "interval_words", "never_made", "percent", "points", "shares_of", "shares_words"]


NAMED = "of a vocabulary that names them"  # no kind misses these groups


@dataclass(frozen=True)
class Share:
    """A share that judges see before and after: its words, where it stands, of how many samples it is, its interval if any."""

    words: str
    of: Callable[[Scores], float | None]
    samples: Callable[[Evaluation], int | None]
    kinds: tuple[str, ...] = ("class", "concept")
    interval: Callable[[Scores], tuple[float, float] | None] = lambda scores: None

    def said(self, evaluation: Evaluation) -> str:
        """The share after, and its 95 % interval; "" if it was not measured."""
        share, count = self.of(evaluation.after), self.samples(evaluation)
        return interval_words(share, count, self.interval(evaluation.after)) if share is not None and count else ""


def _group(words: str, group: str, *kinds: str) -> Share:
    """The accuracy of a group of questions."""
    return Share(
        words,
        lambda s: s.accuracy(group),
        lambda e: e.after.samples.get(group),
        kinds or ("class", "concept"),
        lambda s: s.intervals.get(group),
    )


def _unlearning_interval(scores: Scores) -> tuple[float, float] | None:
    low, high = scores.intervals.get("forget", (None, None))
    return None if low is None or high is None else (1 - high, 1 - low)


SHARES = (
    _group("sees {erased} (erased)", "forget"),
    Share(
        "unlearning accuracy",
        lambda s: s.unlearning_accuracy,
        lambda e: e.after.samples.get("forget"),
        interval=_unlearning_interval,
    ),
    _group("sees it by other words or sentences", "paraphrase", "concept"),
    Share("sees it without a condition", lambda s: s.unconditional_share, lambda e: e.protocol.unconditional_samples),
    Share("brought back by a learned vector", lambda s: s.revival, lambda e: e.after.revival_samples),
    _group("right on others of its kind", "in_domain"),
    _group("right on the other kind", "cross_domain", "concept"),
    _group("right on what is kept, by other words and sentences", "kept_held_out", "concept"),
    _group("sees it described without its name", "implicit", NAMED),
    _group("sees it asked for in other languages", "language", NAMED),
    _group("right on what is asked for beside it", "binomial", NAMED),
    _group("right on what only looks or sounds like it", "look_alike", NAMED),
)


def never_made(evaluation: Evaluation) -> str | None:
    """What a reader must know of things that the judge saw in none of the original's own samples; None if there are none."""
    names = [name for name, shares in evaluation.before.judged_as.items() if not shares.get(name)]
    count = evaluation.before.samples.get("forget", 0)
    if not evaluation.protocol.conditions.get("forget") and evaluation.before.unconditional_share == 0:  # it takes no name
        names, count = list(evaluation.erased), evaluation.protocol.unconditional_samples
    if not names:
        return None
    return (
        f"the judge saw {' and '.join(names)} in none of the original's samples either ({count} of what is erased): "
        "that it sees none now is no success of the erasure"
    )


def shares_of(evaluation: Evaluation) -> tuple[Share, ...]:
    """All shares of an evaluation: `SHARES`, and one for each probe that learned nothing."""
    probes = {name: each for name, each in evaluation.after.probes.items() if not any(r.learned for r in each.values())}
    return (*SHARES, *(_probe(name, sum(r.samples for r in each.values())) for name, each in probes.items()))


def _probe(name: str, samples: int) -> Share:
    def of(scores: Scores) -> float | None:
        found = scores.probes.get(name)
        return sum(one.share for one in found.values()) / len(found) if found else None

    return Share(f"brought back by the probe {name}", of, lambda _: samples)


def base_name(base_model: Mapping[str, Any], kind: Kind) -> str:
    """What people know the base model by: its Hub id, the name of an embedded one, or its folder without the path, which tells
    of a machine."""
    source = str(base_model.get("source") or EMBEDDED)
    if is_hub_id(source) and base_model.get("revision") is not None:  # or a local folder of one slash
        return source
    return MODELS[kind] if source == EMBEDDED else Path(source).absolute().name


def percent(share: float) -> str:
    """``0 %``, ``6.5 %``, ``97 %``: a share in per cent, with as many digits as it says something; the blank does not break."""
    return f"{points(share)}\u00a0%"


def points(share: float) -> str:
    """``6.5`` or ``97``: the same as a number of percentage points."""
    value = round(100 * share, 1)
    return f"{value + 0.0:.{0 if value == round(value) else 1}f}".replace("-", "\u2212")


def interval_words(share: float, count: int, interval: tuple[float, float] | None = None) -> str:
    """``6.2 %  (1.1 to 28.3)``: the share of ``count`` samples in per cent, and the 95 % interval of its true value, given or
    that of so many independent samples."""
    low, high = interval or wilson_interval(round(share * count), count)
    return f"{100 * share:.1f} %  ({100 * low:.1f} to {100 * high:.1f})"


def shares_words(shares: Mapping[str, float], most: int = 4) -> str:
    """``bird 55 %, deer 20 %, cat 5 %, others 20 %``: the greatest shares, and the sum of the rest."""
    first = list(shares.items())[:most]
    rest = 1 - sum(share for _, share in first)
    if len(shares) > most:
        first.append(("others", rest))
    return ", ".join(f"{name} {100 * share:.0f} %" for name, share in first)
