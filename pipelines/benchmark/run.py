"""Erase one thing after the other with each method, the same seeds for all; every row is kept as soon as it is measured."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from semu_diffusion import distributed
from semu_diffusion.domains.config import ClassErasureConfig, ConceptErasureConfig
from semu_diffusion.erasure import Diverged
from semu_diffusion.errors import InputError
from semu_diffusion.eval.evaluate import evaluate
from semu_diffusion.eval.judges.networks import state_digest
from semu_diffusion.eval.scorer import Scorer
from semu_diffusion.peers.methods import METHODS, Method, read_methods
from semu_diffusion.pipelines.benchmark.cache import Cache, digest_of
from semu_diffusion.pipelines.benchmark.config import BenchmarkConfig
from semu_diffusion.pipelines.benchmark.rows import FILES, Row, Rows
from semu_diffusion.pipelines.benchmark.subjects import Subjects, subjects_of
from semu_diffusion.pipelines.benchmark.tuning import tuning_of
from semu_diffusion.pipelines.cli.progress import Progress
from semu_diffusion.pipelines.report.data import page_files
from semu_diffusion.pipelines.report.expected import missed
from semu_diffusion.pipelines.report.front import Axes, axes_of
from semu_diffusion.pipelines.report.results import write_page
from semu_diffusion.pipelines.runs.domains import Subject
from semu_diffusion.pipelines.runs.erase import metered_task, spent
from semu_diffusion.pipelines.runs.ownership import held
from semu_diffusion.pipelines.runs.provenance import environment
from semu_diffusion.pipelines.runs.quiet import quiet_libraries
from semu_diffusion.pipelines.runs.scorer import make_probes, make_scorer, probe_settings

__all__ = ["run"]


def run(config: BenchmarkConfig) -> int:
    """Measure what is missing and write the page; 0, or 1 if a method diverged or misses what it is known to reach."""
    page, *_ = page_files(config.output)
    axes = None if config.axes is None else axes_of(config.axes)
    if config.merge:
        sections = write_page(page, [Path(folder) for folder in config.merge], axes=axes)
        print(f"{config.output} shows the rows of {', '.join(config.merge)}")
        return 1 if _said([line for found in sections for line in missed(METHODS.values(), found)]) else 0
    quiet_libraries()
    place: Path | None = page
    work, share = Path(config.work).expanduser(), config.share
    if share is not None:  # the page is for whoever has the rows of all
        place, work = None, work / f"shard-{share[0]}-of-{share[1]}"
    distributed.join()  # for a GPU of its own
    with held(work), distributed.apart():
        return _run(config, place, work, share or (1, 1), axes)


def _run(config: BenchmarkConfig, page: Path | None, work: Path, share: tuple[int, int], axes: Axes | None) -> int:
    subjects = subjects_of(config)
    methods = _methods(config, subjects)
    erased = [subjects.checked(name) for name in config.erase or subjects.names]
    others = [subjects.checked(name) for name in config.others] or erased
    known = {**METHODS, **{method.name: method for method in methods}}
    pairs = [(method, name) for method in methods for name in erased if name in others or method.name == "default"]
    jobs = [(method, name, int(seed)) for seed in config.seeds for method, name in pairs][share[0] - 1 :: share[1]]
    tuning = tuning_of(subjects, erased)
    first = subjects.load(subjects.settings(erased[0]))
    protocol = _protocol(first, subjects)
    rows = Rows(work / FILES[subjects.domain], protocol if tuning is None else {**protocol, "tuning": tuning.protocol()})
    weights = digest_of(first.model)
    diverged: list[str] = []
    with Progress() as progress:
        if tuning is not None:
            lean = dataclasses.replace(subjects, config=dataclasses.replace(config, revival=False, probes=("none",)))

            def measure(method: Method, name: str, seed: int) -> Row:
                return _measure(method, name, seed, lean, weights, progress)

            best = tuning.tuned(methods, work, protocol, measure, progress.note)
            jobs = [(best[methods.index(method)], name, seed) for method, name, seed in jobs]
        for number, (method, name, seed) in enumerate(jobs, 1):
            if rows.has(method.name, name, seed, method.overrides):
                continue
            progress.note(f"[{number}/{len(jobs)}] {method.name}: {name}, seed {seed}")
            try:
                rows.add(_measure(method, name, seed, subjects, weights, progress))
            except KeyboardInterrupt as stop:
                progress.close()
                kept = f"{rows.path} keeps {len(rows)} rows; the same command goes on from there."
                stop.args = (kept if len(rows) else "Nothing was measured yet.",)
                raise
            except (Diverged, FloatingPointError) as error:
                diverged.append(f"{method.name} of {name}: {error}")
                progress.note(f"no row for {diverged[-1]}")
            if page is not None:
                write_page(page, [work], known, axes)
    if page is None:
        print(f"{rows.path} holds {len(rows)} rows; semu benchmark --merge {config.work} writes the page of all shards")
    else:
        write_page(page, [work], known, axes)
        print(f"{page} holds {len(rows)} rows")
    below = _said(missed(methods, rows.found) if page is not None else ())  # known of all rows, not of a shard's
    _said(f"no row for {one}" for one in diverged)
    return 1 if (diverged and page is not None) or below else 0  # of a launch one code would end the other shards


def _methods(config: BenchmarkConfig, subjects: Subjects) -> list[Method]:
    """The methods that were asked for; InputError for one that is not there, or not for this kind of model."""
    found: dict[str, Method] = {}
    for word in config.methods:
        if word == "all":
            found |= {name: method for name, method in METHODS.items() if subjects.domain in method.domains}
        elif word.endswith(".json"):
            found |= read_methods(word)
        elif word in METHODS:
            found[word] = METHODS[word]
        else:
            raise InputError(f"--methods {word}: unknown; there are {', '.join(METHODS)}, all, or a .json file")
    for method in found.values():
        if subjects.domain not in method.domains:
            raise InputError(f"--methods {method.name}: is not a method for {subjects.domain} models")
        subjects.settings(subjects.names[0], method)  # a setting that is none is said now
    return list(found.values())


def _protocol(subject: Subject, subjects: Subjects) -> dict[str, Any]:
    """What all rows share: rows of another model, other judges or other defaults are not continued."""
    scorer = make_scorer(subject)
    if not scorer.judges:
        raise InputError("the benchmark needs a judge: --classifier none makes no table")
    protocol = dataclasses.asdict(scorer.protocol(subject.model))
    kind = ClassErasureConfig if subjects.domain == "class" else ConceptErasureConfig
    defaults = {field.name: field.default for field in dataclasses.fields(kind) if field.name not in ("forget", "concept")}
    return {
        **{name: value for name, value in protocol.items() if name not in ("conditions", "seed") and value not in ({}, None)},
        "model": subjects.config.model,
        "weights": state_digest(subject.model.denoiser.state_dict())[:16],
        "probes": _probes(subject, scorer),
        "defaults": defaults,
    }


def _probes(subject: Subject, scorer: Scorer) -> dict[str, dict[str, Any]]:
    """The settings of the probes, but for the seed, which each row has for itself."""
    settings = {name: dataclasses.asdict(how) for name, how in probe_settings(subject, scorer).items()}
    return {name: {key: value for key, value in how.items() if key != "seed"} for name, how in settings.items()}


def _measure(method: Method, name: str, seed: int, subjects: Subjects, weights: str, progress: Progress) -> Row:
    """One row. A condition has the same seeds in every row of a seed, so what the original gives is made once and cached."""
    subject = subjects.load(subjects.settings(name, method, seed))
    scorer, model, config = make_scorer(subject), subject.model, subjects.config
    cache = Cache.of(Path(config.cache or Path(config.work) / "original").expanduser(), weights, scorer, model)
    task, preparing = metered_task(subject, progress.show, None)
    result = method.erase(task, subject.config, progress.show)
    probes = make_probes(subject, scorer, None, progress.show, cache.recall)
    judges = [judge.sha256 for judge in scorer.judges.values()]
    asked = f"probes of {name} {_probes(subject, scorer)} {judges}"
    evaluation, before, *_ = evaluate(
        scorer, model, result.edit, probes, progress.show, cache.samples(scorer), cache.probed(asked) if probes else None
    )
    cache.keep_samples(scorer, before)
    if probes:
        cache.keep_probed(asked, evaluation.before.probes)
    cost = spent(preparing, result)
    evaluation = dataclasses.replace(evaluation, cost=dataclasses.replace(evaluation.cost, passes=cost.passes))
    total = sum(parameter.numel() for parameter in model.denoiser.parameters())
    where = environment(model.device)
    return {
        "method": method.name,
        "title": method.title,
        "erased": name,
        "seed": seed,
        "kind": subjects.kind(name),
        "replaced_by": subject.anchors(task, result),
        "evaluation": evaluation.to_json(),
        "trained_fraction": result.edit.trained_parameters / total,
        "bytes": result.edit.nbytes,
        "seconds": cost.seconds,
        "settings": dict(method.overrides),
        **{key: where[key] for key in ("git_commit", "packages", "threads", "device", "platform") if key in where},
    }


def _said(lines: Iterable[str]) -> bool:
    """Print the lines as the command's; False if there are none."""
    said = list(lines)
    for line in said:
        print(f"semu benchmark: {line}", file=sys.stderr)
    return bool(said)
