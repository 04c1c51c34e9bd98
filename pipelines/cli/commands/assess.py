"""``semu assess``."""

from __future__ import annotations

from semu_diffusion.pipelines.assess.assess_settings import AssessConfig
from semu_diffusion.pipelines.cli.command import Command

__all__ = ["COMMAND"]


def run(config: AssessConfig) -> int:
    from semu_diffusion.pipelines.assess.assess import assess

    print(assess(config))
    return 0


COMMAND = Command(
    "semu assess",
    "What a model can do before anything is erased from it, by the judges, and whether it copies.\n\n"
    "Of every object and style that the model knows, samples from fixed seeds: the share that the judge calls right; with a\n"
    "data set also FID against its test images, and the training images that are nearest to some samples, as a picture.",
    AssessConfig,
    run,
    examples=(
        "semu assess ddpm-cifar10",
        "semu assess tiny-sd --samples-per-class 100 --data uoft-cs/cifar10 --output runs/tiny-sd-assessed",
    ),
)
