"""One erasure from settings to a run folder: erase, save, check the LoRA, evaluate, draw, describe; of either kind."""

from __future__ import annotations

import dataclasses
import sys
import warnings
from collections.abc import Callable
from typing import Any

import torch

from semu_diffusion import distributed
from semu_diffusion.erase.meter import Meter
from semu_diffusion.erase.run import run_erasure, run_to_end
from semu_diffusion.erase.task import EditResult, Task
from semu_diffusion.erasure import Diverged, Step
from semu_diffusion.errors import Notice
from semu_diffusion.eval.evaluate import evaluate
from semu_diffusion.eval.results import Cost, Evaluation, LoraCheck, PatchSize, Protection
from semu_diffusion.eval.scorer import Scorer
from semu_diffusion.files import write_json
from semu_diffusion.layers import layer_words
from semu_diffusion.models.base import DiffusionModel
from semu_diffusion.patch import ErasurePatch
from semu_diffusion.patches.lora import no_lora
from semu_diffusion.pipelines.cli.heap import give_back_freed_memory
from semu_diffusion.pipelines.cli.progress import Progress
from semu_diffusion.pipelines.patches.published import PipelineEdit
from semu_diffusion.pipelines.report.pictures import shown_pictures
from semu_diffusion.pipelines.report.reports import Measured, write_reports
from semu_diffusion.pipelines.report.table import table
from semu_diffusion.pipelines.report.words import never_made
from semu_diffusion.pipelines.runs.config import EraseClassConfig, EraseConceptConfig
from semu_diffusion.pipelines.runs.domains import Subject, load_classes, load_concepts
from semu_diffusion.pipelines.runs.folder import RunFolder
from semu_diffusion.pipelines.runs.lora_check import check_lora
from semu_diffusion.pipelines.runs.places import READ, located
from semu_diffusion.pipelines.runs.provenance import environment, peak_memory_bytes
from semu_diffusion.pipelines.runs.quiet import quiet_libraries
from semu_diffusion.pipelines.runs.scorer import make_probes, make_scorer

__all__ = ["conclude", "erase_classes", "erase_concepts", "inputs_of", "measured", "metered_task", "settings_of", "spent"]


def erase_classes(config: EraseClassConfig, progress: Progress | None = None) -> int:
    """``erase-class``: 0, or 1 if the erasure diverged or destroyed the model (the run folder then says so)."""
    return _erase("erase-class", load_classes, config, progress or Progress())


def erase_concepts(config: EraseConceptConfig, progress: Progress | None = None) -> int:
    """``erase-concept``, as `erase_classes`."""
    return _erase("erase-concept", load_concepts, config, progress or Progress())


def inputs_of(config: Any) -> list[str | None]:
    """The settings that may name a file or folder that the run reads."""
    return [*(getattr(config, name, None) for name in READ), *getattr(config, "prompt_files", ())]


def settings_of(config: Any) -> dict[str, Any]:
    """The settings for run.json, from which they are replayed in whatever folder: files and folders by their whole path."""
    settings = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    return settings | {name: located(settings[name]) for name in READ if name in settings}


def _erase(program: str, load: Callable[[Any], Subject], config: Any, progress: Progress) -> int:
    quiet_libraries()
    if config.memory is not None:
        give_back_freed_memory()
    subject = load(config)
    read = [*inputs_of(config), *subject.judges.values()]
    with RunFolder(config.output, "-".join(subject.erased), config.overwrite, read) as folder, progress:
        scorer, images = make_scorer(subject), subject.forget_images()
        task, preparing = metered_task(subject, progress.show, images)
        record = {
            "config": settings_of(subject.config),
            "base_model": dict(subject.base),
            **environment(subject.model.device, subject.config.precision, subject.config.sampling_precision),
        }
        try:
            with folder.recorded(record):
                evaluation = _erase_and_evaluate(subject, task, scorer, folder, progress, record, preparing)
        except (Diverged, FloatingPointError) as error:
            progress.close()
            print(f"{program}: {error}. {folder.kept()}", file=sys.stderr)
            return 1
    lost = f"the erasure destroyed the model: {evaluation.collapsed}. Look at {folder / 'before_after.png'}"
    said = f"{table(evaluation, record['anchors'], folder.path)}\nlayers edited: {record['layers']}"
    said = folder.shown("metrics.json") if config.json else said
    return conclude(program, evaluation, f"{lost}; lower --lr or --steps.", said)


