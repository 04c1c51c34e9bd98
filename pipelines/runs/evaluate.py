"""Score a patch again, of classes or of concepts: other counts, steps, judge; or only draw it."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any, get_type_hints

from semu_diffusion.domains.classes import ClassPlan
from semu_diffusion.domains.concepts import ConceptsPlan
from semu_diffusion.domains.plan import plan_words
from semu_diffusion.domains.prompts import bare, contains
from semu_diffusion.domains.vocabulary import Vocabulary, read_vocabulary
from semu_diffusion.erase.config import EMBEDDED
from semu_diffusion.eval.evaluate import evaluate
from semu_diffusion.eval.results import Cost
from semu_diffusion.files import read_json
from semu_diffusion.options import checked_value, require
from semu_diffusion.patch import ErasurePatch
from semu_diffusion.pipelines.cli.progress import Progress
from semu_diffusion.pipelines.patches.patches import base_of, is_of_concepts, load_patch, patch_file
from semu_diffusion.pipelines.report.grid import before_after, save_png
from semu_diffusion.pipelines.report.mark import replaceable
from semu_diffusion.pipelines.report.pictures import shown_pictures
from semu_diffusion.pipelines.report.reports import Measured, write_reports
from semu_diffusion.pipelines.report.table import table
from semu_diffusion.pipelines.report.words import never_made
from semu_diffusion.pipelines.runs.config import EraseClassConfig, EraseConceptConfig, EvaluatePatchConfig
from semu_diffusion.pipelines.runs.domains import ClassSubject, ConceptSubject, Subject, classes_of, concepts_of
from semu_diffusion.pipelines.runs.erase import inputs_of, measured, settings_of
from semu_diffusion.pipelines.runs.folder import RunFolder
from semu_diffusion.pipelines.runs.models import load_model, load_text_model
from semu_diffusion.pipelines.runs.provenance import environment
from semu_diffusion.pipelines.runs.quiet import quiet_libraries
from semu_diffusion.pipelines.runs.scorer import make_probes, make_scorer

__all__ = ["draw_patch", "evaluate_patch"]

WORDS = ("concept", "anchor", "synonyms", "forget_prompts", "retain_prompts")  # settings that decide what is asked
STAGES = ("collect", "subspace", "train")  # of an erasure, which is not part of this run


def evaluate_patch(config: EvaluatePatchConfig) -> int:
    """Score a patch into a run folder of its own; 0, or 1 if it destroys the model."""
    quiet_libraries()
    path, patch = patch_file(config.patch), load_patch(config.patch, config.strength)
    subject = _subject(path, patch, config)
    learned = bool(subject.config.revival) or config.forget_images is None
    require(learned, "--forget-images is what --revival learns from: give both")
    read = [str(path), *inputs_of(subject.config), *subject.judges.values()]
    name = "-".join(["evaluate", *subject.erased])
    with RunFolder(config.output, name, config.overwrite, read) as folder, Progress() as progress:
        scorer, images = make_scorer(subject), subject.forget_images()
        record = {
            "patch": str(path),
            "config": settings_of(config),
            "base_model": dict(subject.base),
            **environment(subject.model.device, sampling_precision=subject.config.sampling_precision),
        }
        with folder.recorded(record):
            probes = make_probes(subject, scorer, images, progress.show)
            evaluation, before, after = evaluate(scorer, subject.model, patch, probes, progress.show)
            evaluation = measured(evaluation, patch, path.stat().st_size, subject.model, Cost(dict.fromkeys(STAGES)))
            pictures = shown_pictures(scorer, subject.model, before, after)
            found = Measured(record, evaluation, before, after, pictures)
            write_reports(found, folder.path, "README.md")  # the card is the run's own
            if config.save_images:
                folder.save_samples(before, after)
            record["status"] = "complete" if evaluation.collapsed is None else f"collapsed: {evaluation.collapsed}"
    if evaluation.collapsed is not None:
        lost = f"the patch destroys the model: {evaluation.collapsed}. Look at {folder / 'before_after.png'}."
        print(f"semu evaluate: {lost}", file=sys.stderr)
    elif (unproven := never_made(evaluation)) is not None:
        print(f"semu evaluate: {unproven}", file=sys.stderr)
    print(folder.shown("metrics.json") if config.json else table(evaluation, {}, folder.path))
    return 0 if evaluation.collapsed is None else 1


def draw_patch(config: EvaluatePatchConfig, output: str, images: int | None = None) -> None:
    """Draw samples before and after the patch, ``images`` of each condition from the same seeds; nobody judges them."""
    quiet_libraries()
    target = replaceable(output)
    config = dataclasses.replace(config, classifier="none", revival=False)
    patch = load_patch(config.patch, config.strength)
    subject = _subject(patch_file(config.patch), patch, config)
    scorer = make_scorer(subject)
    with Progress() as progress:
        evaluation, before, after = evaluate(scorer, subject.model, patch, (), progress.show)
    save_png(before_after(evaluation, before, after, images), target)


def _subject(path: Path, patch: ErasurePatch, config: EvaluatePatchConfig) -> Subject:
    """What the patch was made for: its model as it says itself, or as the settings do; InputError if that is another one."""
    made = patch.metadata
    if config.model == EMBEDDED:
        config = dataclasses.replace(config, model=base_of(path, patch))
    subject = _concepts(path, made, config) if is_of_concepts(patch) else _classes(made, config)
    patch.check(subject.model.denoiser)
    return subject


def _classes(made: Any, config: EvaluatePatchConfig) -> ClassSubject:
    names = tuple(str(name) for name in made.get("forget", ()))
    shared = _shared(config, EraseClassConfig)
    if not config.class_names:
        shared["class_names"] = tuple(made.get("class_names", ()))
        shared["null_class"] = made.get("null_class") if config.null_class is None else config.null_class
    settings = EraseClassConfig(**{**shared, "forget": names})
    model = load_model(settings)
    if not model.conditional and not model.names:
        model = dataclasses.replace(model, names=names)
    forget = tuple(model.class_index(name) for name in names)
    kept = tuple(row for row in range(len(model.names)) if row not in forget)
    return classes_of(model, ClassPlan(model, forget, kept, "auto", None), settings)


def _concepts(path: Path, made: Any, config: EvaluatePatchConfig) -> ConceptSubject:
    pipeline, source = load_text_model(config)
    vocabulary = read_vocabulary(source)
    settings = EraseConceptConfig(**{**_shared(config, EraseConceptConfig), **_words(path, made, vocabulary)})
    found, kept = plan_words(settings, vocabulary)
    return concepts_of(pipeline, ConceptsPlan(tuple(found), tuple(kept), vocabulary, config.model), settings, source)


def _shared(config: EvaluatePatchConfig, kind: type) -> dict[str, Any]:
    """The settings that ``kind`` has too."""
    known = {field.name for field in dataclasses.fields(kind)}
    return {field.name: getattr(config, field.name) for field in dataclasses.fields(config) if field.name in known}


def _words(path: Path, made: Any, vocabulary: Vocabulary | None) -> dict[str, Any]:
    """What was erased, in words: of the run that the patch lies in, else as far as the patch says it itself."""
    run = path.with_name("run.json")
    content = read_json(run, f"{run} (put the run's own back, or move the patch out of this folder)") if run.is_file() else {}
    saved = content.get("config") if isinstance(content, dict) else None
    if isinstance(saved, dict) and saved.get("concept") == list(made["concept"]):
        hints = get_type_hints(EraseConceptConfig)
        given = {name: saved[name] for name in WORDS if saved.get(name) is not None}
        return {name: checked_value(str(run), name, hints[name], value) for name, value in given.items()}
    concept, anchors = tuple(made["concept"]), made.get("anchor") or []
    found: dict[str, Any] = {"concept": concept, "anchor": anchors[0] if len(anchors) == len(concept) == 1 else None}
    if vocabulary is None or any(vocabulary.subject(name) is None for name in concept):
        prompts = made.get("prompts", ())
        found["forget_prompts"] = tuple(p for p in prompts if any(contains(p, bare(name)) for name in concept))
    return found
