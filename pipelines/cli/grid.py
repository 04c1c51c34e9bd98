"""``semu grid``."""

from __future__ import annotations

from dataclasses import dataclass

from semu_diffusion.options import option
from semu_diffusion.pipelines.cli.command import Command
from semu_diffusion.pipelines.runs.class_settings import EvaluationConfig, ModelConfig
from semu_diffusion.pipelines.runs.patch_settings import PatchFile

__all__ = ["COMMAND", "GridConfig"]


@dataclass(frozen=True)
class GridConfig(ModelConfig, PatchFile):
    output: str = option("before_after.png", "picture to write", metavar="FILE")
    images: int = option(8, "images of each class, left and right", metavar="N")
    sampling_steps: int = option(50, "DDIM steps", metavar="N")
    guidance_scale: float = option(3.0, "classifier-free guidance w", metavar="W")
    seed: int = option(0, "other seeds, other pictures", metavar="SEED")

    def scoring(self) -> EvaluationConfig:
        """How it is sampled; InputError for a number that cannot be."""
        return EvaluationConfig(
            model=self.model,
            class_names=self.class_names,
            null_class=self.null_class,
            device=self.device,
            images_per_class=self.images,
            sampling_steps=self.sampling_steps,
            guidance_scale=self.guidance_scale,
            classifier="none",
            seed=self.seed,
        )


def run(config: GridConfig) -> int:
    scoring = config.scoring()
    from semu_diffusion.pipelines.runs.rescore import grid

    grid(config.patch, config.strength, scoring, config.output)
    print(config.output)
    return 0


COMMAND = Command(
    "semu grid",
    "Draw classes before and after the patch, from the same seeds.",
    GridConfig,
    run,
    examples=("semu grid runs/cat --output grid.png", "semu grid runs/cat --images 16 --seed 7 --strength 0.5"),
)
