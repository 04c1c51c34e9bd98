"""Random numbers of an erasure: every phase has a generator of its own, every image a seed of its own.

Two settings that are compared then see the same draws in the phases that they share, and neither the order nor the number of
the model's conditions decides an image's noise.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch

__all__ = ["image_seeds", "phase_generator"]


def _number(*words: object) -> int:
    """62 bits of SHA-256 over the words."""
    digest = hashlib.sha256("/".join(map(str, words)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 2


def phase_generator(seed: int, phase: str) -> torch.Generator:
    """The CPU generator of a phase of a run: a function of (seed, phase) alone."""
    return torch.Generator().manual_seed(_number("phase", seed, phase))


def image_seeds(conditions: Iterable[str], seed: int, purpose: str) -> list[int]:
    """A seed for each of the ``conditions``: of its letters, its how-manieth it is, the run's seed and the purpose.

    All are above 2^62, those of an evaluation below 2^31: no image is both trained on and scored.
    """
    counts: dict[str, int] = {}
    found = []
    for condition in conditions:
        counts[condition] = counts.get(condition, 0) + 1
        found.append(2**62 + _number("image", seed, purpose, condition, counts[condition]))
    return found
