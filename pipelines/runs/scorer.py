"""The scorer and the probes of a run, from its settings. Everything that can be missing is missed here, by InputError."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from semu_diffusion.assets import Kind
from semu_diffusion.errors import InputError
from semu_diffusion.eval.judges.class_mapping import read_mapping, shared_out
from semu_diffusion.eval.judges.clip import load_clip
from semu_diffusion.eval.judges.judge import Judge, load_judge
from semu_diffusion.eval.metrics import METRICS
from semu_diffusion.eval.metrics.fid import load_fid_extractor
from semu_diffusion.eval.probes import PROBES
from semu_diffusion.eval.probes.probe import Probe, Sampled
from semu_diffusion.eval.scorer import Progress, Reference, Sampling, Scorer
from semu_diffusion.names.words import match_names
from semu_diffusion.pipelines.data.images import load_images, to_stderr
from semu_diffusion.pipelines.runs.config import DEFAULTS, EvaluationConfig
from semu_diffusion.pipelines.runs.domains import Subject
from semu_diffusion.pipelines.runs.probe_images import ProbeImages, Recall

__all__ = ["make_probes", "make_scorer", "probe_settings"]

# Images without a condition if nobody says, in units of those of one condition: a class has one condition, a concept many.
UNCONDITIONAL = {"class": 1, "concept": 10}
PROBE_STEPS = 20  # DDIM steps of a probe's samples


def make_scorer(subject: Subject) -> Scorer:
    """The questions of the subject, the judges and measures that its settings ask for."""
    config, model = subject.config, subject.model
    model.check_steps(config.sampling_steps)
    judges = _judges(subject, config, model.device)
    fetch = config.inception_weights == "download"
    if config.interval_width is not None and not judges:
        raise InputError("--interval-width needs a judge, whose shares have intervals")
    extractor = load_fid_extractor(
        None if fetch else config.inception_weights,
        judges.get("object") or next(iter(judges.values()), None),
        download=fetch,
        device=model.device,
    )
    if config.fid_reference is not None and extractor is None:
        raise InputError("--fid-reference needs features to compare: a --classifier, or --inception-weights")
    scorer = Scorer(
        kind=subject.kind,
        erased=subject.erased,
        questions=subject.questions,
        sampling=Sampling(
            images=config.images_per_condition,
            unconditional=config.unconditional_samples or _few(config, subject.kind) * UNCONDITIONAL[subject.kind],
            steps=config.sampling_steps,
            guidance_scale=config.guidance_scale,
            seed=config.seed,
            precision=config.sampling_precision,
            batch_size=config.eval_batch_size,
            interval_width=config.interval_width,
        ),
        judges=judges,
        extractor=extractor,
        reference=None if config.fid_reference is None else _reference(subject, config.fid_reference),
        clip=None if config.clip_score is None else load_clip(config.clip_score, model.device),
        sentence=subject.sentence,
        asked={} if config.dino is None else {"dino": METRICS["dino"].load(config.dino, model.device)},
    )
    probe_settings(subject, scorer)  # a probe that is none is said now
    return scorer


def _few(config: EvaluationConfig, kind: Kind) -> int:
    """Images of a condition; where an interval decides how many there are, those of a first run."""
    return int(DEFAULTS[kind]["images_per_condition"] if config.interval_width else config.images_per_condition or 0)


def make_probes(
    subject: Subject,
    scorer: Scorer,
    images: torch.Tensor | None = None,
    progress: Progress | None = None,
    recall: Recall = lambda _, make: make(),
) -> tuple[Probe, ...]:
    """The probes that the settings ask for and the model can be tried with; () without a judge.

    They are shown ``images`` (N, C, H, W) in [-1, 1] of what was erased, which the erasure must not have seen, or those that
    the original makes from seeds of their own. ``recall(name, make)`` may know what ``make()`` would give.
    """
    settings = probe_settings(subject, scorer)
    if not settings:
        return ()
    needs = frozenset[str]().union(*(PROBES[name].needs for name in settings))
    source = ProbeImages(subject, scorer, images, progress, recall, Sampled(**_sampled(subject.config)))
    shown = [source.shown(name, kind, needs) for name, kind in _asked(scorer)]
    spoken = tuple(one for one in shown if one.conditions and subject.learned_sentence(one.conditions[0]) is not None)
    return tuple(PROBES[name](spoken if PROBES[name].learns else tuple(shown), how) for name, how in settings.items())


def probe_settings(subject: Subject, scorer: Scorer) -> dict[str, Any]:
    """How each probe that is asked for and that the model can be tried with samples and learns; {} without a judge."""
    config = subject.config
    if not scorer.judges:
        return {}
    cheap = [name for name, probe in PROBES.items() if not probe.learns]
    unknown = [name for name in config.probes if name not in (*cheap, "all", "none")]
    if unknown:
        raise InputError(f"--probes {unknown[0]}: unknown; there are {', '.join(cheap)}, all, none")
    asked = cheap if "all" in config.probes else [name for name in cheap if name in config.probes]
    return {
        name: dataclasses.replace(probe.default, **_sampled(config))
        for name, probe in PROBES.items()
        if (config.revival if probe.learns else name in asked) and probe.applies(subject.model)
    }


def _sampled(config: EvaluationConfig) -> dict[str, Any]:
    """The settings of `Sampled`, the same for every probe."""
    return {
        "samples": config.probe_samples,
        "sampling_steps": min(PROBE_STEPS, config.sampling_steps or PROBE_STEPS),
        "guidance_scale": config.guidance_scale,
        "seed": config.seed * 1_000_003 % 2**30,  # runs of neighbouring seeds share no noise, as with `Sampling.seeds`
        "precision": config.sampling_precision,
    }


def _judges(subject: Subject, config: EvaluationConfig, device: torch.device) -> dict[str, Judge]:
    if config.classifier == "none":
        return {}
    wanted = subject.judges
    if config.classifier != "auto":
        kinds = {question.kind for question in subject.questions["forget"]}
        wanted = {"style" if "style" in kinds else "object": config.classifier}
    names = {kind: subject.class_names(kind) for kind in wanted}
    listed = {} if config.class_mapping is None else read_mapping(config.class_mapping)
    mappings = shared_out(listed, names)
    return {kind: load_judge(name, names[kind], device, mappings[kind]) for kind, name in wanted.items()}


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
