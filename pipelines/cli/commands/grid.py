"""``semu grid``."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import PurePath

from semu_diffusion.options import option, require
from semu_diffusion.pipelines.cli.command import Command
from semu_diffusion.pipelines.cli.commands.erase_concept import read
from semu_diffusion.pipelines.patches.patch_settings import PublishedEdit
from semu_diffusion.pipelines.runs.config import EvaluatePatchConfig, PatchedModelConfig

__all__ = ["COMMAND", "GridConfig"]

OTHERS = (".jpg", ".jpeg", ".webp", ".gif", ".avif", ".bmp", ".tif", ".tiff", ".svg", ".pdf")


@dataclass(frozen=True)
class GridConfig(PatchedModelConfig, PublishedEdit):
    output: str = option("before_after.png", "picture to write", metavar="FILE")
    images: int | None = option(
        None, "images of each class or prompt, left and right (default: as many as fit)", metavar="N",
        aliases=("--images-per-class", "--images-per-prompt"),
    )  # fmt: skip
    sampling_steps: int | None = option(None, "sampler's steps (default: the model's usual ones, else 20)", metavar="N")
    guidance_scale: float | None = option(
        None, "classifier-free guidance w (default: 3 for classes; the model's own, else 7.5)", metavar="W"
    )
    seed: int = option(0, "other seeds, other pictures", metavar="SEED")

    def __post_init__(self) -> None:
        PublishedEdit.__post_init__(self)
        suffix = PurePath(self.output).suffix.lower()
        require(suffix not in OTHERS, f"--output {self.output}: the picture is a PNG, not a {suffix} file")

    def evaluation(self) -> EvaluatePatchConfig:
        """How it is sampled; InputError for a number that cannot be."""
        shared = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in ("output", "images")}
        return EvaluatePatchConfig(images_per_condition=8 if self.images is None else self.images, classifier="none", **shared)


def run(config: GridConfig) -> int:
    evaluation = config.evaluation()
    from semu_diffusion.pipelines.runs.evaluate import draw_patch

    draw_patch(evaluation, config.output, config.images)
    print(config.output)
    return 0


COMMAND = Command(
    "semu grid",
    "Draw classes or prompts before and after the patch, from the same seeds.",
    GridConfig,
    run,
    examples=(
        "semu grid runs/cat --output grid.png",
        "semu grid runs/cat --images 16 --seed 7 --strength 0.5",
        "semu grid --lora leco.safetensors --model my-stable-diffusion/ --forget cat",
    ),
    read=read,
)
