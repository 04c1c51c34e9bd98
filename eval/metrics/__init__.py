"""What is measured beside the judges' verdicts. A new metric is a function and a line in `METRICS`.

A metric of ``pairs`` takes images before and after (N, C, H, W) in [0, 1], image i of both from one seed, and gives a number
for each pair (N,). A metric of ``sets`` takes two feature matrices and whether their rows come from the same seeds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch

from semu_diffusion.eval.metrics.dino import load_dino
from semu_diffusion.eval.metrics.fid import frechet_distance
from semu_diffusion.eval.metrics.kid import kernel_distance
from semu_diffusion.eval.metrics.lpips import load_lpips
from semu_diffusion.eval.metrics.paired import paired_mse, paired_ssim
from semu_diffusion.plugins import Registry

__all__ = ["METRICS", "Metric", "load_metrics"]


@dataclass(frozen=True)
class Metric:
    """``load`` gives the function on a device, None if what it needs is not there. Of a metric that must be ``asked`` for, it
    takes first what was asked for (a folder, a Hub id), and the function has a ``network`` (`results.Network`)."""

    compares: Literal["pairs", "sets"]
    load: Callable[..., Callable[..., Any] | None]
    asked: bool = False


OWN = {
    "mse": Metric("pairs", lambda device: paired_mse),
    "ssim": Metric("pairs", lambda device: paired_ssim),
    "lpips": Metric("pairs", load_lpips),
    "dino": Metric("pairs", load_dino, asked=True),
    "fid": Metric("sets", lambda device: lambda a, b, paired: frechet_distance(a, b)),
    "kid": Metric("sets", lambda device: kernel_distance),
}
METRICS = Registry("semu_diffusion.metrics", OWN, lambda name, found: isinstance(found, Metric))


def load_metrics(compares: Literal["pairs", "sets"], device: torch.device) -> dict[str, Callable[..., Any]]:
    """The functions of all metrics of a kind that are available on ``device`` unasked, by name."""
    of_kind = {name: metric for name, metric in METRICS.items() if metric.compares == compares and not metric.asked}
    found = {name: metric.load(device) for name, metric in of_kind.items()}
    return {name: function for name, function in found.items() if function is not None}
