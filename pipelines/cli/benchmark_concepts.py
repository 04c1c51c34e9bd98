"""``semu benchmark-concepts``."""

from __future__ import annotations

from semu_diffusion.pipelines.benchmark.concepts import ConceptBenchmark, run
from semu_diffusion.pipelines.cli.command import Command

__all__ = ["COMMAND"]

COMMAND = Command(
    "semu benchmark-concepts",
    "Erase every object and style in turn, the same seeds for all, beside the trivial remap.\n\n"
    "Every row is written to concepts.jsonl as soon as it is measured, and a second call goes on where the first one stopped.",
    ConceptBenchmark,
    run,
    examples=(
        "semu benchmark-concepts --output docs/results.md",
        "semu benchmark-concepts --concepts cat,sepia --methods default,remap --work runs/small --output runs/small.md",
    ),
)
