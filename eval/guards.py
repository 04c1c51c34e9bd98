"""Signs that an erasure destroyed the model: samples that are no pictures any more, or that nobody recognises."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from semu_diffusion.eval.results import Scores

__all__ = ["collapse", "pictures_lost", "recognition_lost"]

MIN_CONTRAST = MIN_VARIETY = 0.25  # of the original's
MIN_ACCURACY = 0.5


def collapse(
    before: Mapping[str, torch.Tensor], after: Mapping[str, torch.Tensor], kept: Sequence[str], scores: tuple[Scores, Scores]
) -> str | None:
    """Why the samples of the ``kept`` conditions are no pictures any more, or are not recognised; None if they are."""
    import torch

    old, new = (torch.cat([samples[condition] for condition in kept]) for samples in (before, after))
    lost = pictures_lost(old, new, "the kept samples")
    first, last = scores
    for group in ("in_domain", "cross_domain"):
        named, count = f"{group.replace('_', '-')} accuracy", first.samples.get(group)
        lost = lost or recognition_lost(first.accuracy(group), last.accuracy(group), named, count)
    return lost


def pictures_lost(before: torch.Tensor, after: torch.Tensor, of: str) -> str | None:
    """Why images (n, C, H, W) made ``after`` are no pictures any more, None if they are.

    Their contrast (mean over images of the standard deviation) or their variety (standard deviation over images) is below
    a quarter of what it was ``before``; an image that is not of finite numbers has lost both.
    """
    old, new = before.float(), after.float()
    if not new.flatten(1).std(1).mean() >= MIN_CONTRAST * old.flatten(1).std(1).mean():
        return f"{of} have lost their contrast"
    if len(new) > 1 and not new.std(0).mean() >= MIN_VARIETY * old.std(0).mean():
        return f"{of} all look alike"
    return None


def recognition_lost(before: float | None, after: float | None, of: str, count: int | None = None) -> str | None:
    """The judge finds fewer than half as many right as before; None if it does not, or nobody judged.

    With the ``count`` of judged images the fall must also be more than three standard errors and one image: what a judge
    hardly recognised before may be gone by chance.
    """
    if before is None or after is None or after >= MIN_ACCURACY * before:
        return None
    if count and before - after <= 3 * (before * (1 - before) / count) ** 0.5 + 1 / count:
        return None
    return f"{of} fell from {before:.2f} to {after:.2f}"
