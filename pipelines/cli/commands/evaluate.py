"""``semu evaluate``."""

from __future__ import annotations

from semu_diffusion.pipelines.cli.command import Command
from semu_diffusion.pipelines.cli.commands.erase_concept import read
from semu_diffusion.pipelines.runs.config import EvaluatePatchConfig

__all__ = ["COMMAND"]


def run(config: EvaluatePatchConfig) -> int:
    from semu_diffusion.pipelines.runs.evaluate import evaluate_patch

    return evaluate_patch(config)


COMMAND = Command(
    "semu evaluate",
    "Score a patch of classes or concepts, or anyone's edit: the same questions, seeds, judges and probes, in a run folder of "
    "its own.",
    EvaluatePatchConfig,
    run,
    examples=(
        "semu evaluate runs/cat --images-per-class 500 --revival --probes all",
        "semu evaluate runs/cat --classifier my-judge/ --strength 0.5 --output runs/cat-half",
        "semu evaluate --lora leco.safetensors --model my-stable-diffusion/ --forget 'van gogh' --synonyms vangogh",
        "semu evaluate --edited esd-x.safetensors --model my-stable-diffusion/ --forget 'van gogh'",
        "semu evaluate --edited esd-cat/ --model my-stable-diffusion/ --forget cat --classifier clip --alternatives dog,horse",
    ),
    read=read,
)
