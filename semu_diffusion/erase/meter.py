"""What an erasure costs, by phase: seconds, and image passes of the denoiser, the measure that no machine blurs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

__all__ = ["Meter"]

BACKWARD = 2  # passes that the backward of one image counts as


class Meter:
    """Counts while it is entered: one image forward is one pass, with its backward three.

    ``seconds`` and ``passes`` by the name of the `phase` they were spent in.
    """

    def __init__(self, denoiser: nn.Module) -> None:
        self.denoiser = denoiser
        self.seconds: dict[str, float] = {}
        self.passes: dict[str, int] = {}
        self._phases = ["other"]

    def __enter__(self) -> Meter:
        self._handle = self.denoiser.register_forward_hook(self._count)
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.remove()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        self._phases.append(name)
        self.passes.setdefault(name, 0)
        try:
            yield
        finally:
            self._phases.pop()
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def _count(self, _: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        made = output[0] if isinstance(output, tuple) else output.sample
        each = 1 + BACKWARD if torch.is_grad_enabled() and made[0].requires_grad else 1  # some give a list of images
        self.passes[self._phases[-1]] = self.passes.get(self._phases[-1], 0) + each * len(made)
