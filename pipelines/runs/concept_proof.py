"""The proof of a concept's erasure: the same seeds before and after, the retained prompts pair by pair, a picture."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from semu_diffusion.domains.concepts import ConceptTask
from semu_diffusion.eval.guards import pictures_lost, recognition_lost
from semu_diffusion.eval.images import save_images, to_float
from semu_diffusion.eval.metrics.lpips import Lpips, load_lpips, paired_lpips
from semu_diffusion.eval.metrics.side_effects import side_effects
from semu_diffusion.eval.metrics.unlearning import answer_words, with_interval
from semu_diffusion.patch import ErasurePatch
from semu_diffusion.pipelines.cli.progress import Bars
from semu_diffusion.pipelines.data.images import spread
from semu_diffusion.pipelines.report.grid import make_grid, save_png
from semu_diffusion.pipelines.runs.concept_scoring import NO_PROMPT, ConceptScorer, Samples
from semu_diffusion.pipelines.runs.folder import RunFolder, folder_names, peak_memory_bytes, write_json

__all__ = ["paired", "prove", "table"]

SHOWN_FORGOTTEN, SHOWN_KEPT, GRID_IMAGES = 4, 8, 6


def prove(
    task: ConceptTask, scorer: ConceptScorer, patch: ErasurePatch, patch_bytes: int, folder: RunFolder,
    bars: Bars, seconds: Mapping[str, float], lora: Mapping[str, Any] | None, protection: Mapping[str, float | None],
) -> tuple[dict[str, Any], str | None]:  # fmt: skip
    """metrics.json of the patch, written with the grid, and why the model has collapsed (None if it has not)."""
    start, model, config = time.perf_counter(), task.task.model, scorer.config
    before = scorer.sample(model, bars.show, "sampling before")
    shown = scorer.concept_latents(model, bars.show)
    scores = [scorer.score(before)]
    scores[0]["revival"] = scorer.revive(model, shown)
    patch.apply(model.denoiser)
    try:
        after = scorer.sample(model, bars.show, "sampling after")
        scores.append(scorer.score(after))
        scores[1]["revival"] = scorer.revive(model, shown)
    finally:
        patch.remove(model.denoiser)
    forgotten, kept = scorer.group("forget"), scorer.retained
    distance = load_lpips(model.device)
    changed, stayed, empty = (paired(before, after, group, distance) for group in (forgotten, kept, [NO_PROMPT]))
    protocol = scorer.protocol()
    if not shown:
        protocol["revival"] = None
    for score in scores:  # each of the concepts shown has its own pseudo-word
        score["samples"]["revival"] = len(shown) * protocol["revival"]["samples"] if shown else 0
    total = sum(parameter.numel() for parameter in model.denoiser.parameters())
    metrics: dict[str, Any] = {
        "protocol": protocol,
        "before": scores[0],
        "after": scores[1],
        "forget_effect": changed,
        "side_effects": stayed,
        "unprompted_effect": empty,
        "patch": {
            "layers": len(patch.layers), "trained_parameters": patch.trained_parameters, "model_parameters": total,
            "fraction": patch.trained_parameters / total, "bytes": patch_bytes,
        },
        "lora": lora,
        "protection": dict(protection),
        "cost": {
            "seconds": {**seconds, "evaluate": time.perf_counter() - start},
            "peak_memory_bytes": peak_memory_bytes(model.device),
        },
    }  # fmt: skip
    _draw(folder / "before_after.png", before, after, scorer, metrics)
    write_json(folder / "metrics.json", metrics)
    if config.save_images:
        for when, samples in (("before", before), ("after", after)):
            for prompt, name in folder_names(samples).items():
                save_images(samples[prompt], folder / "images" / when / name)
    return metrics, _collapse(before, after, kept, scores)


def _draw(path: Path, before: Samples, after: Samples, scorer: ConceptScorer, metrics: Mapping[str, Any]) -> None:
    forgotten = _some(scorer.group("forget"), SHOWN_FORGOTTEN)
    own, other = scorer.group("in_domain"), scorer.group("cross_domain")
    half = max(SHOWN_KEPT // 2, SHOWN_KEPT - len(own))
    rest = [prompt for prompt in other if prompt not in own]
    kept = [*_some(own, SHOWN_KEPT - min(half, len(rest))), *_some(rest, half)]
    rows = [{prompt: samples[prompt][:GRID_IMAGES] for prompt in (*forgotten, *kept)} for samples in (before, after)]
    first, last = metrics["before"], metrics["after"]
    caption = f"same seeds · DDIM {scorer.config.sampling_steps} steps · w = {scorer.config.guidance_scale:g}"
    for words, key in (("erased", "forget_accuracy"), ("others of its kind", "in_domain_retain_accuracy")):
        if first[key] is not None:
            caption += f" · {words}, judged right {first[key]:.0%} to {last[key]:.0%}"
    caption += f" · paired SSIM of retained prompts {metrics['side_effects']['paired_ssim']:.2f}"
    save_png(make_grid(rows[0], rows[1], forgotten, caption), path)


def paired(before: Samples, after: Samples, prompts: Sequence[str], distance: Lpips | None = None) -> dict[str, float | None]:
    """Mean over the prompts of paired MSE (images in [-1, 1]) and SSIM; LPIPS where there is a network for it."""
    pairs = [{prompt: to_float(samples[prompt]) for prompt in prompts} for samples in (before, after)]
    found = side_effects(*pairs)
    lpips = None
    if distance is not None:
        lpips = sum(paired_lpips(pairs[0][prompt], pairs[1][prompt], distance) for prompt in prompts) / len(prompts)
    return {"paired_mse": found.paired_mse, "paired_ssim": found.paired_ssim, "paired_lpips": lpips}


def _collapse(before: Samples, after: Samples, kept: Sequence[str], scores: Sequence[Mapping[str, Any]]) -> str | None:
    """Why the retained prompts' samples are no pictures any more, or are not recognised in a domain; None if they are."""
    old, new = (torch.cat([samples[prompt] for prompt in kept]) for samples in (before, after))
    lost = pictures_lost(old, new, "the retained prompts' samples")
    for domain in ("in_domain", "cross_domain"):
        first, last = (score[f"{domain}_retain_accuracy"] for score in scores)
        lost = lost or recognition_lost(first, last, f"{domain.replace('_', '-')} accuracy", len(old) // 2)
    return lost


def _some(rows: Sequence[str], count: int) -> list[str]:
    """``count`` of the prompts, evenly spread."""
    return [rows[index] for index in spread(len(rows), count)]


def table(metrics: Mapping[str, Any], concepts: Sequence[str], anchors: Mapping[str, str], folder: RunFolder) -> str:
    """The short table the command ends with."""
    before, after = metrics["before"], metrics["after"]
    named = ", ".join(concepts)
    count = after["samples"]
    shares = [
        (f"sees {named} (erased)", "forget_accuracy", count["forget"]),
        ("unlearning accuracy", "unlearning_accuracy", count["forget"]),
        ("sees it by other words or sentences", "paraphrase_forget_accuracy", count["paraphrase"]),
        ("sees it without a prompt", "unconditional_share", metrics["protocol"]["unconditional_samples"]),
        ("revived by a learned pseudo-word", "revival", count["revival"]),
        ("right on others of its kind", "in_domain_retain_accuracy", count["in_domain"]),
        ("right on the other kind", "cross_domain_retain_accuracy", count["cross_domain"]),
    ]
    judged = [
        (words, f"{100 * before[key]:.1f} %", with_interval(after[key], n))
        for words, key, n in shares
        if after[key] is not None
    ]
    rows = [
        (f"pictures of {named}", metrics["forget_effect"]),
        ("pictures of retained prompts", metrics["side_effects"]),
        ("pictures without a prompt", metrics["unprompted_effect"]),
    ]
    width = max(len(row[0]) for row in (*judged, *rows))
    heading = ("judged", "before", "after (95 % interval)")
    if not judged:
        heading = ("not judged (--classifier names a judge)", *(("before", "after") if before["clip_score"] else ("", "")))
    lines = [f"{words:<{width}}  {old:>8}  {new}".rstrip() for words, old, new in (heading, *judged)]
    for kind in ("forget", "retain") if before["clip_score"] else ():
        for scale, words in (("score", "CLIP score"), ("clipscore", "CLIPScore")):
            old, new = (found["clip_score"][kind][scale] for found in (before, after))
            lines.append(f"{f'{words}, {kind} prompts':<{width}}  {old:>8.3f}  {new:>8.3f}")
    if before["clip_score"]:
        lines.append(f"CLIP: {before['clip_score']['model']}")
    lines += [f"asked for {name}, the judge now sees: {answer_words(seen)}" for name, seen in after["answers"].items()]
    lines += ["", f"{'change, same seeds':<{width}}  {'MSE':>8}  {'SSIM':>8}"]
    lines += [f"{name:<{width}}  {found['paired_mse']:>8.4f}  {found['paired_ssim']:>8.3f}" for name, found in rows]
    left, felt, held = (metrics["protection"][key] for key in ("gradient_left", "felt_by_kept_inputs", "least_energy_held"))
    if felt is not None:
        lines.append(
            f"protected: {held:.1%} or more of what kept inputs send into a layer; {left:.1%} of the forget gradient left; "
            f"kept inputs feel {felt:.2%} (rms; by layer in run.json)"
        )
    patch, seconds, lora = metrics["patch"], metrics["cost"]["seconds"], metrics["lora"]
    erase = sum(spent for stage, spent in seconds.items() if stage != "evaluate")
    lines.append("")
    if anchors:
        lines.append("; ".join(f"{concept} answered with {anchor or 'no prompt'!r}" for concept, anchor in anchors.items()))
    lines.append(
        f"patch: {patch['trained_parameters']:,} numbers trained "
        f"({100 * patch['fraction']:.3f} % of the model) in {patch['layers']} layers, {patch['bytes'] / 1000:.0f} kB; "
        f"erased in {erase:.0f} s, proved in {seconds['evaluate']:.0f} s"
    )
    lines.append(_said_of_lora(lora, any((folder / name).is_dir() for name in ("lora", "lora.collapsed"))))
    lines.append(f"{folder.path}/  (look at {folder.path / 'before_after.png'})")
    return "\n".join(lines)


def _said_of_lora(lora: Mapping[str, Any] | None, written: bool) -> str:
    if not written:
        return "no lora/: convolutions split by channel are no LoRA (--matricisation full writes one)"
    if lora is None:
        return "lora/ was not checked: that needs PEFT (pip install 'semu-diffusion[lora]')"
    unloaded = "restores every weight" if lora["unloaded_equal"] else "DOES NOT RESTORE the weights"
    difference = lora["relative_difference"]
    beyond = "" if lora["same"] else ", MORE THAN ROUNDING: the LoRA is not the patch"
    return f"lora/, loaded by diffusers: {difference:.1e} from the patch{beyond}; unloading {unloaded}"