def conclude(program: str, evaluation: Evaluation, lost: str, said: str) -> int:
    """Print what was ``said`` of a run, and on standard error what must not be overlooked: that the model is ``lost``, or that
    the judge saw nothing to lose. 0, or 1 for a destroyed model."""
    warning = never_made(evaluation) if evaluation.collapsed is None else lost
    if warning is not None:
        print(f"{program}: {warning}", file=sys.stderr)
    print(said)
    return 0 if evaluation.collapsed is None else 1


def _erase_and_evaluate(
    subject: Subject, task: Task[Any], scorer: Scorer, folder: RunFolder, progress: Progress,
    record: dict[str, Any], preparing: Meter,
) -> Evaluation:  # fmt: skip
    """The run's evaluation, written with everything else; a collapsed patch goes by another name."""

    def watch(step: Step) -> None:
        progress.show("training R", step.index, subject.config.steps, f"loss {step.loss:.2e}")
        folder.log("metrics.jsonl", dataclasses.asdict(step))

    result = run_to_end(run_erasure(task, subject.config, progress.show), watch)
    patch_file, lora_folder = result.edit.save(folder / "patch.safetensors"), folder / "lora"
    lora: LoraCheck | None = None
    refusal = no_lora(result.edit)
    if refusal is None:
        subject.save_lora(result.edit, lora_folder)
        lora = check_lora(subject.model, result.edit, lora_folder)
    else:
        warnings.warn(Notice(f"no LoRA is written: {refusal}"), stacklevel=2)
    record |= {
        "status": "unchecked",
        "layers": layer_words(result.edit.layers),
        "no_lora": refusal,
        "anchors": subject.anchors(task, result),
        "protection": None if result.protection is None else dataclasses.asdict(result.protection),
    }
    write_json(folder / "run.json", record)

    probes = make_probes(subject, scorer, None, progress.show)  # not the given images: the erasure has seen them
    evaluation, before, after, tried = evaluate(scorer, subject.model, result.edit, probes, progress.show)
    evaluation = dataclasses.replace(
        measured(evaluation, result.edit, patch_file.stat().st_size, subject.model, spent(preparing, result)),
        lora=lora,
        protection=_protection(result),
    )
    model, anchors = subject.anchored(task, result)
    pictures = shown_pictures(scorer, model, before, after, anchors, progress.show, tried)
    if subject.config.save_images:
        folder.save_samples(before, after)
    if evaluation.collapsed is not None:
        for path in (patch_file, lora_folder):
            if path.exists():
                path.replace(path.with_name(f"{path.stem}.collapsed{path.suffix}"))
    record["status"] = "complete" if evaluation.collapsed is None else f"collapsed: {evaluation.collapsed}"
    write_reports(Measured(record, evaluation, before, after, pictures), folder.path)
    return evaluation


def metered_task(
    subject: Subject, progress: Callable[[str, int, int], None], images: torch.Tensor | None
) -> tuple[Task[Any], Meter]:
    """The subject's task, and what finding its anchors cost."""
    with Meter(subject.model.denoiser) as meter, meter.phase("prepare"):
        return subject.task(progress, images), meter


def spent(preparing: Meter, result: EditResult) -> Cost:
    """What an erasure cost, by stage: the first process's seconds, the passes of all."""
    return Cost({**preparing.seconds, **result.seconds}, passes=distributed.summed({**preparing.passes, **result.passes}))


def measured(
    evaluation: Evaluation, patch: ErasurePatch | PipelineEdit, size: int, model: DiffusionModel, cost: Cost
) -> Evaluation:
    """With the size of the patch or another's edit, and beside the ``cost`` of the erasure that of the evaluation."""
    own = sum(parameter.numel() for parameter in model.denoiser.parameters())
    total = patch.parameters_of(model) if isinstance(patch, PipelineEdit) else own
    trained = patch.trained_parameters
    return dataclasses.replace(
        evaluation,
        patch=PatchSize(len(patch.layers), trained, total, size, trained / total),
        cost=Cost({**cost.seconds, **evaluation.cost.seconds}, peak_memory_bytes(model.device), cost.passes),
    )


def _protection(result: EditResult) -> Protection | None:
    found = result.protection
    return None if found is None else Protection(found.gradient_energy_kept, found.response_on_kept, found.energy_covered)
