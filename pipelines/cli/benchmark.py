"""``semu benchmark``."""

from __future__ import annotations

from semu_diffusion.pipelines.benchmark.classes import BenchmarkConfig, run
from semu_diffusion.pipelines.cli.command import Command

__all__ = ["COMMAND"]

COMMAND = Command(
    "semu benchmark",
    "Erase classes in turn with each method, the same seeds for all: one table with its protocol.\n\n"
    "Every row is written to rows.jsonl as soon as it is measured, and a second call goes on where the first one stopped.",
    BenchmarkConfig,
    run,
    examples=(
        "semu benchmark --output docs/results.md",
        "semu benchmark --classes cat,ship --methods default,copy --work runs/small --output runs/small.md",
    ),
)
