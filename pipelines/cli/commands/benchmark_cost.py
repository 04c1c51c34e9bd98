"""``semu benchmark-cost``."""

from __future__ import annotations

from semu_diffusion.pipelines.cli.command import Command
from semu_diffusion.pipelines.cost.config import CostConfig

__all__ = ["COMMAND"]


def run(config: CostConfig) -> int:
    from semu_diffusion.pipelines.cost.run import run as measure

    return measure(config)


COMMAND = Command(
    "semu benchmark-cost",
    "What the phases of an erasure cost, in seconds, peak memory and image passes, beside the reference procedure in the same\n"
    "run: dense gradients of all layers, a full SVD of each, W' = W + U R V^T built anew in each forward pass, the target of\n"
    "a training step asked of the network in training.\n\n"
    "Networks are built from published settings with random weights, which cost what trained ones do. What was measured on a\n"
    "part is extrapolated, and marked ~.",
    CostConfig,
    run,
    examples=(
        "semu benchmark-cost --shape tiny",
        "semu benchmark-cost --shape sd15 --weights bf16 --memory 1GB --gradient-checkpointing",
        "semu benchmark-cost --shape flux-dev --blocks 1 --steps 1 --size 512 --phase collect,train --json",
    ),
)
