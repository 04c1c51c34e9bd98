"""The finished classifier: its files, its measured test accuracy, and the model card that says so."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from semu_diffusion.errors import InputError
from semu_diffusion.files import write_text
from semu_diffusion.pipelines.data.images import ImageSet, load_images
from semu_diffusion.pipelines.train.picture_styles import labelled_by_style
from semu_diffusion.pipelines.train.training import TrainingRun

if TYPE_CHECKING:
    from semu_diffusion.eval.judges.image_classifier import ImageClassifier

__all__ = ["class_accuracies", "examples", "export_classifier"]

SETTINGS = (
    "batch_size", "lr", "warmup", "momentum", "weight_decay", "label_smoothing", "shift", "cutout", "flip", "soften"
)  # fmt: skip


def examples(config: Any, split: str) -> ImageSet:
    """What a classifier of this config learns from (``train``) or is measured on (``test``)."""
    data = load_images(config.data, split)
    return labelled_by_style(data) if config.styles else data


def class_accuracies(model: ImageClassifier, data: ImageSet, batch_size: int = 500) -> tuple[float, tuple[float, ...]]:
    """(accuracy over all images, accuracy of each class) of the model in its present precision, no augmentation."""
    import torch

    training, device = model.training, next(model.parameters()).device
    model.eval()
    with torch.no_grad():
        predicted = torch.cat([model(part.to(device).float() / 255).argmax(1).cpu() for part in data.images.split(batch_size)])
    model.train(training)
    right = (predicted == data.labels).float()
    each = [right[data.labels == index] for index in range(len(data.class_names))]
    return right.mean().item(), tuple(part.mean().item() if len(part) else float("nan") for part in each)


def _in_the_order_of(class_names: Sequence[str], test: ImageSet) -> ImageSet:
    """The test images of these classes, labelled in their order: folders number the classes of each split for themselves."""
    import torch

    table = torch.tensor([class_names.index(name) if name in class_names else -1 for name in test.class_names])
    labels = table[test.labels]
    known = labels >= 0
    if not known.any():
        raise InputError(f"{test.source} has no test images of {', '.join(class_names)}")
    return replace(test, images=test.images[known], labels=labels[known], class_names=tuple(class_names))


def export_classifier(run: TrainingRun, model: ImageClassifier, data: ImageSet, config: Any) -> None:
    """Write ``<output>/model`` and measure what was written on the data set's test split, if it has one."""
    from semu_diffusion.eval.judges.image_classifier import ImageClassifier

    folder = model.save(run.folder / "model")
    try:
        test = _in_the_order_of(data.class_names, examples(config, "test"))
    except InputError:  # a data set without a test split is no fault
        test = None
    results: dict[str, Any] = {}
    if test is not None:
        accuracy, each = class_accuracies(ImageClassifier.load(folder), test)
        results = {
            "test_accuracy": round(accuracy, 4),
            "test_images": len(test),
            "per_class": {name: round(a, 4) for name, a in zip(test.class_names, each, strict=True) if a == a},  # no nan
        }
        run.log(**results)
        print(f"test accuracy {accuracy:.4f} on {len(test)} images", file=sys.stderr)
    write_text(folder / "README.md", _card(run, model, data, config, results))


def _card(run: TrainingRun, model: ImageClassifier, data: ImageSet, config: Any, results: dict[str, Any]) -> str:
    channels, height, width = data.image_shape
    settings = {name: getattr(config, name) for name in SETTINGS}
    parameters = sum(p.numel() for p in model.parameters())
    judged = "; an image is judged together with its mirror image" if model.config.mirrored else ""
    seen = run.step * config.batch_size
    lines = [
        "---",
        "library_name: semu-diffusion",
        "pipeline_tag: image-classification",
        "---",
        f"# Image classifier, {len(data.class_names)} classes, {width}x{height}",
        "",
        "A small residual network that judges class-conditional samples. Load it with "
        '`semu_diffusion.eval.judges.image_classifier.ImageClassifier.load("this-folder")`; it takes images in [0, 1].',
        "",
        f"* Classes: {', '.join(data.class_names)}",
        f"* Parameters: {parameters:,} (stored in half precision), stage widths {', '.join(map(str, config.widths))}{judged}",
        f"* Data: {len(data):,} training images, {channels} x {height} x {width}; fingerprint `{data.fingerprint}`",
        f"* Training: {run.step:,} steps, {seen:,} images seen, {run.elapsed() / 60:.0f} minutes",
        f"* Settings: `{json.dumps(settings)}`, seed {config.seed}",
        "",
    ]
    if results:
        lines += [
            f"Accuracy on the {results['test_images']:,} test images, as stored: **{results['test_accuracy']:.4f}**",
            "",
            "| class | accuracy |",
            "|---|---|",
            *(f"| {name} | {value:.4f} |" for name, value in results["per_class"].items()),
            "",
        ]
    return "\n".join(lines)
