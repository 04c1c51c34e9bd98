"""Sample a model and score it: the part of a run that is the same before and after an erasure."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from semu_diffusion import assets
from semu_diffusion.errors import InputError
from semu_diffusion.eval.guards import pictures_lost, recognition_lost
from semu_diffusion.eval.images import to_float, to_uint8
from semu_diffusion.eval.judges.judge import Judge, load_judge
from semu_diffusion.eval.metrics.fid import FeatureExtractor, SmallSampleWarning, frechet_distance, load_fid_extractor
from semu_diffusion.eval.metrics.side_effects import side_effects
from semu_diffusion.eval.metrics.unlearning import accuracies, answers, unconditional_share
from semu_diffusion.eval.probes.class_vector import revival
from semu_diffusion.models.checkpoints import load_class_conditional
from semu_diffusion.models.ddpm import ClassConditional
from semu_diffusion.models.precision import autocast, sampler_name
from semu_diffusion.pipelines.runs.class_settings import EMBEDDED, EvaluationConfig, ModelConfig

__all__ = ["Samples", "Scorer", "checked_device", "collapse", "load_model"]

Progress = Callable[[str, int, int], None]
NO_LABEL = "(no label)"
REVIVAL_STEPS, REVIVAL_SAMPLES = 150, 60


def checked_device(name: str | None) -> torch.device:
    """The device of this name, or the best there is; InputError for one that is not to be had or lacks float64."""
    device = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        where = torch.device(device)
        torch.empty(0, dtype=torch.float64, device=where)  # the subspaces are computed in it; Apple's GPUs have none
    except (RuntimeError, AssertionError, TypeError) as error:
        raise InputError(f"--device {device} is not to be had here ({str(error).splitlines()[0]})") from error
    return where


def load_model(config: ModelConfig) -> ClassConditional:
    """The model a config names, on its device; ``embedded`` is the CIFAR-10 DDPM that comes with the package."""
    source = assets.folder("ddpm-cifar10") if config.model == EMBEDDED else config.model
    model = load_class_conditional(source, config.class_names, config.null_class, device=checked_device(config.device))
    return dataclasses.replace(model, source=config.model)


@dataclass(frozen=True)
class Samples:
    """uint8 images (n, C, H, W) by class name; those made without a label under ``NO_LABEL``, if the model can."""

    by_class: dict[str, torch.Tensor]
    unlabelled: torch.Tensor | None

    def everything(self) -> dict[str, torch.Tensor]:
        return self.by_class if self.unlabelled is None else {**self.by_class, NO_LABEL: self.unlabelled}


class Scorer:
    """Judge, extractor and protocol of one run. Everything that can be missing is missed at the start, by InputError."""

    def __init__(self, model: ClassConditional, config: EvaluationConfig, forget: Sequence[int]) -> None:
        model.check_steps(config.sampling_steps)
        self.model, self.config, self.forget = model, config, list(forget)
        self.names = model.names
        self.kept = [name for index, name in enumerate(self.names) if index not in set(forget)]
        self.judge: Judge | None = None
        if config.classifier != "none":
            name: str | Path = config.classifier
            self.judge = load_judge(name, self.names, model.device, config.class_mapping)
            unknown = [self.names[index] for index in forget if self.names[index] in self.judge.unjudged]
            if unknown:
                raise InputError(f"the judge knows no class like the erased {unknown[0]!r}; give a --class-mapping")
        fetch, given = config.inception_weights == "download", config.inception_weights
        self.extractor: FeatureExtractor | None = load_fid_extractor(
            None if fetch else given, self.judge, download=fetch, device=model.device
        )
        self.reference: torch.Tensor | None = None
        if config.fid_reference is not None:
            if self.extractor is None:
                raise InputError("--fid-reference needs features to compare: a --classifier, or --inception-weights")
            self.reference = self._reference_images(config.fid_reference)

    def sample(self, progress: Progress | None = None, stage: str = "sampling") -> Samples:
        """Images of every class, and without a label at w = 1. Image i of a class has the same seed in every call."""
        config, model = self.config, self.model
        count = config.images_per_class
        jobs: list[tuple[str, int | None, float]] = []
        if model.conditional:
            jobs = [(name, index, config.guidance_scale) for index, name in enumerate(self.names)]
        if model.null is not None or not model.conditional:
            jobs.append((NO_LABEL, model.null, 1.0))
        found: dict[str, torch.Tensor] = {}
        for number, (name, label, guidance) in enumerate(jobs):
            first = (config.seed * 1000 + number) * 1_000_000 % 2**31  # the other half of 32 bits is for training
            labels = None if label is None else [label] * count
            seeds, batches = range(first, first + count), []
            with autocast(config.sampling_precision, model.device)():
                for batch in model.sample(labels, seeds, config.sampling_steps, guidance, config.eval_batch_size):
                    batches.append(to_uint8(batch))
                    if progress is not None:
                        progress(stage, number * count + sum(map(len, batches)), len(jobs) * count)
            found[name] = torch.cat(batches)
        unlabelled = found.pop(NO_LABEL, None)
        return Samples(found, unlabelled)

    def score(self, samples: Samples) -> dict[str, Any]:
        """``before`` or ``after`` of metrics.json, all null without a judge."""
        result: dict[str, Any] = dict.fromkeys(
            (
                "forget_accuracy",
                "unlearning_accuracy",
                "retain_accuracy",
                "per_class",
                "answers",
                "unconditional_share",
                "revival",
            )
        )
        if self.judge is None:
            return result
        if samples.by_class:
            predictions = torch.cat([self.judge.predict(images) for images in samples.by_class.values()])
            labels = [self.names.index(name) for name, images in samples.by_class.items() for _ in images]
            found = accuracies(predictions, labels, self.names, self.forget, self.judge.unjudged)
            result |= {
                "forget_accuracy": found.forget_accuracy,
                "unlearning_accuracy": found.unlearning_accuracy,
                "retain_accuracy": found.retain_accuracy,
                "per_class": found.per_class,
                "answers": {
                    self.names[index]: answers(predictions[torch.tensor(labels) == index], self.names) for index in self.forget
                },
            }
        if samples.unlabelled is not None and self.names:
            result["unconditional_share"] = unconditional_share(self.judge.predict(samples.unlabelled), self.forget)
        return result

    def revive(self, images: torch.Tensor, labels: torch.Tensor, progress: bool = False) -> float | None:
        """Mean share over the erased classes that one learned class vector brings back; images (N, C, H, W) in [-1, 1]."""
        assert self.judge is not None
        shares = []
        for index in self.forget:
            with autocast(self.config.sampling_precision, self.model.device)():
                found = revival(
                    self.model,
                    images[labels == index],
                    self.judge,
                    index,
                    steps=REVIVAL_STEPS,
                    samples=REVIVAL_SAMPLES,
                    sampling_steps=self.config.sampling_steps,
                    guidance_scale=self.config.guidance_scale,
                    seed=self.config.seed,
                    progress=progress,
                )
            if found is not None:
                shares.append(found.share)
        return sum(shares) / len(shares) if shares else None

    def side_effects(self, before: Samples, after: Samples) -> dict[str, Any]:
        """Paired MSE (images in [-1, 1]) and SSIM of each kept class and their means; of unlabelled samples if there are no
        labels."""
        if before.by_class:
            pairs = {name: (before.by_class[name], after.by_class[name]) for name in self.kept}
        elif before.unlabelled is not None and after.unlabelled is not None:
            pairs = {NO_LABEL: (before.unlabelled, after.unlabelled)}
        else:
            pairs = {}
        if not pairs:
            return {"paired_mse": None, "paired_ssim": None, "per_class": {}}
        found = [side_effects({name: to_float(a)}, {name: to_float(b)}) for name, (a, b) in pairs.items()]  # little memory
        return {
            "paired_mse": sum(f.paired_mse for f in found) / len(found),
            "paired_ssim": sum(f.paired_ssim for f in found) / len(found),
            "per_class": {name: {"mse": f.paired_mse, "ssim": f.paired_ssim} for name, f in zip(pairs, found, strict=True)},
        }

    def fid(self, before: Samples, after: Samples) -> tuple[dict[str, float | None], list[str]]:
        """FID of the kept classes against the reference, before and after, and warnings about it.

        Against the original's own samples, ``retain_before`` is 0 by construction. None without an extractor, and for
        fewer than two images.
        """
        images = [_kept_images(samples, self.kept) for samples in (before, after)]
        if self.extractor is None or len(images[0]) < 2:
            return {"retain_before": None, "retain_after": None}, []
        sets = [self.extractor(one) for one in images]
        reference = sets[0] if self.reference is None else self.extractor(self.reference)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", SmallSampleWarning)
            values = [0.0 if s is reference else frechet_distance(s, reference) for s in sets]
        messages = sorted({str(w.message) for w in caught if issubclass(w.category, SmallSampleWarning)})
        return {"retain_before": values[0], "retain_after": values[1]}, messages

    def protocol(self) -> dict[str, Any]:
        """Everything a reader needs to make the same numbers again."""
        config, judge, extractor = self.config, self.judge, self.extractor
        found: dict[str, Any] = {
            "seed": config.seed,
            "images_per_class": config.images_per_class,
            "sampler": sampler_name(config.sampling_precision, self.model.device),
            "steps": config.sampling_steps,
            "guidance_scale": config.guidance_scale if self.model.null is not None else 1.0,
            "classifier": None if judge is None else {"name": judge.name, "sha256": judge.sha256},
            "fid_extractor": None
            if extractor is None
            else {"name": extractor.name, "dim": extractor.dim, "sha256": extractor.sha256},
            "fid_reference": config.fid_reference or "the original model's own samples, same seeds",
        }
        if config.revival:
            found["revival"] = {
                "steps": REVIVAL_STEPS,
                "lr": 3e-2,
                "batch_size": 32,
                "samples": REVIVAL_SAMPLES,
                "seed": config.seed,
            }
        return found

    def _reference_images(self, source: str) -> torch.Tensor:
        from semu_diffusion.pipelines.data.images import load_images

        data = load_images(source, "train")
        if data.image_shape != self.model.image_shape:
            raise InputError(f"--fid-reference {source}: images {data.image_shape}, the model makes {self.model.image_shape}")
        missing = [name for name in self.kept if name not in data.class_names]
        if missing:
            raise InputError(f"--fid-reference {source} has no class {', '.join(missing)}: FID would compare different things")
        # samples without a label are compared where no class is kept: with everything but what is erased
        erased = {self.names[index] for index in self.forget}
        names = self.kept or [name for name in data.class_names if name not in erased] or data.class_names
        found = data.images[torch.isin(data.labels, torch.tensor([data.class_names.index(name) for name in names]))]
        if len(found) < 2:
            raise InputError(f"--fid-reference {source} has {len(found)} images of the kept classes: FID needs two and more")
        return found


def _kept_images(samples: Samples, kept: Sequence[str]) -> torch.Tensor:
    """All samples of the kept classes; those without a label, or at last all there are, where no class is kept."""
    images = [samples.by_class[name] for name in kept if name in samples.by_class]
    if not images and samples.unlabelled is not None:
        return samples.unlabelled
    return torch.cat(images or list(samples.by_class.values()))


def collapse(before: Samples, after: Samples, kept: Sequence[str], scores: tuple[Any, Any]) -> str | None:
    """Why the kept classes' samples after the erasure are no pictures any more, or are not recognised; None if they are."""
    old, new = (_kept_images(samples, kept) for samples in (before, after))
    lost = pictures_lost(old, new, "the kept classes' samples")
    first, last = (score["retain_accuracy"] for score in scores)
    return lost or recognition_lost(first, last, "retain accuracy", len(old))
