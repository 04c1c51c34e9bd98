"""The training of the small image classifier that judges class-conditional samples."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from semu_diffusion.options import option, require
from semu_diffusion.pipelines.data.images import ImageSet
from semu_diffusion.pipelines.train.card import Card, Result
from semu_diffusion.pipelines.train.picture_styles import labelled_by_style
from semu_diffusion.pipelines.train.recipe import Recipe, TrainingConfig
from semu_diffusion.pipelines.train.step import mirrored

if TYPE_CHECKING:
    import torch

    from semu_diffusion.eval.judges.image_classifier import ImageClassifier

__all__ = ["Classifier", "ClassifierTraining", "augmented"]


@dataclass(frozen=True)
class ClassifierTraining(TrainingConfig):
    """Settings of ``semu train classifier``. SGD with Nesterov momentum, the rate rises and falls in a triangle."""

    fewest_steps = 0

    styles: bool = option(False, "learn to tell picture styles, made from the images, instead of their classes")
    epochs: float = option(12.0, "passes over the training images")
    widths: tuple[int, ...] = option((32, 64, 128, 256), "channels of the stem and of each stage", comma=True)
    momentum: float = option(0.9, "Nesterov momentum")
    label_smoothing: float = option(0.1, "share of the target spread over all classes")
    shift: float = option(0.125, "random translation, up to this share of the image's side")
    cutout: float = option(0.25, "side of the square that is blanked, as a share of the image's; 0 for none")
    flip: bool = option(True, "mirror at random")
    soften: float = option(0.0, "share of the images that are smoothed and made noisy, as a decoder leaves them")
    steps: int = option(0, "optimiser steps, instead of --epochs")
    batch_size: int = option(256, "images a step")
    lr: float = option(0.25, "peak learning rate")
    final_lr: float = option(0.0, "learning rate at the end")
    warmup: float = option(0.25, "share of the training in which the rate rises")
    weight_decay: float = option(5e-4, "L2 penalty on convolutions and the head")
    clip: float = option(0.0, "largest gradient norm; 0 for no limit")
    ema: float = option(0.0, "largest decay of the averaged weights; 0 for no average")
    save_every: float = option(2.0, "minutes between checkpoints", budget=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.batch_size >= 2 and self.epochs > 0, "--batch-size must be at least 2; --epochs must be positive")
        inside = 0 <= self.shift <= 0.5 and 0 <= self.cutout < 1 and 0 <= self.soften <= 1
        require(inside, "--shift must lie in 0 to 0.5, --soften in 0 to 1, --cutout be at least 0 and less than 1")
        shares = 0 <= self.momentum < 1 and 0 <= self.label_smoothing < 1
        require(shares, "--momentum and --label-smoothing must be at least 0 and less than 1")

    def for_images(self, count: int) -> ClassifierTraining:
        return self if self.steps else replace(self, steps=max(round(self.epochs * count / min(self.batch_size, count)), 1))


class Classifier(Recipe):
    """Train the small image classifier that judges class-conditional samples."""

    name = "classifier"
    help = "Train the small image classifier that judges class-conditional samples."

    config_class = ClassifierTraining
    examples = (
        "semu train classifier --data uoft-cs/cifar10 --output train-runs/cifar10-classifier",
        "semu train classifier --data my-images/ --output train-runs/mine --epochs 20 --no-flip",
    )
    library_name, pipeline_tag = "semu-diffusion", "image-classification"
    early_model = False  # half-way through a triangle it is a poor judge
    channels_last = True
    config: ClassifierTraining

    def load(self, split: str) -> ImageSet:
        data = super().load(split)
        return labelled_by_style(data) if self.config.styles else data

    def build(self) -> ImageClassifier:
        from semu_diffusion.eval.judges.image_classifier import ClassifierConfig, ImageClassifier

        self.images, self.labels = self.on_device(self.data.images), self.on_device(self.data.labels)
        channels, height, width = self.data.image_shape
        pixels = self.data.images.double() / 255
        shape = ClassifierConfig(
            num_classes=len(self.data.class_names),
            in_channels=channels,
            image_size=(height, width),
            widths=self.config.widths,
            class_names=self.data.class_names,
            mean=tuple(round(v, 4) for v in pixels.mean((0, 2, 3)).tolist()),
            std=tuple(round(max(v, 0.01), 4) for v in pixels.std((0, 2, 3)).tolist()),
            mirrored=self.config.flip,
        )
        return ImageClassifier(shape)

    def optimizer(self) -> torch.optim.Optimizer:
        """SGD; matrices with weight decay, biases and normalisation without."""
        import torch

        matrices = [p for p in self.model.parameters() if p.ndim > 1]
        others = [p for p in self.model.parameters() if p.ndim <= 1]
        groups = [{"params": matrices, "weight_decay": self.config.weight_decay}, {"params": others, "weight_decay": 0.0}]
        momentum = self.config.momentum
        return torch.optim.SGD(groups, lr=self.config.lr, momentum=momentum, nesterov=momentum > 0)

    def rate(self, progress: float) -> float:
        """Rises linearly to ``lr`` during the ``warmup`` and falls linearly to ``final_lr`` at the end."""
        lr, final_lr, peak = self.config.lr, self.config.final_lr, self.config.warmup
        rising, falling = (progress + 1e-3) / max(peak, 1e-3), (1 - progress) / max(1 - peak, 1e-3)
        return final_lr + (lr - final_lr) * max(min(rising, falling), 0.0)

    def loss(self, chosen: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        import torch

        config = self.config
        images = self.take(self.images, chosen)
        images = augmented(images, generator, config.shift, config.cutout, config.flip, config.soften)
        with self.autocast():
            logits = self.model(images.float() / 255)
        labels = self.take(self.labels, chosen)
        return torch.nn.functional.cross_entropy(logits.float(), labels, label_smoothing=config.label_smoothing)

    def write(self, folder: Path, model: Any) -> None:
        model.save(folder)

    def measure(self, folder: Path, final: bool) -> dict[str, Any]:
        """Accuracy on the test images, over all and of each class, as stored; {} if there are none of these classes."""
        from semu_diffusion.eval.judges.image_classifier import ImageClassifier

        test = None if self.test is None else _in_the_order_of(self.data.class_names, self.test)
        if test is None:
            return {}
        accuracy, each = _accuracies(ImageClassifier.load(folder, self.device), test)
        print(f"test accuracy {accuracy:.4f} on {len(test)} images", file=sys.stderr)
        return {"test_accuracy": round(accuracy, 4), "test_images": len(test), "per_class": each}

    def card(self, model: Any, measured: Mapping[str, Any]) -> Card:
        config, names = self.config, self.data.class_names
        width, height = self.data.image_shape[:0:-1]
        judged = "; an image is judged together with its mirror image" if config.flip else ""
        settings = ("momentum", "label_smoothing", "shift", "cutout", "flip", "soften")
        results = []
        if measured:
            sentence = (
                f"Accuracy on the {measured['test_images']:,} test images, as stored: **{measured['test_accuracy']:.4f}**"
            )
            each = {name: f"{value:.4f}" for name, value in measured["per_class"].items()}
            results.append(Result(sentence, "class", "accuracy", each))
        return Card(
            title=f"Image classifier, {len(names)} classes, {width}x{height}",
            about="A small residual network that judges class-conditional samples. Load it with `semu_diffusion.eval.judges."
            'image_classifier.ImageClassifier.load("this-folder")`; it takes images in [0, 1].',
            facts={
                "Classes": ", ".join(names),
                "Parameters": f"{sum(p.numel() for p in model.parameters()):,}, stage widths "
                f"{', '.join(map(str, config.widths))}{judged}",
            },
            settings={name: getattr(config, name) for name in settings},
            results=results,
        )


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
    draw: dict[str, Any] = {"generator": generator, "device": images.device}
    y, x = torch.arange(height, device=images.device), torch.arange(width, device=images.device)
    shift, cutout = (round(share * min(height, width)) for share in (shift, cutout))
    if shift:
        padded = torch.nn.functional.pad(images.float(), (shift,) * 4, mode="reflect").to(images.dtype)
        down, right = torch.randint(0, 2 * shift + 1, (2, count), **draw)
        rows, columns = (down[:, None] + y)[:, :, None], (right[:, None] + x)[:, None, :]
        every = torch.arange(count, device=images.device)[:, None, None]
        images = padded[every, :, rows, columns].permute(0, 3, 1, 2)
    if flip:
        images = mirrored(images, generator)
    if soften:
        chosen = (torch.rand(count, **draw) < soften)[:, None, None, None]
        amount = torch.rand(count, 1, 1, 1, **draw) * chosen
        noise = 8 * torch.rand(count, 1, 1, 1, **draw) * torch.randn(images.shape, **draw) * chosen
        sharp = images.float()
        smooth = torch.nn.functional.avg_pool2d(sharp, 3, stride=1, padding=1, count_include_pad=False)
        images = (sharp + amount * (smooth - sharp) + noise).round().clamp(0, 255).to(images.dtype)
    if cutout:
        top = torch.randint(0, height, (count, 1), **draw) - cutout // 2
        left = torch.randint(0, width, (count, 1), **draw) - cutout // 2
        hidden = ((y >= top) & (y < top + cutout))[:, :, None] & ((x >= left) & (x < left + cutout))[:, None, :]
        images = images.masked_fill(hidden[:, None], 128)
    return images


def _accuracies(model: ImageClassifier, test: ImageSet) -> tuple[float, dict[str, float]]:
    """(accuracy over all images, accuracy of each class that has some) of a model in eval mode."""
    import torch

    device = model.mean.device
    with torch.no_grad():
        predicted = torch.cat([model(part.to(device).float() / 255).argmax(1).cpu() for part in test.images.split(500)])
    right = (predicted == test.labels).float()
    each = {name: right[test.labels == index] for index, name in enumerate(test.class_names)}
    return right.mean().item(), {name: round(part.mean().item(), 4) for name, part in each.items() if len(part)}


def _in_the_order_of(class_names: Sequence[str], test: ImageSet) -> ImageSet | None:
    """The test images of these classes, labelled in their order: folders number the classes of each split for themselves."""
    import torch

    table = torch.tensor([class_names.index(name) if name in class_names else -1 for name in test.class_names])
    labels = table[test.labels]
    known = labels >= 0
    if not known.any():
        return None
    return replace(test, images=test.images[known], labels=labels[known], class_names=tuple(class_names))


COMMAND = Classifier.command()
