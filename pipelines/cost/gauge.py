"""Seconds and peak memory of a piece of work, on a CPU or a GPU."""

from __future__ import annotations

import ctypes
import gc
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

__all__ = ["Gauge", "Reading"]

Result = TypeVar("Result")
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Reading:
    """``peak``: bytes at the highest point beyond what the process had before the model was there; None if not measurable."""

    seconds: float
    peak: int | None


class Gauge:
    """Made before the model is. On a GPU the peak is what torch allocated; on a CPU the resident memory as Linux counts it,
    its high-water mark reset before each piece of work; elsewhere it is not measured."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._reset()
        self.start = _status("VmRSS") or 0

    def __call__(self, work: Callable[[], Result], tidy: bool = True) -> tuple[Reading, Result]:
        """What ``work`` costs, and its result; ``tidy`` gives back first what nobody uses, which takes some time itself."""
        self._reset(tidy)
        begin = self.now()
        result = work()
        return Reading(self.now() - begin, self._peak()), result

    def now(self) -> float:
        """Seconds by a clock of no particular beginning, once all work that was begun is done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def _reset(self, tidy: bool = True) -> None:
        if tidy:
            gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
        elif CLEAR.exists():
            if tidy and sys.platform == "linux":
                ctypes.CDLL(None).malloc_trim(0)  # what is free already is not this work's
            CLEAR.write_text("5")

    def _peak(self) -> int | None:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        highest = _status("VmHWM") if CLEAR.exists() else None
        return None if highest is None else max(highest - self.start, 0)


def _status(name: str) -> int | None:
    """A line of the process's status, in bytes; None where there is no such file."""
    if not STATUS.exists():
        return None
    lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines() if ":" in line)
    return int(lines[name].split()[0]) * 1024 if name in lines else None
