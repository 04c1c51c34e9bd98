"""``semu evaluate``."""

from __future__ import annotations

from dataclasses import dataclass

from semu_diffusion.pipelines.cli.command import Command
from semu_diffusion.pipelines.runs.config import EvaluatePatchConfig
from semu_diffusion.pipelines.runs.patch_settings import PatchFile

__all__ = ["COMMAND", "EvaluateConfig"]


@dataclass(frozen=True)
class EvaluateConfig(EvaluatePatchConfig, PatchFile):
    """Settings of ``semu evaluate``: a patch, its model, and the evaluation."""


def run(config: EvaluateConfig) -> int:
    from semu_diffusion.pipelines.runs.evaluate import evaluate_patch

    return evaluate_patch(config.patch, config)


COMMAND = Command(
    "semu evaluate",
    "Score a patch of classes or of concepts: the numbers of its run again, in a run folder of their own.",
    EvaluateConfig,
    run,
    examples=(
        "semu evaluate runs/cat --images-per-class 500 --revival",
        "semu evaluate runs/cat --classifier my-judge/ --strength 0.5 --output runs/cat-half",
    ),
)
