"""Tiny models and judges on disk, and the flags that make a command fast."""

from __future__ import annotations

from pathlib import Path

import torch
from tiny_models import NAMES, tiny_model

from semu_diffusion.eval.judges.image_classifier import ClassifierConfig, ImageClassifier
from semu_diffusion.pipelines.train.picture_styles import STYLES

QUICK = ("--images-per-class", "2", "--sampling-steps", "2", "--steps", "2", "--forget-samples", "4", "--kept-samples", "6")


def saved_model(folder: Path, seed: int = 0, names: tuple[str, ...] = NAMES, **changes: object) -> str:
    """A tiny pipeline in diffusers layout; its path as a command line has it."""
    tiny_model(seed, names, **changes).pipeline.save_pretrained(folder)
    return str(folder)


def saved_judge(folder: Path, names: tuple[str, ...] = NAMES, channels: int = 3) -> str:
    """A tiny classifier that does not call all noise the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = ClassifierConfig(
            len(names), channels, (8, 8), widths=(4, 8, 8), class_names=names, mean=(0.5,) * channels, std=(0.25,) * channels
        )
        judge = ImageClassifier(config)
        judge.head.weight.data *= 100
        judge.head.bias.data.zero_()
    return str(judge.save(folder))


def saved_judges(folder: Path, names: tuple[str, ...]) -> dict[str, str]:
    """Tiny judges of objects and of styles, as a vocabulary names them: the embedded ones take seconds of every run."""
    return {"object": saved_judge(folder / "objects", names), "style": saved_judge(folder / "styles", tuple(STYLES))}
