"""The finished DDPM: its folder in diffusers' layout, what it reaches by a judge, and the model card that says so."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from semu_diffusion.files import forget_places, write_text
from semu_diffusion.pipelines.train.training import replace_folder

if TYPE_CHECKING:
    from diffusers import DDPMScheduler, UNet2DModel

    from semu_diffusion.models.ddpm import ClassConditional
    from semu_diffusion.pipelines.data.images import ImageSet
    from semu_diffusion.pipelines.train.training import TrainingRun

__all__ = ["export_ddpm", "judged", "model_card"]

GUIDANCE, SAMPLING_STEPS, BATCH = 3.0, 50, 64
SETTINGS = (
    "batch_size", "lr", "final_lr", "warmup", "weight_decay", "clip", "ema", "label_drop", "min_snr", "flip", "seed"
)  # fmt: skip


def export_ddpm(
    run: TrainingRun,
    unet: UNet2DModel,
    scheduler: DDPMScheduler,
    data: ImageSet,
    config: Any,
    judge: str | None = None,
) -> Path:
    """Write ``<output>/model``, judged if there is a ``judge``: beside, then renamed."""
    import torch

    from semu_diffusion.models.checkpoints import load_class_conditional
    from semu_diffusion.models.pipeline import ClassConditionalPipeline

    target = run.folder / "model"
    beside = target.with_name("model.part")
    shutil.rmtree(beside, ignore_errors=True)
    names = dict(enumerate(data.class_names))
    ClassConditionalPipeline(unet, scheduler, names, len(names)).save_pretrained(beside)
    forget_places(beside)
    measured: dict[str, Any] = {}
    if judge:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        measured = judged(load_class_conditional(beside, device=device), judge, config.judged_samples)
        run.log(**measured)
    write_text(beside / "README.md", model_card(run, config, unet, data, measured))
    replace_folder(beside, target)
    return target


def judged(model: ClassConditional, classifier: str, per_class: int) -> dict[str, Any]:
    """Share of ``per_class`` samples of each class (guidance 3, 50 DDIM steps, seeds 0, 1, …) the judge calls that class.

    Classes that the judge does not know are left out.
    """
    import torch
    from tqdm import tqdm

    from semu_diffusion.eval.judges.judge import load_judge

    judge = load_judge(classifier, model.names, model.device)
    known = [index for index, name in enumerate(model.names) if name not in judge.unjudged]
    labels = [index for index in known for _ in range(per_class)]
    samples = model.sample(labels, range(len(labels)), SAMPLING_STEPS, GUIDANCE, BATCH)
    batches = tqdm(samples, "judging", -(-len(labels) // BATCH), disable=not sys.stderr.isatty(), leave=False)
    right = judge.predict(torch.cat(list(batches))) == torch.tensor(labels)
    each = right.view(len(known), per_class).float().mean(dim=1).tolist()
    return {
        "sample_accuracy": round(right.float().mean().item(), 4),
        "samples_per_class": per_class,
        "judge": judge.name,
        "per_class": {model.names[index]: round(share, 4) for index, share in zip(known, each, strict=True)},
    }


def model_card(run: TrainingRun, config: Any, unet: UNet2DModel, data: ImageSet, measured: dict[str, Any]) -> str:
    """README.md: data, architecture, settings, time, and the measured numbers (none if nothing was measured)."""
    channels, height, width = data.image_shape
    shape = unet.config
    settings = {name: getattr(config, name) for name in SETTINGS}
    if run.config.max_minutes:
        settings["schedule_over"] = f"{run.config.max_minutes:g} minutes"
    lines = [
        "---",
        "library_name: diffusers",
        "pipeline_tag: unconditional-image-generation",
        "---",
        f"# Class-conditional DDPM, {len(data.class_names)} classes, {width}x{height}",
        "",
        "A `UNet2DModel` with class embeddings and a null class (the last index) for classifier-free guidance; made for "
        "trying out erasure methods, not for pictures. Load it with `semu_diffusion.models.checkpoints."
        "load_class_conditional`, or its parts with diffusers.",
        "",
        f"* Classes: {', '.join(data.class_names)}",
        f"* Network: {sum(p.numel() for p in unet.parameters()):,} parameters, channels "
        f"{', '.join(map(str, shape.block_out_channels))}, blocks {', '.join(shape.down_block_types)}",
        f"* Data: {len(data):,} training images, {channels} x {height} x {width}; fingerprint `{data.fingerprint}`",
        f"* Training: {run.step:,} steps, {run.step * config.batch_size:,} images seen, {run.elapsed() / 60:.0f} minutes"
        + (", on top of an earlier training" if config.init_from else ""),
        f"* Weights: exponential moving average, stored in half precision. Settings: `{json.dumps(settings)}`",
        "",
    ]
    if measured:
        lines += [
            f"Share of {measured['samples_per_class']} samples of each class (guidance {GUIDANCE:g}, {SAMPLING_STEPS} DDIM "
            f"steps, seeds 0, 1, …) that the judge ({measured['judge']}) calls that class: "
            f"**{measured['sample_accuracy']:.3f}** over all.",
            "",
            "| class | share |",
            "|---|---|",
            *(f"| {name} | {share:.2f} |" for name, share in measured["per_class"].items()),
            "",
        ]
    return "\n".join(lines)
