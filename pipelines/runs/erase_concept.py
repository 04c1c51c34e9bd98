"""A whole run of ``erase-concept``: take words out of Stable Diffusion, as a patch that other tools load, in one run folder."""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from typing import Any

import torch

from semu_diffusion import assets
from semu_diffusion.domains.concepts import ConceptTask, guided, prepare
from semu_diffusion.domains.plan import plan
from semu_diffusion.domains.vocabulary import read_vocabulary
from semu_diffusion.erase.config import EMBEDDED
from semu_diffusion.erase.run import run_erasure, run_to_end
from semu_diffusion.erasure import Diverged, Step
from semu_diffusion.files import write_json, write_text
from semu_diffusion.lora import save_lora
from semu_diffusion.models.stable_diffusion import image_shape
from semu_diffusion.models.text_checkpoints import hub_revision, load_text_pipeline
from semu_diffusion.pipelines.cli.progress import Progress
from semu_diffusion.pipelines.data.images import load_plain_images
from semu_diffusion.pipelines.report.card import patch_card
from semu_diffusion.pipelines.runs.concept_proof import prove, table
from semu_diffusion.pipelines.runs.concept_scoring import ConceptScorer
from semu_diffusion.pipelines.runs.concept_settings import EraseConceptRun
from semu_diffusion.pipelines.runs.folder import RunFolder
from semu_diffusion.pipelines.runs.lora_check import check_lora
from semu_diffusion.pipelines.runs.provenance import environment
from semu_diffusion.pipelines.runs.quiet import quiet_libraries
from semu_diffusion.pipelines.runs.scoring import checked_device

__all__ = ["erase_concepts"]


def erase_concepts(config: EraseConceptRun) -> int:
    """Do the whole job; 0, or 1 if the erasure destroyed the model (the run folder then says so)."""
    quiet_libraries()
    device = checked_device(config.device)
    name = "-".join(config.concept)[:80].replace(os.sep, "_")
    inputs = (config.model, config.classifier, config.forget_images, *config.prompt_files)
    folder = RunFolder(config.output, name, config.overwrite, inputs)
    weights = torch.float32 if config.weights == "fp32" else torch.bfloat16 if config.weights == "bf16" else torch.float16
    source = str(assets.folder("tiny-sd")) if config.model == EMBEDDED else config.model
    vocabulary = read_vocabulary(source)
    config = guided(config, vocabulary)
    pipeline = load_text_pipeline(source, device, weights, prediction=config.prediction)
    if config.gradient_checkpointing:
        pipeline.unet.enable_gradient_checkpointing()
    try:
        with Progress() as progress:
            scorer = ConceptScorer(config, *plan(config, vocabulary), vocabulary, device)
            start = time.perf_counter()
            images = None
            if config.forget_images is not None:
                images = load_plain_images(config.forget_images, image_shape(pipeline))
            prepared = prepare(pipeline, config, config.model, vocabulary, scorer.prompts, progress.show, images)
            seconds = {"prepare": time.perf_counter() - start}
            prepared.task.model.check_steps(config.sampling_steps)
            folder.create()
            record: dict[str, Any] = {
                "config": {f.name: getattr(config, f.name) for f in dataclasses.fields(config)},
                "base_model": {"source": config.model, "revision": hub_revision(source)},
                "anchors": dict(prepared.anchors),
                **environment(device, config.precision),
            }
            with folder.recorded(record):
                metrics, reason = _erase_and_prove(prepared, scorer, folder, progress, record, seconds)
    except (Diverged, FloatingPointError) as error:
        print(f"erase-concept: {error}. {folder.kept()}", file=sys.stderr)
        return 1
    if reason is not None:
        print(f"erase-concept: the erasure destroyed the model: {reason}. Lower --lr or --steps.", file=sys.stderr)
    print(folder.shown("metrics.json") if config.json else table(metrics, scorer.concepts, prepared.anchors, folder))
    return 0 if reason is None else 1


def _erase_and_prove(
    prepared: ConceptTask,
    scorer: ConceptScorer,
    folder: RunFolder,
    progress: Progress,
    record: dict[str, Any],
    seconds: dict[str, float],
) -> tuple[dict[str, Any], str | None]:
    task, config = prepared.task, scorer.config

    def watch(step: Step) -> None:
        progress.show("training R", step.index, config.steps, f"loss {step.loss:.2e}")
        folder.log("metrics.jsonl", dataclasses.asdict(step))

    outcome = run_to_end(run_erasure(task, prepared.config, progress.show), watch)
    patch, lora = outcome.patch, None
    protection = {
        "gradient_left": outcome.gradient_left, "felt_by_kept_inputs": outcome.felt, "least_energy_held": outcome.held,
    }  # fmt: skip
    size = patch.save(folder / "patch.safetensors").stat().st_size
    if config.matricisation == "full":
        save_lora(patch, folder / "lora")
        lora = check_lora(task.model, patch, folder / "lora")
    record |= {
        "status": "unchecked",
        "protection": {**protection, "layers": outcome.by_layer},
    }
    write_json(folder / "run.json", record)
    metrics, reason = prove(prepared, scorer, patch, size, folder, progress, {**seconds, **outcome.seconds}, lora, protection)
    if reason is not None:
        (folder / "patch.safetensors").replace(folder / "patch.collapsed.safetensors")
        if (folder / "lora").is_dir():
            (folder / "lora").replace(folder / "lora.collapsed")
    status = "complete" if reason is None else f"collapsed: {reason}"
    write_text(folder / "README.md", patch_card(record, metrics))
    write_json(folder / "run.json", {**record, "status": status, "cost": metrics["cost"], "patch": metrics["patch"]})
    return metrics, reason
