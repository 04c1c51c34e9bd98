"""The proof of a concept's erasure: the same seeds before and after, the retained prompts pair by pair, a picture."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from semu_diffusion.eval.images import save_images, to_float, to_uint8
from semu_diffusion.eval.side_effects import side_effects
from semu_diffusion.models.text_conditional import TextConditional
from semu_diffusion.patch import ErasurePatch
from semu_diffusion.pipelines.concept_settings import EraseConceptRun
from semu_diffusion.pipelines.condition_erasure import Task
from semu_diffusion.pipelines.console import Bars
from semu_diffusion.pipelines.grids import make_grid, save_png
from semu_diffusion.pipelines.precision import autocast
from semu_diffusion.pipelines.run_folder import RunFolder, peak_memory_bytes, write_json

__all__ = ["prove", "table"]

SHOWN_FORGOTTEN, SHOWN_KEPT, GRID_IMAGES = 4, 6, 6
Samples = dict[str, torch.Tensor]


def prove(
    task: Task[TextConditional], patch: ErasurePatch, patch_bytes: int, config: EraseConceptRun, folder: RunFolder,
    bars: Bars, seconds: Mapping[str, float], lora: Mapping[str, Any] | None,
) -> tuple[dict[str, Any], str | None]:  # fmt: skip
    """metrics.json of the patch, written with the grid, and why the model has collapsed (None if it has not)."""
    start, model = time.perf_counter(), task.model
    prompts = [model.class_names[row] for row in task.forget]
    kept = [model.class_names[row] for row in _spread(task.kept, config.judged_prompts)]
    before = _sample(model, [*prompts, *kept, ""], config, bars, "sampling before")
    patch.apply(model.denoiser)
    try:
        after = _sample(model, [*prompts, *kept, ""], config, bars, "sampling after")
    finally:
        patch.remove(model.denoiser)
    if config.save_images:
        for when, samples in (("before", before), ("after", after)):
            for prompt, images in samples.items():
                save_images(images, folder / "images" / when / _folder_name(prompt))
    changed, stayed, empty = (_paired(before, after, group) for group in (prompts, kept, [""]))
    total = sum(parameter.numel() for parameter in model.denoiser.parameters())
    metrics: dict[str, Any] = {
        "protocol": {
            "seed": config.seed, "images_per_prompt": config.images_per_prompt, "sampler": "DDIM",
            "steps": config.sampling_steps, "guidance_scale": config.guidance_scale,
            "forget_prompts": prompts, "retain_prompts": kept, "classifier": None,
        },
        "forget_effect": changed,
        "side_effects": stayed,
        "unprompted_effect": empty,
        "patch": {
            "layers": len(patch.layers), "trained_parameters": patch.trained_parameters, "model_parameters": total,
            "fraction": patch.trained_parameters / total, "bytes": patch_bytes,
        },
        "lora": lora,
        "cost": {
            "seconds": {**seconds, "evaluate": time.perf_counter() - start},
            "peak_memory_bytes": peak_memory_bytes(model.device),
        },
    }  # fmt: skip
    shown = [*prompts[:SHOWN_FORGOTTEN], *kept[:SHOWN_KEPT]]
    rows = [{prompt: samples[prompt][:GRID_IMAGES] for prompt in shown} for samples in (before, after)]
    caption = (
        f"same seeds · DDIM {config.sampling_steps} steps · w = {config.guidance_scale:g} · paired SSIM: "
        f"erased {changed['paired_ssim']:.2f}, retained {stayed['paired_ssim']:.2f}"
    )
    save_png(make_grid(rows[0], rows[1], prompts[:SHOWN_FORGOTTEN], caption), folder / "before_after.png")
    write_json(folder / "metrics.json", metrics)
    return metrics, _collapse(before, after, kept)


def _sample(model: TextConditional, prompts: Sequence[str], config: EraseConceptRun, bars: Bars, stage: str) -> Samples:
    """uint8 images of each prompt; image i of a prompt has the same seed in every call."""
    found: Samples = {}
    for number, prompt in enumerate(prompts):
        first = (config.seed * 1000 + number) * 1_000_000 % 2**31  # the other half of 32 bits is for training
        rows = [model.row(prompt)] * config.images_per_prompt
        seeds = range(first, first + len(rows))
        with autocast(config.sampling_precision, model.device)():
            batches = model.sample(rows, seeds, config.sampling_steps, config.guidance_scale)
            found[prompt] = torch.cat([to_uint8(batch) for batch in batches])
        bars.show(stage, number + 1, len(prompts))
    return found


def _paired(before: Samples, after: Samples, prompts: Sequence[str]) -> dict[str, float]:
    """Mean over the prompts of paired MSE (images in [-1, 1]) and SSIM."""
    pairs = [{prompt: to_float(samples[prompt]) for prompt in prompts} for samples in (before, after)]
    found = side_effects(*pairs)
    return {"paired_mse": found.paired_mse, "paired_ssim": found.paired_ssim}


def _collapse(before: Samples, after: Samples, kept: Sequence[str]) -> str | None:
    """Lost contrast or variety of the retained prompts' pictures: below a quarter of the original's."""
    old, new = (torch.cat([samples[prompt] for prompt in kept]).float() for samples in (before, after))
    if new.flatten(1).std(1).mean() < 0.25 * old.flatten(1).std(1).mean():
        return "the retained prompts' samples have lost their contrast"
    if len(new) > 1 and new.std(0).mean() < 0.25 * old.std(0).mean():
        return "the retained prompts' samples all look alike"
    return None


def _spread(rows: Sequence[int], count: int) -> list[int]:
    """``count`` of the rows, evenly spread."""
    return [rows[index * len(rows) // min(count, len(rows))] for index in range(min(count, len(rows)))]


def _folder_name(prompt: str) -> str:
    return re.sub(r"[^\w -]", "_", prompt).strip()[:80].replace(os.sep, "_") or "(no prompt)"


def table(metrics: Mapping[str, Any], concepts: Sequence[str], anchor: str, folder: RunFolder) -> str:
    """The short table the command ends with."""
    rows = [
        (f"pictures of {', '.join(concepts)}", metrics["forget_effect"]),
        ("pictures of retained prompts", metrics["side_effects"]),
        ("pictures without a prompt", metrics["unprompted_effect"]),
    ]
    width = max(len(name) for name, _ in rows)
    lines = [f"{'change, same seeds':<{width}}  {'MSE':>8}  {'SSIM':>6}"]
    lines += [f"{name:<{width}}  {found['paired_mse']:>8.4f}  {found['paired_ssim']:>6.3f}" for name, found in rows]
    patch, seconds, lora = metrics["patch"], metrics["cost"]["seconds"], metrics["lora"]
    erase = sum(seconds[stage] for stage in ("collect", "subspace", "train"))
    lines.append(
        f"\nanswered with {anchor or 'no prompt'!r}; patch: {patch['trained_parameters']:,} numbers trained "
        f"({100 * patch['fraction']:.3f} % of the model) in {patch['layers']} layers, {patch['bytes'] / 1000:.0f} kB; "
        f"erased in {erase:.0f} s, proved in {seconds['evaluate']:.0f} s"
    )
    if lora is None:
        lines.append("lora/ was not checked: that needs PEFT (pip install 'semu-diffusion[lora]')")
    else:
        unloaded = "restores every weight" if lora["unloaded_equal"] else "DOES NOT RESTORE the weights"
        lines.append(f"lora/, loaded by diffusers: {lora['relative_difference']:.1e} from the patch; unloading {unloaded}")
    lines.append(f"{folder.path}/  (look at {folder.path / 'before_after.png'})")
    return "\n".join(lines)
