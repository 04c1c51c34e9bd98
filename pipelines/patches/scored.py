"""What is scored: a patch of ours or the edit of others, on its model, with the questions for what it erased."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

from semu_diffusion import assets
from semu_diffusion.assets import EMBEDDED
from semu_diffusion.domains.classes import ClassPlan
from semu_diffusion.domains.concepts import ConceptsPlan
from semu_diffusion.domains.plan import different, plan_words
from semu_diffusion.domains.prompts import bare, contains
from semu_diffusion.domains.vocabulary import Vocabulary, read_vocabulary
from semu_diffusion.files import read_json
from semu_diffusion.models.checkpoints import kind_of
from semu_diffusion.models.class_names import NO_NULL
from semu_diffusion.options import checked_value, require
from semu_diffusion.patch import ErasurePatch
from semu_diffusion.pipelines.patches.network_alone import network_alone, say_what_is_missing
from semu_diffusion.pipelines.patches.patches import base_of, is_of_concepts, load_patch, patch_file
from semu_diffusion.pipelines.patches.published import PipelineEdit, checkpoint_edit, lora_edit, network_edit
from semu_diffusion.pipelines.runs.config import EraseClassConfig, EraseConceptConfig, EvaluatePatchConfig
from semu_diffusion.pipelines.runs.domains import ClassSubject, ConceptSubject, Subject, classes_of, concepts_of
from semu_diffusion.pipelines.runs.models import load_model, load_text_model

__all__ = ["Scored", "scored"]

WORDS = ("concept", "anchor", "synonyms", "forget_prompts", "retain_prompts")  # settings that decide what is asked


@dataclass(frozen=True)
class Scored:
    """``edit`` goes on the subject's model; ``size`` are the bytes of its file, or of what it changes; ``record`` says in
    run.json where it lies: under ``patch``, ``lora`` or ``edited``."""

    subject: Subject
    edit: ErasurePatch | PipelineEdit
    size: int
    record: dict[str, str]


def scored(config: EvaluatePatchConfig) -> Scored:
    """The edit of the settings and what it is asked; InputError for one that does not fit its model, before any work."""
    if not config.patch:
        return _published(config)
    path, patch = patch_file(config.patch), load_patch(config.patch, config.strength)
    made = patch.metadata
    if config.model == EMBEDDED:
        config = dataclasses.replace(config, model=base_of(path, patch))
    subject: Subject = _concepts(config, path, made) if is_of_concepts(patch) else _classes(config, made)
    patch.check(subject.model.denoiser)
    return Scored(subject, patch, path.stat().st_size, {"patch": os.path.abspath(path)})


def _published(config: EvaluatePatchConfig) -> Scored:
    known = ", ".join(assets.MODELS.values())
    require(config.model != EMBEDDED, f"say which model the edit is of with --model: {known} (they come along), or yours")
    words = kind_of(assets.placed(config.model)) == "concept"
    spoken = config.synonyms or config.forget_prompts
    require(words or not spoken, "--synonyms and --forget-prompts are of models of words, and this one has classes")
    subject: Subject = _concepts(config) if words else _classes(config, {"forget": config.forget})
    if config.lora is not None:
        edit = lora_edit(subject.model, config.lora, config.strength)
        path = Path(config.lora).expanduser()
        size = path.stat().st_size if path.is_file() else edit.nbytes
        return Scored(subject, edit, size, {"lora": os.path.abspath(path)})
    source = str(config.edited)
    alone = network_alone(source, subject.model.denoiser)
    if alone is None:
        edit = checkpoint_edit(subject.model, _edited(config, subject), source, config.strength)
    else:
        edit = network_edit(subject.model, alone, source, config.strength)
        say_what_is_missing(source, alone, subject.model.denoiser, len(edit.layers))
    here = Path(source).expanduser()
    return Scored(subject, edit, edit.nbytes, {"edited": os.path.abspath(here) if here.exists() else source})


def _edited(config: EvaluatePatchConfig, subject: Subject) -> Any:
    """The pipeline of --edited, on the CPU, with the names and the kind of prediction of the subject's model."""
    own: dict[str, Any] = {"model": config.edited, "device": "cpu"}
    model: Any = subject.model
    if subject.kind == "class":
        if model.conditional:
            own |= {"class_names": model.names, "null_class": NO_NULL if model.null_index is None else model.null_index}
        return load_model(dataclasses.replace(config, **own)).pipeline
    single = Path(str(config.edited)).expanduser().is_file()
    predicted = getattr(model.pipeline.scheduler, "config", {}).get("prediction_type")
    return load_text_model(dataclasses.replace(config, **own, prediction=predicted if single else None))[0]


def _classes(config: EvaluatePatchConfig, made: Any) -> ClassSubject:
    require(config.questions is None, "--questions are of models of words, and this one has classes")
    names = tuple(str(name) for name in made.get("forget", ()))
    shared = _shared(config, EraseClassConfig)
    if not config.class_names:
        shared["class_names"] = tuple(made.get("class_names", ()))
        shared["null_class"] = made.get("null_class") if config.null_class is None else config.null_class
    settings = EraseClassConfig(**{**shared, "forget": names})
    model = load_model(settings)
    if not model.conditional and not model.names:
        model = dataclasses.replace(model, names=names)
    forget = tuple(dict.fromkeys(model.class_index(name) for name in names))
    kept = tuple(row for row in range(len(model.names)) if row not in forget)
    return classes_of(model, ClassPlan(model, forget, kept, "auto", None), settings)


def _concepts(config: EvaluatePatchConfig, path: Path | None = None, made: Any = None) -> ConceptSubject:
    """What a patch at ``path`` was made for, or what the settings say that was erased."""
    pipeline, source = load_text_model(config)
    vocabulary = read_vocabulary(source)
    words = {"concept": config.forget} if path is None else _words(path, made, vocabulary)
    settings = EraseConceptConfig(**{**_shared(config, EraseConceptConfig), **words})
    found, kept = plan_words(settings, vocabulary, erased=path is not None)
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
    saved = saved if isinstance(saved, dict) else {}
    erased = saved.get("concept")
    if isinstance(erased, list) and different(map(str, erased)) == list(made["concept"]):
        hints = get_type_hints(EraseConceptConfig)
        given = {name: saved[name] for name in WORDS if saved.get(name) is not None}
        return {name: checked_value(str(run), name, hints[name], value) for name, value in given.items()}
    concept, anchors = tuple(made["concept"]), made.get("anchor") or []
    found: dict[str, Any] = {"concept": concept, "anchor": anchors[0] if len(anchors) == len(concept) == 1 else None}
    if vocabulary is None or any(vocabulary.subject(name) is None for name in concept):
        prompts = made.get("prompts", ())
        found["forget_prompts"] = tuple(p for p in prompts if any(contains(p, bare(name)) for name in concept))
    return found
