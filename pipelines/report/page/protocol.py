"""What was done and how it was measured, in words."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from semu_diffusion.eval.pictures import OF_PROBE, ROOM, UNSURE, WORST
from semu_diffusion.eval.results import Evaluation, Network
from semu_diffusion.files import public_name
from semu_diffusion.pipelines.report.page.numbers import probes_by_strength, title_of
from semu_diffusion.pipelines.report.page.run import Run
from semu_diffusion.pipelines.report.words import percent

__all__ = ["costs", "environment", "headline", "paragraphs", "replay", "settings"]

NAMED = (
    "seed", "sampler", "steps", "guidance_scale", "images_per_condition", "unconditional_samples", "conditions", "judges",
    "metrics",
)  # fmt: skip


def headline(run: Run) -> str:
    """What was erased from what, and what became of it, in one sentence."""
    evaluation, after = run.evaluation, run.evaluation.after
    said = f"{_quoted(evaluation.erased)} was taken out of {run.base}"
    count = after.samples.get("forget")
    if after.forget_accuracy is None or not count:
        if after.unconditional_share is None:
            return f"{said}; no judge looked at the samples."
        old, made = evaluation.before.unconditional_share, evaluation.protocol.unconditional_samples
        was = "" if old is None else f" ({percent(old)} before)"
        return f"{said}: the judge sees it in {percent(after.unconditional_share)} of {made} samples{was}."
    seen, old = round(after.forget_accuracy * count), evaluation.before.forget_accuracy
    was = "" if old is None else f" ({percent(old)} before)"
    now = [name for shares in after.judged_as.values() for name in list(shares)[:1] if name not in evaluation.erased]
    most = f", and most often calls them {_listed(now)}" if now and seen < count / 2 else ""
    return f"{said}: of {count} samples that ask for it by name, the judge still sees it in {seen}{was}{most}."


def paragraphs(evaluation: Evaluation) -> Iterator[str]:
    """The protocol of the numbers, a paragraph for each thing."""
    p = evaluation.protocol
    asked = ", ".join(f"{len(names)} {title_of(group)}" for group, names in p.conditions.items() if names)
    yield (
        f"The original and the patched model were each sampled {p.images_per_condition} times for every condition ({asked}), "
        f"by {p.sampler} in {p.steps} steps at guidance scale {p.guidance_scale:g}, and {p.unconditional_samples} times "
        "without one, at guidance scale 1. Sample i of a condition starts from the same noise before and after; its seed "
        f"comes from the condition's letters and the run's seed {p.seed}, so that neither the batch nor the other conditions "
        "decide it."
    )
    for kind, judge in p.judges.items():
        yield f"What a sample shows is what {judge.name} calls it ({kind}s; weights {judge.sha256[:12]}), rounded to 8 bits."
    if p.judges:
        yield (
            "Intervals are Wilson's at 95 %, those of several prompts clustered by prompt; of a fall, Newcombe's for pairs. "
            "An accuracy is the mean over its conditions. Unlearning accuracy is 1 minus the share in which what was erased "
            "is still seen."
        )
    for probe in probes_by_strength(evaluation):
        same = "" if probe.before is None else " The same was done to the original."
        yield f"To bring it back, {probe.name}, {probe.samples} samples; {probe.how}.{same}"
    if evaluation.side_effects is not None:
        yield "Paired metrics compare the two pictures of one seed: MSE of images in [-1, 1], SSIM and LPIPS of [0, 1]."
    for name, network in p.metrics.items():
        yield f"{name.upper()} of pairs is measured by {network.name} (weights {network.sha256[:12]})."
    yield (
        f"Shown are the first pictures of every group (some {ROOM}; of what a probe brought back {OF_PROBE}), and up to "
        f"{WORST} (of a probe {OF_PROBE}) more of each kind that is worth a look: "
        "still seen, no longer recognised, changed most, judge unsure (its greatest share below "
        f"{percent(UNSURE)}). Counts are of all samples."
    )
    for field in dataclasses.fields(p):  # what a later version measures by is said by its own name
        value = getattr(p, field.name)
        if field.name not in NAMED and value not in (None, {}, ()):
            yield f"{field.name.replace('_', ' ')}: {value.name if isinstance(value, Network) else value}."


def replay(run: Run) -> str | None:
    """The command that makes the run again; None for an edit that was only scored here."""
    if run.made is not run.record or {"patch", "lora", "edited"} & run.record.keys():
        return None
    program = "erase-class" if run.evaluation.kind == "class" else "erase-concept"
    return shlex.join([program, "--config", "run.json", "--output", f"../{run.folder.name}-again"])


def settings(run: Run) -> list[tuple[str, str]]:
    """Every setting of the run, as a person writes it, without folders of this machine."""
    return [
        (name.replace("_", " "), _value(value, (Path(), *run.folder.resolve().parents)))
        for name, value in run.record.get("config", {}).items()
        if value not in (None, [], "")
    ]


def environment(run: Run) -> list[tuple[str, str]]:
    """Versions, device and commit."""
    record = run.record
    found = [(name, record.get(name)) for name in ("git_commit", "device", "threads", "precision", "python")]
    found += list((record.get("packages") or {}).items())
    return [(name.replace("_", " "), str(value)) for name, value in found if value is not None]


def costs(evaluation: Evaluation) -> list[tuple[str, str]]:
    """Seconds by stage, memory, size."""
    found = [(stage, f"{seconds:,.0f} s") for stage, seconds in evaluation.cost.seconds.items() if seconds is not None]
    if evaluation.cost.passes:
        found.append(("image passes of the erasure", f"{sum(evaluation.cost.passes.values()):,}"))
    if evaluation.cost.peak_memory_bytes:
        found.append(("peak memory", f"{evaluation.cost.peak_memory_bytes / 1e9:.1f} GB"))
    return found


def _quoted(names: tuple[str, ...]) -> str:
    return _listed([f"“{name}”" for name in names])


def _listed(names: list[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _value(value: Any, places: tuple[Path, ...]) -> str:
    return ", ".join(public_name(str(one), places) for one in (value if isinstance(value, list | tuple) else [value]))
