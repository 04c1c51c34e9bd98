"""Signs that an erasure destroyed the model: samples that are no pictures any more, or that nobody recognises."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

from semu_diffusion.eval.results import Scores

__all__ = ["blank", "collapse", "fell", "pictures_lost", "recognition_lost"]

MIN_CONTRAST = MIN_VARIETY = 0.25  # of the original's
MIN_RANGE = 0.75  # of the original's share of pixels that are not at the end of their scale
MAX_ROUGHENING = 0.15
COARSE = 32  # pixels
MIN_LEVELS = 1  # of 256
MIN_ACCURACY = 0.5
ALPHA = 0.05


def collapse(
    before: Mapping[str, torch.Tensor], after: Mapping[str, torch.Tensor], kept: Sequence[str], scores: tuple[Scores, Scores]
) -> str | None:
    """Why the samples of the ``kept`` conditions are no pictures any more, or are not recognised; None if they are."""
    old, new = (torch.cat([samples[condition] for condition in kept]) for samples in (before, after))
    lost = pictures_lost(old, new, "the kept samples")
    first, last = scores
    for group in ("in_domain", "cross_domain"):
        named, count = f"{group.replace('_', '-')} accuracy", first.samples.get(group)
        lost = lost or recognition_lost(first.accuracy(group), last.accuracy(group), named, count)
    return lost


def blank(images: torch.Tensor) -> bool:
    """True for images (n, C, H, W) of one colour each, black mostly: what a broken model draws before anything is erased."""
    return not _mean(_contrast, images) > MIN_LEVELS / 255


def pictures_lost(before: torch.Tensor, after: torch.Tensor, of: str) -> str | None:
    """Why images (n, C, H, W), uint8 or floats in [0, 1], made ``after`` are no pictures any more, None if they are.

    Their contrast (mean over images of the standard deviation) or their variety (standard deviation over images) is below
    a quarter of what it was ``before``; a quarter of the pixels that were between black and full are no longer; or pixels
    resemble their neighbours less, by 0.15 of a correlation, as noise does. On the embedded models erasures that leave
    pictures cost 0.07 at most, those that leave noise 0.2 to 0.9. An image that is not of finite numbers has lost all of it.
    """
    if not _mean(_contrast, after) >= MIN_CONTRAST * _mean(_contrast, before):
        return f"{of} have lost their contrast"
    if len(after) > 1 and not _floats(after).std(0).mean() >= MIN_VARIETY * _floats(before).std(0).mean():
        return f"{of} all look alike"
    if not _mean(_within_range, after) >= MIN_RANGE * _mean(_within_range, before):
        return f"{of} are saturated"
    if not all(_mean(measure, after) >= _mean(measure, before) - MAX_ROUGHENING for measure in (_smoothness, _coarse)):
        return f"{of} are noise"
    return None


def _floats(images: torch.Tensor) -> torch.Tensor:
    return images.float() if images.is_floating_point() else images.float() / 255


def _mean(measure: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor) -> float:
    """Over all images, a few of them in memory as floats at a time."""
    return float(sum(measure(_floats(part)).sum() for part in images.split(16))) / len(images)


def _contrast(images: torch.Tensor) -> torch.Tensor:
    return images.flatten(1).std(1)


def _within_range(images: torch.Tensor) -> torch.Tensor:
    """Share of the values (n,) that are neither black nor full."""
    return ((images > 0.01) & (images < 0.99)).float().flatten(1).mean(1)


def _smoothness(images: torch.Tensor) -> torch.Tensor:
    """Correlation of neighbouring pixels (n,), 1 of a flat image: 0.9 in pictures, 0 in noise."""
    centred = images - images.mean((-2, -1), keepdim=True)
    found = torch.zeros(len(images))
    for axis in (-1, -2):
        length = centred.shape[axis] - 1
        one, other = (centred.narrow(axis, start, length).flatten(1) for start in (0, 1))
        power = (one.square().sum(1) * other.square().sum(1)).sqrt()
        found += torch.where(power > 1e-9, (one * other).sum(1) / power.clamp(min=1e-9), 1.0) / 2
    return found


def _coarse(images: torch.Tensor) -> torch.Tensor:
    """The same of images averaged down to some 32 pixels: an autoencoder paints over the noise of a latent."""
    return _smoothness(nn.functional.avg_pool2d(images, max(1, min(images.shape[-2:]) // COARSE)))


def recognition_lost(before: float | None, after: float | None, of: str, count: int | None = None) -> str | None:
    """The judge finds fewer than half as many right as before; None if it does not, or nobody judged.

    With the ``count`` of judged images the fall must also be more than chance, see `fell`.
    """
    if before is None or after is None or after >= MIN_ACCURACY * before:
        return None
    if count and not fell(round(before * count), round(after * count), count):
        return None
    return f"{of} fell from {before:.2f} to {after:.2f}"


def fell(before: int, after: int, count: int) -> bool:
    r"""True if ``after`` of ``count`` is fewer than ``before`` of as many by more than chance: Fisher's exact test, one-sided.

    P(X <= after) <= 0.05 for X hypergeometric: of 2 n images s = before + after are right, and n of them are drawn,
    P(x) = C(s, x) C(2n - s, n - x) / C(2n, n). A half to none is seen from 8 images on, all to none from 3.
    """
    from scipy.stats import fisher_exact

    found = fisher_exact([[after, count - after], [before, count - before]], alternative="less")
    return float(found.pvalue) <= ALPHA + 1e-9
