"""What a model of classes or of words can do: its samples, the judges' shares, FID, and the training images nearest to them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from semu_diffusion import assets
from semu_diffusion.domains.vocabulary import Vocabulary, read_vocabulary
from semu_diffusion.errors import InputError
from semu_diffusion.eval.images import to_uint8
from semu_diffusion.eval.judges.judge import Judge
from semu_diffusion.eval.metrics.fid import FeatureExtractor, SmallSampleWarning, frechet_distance
from semu_diffusion.eval.metrics.nearest import nearest
from semu_diffusion.eval.scorer import Sampling
from semu_diffusion.models.base import DiffusionModel
from semu_diffusion.models.checkpoints import load_text_pipeline
from semu_diffusion.models.families import adapt_text_pipeline
from semu_diffusion.models.precision import autocast
from semu_diffusion.pipelines.cli.progress import Progress
from semu_diffusion.pipelines.data.images import ImageSet, spread
from semu_diffusion.pipelines.report.grid import contact_sheet, save_png
from semu_diffusion.pipelines.runs.config import ClassModelConfig
from semu_diffusion.pipelines.runs.folder import RunFolder
from semu_diffusion.pipelines.runs.models import checked_device, load_model

__all__ = ["Group", "copies", "fid", "groups_of", "sampled", "share"]

PAIRS, PER_ROW = 64, 16


@dataclass(frozen=True)
class Group:
    """What is sampled under one name: rows of the model, taken in turn, and what a judge of ``kind`` must see."""

    name: str
    kind: Literal["object", "style"]
    rows: tuple[int, ...]


def groups_of(source: str, device: str | None) -> tuple[DiffusionModel, list[Group], Vocabulary | None]:
    """The model (an embedded one by name, a folder, a Hub id), what to sample of it, and its vocabulary if it has one.

    Raises InputError for a model that cannot be loaded, or that knows neither classes nor a vocabulary.
    """
    source = assets.placed(source)
    vocabulary = read_vocabulary(source)
    if vocabulary is None:
        model = load_model(ClassModelConfig(model=source, device=device))
        if not model.conditional or not model.names:
            raise InputError(f"{source} knows no classes: there is nothing that a judge could look for")
        return model, [Group(name, "object", (row,)) for row, name in enumerate(model.names)], None
    names = {kind: vocabulary.names(kind) for kind in ("object", "style")}
    prompts = {(style, name): vocabulary.prompt(style, name) for style in names["style"] for name in names["object"]}
    text = adapt_text_pipeline(load_text_pipeline(source, checked_device(device)), list(prompts.values()), source)
    row = {key: text.row(prompt) for key, prompt in prompts.items()}
    plain = vocabulary.plain_style
    groups = [Group(name, "object", (row[plain, name],)) for name in names["object"]]
    groups += [Group(style, "style", tuple(row[style, name] for name in names["object"])) for style in names["style"]]
    return text, groups, vocabulary


def sampled(
    model: DiffusionModel, groups: Sequence[Group], count: int, steps: int, guidance_scale: float, precision: str, seed: int,
    progress: Progress,
) -> dict[Group, torch.Tensor]:  # fmt: skip
    """uint8 images (count, C, H, W) of each group; image i of a group has a seed that comes from its name alone."""
    found, how = {}, Sampling(count, 0, steps, guidance_scale, seed)
    for number, group in enumerate(groups):
        rows = [group.rows[index % len(group.rows)] for index in range(count)]
        seeds = how.seeds(f"{group.kind} {group.name}", count)
        batches = []
        with autocast(precision, model.device)():
            for batch in model.sample(rows, seeds, steps, guidance_scale, 16):
                batches.append(to_uint8(batch))
                progress.show("sampling", number * count + sum(map(len, batches)), len(groups) * count)
        found[group] = torch.cat(batches)
    return found


def share(judge: Judge, images: torch.Tensor, name: str) -> float:
    """Share of the images that the judge calls ``name``."""
    return float(judge.sees(images, name).double().mean())


def fid(objects: torch.Tensor, test: ImageSet, extractor: FeatureExtractor) -> dict[str, Any]:
    """FID of the samples against the test images."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SmallSampleWarning)  # the counts stand beside the number
        distance = frechet_distance(extractor(objects), extractor(test.images))
    return {
        "value": distance, "features": extractor.name, "sha256": extractor.sha256, "samples": len(objects),
        "reference": f"test images of {test.source}", "reference_images": len(test),
    }  # fmt: skip


def copies(
    objects: torch.Tensor, train: ImageSet, test: ImageSet, judge: Judge, folder: RunFolder, progress: Progress
) -> dict[str, Any]:
    """Similarity of `PAIRS` samples to their nearest training image, that of as many test images, and nearest.png."""
    chunks = train.images.split(1000)
    features = []
    for chunk in chunks:
        features.append(judge.features(chunk))
        progress.show("training images", sum(map(len, features)), len(train))
    among = torch.cat(features)
    shown = objects[spread(len(objects), PAIRS)]
    similarity, index = nearest(judge.features(shown), among)
    real, _ = nearest(judge.features(test.images[spread(len(test), PAIRS)]), among)
    rows = {}
    for start in range(0, len(shown), PER_ROW):
        part = slice(start, start + PER_ROW)
        rows[f"samples {start + 1}-{start + len(shown[part])}"] = shown[part]
        rows[f"nearest {start + 1}-{start + len(shown[part])}"] = train.images[index[part]]
    caption = (
        f"samples, and below each the training image nearest to it in the features of {judge.name} · median cosine "
        f"{float(similarity.median()):.3f}, of real test images {float(real.median()):.3f}"
    )
    save_png(contact_sheet(rows, caption), folder / "nearest.png")
    return {
        "features": f"{judge.name} ({judge.dim}-d)", "images": len(shown), "among": len(train),
        "median_cosine": float(similarity.median()), "largest_cosine": float(similarity.max()),
        "median_cosine_of_test_images": float(real.median()), "largest_cosine_of_test_images": float(real.max()),
    }  # fmt: skip
