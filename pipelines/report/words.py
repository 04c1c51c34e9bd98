"""How numbers are put in words, wherever they are shown."""

from __future__ import annotations

from collections.abc import Mapping

from semu_diffusion.eval.metrics.unlearning import wilson_interval

__all__ = ["interval_words", "shares_words"]


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
