"""``semu train classifier``: train the small image classifier that judges class-conditional samples."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from semu_diffusion.errors import InputError
from semu_diffusion.options import build_config, option
from semu_diffusion.pipelines.cli.errors import run_guarded
from semu_diffusion.pipelines.cli.flags import Parser, add_config_flags, epilog
from semu_diffusion.pipelines.data.images import ImageSet
from semu_diffusion.pipelines.train.classifier_card import examples, export_classifier
from semu_diffusion.pipelines.train.training import (
    TrainingRun,
    batch_indices,
    mirrored,
    new_accelerator,
    step_generator,
    whole_numbers,
)

if TYPE_CHECKING:
    import torch

    from semu_diffusion.eval.judges.image_classifier import ImageClassifier

__all__ = ["ClassifierTraining", "augmented", "main", "parse", "train"]

EXAMPLES = (
    "semu train classifier --data uoft-cs/cifar10 --output train-runs/cifar10-classifier",
    "semu train classifier --data my-images/ --output train-runs/mine --epochs 20 --no-flip",
)


@dataclass(frozen=True)
class ClassifierTraining:
    """Settings of ``semu train classifier``. SGD with Nesterov momentum, the rate rises and falls in a triangle."""

    data: str = option("", "Hub id, folder of parquet files, or one folder per class", budget=True, metavar="DATASET")
    output: str = option("", "folder for the checkpoint, the log and the finished model/", budget=True, metavar="DIR")
    styles: bool = option(False, "learn to tell picture styles, made from the images, instead of their classes")
    epochs: float = option(12.0, "passes over the training images")
    widths: tuple[int, ...] = option((32, 64, 128, 256), "channels of the stem and of each stage", comma=True)
    batch_size: int = option(256, "images a step")
    lr: float = option(0.25, "peak learning rate")
    warmup: float = option(0.25, "share of the training in which the rate rises")
    momentum: float = option(0.9, "Nesterov momentum")
    weight_decay: float = option(5e-4, "L2 penalty on convolutions and the head")
    label_smoothing: float = option(0.1, "share of the target spread over all classes")
    shift: float = option(0.125, "random translation, up to this share of the image's side")
    cutout: float = option(0.25, "side of the square that is blanked, as a share of the image's; 0 for none")
    flip: bool = option(True, "mirror at random")
    soften: float = option(0.0, "share of the images that are smoothed and made noisy, as a decoder leaves them")
    max_minutes: float = option(0.0, "stop after this much training; 0 for no limit", budget=True)
    save_every: float = option(2.0, "minutes between checkpoints", budget=True)
    resume: bool = option(True, "go on from the checkpoint in --output", budget=True)
    precision: Literal["auto", "bf16", "no"] = option("auto", "bf16 where the hardware has it, or no (float32)")
    steps: int = option(0, "optimiser steps, instead of --epochs")
    seed: int = option(0, "seed of the weights, the order and the augmentation")

    def __post_init__(self) -> None:
        if not self.data or not self.output:
            raise InputError("--data and --output are needed")
        if self.batch_size < 2 or self.epochs <= 0 or self.lr <= 0 or self.steps < 0:
            raise InputError("--batch-size must be at least 2; --epochs and --lr must be positive")
        if not 0 <= self.shift <= 0.5 or not 0 <= self.cutout < 1 or not 0 <= self.soften <= 1:
            raise InputError("--shift must lie in 0 to 0.5, --soften in 0 to 1, --cutout be at least 0 and less than 1")
        if not 0 <= self.momentum < 1 or not 0 <= self.label_smoothing < 1 or not 0 <= self.warmup < 1:
            raise InputError("--momentum, --label-smoothing and --warmup must be at least 0 and less than 1")


def augmented(
    images: torch.Tensor,
    generator: torch.Generator,
    shift: float = 0.125,
    cutout: float = 0.25,
    flip: bool = True,
    soften: float = 0.0,
) -> torch.Tensor:
    """Translate (reflecting at the border), mirror, soften and blank a square: uint8 (N, C, H, W) -> the same shape.

    A share ``soften`` of the images is mixed with its 3x3 mean, by a weight drawn from [0, 1], and gets noise of up to 8
    grey levels, about as a decoder leaves a picture. ``shift`` and ``cutout`` are shares of the shorter side. Every image
    has its own draw; a blanked square is mid grey (128).
    """
    import torch

    count, _, height, width = images.shape
    shift, cutout = (round(share * min(height, width)) for share in (shift, cutout))
    if shift:
        padded = torch.nn.functional.pad(images.float(), (shift,) * 4, mode="reflect").to(images.dtype)
        down, right = torch.randint(0, 2 * shift + 1, (2, count), generator=generator)
        rows = (down[:, None] + torch.arange(height))[:, :, None]
        columns = (right[:, None] + torch.arange(width))[:, None, :]
        images = padded[torch.arange(count)[:, None, None], :, rows, columns].permute(0, 3, 1, 2)
    if flip:
        images = mirrored(images, generator)
    if soften:
        chosen = (torch.rand(count, generator=generator) < soften)[:, None, None, None]
        amount = torch.rand(count, 1, 1, 1, generator=generator) * chosen
        noise = 8 * torch.rand(count, 1, 1, 1, generator=generator) * torch.randn(images.shape, generator=generator) * chosen
        sharp = images.float()
        smooth = torch.nn.functional.avg_pool2d(sharp, 3, stride=1, padding=1, count_include_pad=False)
        images = (sharp + amount * (smooth - sharp) + noise).round().clamp(0, 255).to(images.dtype)
    if cutout:
        top = torch.randint(0, height, (count, 1), generator=generator) - cutout // 2
        left = torch.randint(0, width, (count, 1), generator=generator) - cutout // 2
        y, x = torch.arange(height), torch.arange(width)
        hidden = ((y >= top) & (y < top + cutout))[:, :, None] & ((x >= left) & (x < left + cutout))[:, None, :]
        images = images.masked_fill(hidden[:, None], 128)
    return images


def train(config: ClassifierTraining) -> Path:
    """Train, write ``<output>/model`` (config.json, model.safetensors, README.md) and return that folder."""
    import torch

    data = examples(config, "train")
    if not config.steps:
        config = replace(config, steps=max(round(config.epochs * len(data) / config.batch_size), 1))
    run = TrainingRun(config, data.fingerprint)
    state = run.restored()
    accelerator = new_accelerator(config.precision)
    model = _new_model(config, data).to(accelerator.device).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(
        _decayed(model, config.weight_decay), lr=config.lr, momentum=config.momentum, nesterov=config.momentum > 0
    )
    prepared, optimizer = accelerator.prepare(model, optimizer)
    if state is not None:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    loss_of = torch.nn.CrossEntropyLoss(label_smoothing=config.label_smoothing)
    model.train()

    def update() -> float:
        chosen = batch_indices(len(data), config.batch_size, config.seed, run.step)
        generator = step_generator(config.seed, run.step)
        images = augmented(data.images[chosen], generator, config.shift, config.cutout, config.flip, config.soften)
        for group in optimizer.param_groups:
            group["lr"] = config.lr * _triangle(run.progress(), config.warmup)
        logits = prepared(images.to(accelerator.device).float() / 255)
        loss = loss_of(logits.float(), data.labels[chosen].to(accelerator.device))
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    def keep() -> None:
        run.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()})

    run.loop(update, keep)
    export_classifier(run, model, data, config)
    return run.folder / "model"


def _new_model(config: ClassifierTraining, data: ImageSet) -> ImageClassifier:
    import torch

    from semu_diffusion.eval.judges.image_classifier import ClassifierConfig, ImageClassifier

    channels, height, width = data.image_shape
    pixels = data.images.double() / 255
    shape = ClassifierConfig(
        num_classes=len(data.class_names),
        in_channels=channels,
        image_size=(height, width),
        widths=config.widths,
        class_names=data.class_names,
        mean=tuple(round(v, 4) for v in pixels.mean((0, 2, 3)).tolist()),
        std=tuple(round(max(v, 0.01), 4) for v in pixels.std((0, 2, 3)).tolist()),
        mirrored=config.flip,
    )
    with torch.random.fork_rng(devices=[]):  # layers take their initial weights from the global generator
        torch.manual_seed(config.seed)
        return ImageClassifier(shape)


def _decayed(model: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups: matrices with weight decay; biases and normalisation without."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def _triangle(progress: float, peak: float) -> float:
    """Rises linearly to 1 at ``peak`` and falls linearly to 0 at the end."""
    return max(min((progress + 1e-3) / max(peak, 1e-3), (1 - progress) / max(1 - peak, 1e-3)), 0.0)


def parse(argv: Sequence[str] | None = None) -> ClassifierTraining:
    """The settings that a command line means, without running it."""
    parser = Parser(prog="semu train classifier", description=(__doc__ or "").replace("`", ""), epilog=epilog(EXAMPLES))
    add_config_flags(parser, ClassifierTraining)
    return build_config(ClassifierTraining, whole_numbers(vars(parser.parse_args(argv)), "widths"))


def main(argv: Sequence[str] | None = None) -> int:
    """Entry of ``semu train classifier``; returns the exit code."""

    def job() -> int:
        print(train(parse(argv)))
        return 0

    return run_guarded("semu train classifier", job)


if __name__ == "__main__":
    sys.exit(main())
