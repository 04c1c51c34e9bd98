"""Score a patch again, of classes or of concepts, or the edit of others: other counts, steps, judge; or only draw it."""

from __future__ import annotations

import dataclasses

from semu_diffusion.eval.evaluate import evaluate
from semu_diffusion.eval.probes import PROBES
from semu_diffusion.eval.results import Cost
from semu_diffusion.options import require
from semu_diffusion.pipelines.cli.progress import Progress
from semu_diffusion.pipelines.patches.scored import scored
from semu_diffusion.pipelines.report.grid import before_after, save_png
from semu_diffusion.pipelines.report.mark import replaceable
from semu_diffusion.pipelines.report.pictures import shown_pictures
from semu_diffusion.pipelines.report.reports import Measured, write_reports
from semu_diffusion.pipelines.report.table import table
from semu_diffusion.pipelines.runs.config import EvaluatePatchConfig
from semu_diffusion.pipelines.runs.erase import conclude, inputs_of, measured, settings_of
from semu_diffusion.pipelines.runs.folder import RunFolder
from semu_diffusion.pipelines.runs.provenance import environment
from semu_diffusion.pipelines.runs.quiet import quiet_libraries
from semu_diffusion.pipelines.runs.scorer import make_probes, make_scorer, probe_settings

__all__ = ["draw_patch", "evaluate_patch"]

EDITS = {"patch": "patch", "lora": "LoRA", "edited": "edited model"}  # what people call what was scored
DRAWN = ("forget", "in_domain", "cross_domain")  # groups of questions that a grid has rows of
STAGES = ("collect", "subspace", "train")  # of an erasure, which is not part of this run


def evaluate_patch(config: EvaluatePatchConfig) -> int:
    """Score an edit into a run folder of its own; 0, or 1 if it destroys the model."""
    quiet_libraries()
    found = scored(config)
    subject, edit = found.subject, found.edit
    read = [*found.record.values(), *inputs_of(config), *inputs_of(subject.config), *subject.judges.values()]
    name = "-".join(["evaluate", *subject.erased])
    with RunFolder(config.output, name, config.overwrite, read) as folder, Progress() as progress:
        scorer = make_scorer(subject)
        shown = any("images" in PROBES[probe].needs for probe in probe_settings(subject, scorer))
        require(
            shown or config.forget_images is None, "--forget-images are for --revival and the probes recovery and inversion"
        )
        images = subject.forget_images()
        record = {
            **found.record,
            "config": settings_of(config),
            "base_model": dict(subject.base),
            **environment(subject.model.device, sampling_precision=subject.config.sampling_precision),
        }
        with folder.recorded(record):
            probes = make_probes(subject, scorer, images, progress.show)
            evaluation, before, after, tried = evaluate(scorer, subject.model, edit, probes, progress.show)
            evaluation = measured(evaluation, edit, found.size, subject.model, Cost(dict.fromkeys(STAGES)))
            pictures = shown_pictures(scorer, subject.model, before, after, tried=tried)
            write_reports(Measured(record, evaluation, before, after, pictures), folder.path, "README.md")  # the run's own card
            if config.save_images:
                folder.save_samples(before, after)
            record["status"] = "complete" if evaluation.collapsed is None else f"collapsed: {evaluation.collapsed}"
    what = "patch" if config.patch else "edit"
    lost = f"the {what} destroys the model: {evaluation.collapsed}. Look at {folder / 'before_after.png'}."
    said = table(evaluation, {}, folder.path, EDITS[next(iter(found.record))])
    return conclude("semu evaluate", evaluation, lost, folder.shown("metrics.json") if config.json else said)


def draw_patch(config: EvaluatePatchConfig, output: str, images: int | None = None) -> None:
    """Draw samples before and after the edit, ``images`` of each condition from the same seeds; nobody judges them."""
    quiet_libraries()
    target = replaceable(output)
    found = scored(dataclasses.replace(config, classifier="none", revival=False))
    scorer = make_scorer(found.subject)
    drawn = {group: asked for group, asked in scorer.questions.items() if group in DRAWN}
    with Progress() as progress:
        scorer = dataclasses.replace(scorer, questions=drawn, extractor=None)
        evaluation, before, after, _ = evaluate(scorer, found.subject.model, found.edit, (), progress.show)
    save_png(before_after(evaluation, before, after, images), target)
