"""``semu evaluate``."""

from __future__ import annotations

from dataclasses import dataclass

from semu_diffusion.options import option, require
from semu_diffusion.pipelines.cli.command import Command
from semu_diffusion.pipelines.runs.class_settings import EvaluationConfig
from semu_diffusion.pipelines.runs.patch_settings import PatchFile

__all__ = ["COMMAND", "RescoreConfig"]


@dataclass(frozen=True)
class RescoreConfig(EvaluationConfig, PatchFile):
    forget_images: str | None = option(
        None, "images that --revival learns the class from (default: the model makes them)", metavar="DIR_OR_DATASET"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.revival or self.forget_images is None, "--forget-images is what --revival learns from: give both")


def run(config: RescoreConfig) -> int:
    from semu_diffusion.pipelines.runs.rescore import rescore

    return rescore(config.patch, config.strength, config, config.forget_images)


COMMAND = Command(
    "semu evaluate",
    "Score a patch: the same numbers as erase-class, in a run folder of their own.",
    RescoreConfig,
    run,
    examples=(
        "semu evaluate runs/cat --images-per-class 500 --revival",
        "semu evaluate runs/cat --classifier my-judge/ --strength 0.5 --output runs/cat-half",
    ),
)
