"""A whole run of ``erase-class``: take classes out of a class-conditional DDPM and evaluate it, in one run folder."""

from __future__ import annotations

import dataclasses
import os
import sys
from typing import Any

from semu_diffusion.domains.classes import plan
from semu_diffusion.domains.classes import task as class_task
from semu_diffusion.erase.run import Task, run_erasure, run_to_end
from semu_diffusion.erase.samples import training_images
from semu_diffusion.erasure import Diverged, Step
from semu_diffusion.files import write_json
from semu_diffusion.lora import save_peft_folder
from semu_diffusion.models.ddpm import ClassConditional
from semu_diffusion.pipelines.cli.progress import Progress
from semu_diffusion.pipelines.runs import scoring
from semu_diffusion.pipelines.runs.class_settings import EraseClassConfig
from semu_diffusion.pipelines.runs.folder import RunFolder
from semu_diffusion.pipelines.runs.inputs import forget_images, retain_images
from semu_diffusion.pipelines.runs.proof import prove, table
from semu_diffusion.pipelines.runs.provenance import environment

__all__ = ["erase_classes"]


def erase_classes(config: EraseClassConfig) -> int:
    """Do the whole job; 0, or 1 if the erasure destroyed the model (the run folder then says so)."""
    loaded = scoring.load_model(config)
    planned = plan(loaded, config, config.forget_images is not None)
    model = planned.model
    images = forget_images(config.forget_images, model)
    task = class_task(planned, images, retain_images(config.retain, model, planned.erased))
    names = [model.names[index] for index in task.forget]
    inputs = (
        config.model, config.classifier, config.forget_images, config.retain, config.fid_reference, config.class_mapping,
        config.inception_weights,
    )  # fmt: skip
    folder = RunFolder(config.output, "-".join(names)[:80].replace(os.sep, "_"), config.overwrite, inputs)
    scorer = scoring.Scorer(model, config, task.forget)

    folder.create()
    record: dict[str, Any] = {
        "config": {f.name: getattr(config, f.name) for f in dataclasses.fields(config)},
        "base_model": {"source": model.source, "revision": model.revision},
        **environment(model.device, config.precision),
    }
    try:
        with Progress() as progress, folder.recorded(record):
            metrics, reason = _erase_and_prove(task, config, scorer, folder, progress, record)
    except (Diverged, FloatingPointError) as error:
        print(f"erase-class: {error}. {folder.kept()}", file=sys.stderr)
        return 1
    if reason is not None:
        print(
            f"erase-class: the erasure destroyed the model: {reason}. Look at {folder / 'before_after.png'}; "
            "lower --lr or --steps.",
            file=sys.stderr,
        )
    print(folder.shown("metrics.json") if config.json else table(metrics, names, folder))
    return 0 if reason is None else 1


def _erase_and_prove(
    task: Task[ClassConditional],
    config: EraseClassConfig,
    scorer: scoring.Scorer,
    folder: RunFolder,
    progress: Progress,
    record: dict[str, Any],
) -> tuple[dict[str, Any], str | None]:
    model, forget = task.model, task.forget

    def watch(step: Step) -> None:
        progress.show("training R", step.index, config.steps, f"loss {step.loss:.2e}")
        folder.log("metrics.jsonl", dataclasses.asdict(step))

    outcome = run_to_end(run_erasure(task, config, progress.show), watch)
    patch = outcome.patch
    patch_file = patch.save(folder / "patch.safetensors")
    if config.matricisation == "full":
        save_peft_folder(patch, folder / "lora", model.source)
    record |= {
        "status": "unchecked",
        "anchors": {model.names[k]: model.names[v] for k, v in outcome.anchors.items()},
        "protection": {
            "gradient_left": outcome.gradient_left,
            "felt_by_kept_inputs": outcome.felt,
            "least_energy_held": outcome.held,
            "layers": outcome.by_layer,
        },
    }
    write_json(folder / "run.json", record)

    images = training_images(model, config, forget, task.forget_set, progress.show) if config.revival else None
    size = patch_file.stat().st_size
    metrics, reason = prove(model, patch, size, scorer, folder, progress, images, outcome.seconds)
    if reason is not None:
        patch_file.replace(folder / "patch.collapsed.safetensors")
        if (folder / "lora").is_dir():
            (folder / "lora").replace(folder / "lora.collapsed")
    status = "complete" if reason is None else f"collapsed: {reason}"
    write_json(folder / "run.json", {**record, "status": status, "cost": metrics["cost"], "patch": metrics["patch"]})
    return metrics, reason
