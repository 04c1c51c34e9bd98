"""Before, applied, after: the only place where an edit is put on a model to be measured."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol

import torch

from semu_diffusion.domains.questions import Question, conditions
from semu_diffusion.errors import Notice
from semu_diffusion.eval.guards import blank, collapse
from semu_diffusion.eval.metrics import load_metrics
from semu_diffusion.eval.metrics.paired import side_effects
from semu_diffusion.eval.pictures import Tried
from semu_diffusion.eval.probes.probe import Probe
from semu_diffusion.eval.results import Cost, Evaluation, Revival, Scores, SideEffects
from semu_diffusion.eval.scorer import NO_CONDITION, NOTHING, Progress, Samples, Scorer
from semu_diffusion.models.base import DiffusionModel

__all__ = ["Edit", "Evaluated", "evaluate"]

ProbeSamples = dict[str, dict[str, torch.Tensor]]  # by probe and erased name


class Edit(Protocol):
    """What an erasure leaves: inside ``applied(model)`` the model that the context gives is erased."""

    def applied(self, model: DiffusionModel) -> AbstractContextManager[DiffusionModel]: ...


class Evaluated(NamedTuple):
    """The numbers, the samples before and after by condition, and what the probes made, where both models were tried."""

    evaluation: Evaluation
    before: Samples
    after: Samples
    tried: tuple[Tried, ...]


def evaluate(
    scorer: Scorer,
    model: DiffusionModel,
    edit: Edit,
    probes: Sequence[Probe] = (),
    progress: Progress | None = None,
    known: Mapping[str, torch.Tensor] = NOTHING,
    revived: Mapping[str, Mapping[str, Revival]] | None = None,
) -> Evaluated:
    """Score ``model`` as it is and with ``edit`` applied, from the same seeds.

    ``known``: samples of the original that were made already; ``revived``: what the probes brought back from it. Size of the
    patch, LoRA check and cost are for the caller to add. The model is as before on return.
    """
    start = time.perf_counter()
    early = NOTHING
    if scorer.sampling.interval_width is not None:
        with edit.applied(model) as edited:
            scorer, early = scorer.narrowed(edited, progress)
    before = scorer.sample(model, progress, "sampling before", known)
    if all(map(blank, before.values())):
        warnings.warn(
            "the original itself draws pictures of one colour, so that no number says anything of the erasure: look at "
            "before_after.png (half precision that overflows, another scheduler than the model's?)",
            Notice,
            stacklevel=2,
        )
    made: tuple[ProbeSamples, ProbeSamples] = ({}, {})
    found = _probed(probes, model, progress, made[0]) if revived is None else revived
    beside = made[1] if made[0] else None  # what nothing is shown beside need not be held
    first = scorer.score(before).with_probes(found)
    with edit.applied(model) as edited:
        after = scorer.sample(edited, progress, "sampling after", early)
        last: Scores = scorer.score(after).with_probes(_probed(probes, edited, progress, beside))
    kept, forgotten = scorer.kept(before), conditions(scorer.questions, "forget")
    metrics = {**load_metrics("pairs", model.device), **scorer.asked}

    def pairs(names: Sequence[str]) -> SideEffects | None:
        old, new = ({name: samples[name] for name in names if name in samples} for samples in (before, after))
        return side_effects(old, new, metrics) if old else None

    evaluation = Evaluation(
        kind=scorer.kind,
        erased=scorer.erased,
        protocol=scorer.protocol(model),
        before=first,
        after=last,
        distances=scorer.distances(before, after),
        side_effects=pairs(kept),
        held_out_effect=pairs(conditions(scorer.questions, "kept_held_out")),
        forget_effect=pairs(forgotten),
        unprompted_effect=pairs([NO_CONDITION]),
        collapsed=collapse(before, after, kept, (first, last)),
        cost=Cost({"evaluate": time.perf_counter() - start}),
    )
    return Evaluated(evaluation, before, after, _tried(scorer, probes, *made))


def _probed(
    probes: Sequence[Probe], model: DiffusionModel, progress: Progress | None, made: ProbeSamples | None
) -> dict[str, dict[str, Revival]]:
    return {
        probe.name: probe.run(model, progress, None if made is None else made.setdefault(probe.name, {})) for probe in probes
    }


def _tried(scorer: Scorer, probes: Sequence[Probe], before: ProbeSamples, after: ProbeSamples) -> tuple[Tried, ...]:
    """What the probes made of each erased name, by both models."""
    kinds = {str(q.answer): q.kind for q in scorer.questions["forget"]}
    found = []
    for probe in probes:
        old, new = before.get(probe.name, {}), after.get(probe.name, {})
        for name in [name for name in old if name in new and name in kinds]:
            count = min(len(old[name]), len(new[name]), len(probe.how.seeds))
            seeds = probe.how.seeds[:count] if probe.seeded else None
            question = Question(f"{probe.name}: {name}", kinds[name], name)
            found.append(Tried(probe.name, question, old[name][:count], new[name][:count], seeds))
    return tuple(found)
