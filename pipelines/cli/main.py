"""``semu``: everything but the erasures themselves, which it also takes; a new command is a file and a line here."""

from __future__ import annotations

import sys

from semu_diffusion.pipelines.cli.command import CommandGroup

__all__ = ["COMMANDS", "main", "parse"]

COMMANDS = CommandGroup(
    "semu",
    "Look into a patch, merge it, draw it, score it again, compare methods, train models of your own.",
    package="semu_diffusion.pipelines.cli.commands",
    commands={
        "erase-class": "erase classes from a class-conditional DDPM or DiT; also a command of its own",
        "erase-concept": "erase objects, styles or other words from a text-to-image model; also a command of its own",
        "info": "what a patch holds: layers, ranks, base model",
        "merge": "write a model with the patch in its weights",
        "grid": "draw before and after, same seeds",
        "evaluate": "score a patch again: other counts, steps, judge",
        "report": "one page of a run, of several, or of a benchmark",
        "apply": "several patches on one model: how much they interfere",
        "export": "write a patch as LoRA files or as a merged pipeline",
        "push": "upload a run's patch, LoRA files and card to the Hub",
        "import": "make a model for erase-class of a checkpoint of SalUn, Selective Amnesia or guided-diffusion",
        "assess": "what a model can do before anything is erased, and whether it copies",
        "benchmark": "erase classes or concepts in turn with several methods: one table",
        "ui": "a page in the browser: draw before and after, erase, open reports",
        "benchmark-cost": "seconds, peak memory and image passes by phase, at the size of published models",
        "train": "train ddpm, classifier, autoencoder or text-to-image on your data",
    },
    examples=(
        "semu info runs/cat/patch.safetensors",
        "semu merge runs/cat/patch.safetensors --output ddpm-without-cat",
        "semu grid runs/cat/patch.safetensors --output grid.png",
        "semu apply runs/cat runs/ship --output without-both",
        "semu export runs/no-cat --lora lora --merged without-cat",
        "semu evaluate runs/cat/patch.safetensors --images-per-class 500 --revival --output runs/cat-scored",
        "semu train ddpm --data uoft-cs/cifar10 --output train-runs/ddpm",
    ),
)
parse, main = COMMANDS.parse, COMMANDS.main

if __name__ == "__main__":
    sys.exit(main())
