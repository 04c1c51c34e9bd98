"""The proof of a patch: sample before and after with the same seeds, score, draw, write it all into the run folder."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from semu_diffusion.erase.task import Images
from semu_diffusion.eval.images import save_images
from semu_diffusion.eval.metrics.unlearning import answer_words, with_interval
from semu_diffusion.models.ddpm import ClassConditional
from semu_diffusion.patch import ErasurePatch
from semu_diffusion.pipelines.cli.progress import Bars
from semu_diffusion.pipelines.report.grid import make_grid, save_png
from semu_diffusion.pipelines.runs.class_settings import EvaluationConfig
from semu_diffusion.pipelines.runs.folder import RunFolder, folder_names, peak_memory_bytes, write_json
from semu_diffusion.pipelines.runs.scoring import Samples, Scorer, collapse

__all__ = ["draw", "prove", "table"]

GRID_IMAGES = 8


def prove(
    model: ClassConditional,
    patch: ErasurePatch,
    patch_bytes: int,
    scorer: Scorer,
    folder: RunFolder,
    bars: Bars,
    revival_images: Images | None = None,
    seconds: Mapping[str, float] | None = None,
) -> tuple[dict[str, Any], str | None]:
    """metrics.json of ``patch`` on ``model``, written with the grid, and why the model has collapsed (None if it has not).

    ``seconds`` are those of the erasure, null where it was not part of this run. The model is unpatched on return.
    """
    config, start = scorer.config, time.perf_counter()
    before = scorer.sample(bars.show, "sampling before")
    score_before = scorer.score(before)
    patch.apply(model.denoiser)
    try:
        after = scorer.sample(bars.show, "sampling after")
        score_after = scorer.score(after)
        if revival_images is not None:
            score_after["revival"] = scorer.revive(revival_images.images, revival_images.labels, progress=True)
    finally:
        patch.remove(model.denoiser)
    if revival_images is not None:
        score_before["revival"] = scorer.revive(revival_images.images, revival_images.labels, progress=True)
    fid, warnings = scorer.fid(before, after)
    for message in warnings:
        bars.note(f"note: {message}")
    total = sum(parameter.numel() for parameter in model.denoiser.parameters())
    stages = {stage: (seconds or {}).get(stage) for stage in ("collect", "subspace", "train")}
    protocol = scorer.protocol()
    if revival_images is not None:
        source = getattr(config, "forget_images", None) or "made by the original model"
        protocol["revival"] |= {"learned_from": source, "training_images": len(revival_images.images)}
    metrics = {
        "protocol": protocol,
        "before": score_before,
        "after": score_after,
        "side_effects": scorer.side_effects(before, after),
        "fid": fid,
        "patch": {
            "layers": len(patch.layers),
            "trained_parameters": patch.trained_parameters,
            "model_parameters": total,
            "fraction": patch.trained_parameters / total,
            "bytes": patch_bytes,
        },
        "cost": {
            "seconds": {**stages, "evaluate": time.perf_counter() - start},
            "peak_memory_bytes": peak_memory_bytes(model.device),
        },
    }
    names = [model.names[index] for index in scorer.forget]
    draw(folder / "before_after.png", before, after, names, config, (score_before, score_after))
    write_json(folder / "metrics.json", metrics)
    if config.save_images:
        for when, samples in (("before", before), ("after", after)):
            images = samples.everything()
            for title, name in folder_names(images).items():
                save_images(images[title], folder / "images" / when / name)
    return metrics, collapse(before, after, scorer.kept, (score_before, score_after))


def draw(
    path: Path,
    before: Samples,
    after: Samples,
    forgotten: Sequence[str],
    config: EvaluationConfig,
    scores: tuple[Mapping[str, Any], Mapping[str, Any]] | None = None,
    images: int = GRID_IMAGES,
) -> None:
    """The before/after grid of so many ``images`` a class, captioned with the protocol and, where a judge was, its numbers."""
    caption = f"same seeds · DDIM {config.sampling_steps} steps · w = {config.guidance_scale:g}"
    if scores is not None and scores[0]["forget_accuracy"] is not None and scores[0]["retain_accuracy"] is not None:
        (a, b), (c, d) = ([score[key] for score in scores] for key in ("forget_accuracy", "retain_accuracy"))
        caption += f" · judged right, before to after: erased {a:.0%} to {b:.0%}, kept {c:.0%} to {d:.0%}"
    if before.by_class:
        rows = [{name: made[:images] for name, made in s.by_class.items()} for s in (before, after)]
    else:
        rows, forgotten = [{name: made[: 4 * images] for name, made in s.everything().items()} for s in (before, after)], []
    save_png(make_grid(rows[0], rows[1], forgotten, caption), path)


def table(metrics: Mapping[str, Any], names: Sequence[str], folder: RunFolder) -> str:
    """The short table a command ends with."""
    before, after, each = metrics["before"], metrics["after"], metrics["protocol"]["images_per_class"]
    kept = [name for name in after["per_class"] or () if name not in names]

    def shares(words: str, key: str, count: int) -> tuple[str, str, str]:
        old, new = before[key], after[key]
        return (
            words,
            "–" if old is None else f"{100 * old:.1f} %",
            "–" if new is None else with_interval(new, count),
        )

    rows = [("", "before", "after (95 % interval)")]
    rows.append(shares(f"accuracy on {', '.join(names)} (erased)", "forget_accuracy", each * len(names)))
    rows.append(shares("unlearning accuracy", "unlearning_accuracy", each * len(names)))
    rows.append(shares("accuracy on kept classes", "retain_accuracy", each * len(kept)))
    rows.append(shares("erased class among unlabelled", "unconditional_share", each))
    if after["revival"] is not None:
        rows.append(shares("revived by a learned vector", "revival", metrics["protocol"]["revival"]["samples"] * len(names)))
    side, fid, patch, cost = metrics["side_effects"], metrics["fid"], metrics["patch"], metrics["cost"]
    if side["paired_mse"] is not None:
        rows.append(("drift of kept images (MSE; SSIM)", "0", f"{side['paired_mse']:.4f}; {side['paired_ssim']:.3f}"))
        if len(side["per_class"]) > 1:
            most = max(side["per_class"], key=lambda name: side["per_class"][name]["mse"])
            rows.append((f"the class that drifts most: {most}", "0", "{mse:.4f}; {ssim:.3f}".format(**side["per_class"][most])))
    if fid["retain_after"] is not None:
        extractor = metrics["protocol"]["fid_extractor"]["name"]
        rows.append((f"FID of kept classes [{extractor}]", f"{fid['retain_before']:.2f}", f"{fid['retain_after']:.2f}"))
    width = max(len(row[0]) for row in rows)
    lines = [f"{a:<{width}}  {b:>8}  {c}" for a, b, c in rows]
    lines += [
        f"asked for {name}, the judge now sees: {answer_words(found)}" for name, found in (after["answers"] or {}).items()
    ]
    seconds = cost["seconds"]
    erase = None if seconds["train"] is None else seconds["collect"] + seconds["subspace"] + seconds["train"]
    lines.append(
        f"\npatch: {patch['trained_parameters']:,} numbers trained ({100 * patch['fraction']:.2f} % of the model) in "
        f"{patch['layers']} layers, {patch['bytes'] / 1000:.0f} kB; "
        + ("" if erase is None else f"erased in {erase:.0f} s, ")
        + f"proved in {seconds['evaluate']:.0f} s"
    )
    lines.append(f"{folder.path}/  (look at {folder.path / 'before_after.png'})")
    return "\n".join(lines)
