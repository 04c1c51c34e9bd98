"""How the numbers of an evaluation are put in words, wherever they are shown."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from semu_diffusion.eval.metrics.unlearning import wilson_interval
from semu_diffusion.eval.results import Evaluation, Scores

__all__ = ["SHARES", "Share", "interval_words", "percent", "points", "shares_words"]


@dataclass(frozen=True)
class Share:
    """A share that judges see before and after: its words, where it stands, of how many samples it is."""

    words: str
    of: Callable[[Scores], float | None]
    samples: Callable[[Evaluation], int | None]
    kinds: tuple[str, ...] = ("class", "concept")


SHARES = (
    Share("sees {erased} (erased)", lambda s: s.forget_accuracy, lambda e: e.after.samples.get("forget")),
    Share("unlearning accuracy", lambda s: s.unlearning_accuracy, lambda e: e.after.samples.get("forget")),
    Share(
        "sees it by other words or sentences",
        lambda s: s.paraphrase_accuracy,
        lambda e: e.after.samples.get("paraphrase"),
        ("concept",),
    ),
    Share("sees it without a condition", lambda s: s.unconditional_share, lambda e: e.protocol.unconditional_samples),
    Share("brought back by a learned vector", lambda s: s.revival, lambda e: e.after.revival_samples),
    Share("right on others of its kind", lambda s: s.in_domain_accuracy, lambda e: e.after.samples.get("in_domain")),
    Share(
        "right on the other kind",
        lambda s: s.cross_domain_accuracy,
        lambda e: e.after.samples.get("cross_domain"),
        ("concept",),
    ),
)


def percent(share: float) -> str:
    """``0 %``, ``6.5 %``, ``97 %``: a share in per cent, with as many digits as it says something; the blank does not break."""
    return f"{points(share)}\u00a0%"


def points(share: float) -> str:
    """``6.5`` or ``97``: the same as a number of percentage points."""
    value = round(100 * share, 1)
    return f"{value + 0.0:.{0 if value == round(value) else 1}f}".replace("-", "\u2212")


def interval_words(share: float, count: int) -> str:
    """``6.2 %  (1.1 to 28.3)``: the share of ``count`` samples in per cent, and the 95 % interval of its true value."""
    low, high = wilson_interval(round(share * count), count)
    return f"{100 * share:.1f} %  ({100 * low:.1f} to {100 * high:.1f})"


def shares_words(shares: Mapping[str, float], most: int = 4) -> str:
    """``bird 55 %, deer 20 %, cat 5 %, others 20 %``: the greatest shares, and the sum of the rest."""
    first = list(shares.items())[:most]
    rest = 1 - sum(share for _, share in first)
    if len(shares) > most:
        first.append(("others", rest))
    return ", ".join(f"{name} {100 * share:.0f} %" for name, share in first)
