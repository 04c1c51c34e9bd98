"""What a small text-to-image model reaches by the judges of objects and of styles, and the model card that says so."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from semu_diffusion.domains.prompts import article
from semu_diffusion.pipelines.train.captions import PROMPTS
from semu_diffusion.pipelines.train.picture_styles import PHOTO, STYLES

if TYPE_CHECKING:
    import torch

    from semu_diffusion.pipelines.data.images import ImageSet
    from semu_diffusion.pipelines.train.training import TrainingRun

__all__ = ["judgements", "model_card", "sampled"]

GUIDANCE, SAMPLING_STEPS, BATCH = 5.0, 25, 50
SETTINGS = ("batch_size", "lr", "final_lr", "warmup", "clip", "ema", "caption_drop", "min_snr", "prediction", "seed")


def sampled(pipeline: Any, prompts: Sequence[str], first_seed: int = 0) -> torch.Tensor:
    """uint8 images (N, 3, H, W) of the prompts at guidance 5 in 25 DDIM steps, image i from seed ``first_seed + i``."""
    import torch
    from tqdm import tqdm

    found = []
    starts = tqdm(range(0, len(prompts), BATCH), "judging", disable=not sys.stderr.isatty(), leave=False)
    for start in starts:
        part = list(prompts[start : start + BATCH])
        seeds = range(first_seed + start, first_seed + start + len(part))
        images = pipeline(
            part,
            num_inference_steps=SAMPLING_STEPS,
            guidance_scale=GUIDANCE,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            output_type="pt",
        ).images
        found.append(images.float().mul(255).round().to(torch.uint8).cpu())
    return torch.cat(found)


def judgements(folder: Path, class_names: Sequence[str], config: Any) -> dict[str, Any]:
    """Share of photos whose object, and of pictures whose style, the judges call the prompted one; {} without judges."""
    import torch
    from diffusers import StableDiffusionPipeline

    from semu_diffusion.eval.judges.judge import load_judge

    if not config.classifier and not config.style_classifier:
        return {}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    pipeline = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True, dtype=torch.float32).to(device)
    pipeline.set_progress_bar_config(disable=True)
    count = config.judged_samples
    found: dict[str, Any] = {}
    if config.classifier:
        judge = load_judge(config.classifier, class_names, torch.device(device))
        known = [index for index, name in enumerate(class_names) if name not in judge.unjudged]
        prompts = [article(PROMPTS[PHOTO].format(class_names[index])) for index in known for _ in range(count)]
        right = judge.predict(sampled(pipeline, prompts)).view(-1, count) == torch.tensor(known)[:, None]
        shares = right.float().mean(1).tolist()
        each = {class_names[index]: round(share, 4) for index, share in zip(known, shares, strict=True)}
        found |= {"object_accuracy": round(float(right.float().mean()), 4), "per_object": each}
    if config.style_classifier:
        judge = load_judge(config.style_classifier, list(STYLES), torch.device(device))
        prompts = [
            article(PROMPTS[style].format(class_names[index % len(class_names)])) for style in STYLES for index in range(count)
        ]
        right = judge.predict(sampled(pipeline, prompts)).view(-1, count) == torch.arange(len(STYLES))[:, None]
        each = {style: round(share, 4) for style, share in zip(STYLES, right.float().mean(1).tolist(), strict=True)}
        found |= {"style_accuracy": round(float(right.float().mean()), 4), "per_style": each}
    return {"judged_samples": count, **found}


def model_card(run: TrainingRun, config: Any, pipeline: Any, data: ImageSet, measured: dict[str, Any]) -> str:
    """README.md: data, captions, architecture, settings, time, and the measured numbers (none if nothing was measured)."""
    channels, height, width = data.image_shape
    parts = {name: getattr(pipeline, name) for name in ("unet", "text_encoder", "vae")}
    sizes = ", ".join(f"{name} {sum(p.numel() for p in part.parameters()):,}" for name, part in parts.items())
    settings = {name: getattr(config, name) for name in SETTINGS}
    settings["prediction"] = pipeline.scheduler.config.prediction_type  # that of --init-from, if it goes on from one
    lines = [
        "---",
        "library_name: diffusers",
        "pipeline_tag: text-to-image",
        "---",
        f"# A tiny Stable Diffusion, {width}x{height}",
        "",
        "A `StableDiffusionPipeline` made for trying out erasure methods, not for pictures. It knows "
        f"{len(data.class_names)} objects, each by several words, and {len(STYLES) - 1} picture styles beside the photo.",
        "",
        f"* Objects: {', '.join(data.class_names)}; styles: {', '.join(STYLES)}",
        f"* Prompts: {'; '.join(prompt.format('cat') for prompt in PROMPTS.values())}",
        f"* Parameters: {sizes}",
        f"* Data: {len(data):,} training images, {channels} x {height} x {width}; fingerprint `{data.fingerprint}`",
        f"* Training: {run.step:,} steps, {run.step * config.batch_size:,} images seen, {run.elapsed() / 60:.0f} minutes"
        + (", on top of an earlier training" if config.init_from else ""),
        f"* Weights: exponential moving average, stored in half precision. Settings: `{json.dumps(settings)}`",
        "",
    ]
    for kind, key in (("object", "per_object"), ("style", "per_style")):
        if key in measured:
            lines += [
                f"Share of {measured['judged_samples']} samples of each {kind} (guidance {GUIDANCE:g}, {SAMPLING_STEPS} DDIM "
                f"steps, seeds 0, 1, …) that the judge calls that {kind}: **{measured[kind + '_accuracy']:.3f}** over all; "
                + ", ".join(f"{name} {share:.2f}" for name, share in measured[key].items()),
                "",
            ]
    return "\n".join(lines)
