"""A run of ``semu assess``: its judges, its numbers, its folder."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from semu_diffusion.domains.vocabulary import Vocabulary
from semu_diffusion.errors import InputError
from semu_diffusion.eval.judges.judge import Judge, load_judge
from semu_diffusion.eval.metrics.fid import load_fid_extractor
from semu_diffusion.files import write_json
from semu_diffusion.models.base import DiffusionModel
from semu_diffusion.models.precision import sampler_name
from semu_diffusion.pipelines.assess.assess_settings import AssessConfig
from semu_diffusion.pipelines.assess.assessment import Group, copies, fid, groups_of, sampled, share
from semu_diffusion.pipelines.cli.progress import Progress
from semu_diffusion.pipelines.data.images import load_images, to_stderr
from semu_diffusion.pipelines.report.grid import contact_sheet, save_png
from semu_diffusion.pipelines.runs.folder import RunFolder
from semu_diffusion.pipelines.runs.places import READ
from semu_diffusion.pipelines.runs.provenance import environment
from semu_diffusion.pipelines.runs.quiet import quiet_libraries

__all__ = ["assess"]

GRID_IMAGES = 8  # samples of each in the picture


def assess(config: AssessConfig) -> str:
    """Sample, judge, compare and draw into a run folder, and return the short table. Raises InputError before any work."""
    quiet_libraries()
    read = [getattr(config, name, None) for name in READ]
    with RunFolder(config.output, f"assess-{Path(config.model).name}", config.overwrite, read) as folder:
        return _table(_assessed(config, folder), folder)


def _assessed(config: AssessConfig, folder: RunFolder) -> dict[str, Any]:
    """The numbers, when they and the pictures are in the folder."""
    model, groups, vocabulary = groups_of(config.model, config.device)
    config = dataclasses.replace(config, guidance_scale=_guidance_scale(config, model, vocabulary))
    judges = _judges(config, groups, vocabulary, model.device)
    train, test = (load_images(config.data, split) if config.data else None for split in ("train", "test"))
    if test is not None and test.image_shape != model.image_shape:
        raise InputError(f"{config.data} has images of {test.image_shape}, the model makes {model.image_shape}")
    model.check_steps(config.sampling_steps)
    extractor = load_fid_extractor(config.inception_weights, judges["object"], device=model.device)
    for data in (train, test):
        if data is not None:
            to_stderr(data.found)
    record = {
        "config": dataclasses.asdict(config),
        **environment(model.device, sampling_precision=config.sampling_precision),
    }
    with folder.recorded(record), Progress() as progress:
        start = time.perf_counter()
        samples = sampled(
            model, groups, config.samples_per_class, config.sampling_steps, config.guidance_scale or 1.0,
            config.sampling_precision, config.seed, progress,
        )  # fmt: skip
        metrics: dict[str, Any] = {"protocol": _protocol(config, judges, model), "model": _size(model)}
        metrics["samples_per_second"] = sum(map(len, samples.values())) / (time.perf_counter() - start)
        metrics |= {kind: _shares(kind, judge, samples) for kind, judge in judges.items()}
        if train is not None and test is not None and extractor is not None:
            objects = torch.cat([samples[group] for group in groups if group.kind == "object"])
            metrics["fid"] = fid(objects, test, extractor)
            metrics["nearest"] = copies(objects, train, test, judges["object"], folder, progress)
        rows = {group.name: samples[group][:GRID_IMAGES] for group in groups}
        caption = f"{config.model} · {model.sampler_name} {config.sampling_steps} steps · w = {config.guidance_scale:g}"
        save_png(contact_sheet(rows, caption), folder / "samples.png")
        write_json(folder / "metrics.json", metrics)
        record["status"] = "complete"
    return metrics


def _guidance_scale(config: AssessConfig, model: DiffusionModel, vocabulary: Vocabulary | None) -> float:
    if model.null is None:
        return 1.0  # there is nothing to guide against
    own = 3.0 if vocabulary is None else vocabulary.guidance_scale
    return own if config.guidance_scale is None else config.guidance_scale


def _judges(
    config: AssessConfig, groups: Sequence[Group], vocabulary: Vocabulary | None, device: torch.device
) -> dict[str, Judge]:
    """The judge of objects and, if there are styles and a judge for them, of styles. InputError if none judges objects."""
    own = {"object": "embedded"} if vocabulary is None else vocabulary.judges
    judges: dict[str, Judge] = {}
    for kind, given in (("object", config.classifier), ("style", config.style_classifier)):
        names = [group.name for group in groups if group.kind == kind]
        if names and (given or kind in own):
            judges[kind] = load_judge(given or own[kind], names, device)
    if "object" not in judges:
        raise InputError(f"{config.model} names no judge of its objects: give one with --classifier")
    return judges


def _shares(kind: str, judge: Judge, samples: dict[Group, torch.Tensor]) -> dict[str, Any]:
    known = [group for group in samples if group.kind == kind and group.name not in judge.unjudged]
    each = {group.name: share(judge, samples[group], group.name) for group in known}
    worst = min(each, key=lambda name: each[name])
    return {"mean": sum(each.values()) / len(each), "worst": each[worst], "worst_name": worst, "each": each}


def _protocol(config: AssessConfig, judges: dict[str, Judge], model: DiffusionModel) -> dict[str, Any]:
    return {
        "model": config.model,
        "samples_per_class": config.samples_per_class,
        "sampler": sampler_name(model, config.sampling_precision),
        "sampling_steps": config.sampling_steps,
        "guidance_scale": config.guidance_scale,
        "seed": config.seed,
        "judges": {kind: {"name": judge.name, "sha256": judge.sha256} for kind, judge in judges.items()},
    }


def _size(model: DiffusionModel) -> dict[str, int]:
    return {"denoiser_parameters": sum(parameter.numel() for parameter in model.denoiser.parameters())}


def _table(metrics: dict[str, Any], folder: RunFolder) -> str:
    lines = []
    for kind in ("object", "style"):
        if kind in metrics:
            found = metrics[kind]
            lines += [f"{kind:<14} judged right"]
            lines += [f"  {name:<12} {100 * share:>6.1f} %" for name, share in found["each"].items()]
            lines += [f"  {'mean':<12} {100 * found['mean']:>6.1f} %   worst {found['worst_name']}", ""]
    if "fid" in metrics:
        fid, near = metrics["fid"], metrics["nearest"]
        lines.append(
            f"FID {fid['value']:.2f} ({fid['features']}; {fid['samples']} samples, {fid['reference_images']} test images)"
        )
        lines.append(
            f"nearest training image, median cosine: {near['median_cosine']:.3f} of samples, "
            f"{near['median_cosine_of_test_images']:.3f} of test images"
        )
    lines.append(f"{metrics['samples_per_second']:.1f} samples a second")
    lines.append(f"{folder.path}/  (look at {folder.path / 'samples.png'})")
    return "\n".join(lines)
