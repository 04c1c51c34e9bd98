"""``semu benchmark``."""

from __future__ import annotations

from semu_diffusion.pipelines.benchmark.config import BenchmarkConfig
from semu_diffusion.pipelines.cli.command import Command

__all__ = ["COMMAND"]


def run(config: BenchmarkConfig) -> int:
    from semu_diffusion.pipelines.benchmark.run import run as measure

    return measure(config)


COMMAND = Command(
    "semu benchmark",
    "Erase classes, objects or styles in turn with each method, the same seeds for all: one table with its protocol.\n\n"
    "Every row is kept as soon as it is measured, and a second call goes on where the first one stopped.",
    BenchmarkConfig,
    run,
    examples=(
        "semu benchmark --methods all --others cat",
        "semu benchmark cat ship --methods default,closed-form,copy --work runs/small --output runs/small.md",
        "semu benchmark cat --seeds 0,1,2 --cache runs/original --work runs/part-1 --output runs/part-1.md",
        "semu benchmark --merge runs/part-1,runs/part-2 --output runs/all.md",
        "semu benchmark cat sepia --model tiny-sd --methods default,remap --work runs/words --output runs/words.md",
    ),
)
