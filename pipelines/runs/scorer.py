"""The scorer and the probes of a run, from its settings. Everything that can be missing is missed here, by InputError."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from semu_diffusion.domains.words import match_names
from semu_diffusion.erase.phases import image_seeds
from semu_diffusion.erase.samples import self_made
from semu_diffusion.errors import InputError
from semu_diffusion.eval.judges.clip import load_clip
from semu_diffusion.eval.judges.judge import Judge, load_judge
from semu_diffusion.eval.metrics.fid import load_fid_extractor
from semu_diffusion.eval.probes import PROBES
from semu_diffusion.eval.probes.revival import Learning, Probe, Shown
from semu_diffusion.eval.scorer import Progress, Reference, Sampling, Scorer
from semu_diffusion.pipelines.data.images import load_images, to_stderr
from semu_diffusion.pipelines.runs.config import EvaluationConfig
from semu_diffusion.pipelines.runs.domains import Subject

__all__ = ["make_probes", "make_scorer", "probe_settings"]

# Images without a condition, in units of those of one condition: a class has one condition, a concept many.
UNCONDITIONAL = {"class": 1, "concept": 10}
SHOWN_IMAGES = 64  # that a probe learns from


def make_scorer(subject: Subject) -> Scorer:
    """The questions of the subject, the judges and measures that its settings ask for."""
    config, model = subject.config, subject.model
    model.check_steps(config.sampling_steps)
    judges = _judges(subject, config, model.device)
    fetch = config.inception_weights == "download"
    extractor = load_fid_extractor(
        None if fetch else config.inception_weights,
        judges.get("object") or next(iter(judges.values()), None),
        download=fetch,
        device=model.device,
    )
    if config.fid_reference is not None and extractor is None:
        raise InputError("--fid-reference needs features to compare: a --classifier, or --inception-weights")
    return Scorer(
        kind=subject.kind,
        erased=subject.erased,
        questions=subject.questions,
        sampling=Sampling(
            images=config.images_per_condition,
            unconditional=config.images_per_condition * UNCONDITIONAL[subject.kind],
            steps=config.sampling_steps,
            guidance_scale=config.guidance_scale,
            seed=config.seed,
            precision=config.sampling_precision,
            batch_size=config.eval_batch_size,
        ),
        judges=judges,
        extractor=extractor,
        reference=None if config.fid_reference is None else _reference(subject, config.fid_reference),
        clip=None if config.clip_score is None else load_clip(config.clip_score, model.device),
        sentence=subject.sentence,
    )


def make_probes(
    subject: Subject, scorer: Scorer, images: torch.Tensor | None = None, progress: Progress | None = None
) -> tuple[Probe, ...]:
    """The probes that the model can be tried with, shown ``images`` (N, C, H, W) in [-1, 1] of what was erased, or those that
    the original makes; () without a judge or if revival is not asked for."""
    learnings = probe_settings(subject, scorer)
    if not learnings:
        return ()
    shown = [_shown(subject, scorer, name, kind, images, progress) for name, kind in _asked(scorer)]
    return tuple(PROBES[name](tuple(one for one in shown if one is not None), how) for name, how in learnings.items())


def probe_settings(subject: Subject, scorer: Scorer) -> dict[str, Learning]:
    """How each probe that the model can be tried with learns; {} without a judge or if revival is not asked for."""
    config = subject.config
    if not config.revival or not scorer.judges:
        return {}
    return {
        name: dataclasses.replace(
            probe.default,
            sampling_steps=config.sampling_steps,
            guidance_scale=config.guidance_scale,
            seed=config.seed,
            precision=config.sampling_precision,
        )
        for name, probe in PROBES.items()
        if probe.applies(subject.model)
    }


def _judges(subject: Subject, config: EvaluationConfig, device: torch.device) -> dict[str, Judge]:
    if config.classifier == "none":
        return {}
    wanted = subject.judges
    if config.classifier != "auto":
        kinds = {question.kind for question in subject.questions["forget"]}
        wanted = {"style" if "style" in kinds else "object": config.classifier}
    mapping = config.class_mapping
    return {kind: load_judge(name, subject.class_names(kind), device, mapping) for kind, name in wanted.items()}


def _reference(subject: Subject, source: str) -> Reference:
    """The data set's images of the kept classes; where no class is kept, of everything that is not erased."""
    data = load_images(source, "train")
    if data.image_shape != subject.model.image_shape:
        raise InputError(f"--fid-reference {source}: images {data.image_shape}, the model makes {subject.model.image_shape}")
    groups = (subject.questions.get(group, ()) for group in ("in_domain", "cross_domain"))
    kept = dict.fromkeys(str(q.answer) for group in groups for q in group if q.kind == "object" and q.answer is not None)
    places = match_names(list(kept), data.class_names)
    missing = [name for name, place in zip(kept, places, strict=True) if place is None]
    if missing:
        raise InputError(f"--fid-reference {source} has no class {', '.join(missing)}: FID would compare different things")
    other = [place for place, erased in enumerate(match_names(data.class_names, subject.erased)) if erased is None]
    wanted = [place for place in places if place is not None] or other or list(range(len(data.class_names)))
    names = [data.class_names[place] for place in wanted]
    images = data.images[torch.isin(data.labels, torch.tensor(wanted))]
    if len(images) < 2:
        raise InputError(f"--fid-reference {source} has {len(images)} images of the kept classes: FID needs two and more")
    to_stderr(data.found)
    place = Path(source).expanduser()
    told = place.name if place.exists() else source  # a path tells of a machine, not of the data
    return Reference(images, f"{told} (training images of {', '.join(names)})")


def _asked(scorer: Scorer) -> list[tuple[str, str]]:
    """(answer, kind) of what was erased and has a judge."""
    asked = ((str(q.answer), q.kind) for q in scorer.questions["forget"] if q.kind in scorer.judges and q.answer is not None)
    return list(dict.fromkeys(asked))


def _shown(
    subject: Subject, scorer: Scorer, name: str, kind: str, images: torch.Tensor | None, progress: Progress | None
) -> Shown | None:
    """What a probe learns ``name`` from; None if no condition names it exactly once."""
    config, model = subject.config, subject.model
    asked = [q.condition for q in scorer.questions["forget"] if (q.answer, q.kind) == (name, kind)]
    pairs = [(c, sentence) for c in asked if (sentence := subject.learned_sentence(c)) is not None]
    if not pairs:
        return None
    count = SHOWN_IMAGES if images is None else len(images)
    chosen = [pairs[index % len(pairs)] for index in range(count)]
    sentences = tuple(sentence for _, sentence in chosen if sentence)
    if images is not None:
        return Shown(name, scorer.judges[kind], model.encode(images), sentences, str(config.forget_images))
    spoken = [condition for condition, _ in chosen]
    seeds = image_seeds(spoken, config.seed, "probe")
    rows = [model.row(condition) for condition in spoken]
    made = self_made(
        model, rows, seeds, config.guidance_scale, config.sampling_precision, progress, "probe images", config.sampling_steps
    )
    return Shown(name, scorer.judges[kind], made.images, sentences)
