"""``semu assess``: what a model can do before anything is erased from it, by the judges, and whether it copies.

Of every object and style that the model knows, samples from fixed seeds: the share that the judge calls right; with a data
set also FID against its test images, and the training images that are nearest to some samples, as a picture.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from semu_diffusion.erase.config import GuidedConfig
from semu_diffusion.errors import InputError
from semu_diffusion.options import at_least, build_config, option
from semu_diffusion.pipelines.cli.errors import run_guarded
from semu_diffusion.pipelines.cli.flags import Parser, add_config_flags, epilog
from semu_diffusion.pipelines.cli.progress import Bars

if TYPE_CHECKING:
    import torch

    from semu_diffusion.eval.judges.judge import Judge
    from semu_diffusion.models.base import DiffusionModel
    from semu_diffusion.pipelines.runs.folder import RunFolder

__all__ = ["AssessConfig", "main", "parse", "run"]

EXAMPLES = (
    "semu assess ddpm-cifar10",
    "semu assess tiny-sd --samples-per-class 100 --data uoft-cs/cifar10 --output runs/tiny-sd-assessed",
)
SHOWN = 8  # samples of each in the picture


@dataclass(frozen=True)
class AssessConfig(GuidedConfig):
    """Which model, by how many samples, and against which data set; what is None the model's vocabulary says."""

    guidance_scale: float | None = option(  # type: ignore[assignment]
        None, "classifier-free guidance w; 1 is none (default: the model's own, else 3)", metavar="W", group="proof"
    )

    model: str = option(
        "ddpm-cifar10", "embedded model by name (ddpm-cifar10, tiny-sd), diffusers folder or Hub id", metavar="MODEL",
        positional=True,
    )  # fmt: skip
    data: str | None = option(None, "data set for FID (test) and the nearest images (train)", metavar="DATASET")
    samples_per_class: int = option(100, "samples of every object and style", metavar="N")
    sampling_steps: int = option(50, "DDIM steps", metavar="N")
    sampling_precision: Literal["fp32", "bf16", "auto"] = option(
        "auto", "arithmetic of the samples; auto: bf16 where the hardware has it"
    )
    classifier: str | None = option(
        None, "judge of the objects: embedded, a folder, torchvision:NAME, timm:NAME (default: the model's own, else embedded)",
        metavar="JUDGE",
    )  # fmt: skip
    style_classifier: str | None = option(
        None, "judge of the styles, for a model with a vocabulary (default: the model's own)", metavar="JUDGE"
    )
    inception_weights: str | None = option(None, "Inception weights for FID (default: the judge's features)", metavar="FILE")
    device: str | None = option(None, "torch device (default: cuda if there is one, else cpu)", metavar="DEVICE")
    output: str | None = option(None, "folder for the numbers and pictures (default: a new one under runs/)", metavar="DIR")
    overwrite: bool = option(False, "replace an existing folder")

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, "samples_per_class", 2)
        at_least(self, "sampling_steps", 1)


def parse(argv: Sequence[str] | None = None) -> AssessConfig:
    parser = Parser(prog="semu assess", description=(__doc__ or "").replace("``", ""), epilog=epilog(EXAMPLES))
    add_config_flags(parser, AssessConfig)
    return build_config(AssessConfig, vars(parser.parse_intermixed_args(argv)))


def main(argv: Sequence[str] | None = None) -> int:
    return run_guarded("semu assess", lambda: run(parse(argv)))


def run(config: AssessConfig) -> int:
    import torch

    from semu_diffusion.eval.judges.judge import load_judge
    from semu_diffusion.eval.metrics.fid import load_fid_extractor
    from semu_diffusion.pipelines.data.images import load_images
    from semu_diffusion.pipelines.report.grid import contact_sheet, save_png
    from semu_diffusion.pipelines.runs.assessment import copies, fid, groups_of, sampled, share
    from semu_diffusion.pipelines.runs.folder import RunFolder, environment, write_json
    from semu_diffusion.pipelines.runs.quiet import quiet_libraries

    quiet_libraries()
    inputs = (config.model, config.data, config.classifier, config.style_classifier, config.inception_weights)
    folder = RunFolder(config.output, f"assess-{Path(config.model).name}", config.overwrite, inputs)
    model, groups, vocabulary = groups_of(config.model, config.device)
    own = {"object": "embedded"} if vocabulary is None else vocabulary.judges
    if config.guidance_scale is None:
        config = dataclasses.replace(config, guidance_scale=3.0 if vocabulary is None else vocabulary.guidance_scale)
    if model.null is None:
        config = dataclasses.replace(config, guidance_scale=1.0)  # there is nothing to guide against
    judges: dict[str, Judge] = {}
    for kind, given in (("object", config.classifier), ("style", config.style_classifier)):
        names = [group.name for group in groups if group.kind == kind]
        if names and (given or kind in own):
            judges[kind] = load_judge(given or own[kind], names, model.device)
    if "object" not in judges:
        raise InputError(f"{config.model} names no judge of its objects: give one with --classifier")
    train, test = (load_images(config.data, split) if config.data else None for split in ("train", "test"))
    if test is not None and test.image_shape != model.image_shape:
        raise InputError(f"{config.data} has images of {test.image_shape}, the model makes {model.image_shape}")
    model.check_steps(config.sampling_steps)
    extractor = load_fid_extractor(config.inception_weights, judges["object"], device=model.device)
    folder.create()
    record = {"config": dataclasses.asdict(config), **environment(model.device)}
    bars = Bars(sys.stderr)
    with folder.recorded(record), contextlib.closing(bars):
        start = time.perf_counter()
        samples = sampled(
            model, groups, config.samples_per_class, config.sampling_steps, config.guidance_scale or 3.0,
            config.sampling_precision, config.seed, bars,
        )  # fmt: skip
        seconds = time.perf_counter() - start
        metrics: dict[str, Any] = {"protocol": _protocol(config, judges, model.device), "model": _size(model)}
        metrics["samples_per_second"] = sum(map(len, samples.values())) / seconds
        for kind, judge in judges.items():
            known = [group for group in groups if group.kind == kind and group.name not in judge.unjudged]
            found = {group.name: share(judge, samples[group], group.name) for group in known}
            worst = min(found, key=lambda name: found[name])
            metrics[kind] = {
                "mean": sum(found.values()) / len(found),
                "worst": found[worst],
                "worst_name": worst,
                "each": found,
            }
        if train is not None and test is not None:
            objects = torch.cat([samples[group] for group in groups if group.kind == "object"])
            assert extractor is not None
            metrics["fid"] = fid(objects, test, extractor)
            metrics["nearest"] = copies(objects, train, test, judges["object"], folder, bars)
        rows = {group.name: samples[group][:SHOWN] for group in groups}
        caption = f"{config.model} · DDIM {config.sampling_steps} steps · w = {config.guidance_scale:g}"
        save_png(contact_sheet(rows, caption), folder / "samples.png")
        write_json(folder / "metrics.json", metrics)
        write_json(folder / "run.json", {**record, "status": "complete"})
    print(_table(metrics, folder))
    return 0


def _protocol(config: AssessConfig, judges: dict[str, Judge], device: torch.device) -> dict[str, Any]:
    from semu_diffusion.models.precision import sampler_name

    return {
        "model": config.model,
        "samples_per_class": config.samples_per_class,
        "sampler": sampler_name(config.sampling_precision, device),
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


if __name__ == "__main__":
    sys.exit(main())
