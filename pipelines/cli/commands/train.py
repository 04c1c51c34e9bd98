"""``semu train``: the training commands, one a model."""

from __future__ import annotations

from semu_diffusion.pipelines.cli.command import CommandGroup

__all__ = ["COMMAND"]

COMMAND = CommandGroup(
    "semu train",
    "Train a model; --help after its name shows the settings.",
    package="semu_diffusion.pipelines.train",
    commands={
        "ddpm": "a class-conditional DDPM",
        "classifier": "the judge of its samples",
        "autoencoder": "the latent space of a text-to-image model",
        "text-to-image": "a small Stable Diffusion pipeline",
    },
    metavar="MODEL",
    examples=(
        "semu train ddpm --data uoft-cs/cifar10 --output train-runs/ddpm",
        "semu train classifier --data uoft-cs/cifar10 --output train-runs/classifier",
    ),
)
